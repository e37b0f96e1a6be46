//! Processes that the node watches and ends, its children or not: by pidfd, never by a bare number.
//!
//! Called by the drivers in `vmm`. A process is identified by its number *and* the time it started, because numbers are
//! reused: that pair is what goes into a machine's record.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Names one process for good: a number is reused, a number together with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// When it started, in clock ticks since the host booted (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// Looks up the process that has this number now; `None` when nobody has it.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(stat) => match start_time(&stat) {
                Some(start_time) => Ok(Some(Self { pid, start_time })),
                None => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "/proc/PID/stat has an unknown form",
                )),
            },
            // ESRCH comes when the process ends between open and read.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

/// Opens what can be read once a process has ended, and names it until then.
///
/// # Errors
/// There is none of that number.
pub fn handle(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Finds the processes on whose command line these arguments stand, one behind the other.
pub fn with_arguments(arguments: &[&str]) -> Vec<ProcessId> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that ends meanwhile is none.
    pids.filter(|pid| {
        has_arguments(
            &std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default(),
            arguments,
        )
    })
    .filter_map(|pid| ProcessId::of(pid).ok().flatten())
    .collect()
}

fn has_arguments(line: &[u8], arguments: &[&str]) -> bool {
    let words: Vec<_> = line.split(|&byte| byte == 0).collect();
    let is_there = |words: &[&[u8]]| {
        words
            .iter()
            .zip(arguments)
            .all(|(word, wanted)| *word == wanted.as_bytes())
    };
    words.windows(arguments.len()).any(is_there)
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (started at tick {})", self.pid, self.start_time)
    }
}

/// Finds field 22 of `/proc/PID/stat`. The second field is the program's name, which may hold blanks and parentheses, so
/// counting starts behind the last one.
fn start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let behind_name = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    behind_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It is gone; how is not known, because it was not this node's child.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("gone"),
        }
    }
}

/// A process that is watched. Dropping the value leaves the process alone.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
    /// How it ended, kept because the kernel tells it once. Waiters on several tasks share it, so no one task can own it;
    /// it is never held across an await.
    exit: Mutex<Option<Exit>>,
}

impl Process {
    /// Takes over the child behind a pidfd.
    pub(super) fn of_child(pidfd: OwnedFd) -> io::Result<Self> {
        let pid = pid_of(&pidfd)?;
        // A child that has ended is a zombie until it is waited for, so its number is still its own.
        let id = ProcessId::of(pid)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Self::watch(id, pidfd)
    }

    /// Finds a process again, after a restart of the node for example; `None` when it is gone, even if its number is in use.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn find(id: ProcessId) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(id.pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            opened => opened?,
        };
        // Only now does the number stand still: compare after the pidfd is open, not before.
        if ProcessId::of(id.pid)? != Some(id) {
            return Ok(None);
        }
        Self::watch(id, pidfd).map(Some)
    }

    fn watch(id: ProcessId, pidfd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays open, and the same, for as long as the `AsyncFd` owns it.
        let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
        Ok(Self {
            id,
            pidfd: registered.map_err(|error| error.into_parts().1)?,
            exit: Mutex::new(None),
        })
    }

    /// Returns the identity that goes into a record.
    pub const fn id(&self) -> ProcessId {
        self.id
    }

    /// Sends SIGKILL. A process that is already gone is what was asked for.
    ///
    /// # Errors
    /// When the kernel refuses, as it does when the process belongs to somebody else.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Sends SIGTERM. A process that is already gone is what was asked for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn terminate(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Waits until the process has ended, and takes its exit status if it was this node's child. May be called by
    /// several tasks, and again after the end.
    ///
    /// # Errors
    /// When the kernel can no longer watch it.
    pub async fn wait(&self) -> io::Result<Exit> {
        // A pidfd stays readable from the end of the process on.
        self.pidfd.readable().await?.retain_ready();
        self.reap()
    }

    /// Waits like [`Process::wait`], but blocks the thread: for the one place that cannot await, a drop.
    pub(crate) fn wait_blocking(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
        while matches!(
            rustix::process::waitid(id.clone(), options),
            Err(rustix::io::Errno::INTR)
        ) {}
        let _ = self.reap();
    }

    fn reap(&self) -> io::Result<Exit> {
        let mut exit = self
            .exit
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(exit) = *exit {
            return Ok(exit);
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = match rustix::process::waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            // Not a child of this process, or already waited for by another value for the same process.
            Ok(None) | Err(rustix::io::Errno::CHILD) => Exit::Unknown,
            Err(error) => return Err(error.into()),
        };
        *exit = Some(ended);
        Ok(ended)
    }
}

/// Asks the kernel which number a pidfd stands for (`/proc/self/fdinfo`, see pidfd_open(2)).
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    info.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Kills a process unless what it is for goes well, also when that is given up half-way.
#[derive(Debug)]
pub struct KillOnDrop<'a> {
    process: &'a Process,
    armed: bool,
}

impl<'a> KillOnDrop<'a> {
    /// Takes charge of a process.
    pub const fn armed(process: &'a Process) -> Self {
        Self { process, armed: true }
    }

    /// Lets the process live.
    pub fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        // Waiting takes milliseconds, and is rare. An await is not possible here, and a task that does it might be the one that
        // is never joined.
        if self.armed && self.process.kill().is_ok() {
            self.process.wait_blocking();
        }
    }
}
