//! Processes that connect to a Unix socket: who they are, what they send, and their end. Nothing here waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::passing::{self, Received};

/// A connection, with its other end's process.
#[derive(Debug)]
pub struct Peer {
    socket: OwnedFd,
    /// The user that the other end runs as.
    pub uid: u32,
    /// The other end's process.
    pub process: PeerProcess,
}

/// A process, by pidfd.
#[derive(Debug)]
pub struct PeerProcess {
    /// Its number, for words only.
    pub pid: i32,
    pidfd: OwnedFd,
}

/// Takes the next connection of a listening socket; `None` when nobody waits, or who waited has gone.
///
/// # Errors
/// Returns the kernel's.
pub fn accept(listener: &OwnedFd) -> io::Result<Option<Peer>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = match rustix::net::accept_with(listener, flags) {
        Ok(socket) => socket,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let credentials = rustix::net::sockopt::socket_peercred(&socket)?;
    let process = match rustix::process::pidfd_open(credentials.pid, PidfdFlags::empty()) {
        Ok(pidfd) => PeerProcess {
            pid: credentials.pid.as_raw_nonzero().get(),
            pidfd,
        },
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Whoever holds the other end still is the process of that number: had it ended before the pidfd was opened, so
    // that another one had the number by then, the connection would be closed.
    if has_hung_up(&socket)? {
        return Ok(None);
    }
    Ok(Some(Peer {
        socket,
        uid: credentials.uid.as_raw(),
        process,
    }))
}

/// Whether the process lives that has begun to listen where `socket` is connected. After its end, its listener may be another's for a
/// moment: a child's that is about to execute a program.
///
/// # Errors
/// Returns the kernel's.
pub fn listener_lives(socket: impl AsFd) -> io::Result<bool> {
    let listener = rustix::net::sockopt::socket_peercred(socket)?;
    match rustix::process::pidfd_open(listener.pid, PidfdFlags::empty()) {
        Ok(process) => Ok(!has_ended(&process)?),
        Err(Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn has_ended(process: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&rustix::event::Timespec::default()))? > 0)
}

fn has_hung_up(socket: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut polled, Some(&rustix::event::Timespec::default()))?;
    Ok(polled[0].revents().contains(PollFlags::HUP))
}

impl Peer {
    /// Receives what is there; `None` when there is nothing yet.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        passing::receive(&self.socket, buffer)
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl PeerProcess {
    /// Watches a process that somebody else named by a pidfd.
    pub fn of(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Opens the process of a number that is known to be its own still, such as a child's that was not waited for.
    ///
    /// # Errors
    /// There is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        let pidfd = rustix::process::pidfd_open(number, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// Sends SIGKILL. A process that is already gone is what was asked for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }
}

impl AsFd for PeerProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
