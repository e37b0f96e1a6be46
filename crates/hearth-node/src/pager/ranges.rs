//! A set of numbers as ranges: which parts of its memory a machine has given back.

use std::collections::BTreeMap;
use std::ops::Range;

/// Ranges that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Begin to end.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut begin, mut end) = (range.start, range.end);
        // From the back: all that begin within the new one or at its end, and the one before if it reaches it.
        while let Some((&at, &other)) = self.ends.range(..=end).next_back() {
            if other < begin {
                break;
            }
            self.ends.remove(&at);
            (begin, end) = (begin.min(at), end.max(other));
        }
        self.ends.insert(begin, end);
    }

    /// Tells whether a number is in it.
    pub(super) fn contains(&self, number: u64) -> bool {
        let before = self.ends.range(..=number).next_back();
        before.is_some_and(|(_, end)| number < *end)
    }

    /// Returns how many ranges it is kept as.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a plain set of the numbers below `SIZE` says after each of three ranges.
    const SIZE: usize = 8;

    fn check(inserted: [Range<u64>; 3]) {
        let (mut ranges, mut plain) = (Ranges::default(), [false; SIZE]);
        for range in inserted.clone() {
            plain[range.start as usize..range.end as usize].fill(true);
            ranges.insert(range);
        }
        for (number, expected) in plain.iter().enumerate() {
            assert_eq!(
                ranges.contains(number as u64),
                *expected,
                "{number} of {inserted:?}"
            );
        }
        let begins = plain.windows(2).filter(|pair| !pair[0] && pair[1]).count() + usize::from(plain[0]);
        assert_eq!(ranges.len(), begins, "{inserted:?}");
    }

    #[test]
    fn it_holds_what_a_plain_set_holds_in_as_few_ranges_as_can_be() {
        let all: Vec<Range<u64>> = (0..SIZE as u64)
            .flat_map(|begin| (begin..=SIZE as u64).map(move |end| begin..end))
            .collect();
        for first in &all {
            for second in &all {
                for third in &all {
                    check([first.clone(), second.clone(), third.clone()]);
                }
            }
        }
    }
}
