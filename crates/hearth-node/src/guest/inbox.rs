//! What came for one session and was not read yet.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use hearth_guest_protocol::credit::WindowExceeded;
use hearth_guest_protocol::message::{Failure, Outcome};
use hearth_guest_protocol::{Credit, Window};
use tokio::sync::Notify;

use super::session::{SessionEvent, Stream};

/// One session's mailbox, shared by the reader task, who fills it, and the session's owner.
///
/// The mutex guards `State` and is never held across an await: a channel of frames would either let a guest that sends
/// one byte a frame take fifty times a window of memory, or stall the reader.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    /// Something arrived for the receiver.
    arrived: Notify,
    /// Credit arrived for the sender, or the session ended.
    granted: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    /// How `bytes` is divided: stream and length, in order; no length at all is a stream's end.
    pieces: VecDeque<(Stream, u32)>,
    window: Window,
    credit: Credit,
    opened: Option<u32>,
    ended: Option<End>,
    /// Bytes that the owner has taken, over all connections.
    taken: u64,
    /// How often the connection was another one: what was granted on an earlier one counts no more.
    connection: u32,
}

/// Bytes for which the guest has room again, on one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) bytes: u32,
    pub(super) connection: u32,
}

/// How a session ended.
#[derive(Debug, Clone)]
pub(super) enum End {
    Outcome(Outcome),
    Failure(Failure),
    ChannelLost,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves counters and bytes in step: each update is one statement behind its checks.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one whose owner has taken so many bytes already, of an earlier connection.
    pub(super) fn behind(taken: u64) -> Self {
        let inbox = Self::default();
        inbox.lock().taken = taken;
        inbox
    }

    /// Begins anew on another connection, whose windows are full: what was not taken yet comes again. Returns how many bytes were.
    pub(super) fn begin_anew(&self) -> u64 {
        let mut state = self.lock();
        *state = State {
            taken: state.taken,
            connection: state.connection + 1,
            ended: state.ended.take(),
            ..State::default()
        };
        self.granted.notify_one();
        state.taken
    }

    /// Returns how many bytes the owner has taken, over all connections.
    pub(super) fn taken(&self) -> u64 {
        self.lock().taken
    }

    /// Returns which connection it is.
    pub(super) fn connection(&self) -> u32 {
        self.lock().connection
    }

    /// Puts in that a stream has ended.
    pub(super) fn push_end(&self, stream: Stream) {
        self.lock().pieces.push_back((stream, 0));
        self.arrived.notify_one();
    }

    /// Puts in bytes of a stream.
    pub(super) fn push(&self, stream: Stream, payload: &[u8]) -> Result<(), WindowExceeded> {
        let mut state = self.lock();
        state.window.receive(payload.len())?;
        if payload.is_empty() {
            return Ok(());
        }
        state.bytes.extend_from_slice(payload);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        match state.pieces.back_mut() {
            Some((last, total)) if *last == stream && *total > 0 => *total += length,
            _ => state.pieces.push_back((stream, length)),
        }
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    pub(super) fn open(&self, pid: u32) {
        self.lock().opened = Some(pid);
        self.arrived.notify_one();
    }

    pub(super) fn end(&self, end: End) {
        self.lock().ended.get_or_insert(end);
        self.arrived.notify_one();
        self.granted.notify_one();
    }

    pub(super) fn grant(&self, bytes: u32) -> Result<(), WindowExceeded> {
        self.lock().credit.grant(bytes)?;
        self.granted.notify_one();
        Ok(())
    }

    /// Tells whether anything has arrived that was not taken yet.
    pub(super) fn has_any(&self) -> bool {
        let state = self.lock();
        state.opened.is_some() || !state.pieces.is_empty() || state.ended.is_some()
    }

    /// Returns the next event, and a grant that is due to the guest on this connection; waits for one.
    pub(super) async fn next(&self) -> (SessionEvent, Option<Grant>) {
        loop {
            let arrived = self.arrived.notified();
            if let Some(next) = self.take() {
                return next;
            }
            arrived.await;
        }
    }

    fn take(&self) -> Option<(SessionEvent, Option<Grant>)> {
        let mut state = self.lock();
        if let Some(pid) = state.opened.take() {
            return Some((SessionEvent::Started { pid }, None));
        }
        if let Some((stream, length)) = state.pieces.pop_front() {
            if length == 0 {
                return Some((SessionEvent::OutputEnded(stream), None));
            }
            let bytes: Bytes = state.bytes.split_to(length as usize).freeze();
            state.taken += u64::from(length);
            let connection = state.connection;
            let grant = state.window.consume(bytes.len());
            let grant = grant.map(|bytes| Grant { bytes, connection });
            return Some((SessionEvent::Output(stream, bytes), grant));
        }
        state.ended.clone().map(|end| (SessionEvent::from(end), None))
    }

    /// Spends up to `wanted` bytes of input credit; waits until there is some. Returns how many, for which connection; none means
    /// that the session is over.
    pub(super) async fn spend(&self, wanted: usize) -> Option<(usize, u32)> {
        self.spend_between(1, wanted).await
    }

    /// Spends so many bytes of input credit, as [`Inbox::spend`] does; waits until there are as many.
    pub(super) async fn spend_all(&self, wanted: usize) -> Option<(usize, u32)> {
        self.spend_between(wanted, wanted).await
    }

    async fn spend_between(&self, least: usize, wanted: usize) -> Option<(usize, u32)> {
        loop {
            let granted = self.granted.notified();
            {
                let mut state = self.lock();
                if state.ended.is_some() {
                    return None;
                }
                let allowed = state.credit.available().min(wanted);
                if allowed >= least {
                    state.credit.spend(allowed);
                    return Some((allowed, state.connection));
                }
            }
            granted.await;
        }
    }
}
