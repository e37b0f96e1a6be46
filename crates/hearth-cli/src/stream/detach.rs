//! The keys that leave a process running: ctrl-p ctrl-q, unless others were asked for.

use crate::resolve::Keys;

/// Looks for the keys in what is typed. Those that may be the beginning are held back until the next shows what they meant.
#[derive(Debug)]
pub(super) struct DetachKeys {
    keys: Keys,
    /// How many of them have been typed.
    matched: usize,
}

impl DetachKeys {
    /// Looks for these.
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, matched: 0 }
    }

    /// Appends to `out` what goes to the machine; true when the person leaves, and what follows the keys is dropped.
    pub(super) fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        let keys = self.keys.bytes();
        for &key in typed {
            if keys.get(self.matched) != Some(&key) {
                out.extend_from_slice(&keys[..self.matched]);
                self.matched = 0;
            }
            if keys.get(self.matched) == Some(&key) {
                self.matched += 1;
            } else {
                out.push(key);
            }
            if self.matched > 0 && self.matched == keys.len() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed_with(keys: Option<&str>, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (DetachKeys::new(Keys::of(keys).unwrap()), Vec::new());
        let left = pieces.iter().any(|piece| keys.filter(piece, &mut out));
        (out, left)
    }

    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        typed_with(None, pieces)
    }

    #[test]
    fn the_keys_leave_wherever_they_are_cut() {
        assert_eq!(typed(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
        assert_eq!(typed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    }

    #[test]
    fn other_keys_pass_in_order() {
        assert_eq!(typed(&[b"a\x11\x10b"]), (b"a\x11\x10b".to_vec(), false));
        assert_eq!(typed(&[b"\x10", b"x\x10"]), (b"\x10x".to_vec(), false));
    }

    #[test]
    fn other_keys_may_be_asked_for_and_none() {
        assert_eq!(
            typed_with(Some("ctrl-a,d"), &[b"\x10\x11\x01", b"d"]),
            (b"\x10\x11".to_vec(), true)
        );
        assert_eq!(typed_with(Some("x"), &[b"ax"]), (b"a".to_vec(), true));
        assert_eq!(
            typed_with(Some(""), &[b"\x10\x11"]),
            (b"\x10\x11".to_vec(), false)
        );
    }
}
