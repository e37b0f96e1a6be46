//! What a workload with a terminal has printed while nobody was attached: the next one to attach sees it first.

use std::collections::VecDeque;

use bytes::Bytes;

/// What is kept, in bytes: the newest, several screens full.
const KEPT: usize = 64 * 1024;

/// Output that nobody has seen; of workloads without a terminal nothing is kept, as in docker: `logs` has it.
#[derive(Debug)]
pub(super) struct Missed {
    terminal: bool,
    bytes: VecDeque<u8>,
}

impl Missed {
    /// Keeps nothing yet.
    pub(super) fn new(terminal: bool) -> Self {
        Self {
            terminal,
            bytes: VecDeque::new(),
        }
    }

    /// Takes note of what nobody has seen.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        if self.terminal {
            self.bytes.extend(&bytes[bytes.len().saturating_sub(KEPT)..]);
            self.bytes.drain(..self.bytes.len().saturating_sub(KEPT));
        }
    }

    /// Returns it, for somebody who sees it now.
    pub(super) fn take(&mut self) -> Bytes {
        Bytes::from(Vec::from(std::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_kept_once_and_only_of_a_terminal() {
        let mut missed = Missed::new(true);
        missed.keep(&[1; KEPT]);
        missed.keep(&[2; 100]);
        let kept = missed.take();
        assert_eq!((kept.len(), kept[0], kept[KEPT - 1]), (KEPT, 1, 2));
        assert_eq!(kept.iter().filter(|&&byte| byte == 2).count(), 100);
        missed.keep(&[3; 2 * KEPT]);
        assert_eq!((missed.take().len(), missed.take().len()), (KEPT, 0));
        let mut none = Missed::new(false);
        none.keep(b"x");
        assert!(none.take().is_empty());
    }
}
