//! The cases of the driver suite about what a balloon takes and gives.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode};

use crate::firecracker::{Case, Guest, Often, exec_in, start, through};
use crate::support::until;

/// The cases.
pub(crate) const CASES: [Case; 1] = [("balloon in and out", balloon, Often::Always)];

/// Sends a machine's Firecracker a request, as the node does, and returns the answer's first line.
fn patch(node: &TestNode, id: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(node.location().run.join("m").join(id).join("api"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "PATCH {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// Reads how much memory of a machine's monitor is in the host's, in KiB.
fn resident(node: &TestNode, name: &str) -> Result<u64> {
    let pid = node.inspect(name)?.state.pid.context("it has no monitor")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.context("a process without memory")?;
    Ok(words.trim().trim_end_matches(" kB").parse()?)
}

/// Returns how much memory of the bare guest is nobody's.
fn free_bytes(node: &TestNode, name: &str) -> Result<String> {
    let status = exec_in(node, name, &["status"])?;
    let line = status.lines().find_map(|line| line.strip_prefix("pages_free="));
    let pages: u64 = line.context("no count of pages")?.parse()?;
    Ok((pages * 4096).to_string())
}

/// Memory that a balloon takes is the host's again, and comes back as zeros.
fn balloon(node: &TestNode, guest: &Guest) -> Result<()> {
    const BALLOON_MIB: u32 = 48;
    start(node, "booted", guest)?;
    let all = free_bytes(node, "booted")?;
    let (fill, check) = (["fill", &all, "3", "4096"], ["check", &all, "3", "4096"]);
    exec_in(node, "booted", &fill)?;
    let name = "booted";
    let id = node.inspect(name)?.id;
    let pages = |wanted: u32| {
        let wanted = format!("balloon_pages={}\n", wanted * 256);
        until(&format!("{name}: {wanted}"), || {
            Ok(format!("{}\n", exec_in(node, name, &["status"])?).contains(&wanted))
        })
    };
    let inflate = |mib: u32| {
        let answer = patch(node, &id, "/balloon", &format!("{{\"amount_mib\":{mib}}}"))?;
        ensure!(answer.contains("204"), "{name}: {answer}");
        pages(mib)
    };
    let before = resident(node, name)?;
    inflate(BALLOON_MIB)?;
    let less = before.saturating_sub(resident(node, name)?);
    ensure!(
        less >= u64::from(BALLOON_MIB) * 1024 * 9 / 10,
        "{name}: {BALLOON_MIB} MiB went into the balloon, and the host has {less} KiB more"
    );
    inflate(0)?;
    exec_in(node, name, &fill)?;
    ensure!(exec_in(node, name, &check)?.contains("wrong_words=0"));
    through(node, name, guest, b"breathes")?;
    Ok(())
}
