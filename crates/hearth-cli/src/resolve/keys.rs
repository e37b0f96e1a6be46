//! `--detach-keys`, as docker writes them: letters, and `ctrl-` with a letter or one of `@ [ \ ] ^ _`, with commas between.

use super::ResolveError;

/// The most keys of a sequence.
const KEYS_MAX: usize = 8;

/// The keys that leave a process running; none at all for nobody who wants to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keys {
    bytes: [u8; KEYS_MAX],
    count: usize,
}

impl Default for Keys {
    /// ctrl-p ctrl-q.
    fn default() -> Self {
        Self {
            bytes: [0x10, 0x11, 0, 0, 0, 0, 0, 0],
            count: 2,
        }
    }
}

impl Keys {
    /// Reads a sequence; without one, it is the default.
    ///
    /// # Errors
    /// Returns [`ResolveError::DetachKeys`].
    pub(crate) fn of(text: Option<&str>) -> Result<Self, ResolveError> {
        let Some(text) = text else {
            return Ok(Self::default());
        };
        let names = text
            .split(',')
            .filter(|name| !text.is_empty() || !name.is_empty());
        let typed: Option<Vec<u8>> = names.map(byte).collect();
        let typed = typed.filter(|typed| typed.len() <= KEYS_MAX);
        let typed = typed.ok_or_else(|| ResolveError::DetachKeys(text.to_owned()))?;
        let mut bytes = [0; KEYS_MAX];
        bytes[..typed.len()].copy_from_slice(&typed);
        Ok(Self {
            bytes,
            count: typed.len(),
        })
    }

    /// Returns what the keys type.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.count]
    }
}

/// Returns what a key types.
fn byte(name: &str) -> Option<u8> {
    match name.strip_prefix("ctrl-") {
        Some(key) => {
            let &[key] = key.to_ascii_uppercase().as_bytes() else {
                return None;
            };
            matches!(key, b'@'..=b'_').then(|| key & 0x1f)
        }
        None => match name.as_bytes() {
            &[key @ 0x21..=0x7e] => Some(key),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_letters_with_or_without_control() {
        let read = |text| Keys::of(text).map(|keys| keys.bytes().to_vec()).ok();
        assert_eq!(read(None), Some(vec![0x10, 0x11]));
        assert_eq!(read(Some("ctrl-a,d")), Some(vec![1, b'd']));
        assert_eq!(read(Some("ctrl-@,ctrl-[,ctrl-_")), Some(vec![0, 0x1b, 0x1f]));
        assert_eq!(read(Some("")), Some(vec![]));
        for text in ["ctrl-", "ctrl-1", "ab", "a,,b", "a,b,c,d,e,f,g,h,i", "ü"] {
            assert_eq!(read(Some(text)), None, "{text}");
        }
    }
}
