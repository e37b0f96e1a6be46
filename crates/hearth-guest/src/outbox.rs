//! What waits for the channel: whole frames, one behind the other, in one buffer.
//!
//! Control frames go in as they arise; data is read from its source straight into the buffer, and only when little is
//! waiting. So a flood of output never stands before an answer with more than one write's worth of bytes, and what is
//! held for a host that does not read is bounded.

use std::collections::{BTreeMap, BTreeSet};

use hearth_guest_protocol::message::encode;
use hearth_guest_protocol::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use serde::Serialize;

use crate::backlog::Backlog;
use crate::port::WRITE_MAX;

/// Frames on their way to the host.
pub(crate) struct Outbox {
    /// Bytes up to `end` are frames; those behind it are leftovers, kept so that they need not be zeroed again.
    buffer: Vec<u8>,
    /// Where the first frame begins that is not wholly sent.
    frame: usize,
    /// The first byte not sent.
    sent: usize,
    end: usize,
    /// The session whose output is kept, and what is kept of it.
    kept: Option<u32>,
    backlog: Backlog,
}

/// What of an earlier connection's frames waits for the next one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Bytes of output, by session.
    pub(crate) data: BTreeMap<u32, usize>,
    /// Sessions whose last frame is among them.
    pub(crate) ended: BTreeSet<u32>,
}

impl Outbox {
    /// The most payload of a data frame: header and payload fit one write.
    pub(crate) const DATA_MAX: usize = WRITE_MAX - HEADER_LEN;

