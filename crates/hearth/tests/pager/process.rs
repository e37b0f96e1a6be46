//! A pager of a test: started, asked through its log, ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_firecracker::model::{LoadSnapshot, MemoryBackend, SnapshotKind};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::guest::Guest;
use crate::host::{Host, LONG, MEMORY, STATE, Vmm, clone_of};

/// What a guest fills before its snapshot: a word of each page of 4 MiB.
pub(crate) const FILL: [&str; 4] = ["fill", "4194304", "11", "4096"];
pub(crate) const CHECK: [&str; 4] = ["check", "4194304", "11", "4096"];

/// The name of the socket in a pager's directory.
const SOCKET: &str = "pager.sock";

/// A machine that was saved and stands still.
pub(crate) async fn saved(host: &Host) -> Result<Vmm> {
    let source = host.boot().await?;
    source.settle().await?.run(&FILL).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    Ok(source)
}

/// Returns the number of wrong words of what [`FILL`] has filled.
pub(crate) async fn wrong_words(guest: &mut Guest) -> Result<u64> {
    guest.run(&CHECK).await?.number("wrong_words")
}

/// A pager. Dropped, it is killed, and its machines with it.
#[derive(Debug)]
pub(crate) struct Pager {
    child: Child,
    directory: TempDir,
}

impl Pager {
    /// Starts a pager of a snapshot's memory, with more options.
    pub(crate) async fn start(snapshot: &Path, options: &[&str]) -> Result<Self> {
        let pager = Self::spawn(&snapshot.join(MEMORY), options)?;
        let socket = pager.socket();
        pager.until("a socket", |_| socket.exists()).await?;
        Ok(pager)
    }

    /// Starts a pager, which may not get far.
    pub(crate) fn spawn(image: &Path, options: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hpg-").tempdir()?;
        let child = Command::new(env!("CARGO_BIN_EXE_hearth"))
            .args(["pager", "--image"])
            .arg(image)
            .arg("--socket")
            .arg(directory.path().join(SOCKET))
            .args(options)
            .stdin(Stdio::null())
            .stderr(File::create(directory.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self { child, directory })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Returns what it has said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log says something.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
        let begin = Instant::now();
        while !is_so(&self.log()) {
            ensure!(begin.elapsed() < LONG, "there is never {what}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Waits until it says these words; returns the line.
    pub(crate) async fn says(&self, words: &str) -> Result<String> {
        self.until(words, |log| log.contains(words)).await?;
        let log = self.log();
        let line = log.lines().find(|line| line.contains(words));
        Ok(line.context("the line is there")?.to_owned())
    }

    /// Makes a machine of a snapshot, whose memory comes from here.
    pub(crate) async fn restore(&self, host: &Host, snapshot: &Path) -> Result<Vmm> {
        let vmm = host.start_in(clone_of(snapshot)?).await?;
        vmm.client
            .load_snapshot(&self.load())
            .await
            .with_context(|| self.log())?;
        Ok(vmm)
    }

    /// Returns the request that makes such a machine.
    pub(crate) fn load(&self) -> LoadSnapshot {
        let mut load = LoadSnapshot::of_files(STATE, MEMORY);
        load.memory = MemoryBackend::Uffd(self.socket());
        load
    }

    /// Waits until it has let go of a machine; returns what it did for it.
    pub(crate) async fn counts(&self, pid: u32) -> Result<BTreeMap<String, u64>> {
        let line = self.says(&format!("pid={pid} faults=")).await?;
        let words = line.split_whitespace().filter_map(|word| word.split_once('='));
        Ok(words
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }

    /// Returns the process that serves.
    pub(crate) fn server(&self) -> Result<i32> {
        let pid = self.guard()?;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.trim().parse()?)
    }

    /// Returns the process that was started.
    pub(crate) fn guard(&self) -> Result<i32> {
        Ok(self.child.id().context("the pager has ended")?.try_into()?)
    }

    /// Returns how many descriptors the server has open.
    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.server()?))?.count())
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        match tokio::time::timeout(LONG, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the pager does not end: {}", self.log()),
        }
    }

    /// Sends a signal to one of its processes.
    pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(pid).context("a process")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }
}
