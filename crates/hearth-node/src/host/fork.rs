//! Makes a second process of this one, for helpers that guard each other: fork(2), signalfd(2), memfd_create(2).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};

use super::peer::PeerProcess;
use super::process::Exit;

/// Which of the two this is.
#[derive(Debug)]
pub enum Fork {
    /// The one that was there, with the new one.
    Parent(PeerProcess),
    /// The new one.
    Child,
}

/// Makes a copy of this process, which must have one thread.
///
/// # Errors
/// Returns the kernel's, or that there are more threads.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads is not copied"));
    }
    // SAFETY: there is no other thread, as was just seen, so that no lock is held and nothing is half done in the copy.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        // Nobody has waited for it, so the number is its own.
        pid => PeerProcess::open(pid).map(Fork::Parent),
    }
}

/// Takes the exit status of a child that has ended.
///
/// # Errors
/// It has not ended, or is nobody's child.
pub fn reap(child: &PeerProcess) -> io::Result<Exit> {
    let status = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)?;
    Ok(
        match status.map(|status| (status.exit_status(), status.terminating_signal())) {
            Some((Some(code), _)) => Exit::Code(code),
            Some((None, Some(signal))) => Exit::Signal(signal),
            _ => Exit::Unknown,
        },
    )
}

/// Starts a program that the kernel kills when this process ends, which must have one thread: the kernel counts threads as parents.
///
/// # Errors
/// It cannot be started.
pub fn start_bound(program: &OsStr, arguments: &[OsString]) -> io::Result<PeerProcess> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before that took effect.
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            false => Err(Errno::SRCH.into()),
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    let child = unsafe { command.pre_exec(bind) }.spawn()?;
    // Nobody has waited for it, so the number is its own.
    PeerProcess::open(child.id().cast_signed())
}

/// SIGTERM and SIGINT, as a descriptor: it can be read when one came.
#[derive(Debug)]
pub struct Terminations(OwnedFd);

impl Terminations {
    /// Keeps the two signals from ending this thread.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the set is valid memory that the calls fill; zeros are a valid value before that. signalfd returns a new
        // descriptor that nobody else owns, or -1.
        let descriptor = unsafe {
            let mut signals = std::mem::zeroed();
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, libc::SIGTERM);
            libc::sigaddset(&raw mut signals, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut());
            libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }
}

impl AsFd for Terminations {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of these can be read or has ended; tells which.
///
/// # Errors
/// Returns the kernel's.
pub fn wait_for_any(
    descriptors: &[BorrowedFd<'_>],
    limit: Option<std::time::Duration>,
) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = descriptors
        .iter()
        .map(|descriptor| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
        .collect();
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(&mut polled, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|polled| !polled.revents().is_empty()).collect())
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// There is none of that number, or it is one of the standard three.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < super::launch::FIRST_PASSED_FD {
        return Err(Errno::BADF.into());
    }
    // SAFETY: only borrowed to ask whether it is open; the answer is an error when it is not.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and the caller says that it was left to this process, which has not opened anything yet.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a pipe: what is read of it, and what is written to.
///
/// # Errors
/// When there are too many open files.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC;
    Ok(rustix::pipe::pipe_with(flags)?)
}

/// Makes a file in memory.
///
/// # Errors
/// Returns the kernel's.
pub fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}
