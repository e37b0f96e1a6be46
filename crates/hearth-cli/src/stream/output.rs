//! Standard output and error: in the order that frames came, in big pieces, off the task that reads them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::task::JoinHandle;

use crate::error::CliError;

/// How much is gathered before it is written, in bytes.
const PIECE: usize = 256 * 1024;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Both outputs. While one piece is written by a thread of the runtime, the next is gathered.
#[derive(Debug)]
pub(crate) struct Output {
    target: Target,
    gathered: Vec<u8>,
    spare: Vec<u8>,
    writing: Option<JoinHandle<(Vec<u8>, io::Result<()>)>>,
}

impl Output {
    /// Makes it; nothing is written yet.
    pub(crate) fn new() -> Self {
        Self {
            target: Target::Stdout,
            gathered: Vec::new(),
            spare: Vec::new(),
            writing: None,
        }
    }

    /// Takes bytes, and writes what was gathered when it is enough or for the other target.
    ///
    /// # Errors
    /// Returns [`CliError::Output`] of an earlier piece.
    pub(crate) async fn push(&mut self, target: Target, bytes: &[u8]) -> Result<(), CliError> {
        let full = self.gathered.len() + bytes.len() > PIECE;
        if !self.gathered.is_empty() && (full || target != self.target) {
            self.begin().await?;
        }
        self.target = target;
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Returns when everything taken is written.
    ///
    /// # Errors
    /// Returns [`CliError::Output`].
    pub(crate) async fn flush(&mut self) -> Result<(), CliError> {
        if !self.gathered.is_empty() {
            self.begin().await?;
        }
        self.settle().await
    }

    /// Hands what was gathered to a thread, once the piece before is written.
    async fn begin(&mut self) -> Result<(), CliError> {
        self.settle().await?;
        let piece = std::mem::replace(&mut self.gathered, std::mem::take(&mut self.spare));
        let target = self.target;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let result = write_all(target, &piece);
            (piece, result)
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), CliError> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        let (mut piece, result) = writing
            .await
            .map_err(|join| CliError::Output(io::Error::other(join)))?;
        piece.clear();
        self.spare = piece;
        result.map_err(CliError::Output)
    }
}

/// Writes everything; waits where the descriptor is non-blocking, as a shared terminal may be.
fn write_all(target: Target, bytes: &[u8]) -> io::Result<()> {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let descriptor = match target {
        Target::Stdout => stdout.as_fd(),
        Target::Stderr => stderr.as_fd(),
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(descriptor, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(descriptor)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits as long as whoever reads takes: there is no deadline for a person's pager.
fn wait_writable(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::new(&descriptor, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
