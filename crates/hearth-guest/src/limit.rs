//! The time limit of a session's process: with it end the process and all that it has made, whoever asked for it having died meanwhile
//! or not. They have a cgroup of their own for it, below the workload's: a process can leave its group and its session, and not that.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::console::complain;
use crate::stats::CGROUP;
use crate::timer::Timer;

/// How the cgroups are called, with the session's number behind.
const GROUP: &str = "session-";

/// The time limit of one session.
#[derive(Debug)]
pub(crate) struct TimeLimit {
    after: Duration,
    timer: Timer,
    /// Its directory, opened; none where the kernel has no room for one.
    group: Option<(PathBuf, OwnedFd)>,
    is_over: bool,
}

impl TimeLimit {
    /// Makes a limit for a session whose process is about to be made; the time counts from [`TimeLimit::begin`].
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new(session: u32, after: Duration) -> Result<Self, Errno> {
        sweep();
        let timer = Timer::new()?;
        let path = PathBuf::from(format!("{CGROUP}/{GROUP}{session}"));
        let made = fs::create_dir(&path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let opened = made.and_then(|()| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty())
        });
        if let Err(errno) = &opened {
            complain!("session {session} has no cgroup of its own: {errno}");
        }
        Ok(Self {
            after,
            timer,
            group: opened.ok().map(|directory| (path, directory)),
            is_over: false,
        })
    }

    /// Returns the cgroup that its process is to be made in.
    pub(crate) fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        self.group.as_ref().map(|(_, directory)| directory.as_fd())
    }

    /// Returns what is readable when the time is over.
    pub(crate) fn timer(&self) -> &Timer {
        &self.timer
    }

    /// Lets the time begin.
    pub(crate) fn begin(&self) {
        self.timer.set(self.after);
    }

    /// Takes note that the timer may have ended; tells whether the time is over since now, and then has killed what the cgroup holds.
    pub(crate) fn expire(&mut self) -> bool {
        if self.is_over || !self.timer.take_end() {
            return false;
        }
        self.is_over = true;
        self.kill();
        true
    }

    /// Tells whether the time was over while its process ran.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    fn kill(&self) {
        if let Some((path, _)) = &self.group
            && let Err(error) = fs::write(path.join("cgroup.kill"), "1")
        {
            complain!("cannot kill what is in {}: {error}", path.display());
        }
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        self.kill();
        if let Some((path, _)) = self.group.take() {
            // What was killed just now may still be in it; then the next limit sweeps it.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Removes cgroups in which nothing is left. Those in use refuse it.
fn sweep() {
    for entry in fs::read_dir(CGROUP).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(GROUP) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
