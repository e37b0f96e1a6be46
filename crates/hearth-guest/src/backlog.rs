//! What the workload printed and no host keeps yet: it is sent again when a host is followed by another.
//!
//! ```text
//! all that was printed:   kept by a host |from   sent to this host   |next   to be sent again   |end
//! ```
//! A host that is killed takes along what it had read and not written down, and the channel drops what is under way while
//! nobody reads. So bytes stay here until the host grants them anew. The session's credit bounds them to one window.

use std::collections::VecDeque;

use hearth_guest_protocol::Flags;

/// Bytes with their place among all that the workload printed.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    bytes: VecDeque<u8>,
    /// How `bytes` is divided: marks and length, in order; none is empty.
    pieces: VecDeque<(Flags, usize)>,
    /// The number of the first byte.
    from: u64,
    /// What of `bytes` this connection has been sent.
    sent: usize,
}

impl Backlog {
    /// Takes bytes that are being sent, behind all others.
    pub(crate) fn push(&mut self, flags: Flags, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.sent = self.bytes.len();
        match self.pieces.back_mut() {
            Some((last, length)) if *last == flags => *length += bytes.len(),
            _ if bytes.is_empty() => {}
            _ => self.pieces.push_back((flags, bytes.len())),
        }
    }

    /// Takes note that a host keeps so many bytes more.
    pub(crate) fn kept(&mut self, count: usize) {
        let count = count.min(self.sent);
        self.forget(count);
        self.sent -= count;
    }

    /// Begins anew for a host that keeps the first `received` bytes; returns how many wait for it.
    pub(crate) fn resume(&mut self, received: u64) -> usize {
        let behind = received.saturating_sub(self.from);
        let count = usize::try_from(behind)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        self.forget(count);
        self.sent = 0;
        self.bytes.len()
    }

    /// Tells whether something is to be sent again.
    pub(crate) fn is_behind(&self) -> bool {
        self.sent < self.bytes.len()
    }

    /// Copies the next bytes of one stream into `space`; returns their marks and their number.
    pub(crate) fn send_again(&mut self, space: &mut [u8]) -> (Flags, usize) {
        let mut begin = 0;
        let piece = self.pieces.iter().find(|(_, length)| {
            begin += length;
            begin > self.sent
        });
        let Some(&(flags, _)) = piece else {
            return (Flags::NONE, 0);
        };
        let count = space.len().min(begin - self.sent);
        let bytes = self.bytes.range(self.sent..self.sent + count);
        space.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        self.sent += count;
        (flags, count)
    }

    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.from += count as u64;
        let mut left = count;
        while let Some((_, length)) = self.pieces.front_mut() {
            if *length > left {
                *length -= left;
                return;
            }
            left -= *length;
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_again(backlog: &mut Backlog) -> Vec<(Flags, Vec<u8>)> {
        let mut sent = Vec::new();
        while backlog.is_behind() {
            let mut space = [0; 4];
            let (flags, count) = backlog.send_again(&mut space);
            sent.push((flags, space[..count].to_vec()));
        }
        sent
    }

    #[test]
    fn what_no_host_keeps_is_sent_again_in_order_and_nothing_else() {
        let mut backlog = Backlog::default();
        backlog.push(Flags::NONE, b"abcdef");
        backlog.push(Flags::STDERR, b"ERR");
        backlog.push(Flags::NONE, b"gh");
        assert!(!backlog.is_behind());
        backlog.kept(2);
        // The host that follows found one byte more in the log than was granted.
        assert_eq!(backlog.resume(3), 8);
        let expected = [
            (Flags::NONE, b"def".to_vec()),
            (Flags::STDERR, b"ERR".to_vec()),
            (Flags::NONE, b"gh".to_vec()),
        ];
        assert_eq!(all_again(&mut backlog), expected);
        backlog.kept(8);
        backlog.push(Flags::NONE, b"i");
        assert_eq!(backlog.resume(11), 1);
        assert_eq!(all_again(&mut backlog), [(Flags::NONE, b"i".to_vec())]);
    }

    #[test]
    fn a_host_that_claims_too_little_or_too_much_gets_what_there_is() {
        let mut backlog = Backlog::default();
        backlog.push(Flags::NONE, b"abc");
        backlog.kept(1);
        assert_eq!(backlog.resume(0), 2);
        assert_eq!(backlog.resume(u64::MAX), 0);
        assert!(!backlog.is_behind());
        backlog.push(Flags::NONE, b"d");
        assert_eq!(backlog.resume(3), 1);
    }
}
