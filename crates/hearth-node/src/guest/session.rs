//! One session: a process, a file transfer or a connection in the guest.

use std::sync::Arc;

use bytes::Bytes;
use hearth_guest_protocol::message::{self, Failure, Outcome, TerminalSize};
use hearth_guest_protocol::{Flags, Header, Kind, MAX_PAYLOAD, datagram};

use super::activity::Work;
use super::channel::{Guest, RequestError};
use super::inbox::{End, Grant, Inbox};

/// Which of a process's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, a terminal, a file, a connection.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a session tells its owner.
#[derive(Debug, Clone)]
pub enum SessionEvent {
    /// It runs, or is open; comes first. The pid is the guest's, 0 for what is no process.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// Bytes.
    Output(Stream, Bytes),
    /// One of the outputs has ended.
    OutputEnded(Stream),
    /// The process ended; nothing follows.
    Ended(Outcome),
    /// It could not be, or be carried on; nothing follows.
    Failed(Failure),
    /// The connection to the guest broke; nothing follows.
    ChannelLost,
}

impl From<End> for SessionEvent {
    fn from(end: End) -> Self {
        match end {
            End::Outcome(outcome) => Self::Ended(outcome),
            End::Failure(failure) => Self::Failed(failure),
            End::ChannelLost => Self::ChannelLost,
        }
    }
}

/// The owner's end of a session. Dropping it tells the guest that nobody is interested any more.
#[derive(Debug)]
pub struct Session {
    input: Input,
    /// A grant for bytes that the owner has and may not have put away yet.
    owed: Option<Grant>,
    /// Keeps the guest from being idle.
    work: Option<Work>,
}

/// The sending side of a session; cloned freely.
#[derive(Debug, Clone)]
pub struct Input {
    guest: Guest,
    id: u32,
    inbox: Arc<Inbox>,
}

impl Session {
    pub(super) fn new(guest: Guest, id: u32, inbox: Arc<Inbox>) -> Self {
        Self {
            input: Input { guest, id, inbox },
            owed: None,
            work: None,
        }
    }

    /// Counts as work as long as the session is open.
    pub(super) fn working(mut self) -> Self {
        self.work = self.input.guest.work();
        self
    }

    /// Returns the sending side.
    pub fn input(&self) -> Input {
        self.input.clone()
    }

    /// Lets go of what runs in the session: it goes on, and what it prints is dropped.
    ///
    /// # Errors
    /// Returns [`RequestError::OlderAgent`] when the guest cannot do that; then it is killed, as by a drop.
    pub fn let_go(self) -> Result<(), RequestError> {
        self.input.guest.detach(self.input.id)
    }

    /// Ends it in good order: a connection is closed, where a drop resets it.
    pub fn finish(self) {
        self.input.guest.part(self.input.id);
    }

    /// Waits for what comes next. Bytes count as consumed with the call behind the one that returned them: until then the
    /// guest keeps those of the workload, should this node die. After the last event it repeats that.
    ///
    /// Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> SessionEvent {
        if let Some(grant) = self.owed.take()
            && grant.connection == self.input.inbox.connection()
        {
            self.input.guest.grant(self.input.id, grant.bytes);
        }
        let (event, grant) = self.input.inbox.next().await;
        self.owed = grant;
        if matches!(event, SessionEvent::Output(..)) {
            self.input.guest.touch();
        }
        event
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.input.guest.close(self.input.id);
    }
}

impl Input {
    /// Sends bytes to the session's input; waits for the guest's credit. Returns false when the session is over.
    pub async fn send(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let Some((allowed, connection)) = self.inbox.spend(bytes.len().min(MAX_PAYLOAD)).await else {
                return false;
            };
            self.guest.touch();
            let (now, later) = bytes.split_at(allowed);
            let mut frame = Vec::new();
            Header::new(Kind::Stdin, self.id).write(now, &mut frame);
            // Credit of a connection that was renewed meanwhile buys nothing on the next one.
            let is_due = || self.inbox.connection() == connection;
            if self.guest.send_if(frame, is_due).await {
                bytes = later;
            } else if is_due() {
                return false;
            }
        }
        true
    }

    /// Sends a datagram, whole; waits for the guest's credit. Returns false when the session is over, or it is too long to be one.
    pub async fn send_datagram(&self, bytes: &[u8]) -> bool {
        let Some(prefix) = datagram::prefix(bytes.len()) else {
            return false;
        };
        let payload = [&prefix, bytes].concat();
        if self.inbox.spend_all(payload.len()).await.is_none() {
            return false;
        }
        self.guest.touch();
        self.frame(Header::new(Kind::Stdin, self.id), &payload).await
    }

    /// Says that the session's input has ended.
    pub async fn end(&self) {
        self.frame(Header::marked(Kind::Stdin, self.id, Flags::END), &[])
            .await;
    }

    /// Tells the session's terminal its size.
    pub async fn resize(&self, size: TerminalSize) {
        self.message(Kind::Resize, &size).await;
    }

    /// Sends the session's process a signal.
    pub async fn signal(&self, number: u8) {
        self.message(Kind::Signal, &message::Signal { number }).await;
    }

    async fn message(&self, kind: Kind, message: &impl serde::Serialize) {
        let mut frame = Vec::new();
        if message::encode(kind, self.id, message, &mut frame).is_ok() {
            self.guest.send(frame).await;
        }
    }

    async fn frame(&self, header: Header, payload: &[u8]) -> bool {
        let mut frame = Vec::new();
        header.write(payload, &mut frame);
        self.guest.send(frame).await
    }
}
