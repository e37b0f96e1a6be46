//! The process beside the one that serves pages: it ends the machines when that one dies, since they would stand still for
//! good, and it keeps the working set, so that who talks to machines needs no file.
//!
//! ```text
//! guard  <--pidfd of each machine, recorded pages--  server  <--faults--  machines
//!   |  dies: the server kills the machines and ends
//!   '--- the server dies: the guard kills the machines and ends
//! ```
//! SIGTERM to the guard is how a pager is stopped: it lets go of the server.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::host::fork::{self, Terminations};
use crate::host::passing;
use crate::host::peer::PeerProcess;
use crate::host::process::Exit;
use crate::host::{confine, files};

use super::PagerError;

/// The longest message.
const MESSAGE: usize = 8;
/// What a message begins with.
const WATCH: u8 = b'M';
const KEEP: u8 = b'W';

/// The server's end.
#[derive(Debug)]
pub(super) struct Guard {
    socket: OwnedFd,
}

impl Guard {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Has a machine killed when this process dies.
    pub(super) fn watch(&self, process: &PeerProcess) -> io::Result<()> {
        let mut message = vec![WATCH];
        message.extend(process.pid.to_ne_bytes());
        passing::send(&self.socket, &message, process.as_fd())
    }

    /// Has the content of a file in memory kept as the working set.
    pub(super) fn keep(&self, content: &File) -> io::Result<()> {
        passing::send(&self.socket, &[KEEP], content.as_fd())
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the guard knows.
struct Watch {
    socket: OwnedFd,
    machines: Vec<PeerProcess>,
    working_set: Option<PathBuf>,
    /// The most that is read of what is to be kept.
    length_max: u64,
}

/// Guards a server until it has ended.
///
/// # Errors
/// It did not end by itself.
pub(super) fn guard(
    server: &PeerProcess,
    socket: OwnedFd,
    working_set: Option<PathBuf>,
    length_max: u64,
) -> Result<(), PagerError> {
    let failed = PagerError::Guard;
    let terminations = Terminations::new().map_err(failed)?;
    let directory = working_set.as_deref().and_then(|path| path.parent());
    confine::confine(confine::Role::Guard(directory))?;
    let mut watch = Watch {
        socket,
        machines: Vec::new(),
        working_set,
        length_max,
    };
    let mut told = false;
    loop {
        let mut descriptors = vec![server.as_fd(), terminations.as_fd()];
        // A server that was told to end says nothing more.
        if !told {
            descriptors.push(watch.socket.as_fd());
        }
        let fixed = descriptors.len();
        descriptors.extend(watch.machines.iter().map(AsFd::as_fd));
        let ready = fork::wait_for_any(&descriptors, None).map_err(failed)?;
        let is_over = ready[0];
        let ended: Vec<bool> = ready[fixed..].to_vec();
        let mut index = 0..;
        watch
            .machines
            .retain(|_| !ended[index.next().unwrap_or_default()]);
        if ready[1] && !told {
            told = true;
            tracing::info!("told to end");
            passing::hang_up(&watch.socket).map_err(failed)?;
        }
        if !told || is_over {
            watch.receive();
        }
        if is_over {
            return watch.end(fork::reap(server).map_err(failed)?);
        }
    }
}

impl Watch {
    /// Takes what the server has said so far.
    fn receive(&mut self) {
        let mut message = [0; MESSAGE];
        while let Ok(Some(received)) = passing::receive(&self.socket, &mut message) {
            let Some(descriptor) = received.descriptors.into_iter().next() else {
                return;
            };
            match message[..received.bytes] {
                [WATCH, ref pid @ ..] => {
                    let pid = pid.try_into().map_or(0, i32::from_ne_bytes);
                    self.machines.push(PeerProcess::of(pid, descriptor));
                }
                [KEEP] => self.keep(File::from(descriptor)),
                _ => {}
            }
        }
    }

    fn keep(&self, mut content: File) {
        let Some(path) = &self.working_set else {
            return;
        };
        let mut bytes = Vec::new();
        let kept = content
            .rewind()
            .and_then(|()| content.take(self.length_max).read_to_end(&mut bytes))
            .and_then(|_| files::write_atomic(path, &bytes, files::PRIVATE));
        match kept {
            Ok(()) => tracing::info!(path = %path.display(), bytes = bytes.len(), "the working set is kept"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "the working set cannot be kept"),
        }
    }

    fn end(&self, exit: Exit) -> Result<(), PagerError> {
        let mut killed = Vec::new();
        for machine in &self.machines {
            match machine.kill() {
                Ok(()) => killed.push(machine.pid),
                Err(error) => tracing::error!(pid = machine.pid, %error, "cannot kill a machine"),
            }
        }
        match exit {
            Exit::Code(0) => Ok(()),
            exit => Err(PagerError::Died { exit, killed }),
        }
    }
}
