//! Who is not served.

use std::fs::File;
use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::host::{LONG, MEMORY, MEMORY_MIB, clone_of, skip_without_firecracker};
use crate::process::{Pager, saved, wrong_words};

/// Sends a message, and expects that the connection is closed.
fn refused(pager: &Pager, message: &[u8], descriptor: Option<&File>) -> Result<()> {
    let mut stream = UnixStream::connect(pager.socket())?;
    stream.set_read_timeout(Some(LONG))?;
    match descriptor {
        None => stream.write_all(message)?,
        Some(file) => {
            let descriptors = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            let buffers = [IoSlice::new(message)];
            rustix::net::sendmsg(&stream, &buffers, &mut control, SendFlags::empty())?;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    // A reset is an end as well: the pager may close with our message unread.
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "the pager says nothing to anybody");
    Ok(())
}

#[tokio::test]
async fn what_is_no_machine_is_refused_with_a_reason_and_machines_are_served_on() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let region = br#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]"#;
    let beyond = br#"[{"base_host_virt_addr":4096,"size":4096,"offset":1099511627776,"page_size":4096}]"#;
    refused(&pager, b"GET / HTTP/1.1\r\n\r\n", None)?;
    refused(&pager, region, None)?;
    refused(&pager, region, Some(&File::open("/dev/zero")?))?;
    refused(&pager, beyond, Some(&File::open("/dev/zero")?))?;
    refused(&pager, &b"[ ".repeat(9000), None)?;
    refused(&pager, b"", None)?;
    for reason in [
        "no list of memory regions",
        "it sent 0 descriptors",
        "no userfaultfd",
        "which has 67108864 bytes",
        "before it said what it wants",
    ] {
        pager.says(reason).await?;
    }
    let clone = pager.restore(&host, source.directory.path()).await?;
    assert_eq!(wrong_words(&mut clone.greet().await?).await?, 0);
    clone.end().await?;
    source.end().await
}

#[tokio::test]
async fn a_machine_of_another_user_is_not_served_and_does_not_hang() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let pager = Pager::start(source.directory.path(), &["--peers", "12345-12346"]).await?;
    let mut clone = host.start_in(clone_of(source.directory.path())?).await?;
    clone.client.load_snapshot(&pager.load()).await.unwrap_err();
    clone.ended().await?;
    pager.says("whose machines this pager does not serve").await?;
    source.end().await
}

#[tokio::test]
async fn an_image_that_was_cut_off_is_refused_at_the_start_or_by_its_machines() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let short = source.path("short");
    std::fs::copy(source.path(MEMORY), &short)?;
    File::options()
        .write(true)
        .open(&short)?
        .set_len((MEMORY_MIB << 20) - 4096)?;

    let length = (MEMORY_MIB << 20).to_string();
    let mut pager = Pager::spawn(&short, &["--length", &length])?;
    assert_eq!(pager.ended().await?.code(), Some(125));
    ensure!(
        pager
            .log()
            .contains("has 67104768 bytes, and the snapshot is of 67108864"),
        "{}",
        pager.log()
    );

    std::fs::rename(&short, source.path(MEMORY))?;
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let mut clone = host.start_in(clone_of(source.directory.path())?).await?;
    clone.client.load_snapshot(&pager.load()).await.unwrap_err();
    clone.ended().await?;
    let line = pager
        .says("a machine is killed, since its memory cannot be served")
        .await?;
    ensure!(line.contains("which has 67104768 bytes"), "{line}");
    source.end().await
}
