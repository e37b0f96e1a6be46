//! To the node: input, signals, the window's size.

use std::cell::Cell;
use std::time::Duration;

use hearth_api::stream::{self, HEADER_LEN, Kind, MAX_PAYLOAD};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::detach::DetachKeys;
use super::input::Input;
use super::signals::{Signals, WindowChanges};
use super::{Bypass, Ended};
use crate::error::CliError;
use crate::resolve::{Attachment, SignalsTo};
use crate::terminal;

/// How much may wait behind input that the process does not read, in bytes.
const QUEUE: usize = 4 * MAX_PAYLOAD;

/// How long the node may take to end the stream of a person who leaves.
const FAREWELL: Duration = Duration::from_secs(2);

/// What goes to the node, from where.
#[derive(Debug)]
pub(super) struct Upstream {
    /// Whether there is input, and a terminal.
    pub(super) attachment: Attachment,
    /// Signals to pass on.
    pub(super) signals: Signals,
    /// Changes of the window's size.
    pub(super) windows: WindowChanges,
    /// Another way for signals.
    pub(super) bypass: Option<Bypass>,
}

/// Frames that are not written yet.
#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    written: usize,
}

impl Queue {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        if self.is_empty() {
            self.bytes.clear();
            self.written = 0;
        }
    }

    fn push(&mut self, kind: Kind, payload: &[u8]) {
        if self.bytes.len() + HEADER_LEN + payload.len() <= QUEUE {
            self.bytes.extend(stream::header(kind, payload.len()));
            self.bytes.extend_from_slice(payload);
        }
    }
}

impl Upstream {
    /// Sends until the person leaves; a connection that broke is for the other direction to tell.
    ///
    /// # Errors
    /// Returns [`CliError::Input`].
    pub(super) async fn run(
        mut self,
        mut writer: impl AsyncWrite + Unpin,
        left: &Cell<bool>,
    ) -> Result<Ended, CliError> {
        let raw = self.attachment.stdin && self.attachment.terminal;
        let opened = self.attachment.stdin.then(Input::open);
        let mut input = opened.transpose().map_err(CliError::Input)?;
        let mut keys = raw.then(|| DetachKeys::new(self.attachment.keys));
        let mut queue = Queue::default();
        loop {
            tokio::select! {
                written = writer.write(queue.rest()), if !queue.is_empty() => match written {
                    Ok(count) if count > 0 => queue.wrote(count),
                    _ => return std::future::pending().await,
                },
                signal = self.signals.next() => {
                    if raw || self.attachment.signals == SignalsTo::Here {
                        return Ok(Ended::Interrupted(signal));
                    }
                    self.pass_on(signal, &mut queue).await;
                }
                () = self.windows.next() => {
                    if let Some((rows, columns)) = terminal::size() {
                        queue.push(Kind::Resize, &stream::resize_payload(rows, columns));
                    }
                }
                () = tokio::time::sleep(FAREWELL), if left.get() => return Ok(Ended::Detached),
                piece = next(input.as_mut()), if input.is_some() && queue.is_empty() => {
                    match piece.map_err(CliError::Input)? {
                        Some(piece) if typed(&piece, keys.as_mut(), &mut queue) => {
                            input = None;
                            queue.push(Kind::Detach, b"");
                            left.set(true);
                        }
                        Some(_) => {}
                        None => {
                            input = None;
                            queue.push(Kind::StdinEnd, b"");
                        }
                    }
                }
            }
        }
    }

    /// Sends a signal; past the stream when that is full, as ^C must reach a process that reads nothing.
    async fn pass_on(&self, signal: u8, queue: &mut Queue) {
        match &self.bypass {
            Some(bypass) if !queue.is_empty() => {
                let sent = bypass.client.kill(&bypass.machine, &signal.to_string()).await;
                // A machine that is not up yet, or no longer, gets it behind the input.
                if sent.is_err() {
                    queue.push(Kind::Signal, &[signal]);
                }
            }
            _ => queue.push(Kind::Signal, &[signal]),
        }
    }
}

async fn next(input: Option<&mut Input>) -> std::io::Result<Option<Vec<u8>>> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

/// Queues what was typed; true when the person leaves.
fn typed(bytes: &[u8], keys: Option<&mut DetachKeys>, queue: &mut Queue) -> bool {
    let Some(keys) = keys else {
        queue.push(Kind::Stdin, bytes);
        return false;
    };
    // One byte more than was read: a ctrl-p that was held back.
    let mut passed = Vec::with_capacity(bytes.len() + 1);
    let left = keys.filter(bytes, &mut passed);
    for piece in passed.chunks(MAX_PAYLOAD) {
        queue.push(Kind::Stdin, piece);
    }
    left
}