    /// With so many bytes waiting, the agent takes no more frames from the host: their answers would add to them.
    const LIMIT: usize = 4 * MAX_PAYLOAD;

    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; 2 * WRITE_MAX],
            frame: 0,
            sent: 0,
            end: 0,
            kept: None,
            backlog: Backlog::default(),
        }
    }

    /// Keeps the output of this session from here on, until the host keeps it.
    pub(crate) fn keep(&mut self, session: u32) {
        (self.kept, self.backlog) = (Some(session), Backlog::default());
    }

    /// Tells whether something is to be sent again.
    pub(crate) fn is_behind(&self) -> bool {
        self.backlog.is_behind()
    }

    /// Returns what is kept.
    pub(crate) fn backlog(&mut self) -> &mut Backlog {
        &mut self.backlog
    }

    /// Moves one frame's worth of what is to be sent again behind what waits; false when there is nothing.
    pub(crate) fn send_again(&mut self) -> bool {
        let Some(session) = self.kept.filter(|_| self.backlog.is_behind()) else {
            return false;
        };
        self.reserve(HEADER_LEN + Self::DATA_MAX);
        let begin = self.end + HEADER_LEN;
        let space = &mut self.buffer[begin..begin + Self::DATA_MAX];
        let (flags, count) = self.backlog.send_again(space);
        self.seal(Header::marked(Kind::Output, session, flags), count);
        true
    }

    /// Tells whether everything is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.end
    }

    /// Tells whether the host must read before it is listened to.
    pub(crate) fn is_full(&self) -> bool {
        self.end - self.sent > Self::LIMIT
    }

    /// Tells whether a data frame may be added: less than one write is waiting.
    pub(crate) fn has_room(&self) -> bool {
        self.end - self.sent < WRITE_MAX
    }

    /// Adds a message. One that does not fit a frame is dropped: the agent makes none so long.
    pub(crate) fn message<M: Serialize>(&mut self, kind: Kind, session: u32, message: &M) {
        let mut frame = Vec::new();
        if encode(kind, session, message, &mut frame).is_ok() {
            self.reserve(frame.len());
            self.buffer[self.end..self.end + frame.len()].copy_from_slice(&frame);
            self.end += frame.len();
        }
    }

    /// Adds a frame with this payload, at most [`MAX_PAYLOAD`] long.
    pub(crate) fn bytes(&mut self, header: Header, payload: &[u8]) {
        self.space(payload.len()).copy_from_slice(payload);
        self.commit(header, payload.len());
    }

    /// Returns room for the payload of a data frame, to be followed by [`Outbox::commit`].
    pub(crate) fn space(&mut self, length: usize) -> &mut [u8] {
        self.reserve(HEADER_LEN + length);
        let begin = self.end + HEADER_LEN;
        &mut self.buffer[begin..begin + length]
    }

    /// Makes a frame of the first `length` bytes of the room that [`Outbox::space`] gave.
    pub(crate) fn commit(&mut self, header: Header, length: usize) {
        let begin = self.end + HEADER_LEN;
        if header.kind == Kind::Output && self.kept == Some(header.session) && length > 0 {
            self.backlog
                .push(header.flags, &self.buffer[begin..begin + length]);
        }
        self.seal(header, length);
    }

    fn seal(&mut self, header: Header, length: usize) {
        let begin = self.end + HEADER_LEN;
        let head = header.encode(&self.buffer[begin..begin + length]);
        self.buffer[self.end..begin].copy_from_slice(&head);
        self.end = begin + length;
    }

    /// Returns the bytes to send next.
    pub(crate) fn unsent(&self) -> &[u8] {
        let end = self.end.min(self.sent + WRITE_MAX);
        &self.buffer[self.sent..end]
    }

    /// Takes note that `count` bytes of [`Outbox::unsent`] were sent.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.end {
            (self.frame, self.sent, self.end) = (0, 0, 0);
            return;
        }
        while let Some(next) = self.frame_end(self.frame).filter(|&next| next <= self.sent) {
            self.frame = next;
        }
    }

    /// Prepares for a new connection, which has seen nothing of a frame that was cut off: what matters beyond a
    /// connection stays, from the start of its frame on; the rest goes. So does what is kept of a session, for a host that
    /// will say from where on it wants that.
    pub(crate) fn restart(&mut self, resuming: Option<u32>) -> Kept {
        let mut kept = Kept::default();
        let (mut from, mut to) = (self.frame, 0);
        while let Some(next) = self.frame_end(from) {
            let again = self.buffer[from + 4] != Kind::Error as u8 && resuming == Some(self.word(from + 8));
            if self.outlives_connection(from) && !again {
                let session = self.word(from + 8);
                if self.buffer[from + 4] == Kind::Output as u8 {
                    *kept.data.entry(session).or_default() += next - from - HEADER_LEN;
                } else {
                    kept.ended.insert(session);
                }
                self.buffer.copy_within(from..next, to);
                to += next - from;
            }
            from = next;
        }
        (self.frame, self.sent, self.end) = (0, 0, to);
        kept
    }

    /// Puts what was added since the outbox held `behind` bytes before these.
    pub(crate) fn bring_forward(&mut self, behind: usize) {
        self.buffer[..self.end].rotate_left(behind);
    }

    /// Returns the bytes held.
    pub(crate) fn len(&self) -> usize {
        self.end
    }

    /// Output and the end of sessions belong to the session, all else to the connection.
    fn outlives_connection(&self, frame: usize) -> bool {
        const LASTING: [u8; 3] = [Kind::Output as u8, Kind::Result as u8, Kind::Error as u8];
        LASTING.contains(&self.buffer[frame + 4]) && self.word(frame + 8) != hearth_guest_protocol::CONTROL
    }

    fn frame_end(&self, begin: usize) -> Option<usize> {
        let end = (begin < self.end).then(|| begin + HEADER_LEN + self.word(begin + 12) as usize)?;
        (end <= self.end).then_some(end)
    }

    fn word(&self, at: usize) -> u32 {
        let bytes = &self.buffer[at..at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn reserve(&mut self, length: usize) {
        if self.end + length <= self.buffer.len() {
            return;
        }
        self.buffer.copy_within(self.frame..self.end, 0);
        self.sent -= self.frame;
        self.end -= self.frame;
        self.frame = 0;
        if self.end + length > self.buffer.len() {
            self.buffer.resize(self.end + length, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use hearth_guest_protocol::message::CreditGrant;
    use hearth_guest_protocol::{Decoder, Flags};

    use super::*;

    fn sent_by(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        while !outbox.is_empty() {
            let count = outbox.unsent().len().min(step);
            wire.extend_from_slice(&outbox.unsent()[..count]);
            outbox.advance(count);
        }
        wire
    }

    fn frames(wire: &[u8]) -> Vec<(Kind, u32, usize)> {
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for piece in wire.chunks(4096) {
            decoder.space()[..piece.len()].copy_from_slice(piece);
            decoder.filled(piece.len());
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push((frame.header.kind, frame.header.session, frame.payload.len()));
            }
        }
        seen
    }

    #[test]
    fn frames_leave_whole_and_in_order_however_little_each_write_takes() {
        for step in [1, 19, 4096, WRITE_MAX] {
            let mut outbox = Outbox::new();
            outbox.bytes(Header::new(Kind::Pong, 0), b"ping");
            outbox.bytes(Header::new(Kind::Output, 1), &[7; Outbox::DATA_MAX]);
            outbox.message(Kind::Credit, 2, &CreditGrant { bytes: 1 });
            let expected = [
                (Kind::Pong, 0, 4),
                (Kind::Output, 1, Outbox::DATA_MAX),
                (Kind::Credit, 2, 1),
            ];
            assert_eq!(frames(&sent_by(&mut outbox, step)), expected, "{step}");
        }
    }

    #[test]
    fn a_frame_that_was_cut_off_is_sent_whole_to_the_next_connection() {
        let mut outbox = Outbox::new();
        outbox.bytes(Header::new(Kind::Pong, 0), b"old");
        outbox.bytes(Header::new(Kind::Output, 5), &[1; 100]);
        outbox.message(Kind::Credit, 5, &CreditGrant { bytes: 9 });
        outbox.bytes(Header::marked(Kind::Output, 5, Flags::END), b"");
        outbox.advance(HEADER_LEN + 3 + HEADER_LEN + 50);

        let kept = outbox.restart(None);
        let behind = outbox.len();
        outbox.bytes(Header::new(Kind::Hello, 0), b"hello");
        outbox.bring_forward(behind);

        assert_eq!(kept.data, BTreeMap::from([(5, 100)]));
        let expected = [(Kind::Hello, 0, 5), (Kind::Output, 5, 100), (Kind::Output, 5, 0)];
        assert_eq!(frames(&sent_by(&mut outbox, 64)), expected);
    }

    #[test]
    fn the_output_of_a_kept_session_goes_again_to_a_host_that_resumes() {
        let mut outbox = Outbox::new();
        outbox.keep(5);
        outbox.bytes(Header::new(Kind::Output, 5), &[1; 100]);
        outbox.bytes(Header::new(Kind::Output, 6), &[2; 10]);
        outbox.message(Kind::Result, 5, &CreditGrant { bytes: 9 });
        outbox.advance(HEADER_LEN + 50);

        let kept = outbox.restart(Some(5));
        assert_eq!((kept.data, kept.ended.len()), (BTreeMap::from([(6, 10)]), 0));
        assert_eq!(outbox.backlog().resume(30), 70);
        assert!(outbox.send_again() && !outbox.send_again());
        let expected = [(Kind::Output, 6, 10), (Kind::Output, 5, 70)];
        assert_eq!(frames(&sent_by(&mut outbox, 64)), expected);
    }

    #[test]
    fn a_host_that_does_not_read_fills_the_outbox_up_to_its_bound() {
        let mut outbox = Outbox::new();
        let mut answered = 0;
        while !outbox.is_full() {
            outbox.bytes(Header::new(Kind::Pong, 0), &[0; MAX_PAYLOAD]);
            answered += 1;
        }
        assert_eq!(answered, 4);
        assert!(outbox.buffer.len() <= Outbox::LIMIT + HEADER_LEN * 5 + MAX_PAYLOAD);
    }
}
