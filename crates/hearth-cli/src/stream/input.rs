//! Standard input, read by a thread that can be told to end: neither is a read left behind that would swallow what is
//! meant for the shell, nor O_NONBLOCK set for everybody who shares the terminal.

use std::io;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use hearth_api::stream::MAX_PAYLOAD;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Pieces that are read ahead; the rest waits in the pipe, where its writer notices.
const AHEAD: usize = 2;

/// Standard input; dropped, nothing of it is read any more.
#[derive(Debug)]
pub(super) struct Input {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    /// Its closing ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Input {
    /// Begins to read.
    ///
    /// # Errors
    /// Returns the system's error when there is no pipe or thread.
    pub(super) fn open() -> io::Result<Self> {
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (sender, pieces) = mpsc::channel(AHEAD);
        let thread = std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read_pieces(&stopped, &sender))?;
        Ok(Self {
            pieces,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the next piece, at most a frame's payload; `None` at the end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Returns the error of reading.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.pieces.recv().await.transpose()
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.pieces.close();
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            drop(thread.join());
        }
    }
}

fn read_pieces(stopped: &OwnedFd, pieces: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let piece = match read_piece(stopped) {
            Ok(Some(piece)) => Ok(piece),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Waits for input and reads it; `None` at the end, and when nobody wants it any more.
fn read_piece(stopped: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let stdin = io::stdin();
    let mut piece = vec![0; MAX_PAYLOAD];
    loop {
        let mut watched = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        match poll(&mut watched, None) {
            Ok(_) if !watched[1].revents().is_empty() => return Ok(None),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::read(&stdin, &mut piece) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                piece.truncate(count);
                return Ok(Some(piece));
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The terminal is gone, or belongs to another process group for good: there is no more input.
            Err(Errno::IO) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}
