//! Frames on their way to the host.

use alloc::vec::Vec;

use hearth_guest_protocol::message::encode;
use hearth_guest_protocol::{Header, Kind};
use serde::Serialize;

/// Beyond so many bytes, no session adds any.
const FULL: usize = 256 * 1024;

/// Bytes that wait; the first ones may be gone already.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    bytes: Vec<u8>,
    gone: usize,
}

impl Waiting {
    /// Returns what waits.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Returns where more is added.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes note that the first `count` bytes are gone.
    pub(crate) fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.gone == self.bytes.len() {
            self.clear();
        } else if self.gone >= FULL {
            self.bytes.drain(..self.gone);
            self.gone = 0;
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.gone = 0;
    }
}

impl From<Vec<u8>> for Waiting {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, gone: 0 }
    }
}

/// What waits for the stream.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Waiting);

impl Outbox {
    /// Tells whether sessions should wait.
    pub(crate) fn is_full(&self) -> bool {
        self.unsent().len() >= FULL
    }

    /// Adds a message.
    pub(crate) fn message<M: Serialize>(&mut self, kind: Kind, session: u32, message: &M) {
        // The agent's own messages fit a frame.
        let _ = encode(kind, session, message, self.0.end());
    }

    /// Adds a frame of bytes, one frame's worth at most.
    pub(crate) fn bytes(&mut self, header: Header, payload: &[u8]) {
        header.write(payload, self.0.end());
    }

    /// Adds bytes that are no frame.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.end().extend_from_slice(bytes);
    }

    /// Returns what waits.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.0.bytes()
    }

    /// Takes note that the first `count` bytes of it are gone.
    pub(crate) fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
