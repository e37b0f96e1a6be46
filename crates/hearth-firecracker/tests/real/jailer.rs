//! The jailer takes the arguments that this crate makes. Root only: it makes device nodes and changes its user.

use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hearth_firecracker::Client;
use hearth_firecracker::jailer::{Firecracker, Jailer, ResourceLimit};
use hearth_firecracker::model::InstanceState;
use tokio::process::Command;

use crate::host::{LONG, answers, skip_without_firecracker};

/// A user and group that nobody has.
const NOBODY: u32 = 0x7100_0001;

#[tokio::test]
async fn a_jailed_firecracker_has_its_user_its_root_and_its_limits() -> Result<()> {
    let host = skip_without_firecracker!();
    let executable = host.firecracker.with_file_name("jailer");
    if !rustix::process::geteuid().is_root() || !executable.is_file() {
        println!(
            "SKIPPED jailer: not root, or there is no {}",
            executable.display()
        );
        return Ok(());
    }
    let base = tempfile::Builder::new().prefix("hfc-").tempdir()?;
    let jailer = Jailer::new("jailed-1".parse()?, &host.firecracker, NOBODY, NOBODY)?
        .base(base.path())
        .limit(ResourceLimit::OpenFiles(512));
    let mut child = Command::new(executable)
        .args(jailer.arguments(&Firecracker::new("/api.sock")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let client = Client::new(jailer.root().join("api.sock")).within(LONG);
    answers(&client).await?;
    let info = client.instance().await?;
    assert_eq!((&*info.id, info.state), ("jailed-1", InstanceState::NotStarted));

    // The jailer becomes Firecracker, so the process is the one that was started.
    let process = format!("/proc/{}", child.id().context("it has ended")?);
    let status = std::fs::read_to_string(format!("{process}/status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default()
    };
    let nobody = NOBODY.to_string();
    ensure!(
        field("Uid:").split('\t').skip(1).all(|id| id == nobody),
        "{status}"
    );
    ensure!(
        field("Gid:").split('\t').skip(1).all(|id| id == nobody),
        "{status}"
    );
    // Of its threads, the one that reads requests has its filter (2) already; the others get theirs at the start.
    let threads = std::fs::read_dir(format!("{process}/task"))?.flatten();
    let status_of = |path: std::path::PathBuf| std::fs::read_to_string(path.join("status"));
    let api = threads
        .filter_map(|thread| status_of(thread.path()).ok())
        .find(|status| status.starts_with("Name:\tfc_api"));
    ensure!(
        api.is_some_and(|status| status.contains("Seccomp:\t2")),
        "no filter"
    );
    let (seen, made) = (
        std::fs::metadata(format!("{process}/root/"))?,
        std::fs::metadata(jailer.root())?,
    );
    assert_eq!((seen.dev(), seen.ino()), (made.dev(), made.ino()));
    let limits = std::fs::read_to_string(format!("{process}/limits"))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files"));
    ensure!(files.is_some_and(|line| line.contains("512")), "{limits}");

    child.kill().await?;
    ensure!(jailer.directory().is_dir(), "the jail is elsewhere");
    Ok(base.close()?)
}
