//! The keys that leave a machine running: ctrl-p ctrl-q.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for the keys in what is typed. A ctrl-p is held back until the next key shows what it meant.
#[derive(Debug, Default)]
pub(super) struct DetachKeys {
    held: bool,
}

impl DetachKeys {
    /// Appends to `out` what goes to the machine; true when the person leaves, and what follows the keys is dropped.
    pub(super) fn filter(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &key in typed {
            match (self.held, key) {
                (true, CTRL_Q) => return true,
                (true, CTRL_P) => out.push(CTRL_P),
                (true, _) => {
                    self.held = false;
                    out.extend([CTRL_P, key]);
                }
                (false, CTRL_P) => self.held = true,
                (false, _) => out.push(key),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut keys, mut out) = (DetachKeys::default(), Vec::new());
        let left = pieces.iter().any(|piece| keys.filter(piece, &mut out));
        (out, left)
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
}
