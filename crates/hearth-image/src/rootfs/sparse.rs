//! Maps of sparse files: which stretches an archive stores, the rest being holes.

/// A stretch of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Walks through a sparse file from its start.
#[derive(Debug)]
pub(crate) struct SparseMap {
    /// Sorted, without overlap, not empty ones; the first one lies at or behind `position`.
    segments: std::iter::Peekable<std::vec::IntoIter<Segment>>,
    position: u64,
    size: u64,
}

/// What comes next in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// So many zeros, which count as read.
    Hole(usize),
    /// At most so many stored bytes; [`SparseMap::consumed`] says how many were taken.
    Data(usize),
}

impl SparseMap {
    /// Checks a map: sorted, within the file, and its segments are exactly the stored bytes.
    pub(crate) fn new(mut segments: Vec<Segment>, size: u64, stored: u64) -> Option<Self> {
        let mut end = 0;
        let mut total: u64 = 0;
        for segment in &segments {
            if segment.offset < end {
                return None;
            }
            end = segment.offset.checked_add(segment.length)?;
            total += segment.length;
        }
        if end > size || total != stored {
            return None;
        }
        segments.retain(|segment| segment.length > 0);
        Some(Self {
            segments: segments.into_iter().peekable(),
            position: 0,
            size,
        })
    }

    /// Returns what the next `room` bytes at most are.
    pub(crate) fn next(&mut self, room: usize) -> Next {
        let bounded = |length: u64| length.min(room as u64) as usize;
        match self.segments.peek() {
            Some(segment) if segment.offset <= self.position => Next::Data(bounded(segment.length)),
            other => {
                let end = other.map_or(self.size, |segment| segment.offset);
                let hole = bounded(end - self.position);
                self.position += hole as u64;
                Next::Hole(hole)
            }
        }
    }

    /// Counts stored bytes that were read.
    pub(crate) fn consumed(&mut self, count: u64) {
        self.position += count;
        if let Some(segment) = self.segments.peek_mut() {
            segment.offset += count;
            segment.length -= count.min(segment.length);
            if segment.length == 0 {
                self.segments.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, length: u64) -> Segment {
        Segment { offset, length }
    }

    #[test]
    fn holes_and_data_alternate() {
        let mut map = SparseMap::new(vec![segment(4, 3), segment(10, 2), segment(12, 0)], 15, 5).unwrap();
        assert_eq!(map.next(100), Next::Hole(4));
        assert_eq!(map.next(2), Next::Data(2));
        map.consumed(2);
        assert_eq!(map.next(100), Next::Data(1));
        map.consumed(1);
        assert_eq!(map.next(100), Next::Hole(3));
        assert_eq!(map.next(100), Next::Data(2));
        map.consumed(2);
        assert_eq!(map.next(2), Next::Hole(2));
        assert_eq!(map.next(100), Next::Hole(1));
        assert_eq!(map.next(100), Next::Hole(0));
    }

    #[test]
    fn lying_maps_are_refused() {
        for (segments, size, stored) in [
            (vec![segment(0, 5)], 4, 5),
            (vec![segment(0, 5)], 10, 4),
            (vec![segment(5, 1), segment(0, 1)], 10, 2),
            (vec![segment(0, 3), segment(2, 3)], 10, 6),
            (vec![segment(u64::MAX, 1)], u64::MAX, 1),
        ] {
            assert!(
                SparseMap::new(segments.clone(), size, stored).is_none(),
                "{segments:?}"
            );
        }
    }
}
