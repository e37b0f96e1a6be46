//! Bytes between a thread that blocks and the event loop: a bounded queue of big pieces.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

/// Bytes in a piece.
pub(crate) const PIECE: usize = 256 * 1024;

/// Pieces in the queue.
const DEPTH: usize = 4;

/// Makes a queue.
pub(crate) fn channel() -> (mpsc::Sender<io::Result<Bytes>>, mpsc::Receiver<io::Result<Bytes>>) {
    mpsc::channel(DEPTH)
}

/// Writes into the queue, from a thread.
pub(crate) struct PieceWriter {
    gathered: Vec<u8>,
    queue: mpsc::Sender<io::Result<Bytes>>,
}

impl PieceWriter {
    /// Makes it.
    pub(crate) fn new(queue: mpsc::Sender<io::Result<Bytes>>) -> Self {
        Self {
            gathered: Vec::with_capacity(PIECE),
            queue,
        }
    }

    /// Tells the other side that the rest is missing, so that it does not take a part for the whole.
    pub(crate) fn abort(&mut self) {
        drop(self.queue.blocking_send(Err(io::ErrorKind::UnexpectedEof.into())));
    }
}

impl Write for PieceWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.gathered, Vec::with_capacity(PIECE));
        let sent = self.queue.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads from the queue, in a thread.
pub(crate) struct PieceReader {
    current: Bytes,
    queue: mpsc::Receiver<io::Result<Bytes>>,
}

impl PieceReader {
    /// Makes it.
    pub(crate) fn new(queue: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self {
            current: Bytes::new(),
            queue,
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
