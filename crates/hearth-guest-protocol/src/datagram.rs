//! Datagrams in a session: each is a length (u16, little endian) and so many bytes, whole in one frame of [`crate::Kind::Stdin`] or
//! [`crate::Kind::Output`], of which a frame may have several. Both count as bytes of the session, so an empty one costs credit, too.

/// The most bytes of a datagram: what UDP takes over IPv4.
pub const DATAGRAM_MAX: usize = 65_507;

/// The bytes before each datagram.
pub const PREFIX_LEN: usize = 2;

/// Returns what goes before a datagram of so many bytes; `None` for one that is too long.
pub fn prefix(length: usize) -> Option<[u8; PREFIX_LEN]> {
    let length = u16::try_from(length).ok()?;
    (usize::from(length) <= DATAGRAM_MAX).then(|| length.to_le_bytes())
}

/// Returns the datagrams of a frame. What is cut off at its end is none.
pub fn datagrams(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    core::iter::from_fn(move || {
        let (prefix, behind) = bytes.split_first_chunk::<PREFIX_LEN>()?;
        let (datagram, rest) = behind.split_at_checked(usize::from(u16::from_le_bytes(*prefix)))?;
        bytes = rest;
        Some(datagram)
    })
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn datagrams_come_out_as_they_went_in_and_no_torn_one_does() {
        let all: [&[u8]; 4] = [b"one", b"", &[7; DATAGRAM_MAX], b"torn"];
        let mut bytes = Vec::new();
        for datagram in all {
            bytes.extend(prefix(datagram.len()).unwrap());
            bytes.extend_from_slice(datagram);
        }
        assert_eq!(datagrams(&bytes).collect::<Vec<_>>(), all);
        assert_eq!(datagrams(&bytes[..bytes.len() - 1]).count(), 3);
        assert_eq!(datagrams(&[9]).count(), 0);
        assert_eq!(prefix(DATAGRAM_MAX + 1), None);
    }

    #[test]
    fn golden_bytes_of_a_datagram() {
        assert_eq!(prefix(0x0102), Some([2, 1]));
    }
}
