//! What is known of the pages that machines touch first: read from the file, or recorded from the first machine.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::working_set::WorkingSet;

/// What is known.
#[derive(Debug)]
pub(super) enum Learned {
    /// Nothing, and nothing is to be learned.
    Off,
    /// Nothing: the first machine is recorded, for so long.
    Nothing(Duration),
    /// The first machine is being recorded.
    Recording(Recording, Duration),
    /// The pages.
    Known(Rc<WorkingSet>),
}

/// What a machine has touched so far.
#[derive(Debug)]
pub(super) struct Recording {
    machine: u64,
    since: Instant,
    page_size: u64,
    pages: Vec<u32>,
    seen: Vec<bool>,
}

impl Learned {
    /// Returns what machines are to get ahead of time.
    pub(super) fn known(&self) -> Option<&Rc<WorkingSet>> {
        match self {
            Self::Known(set) => Some(set),
            _ => None,
        }
    }

    /// Records this machine, if one is to be recorded.
    pub(super) fn begin(&mut self, machine: u64, page_size: u64, now: Instant) {
        if let Self::Nothing(limit) = *self {
            let recording = Recording {
                machine,
                since: now,
                page_size,
                pages: Vec::new(),
                seen: Vec::new(),
            };
            *self = Self::Recording(recording, limit);
        }
    }

    /// Notes that a machine has touched a page.
    pub(super) fn touch(&mut self, machine: u64, offset: u64) {
        let Self::Recording(recording, _) = self else {
            return;
        };
        let number = offset / recording.page_size;
        // Images of more than 16 TiB have pages that are not recorded.
        let (Ok(index), Ok(number)) = (usize::try_from(number), u32::try_from(number)) else {
            return;
        };
        if recording.machine != machine {
            return;
        }
        if recording.seen.len() <= index {
            recording.seen.resize(index + 1, false);
        }
        if !std::mem::replace(&mut recording.seen[index], true) {
            recording.pages.push(number);
        }
    }

    /// Tells whether this machine is being recorded.
    pub(super) fn is_of(&self, machine: u64) -> bool {
        matches!(self, Self::Recording(recording, _) if recording.machine == machine)
    }

    /// Returns when the recording is long enough.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Recording(recording, limit) => Some(recording.since + *limit),
            _ => None,
        }
    }

    /// Ends the recording; returns it, when there was one that holds something.
    pub(super) fn finish(&mut self) -> Option<Rc<WorkingSet>> {
        let (recording, limit) = match std::mem::replace(self, Self::Off) {
            Self::Recording(recording, limit) => (recording, limit),
            other => {
                *self = other;
                return None;
            }
        };
        if recording.pages.is_empty() {
            *self = Self::Nothing(limit);
            return None;
        }
        let set = Rc::new(WorkingSet {
            page_size: recording.page_size,
            pages: recording.pages,
        });
        *self = Self::Known(Rc::clone(&set));
        Some(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[test]
    fn the_first_machine_is_recorded_once_and_the_others_are_not() {
        let now = Instant::now();
        let mut learned = Learned::Nothing(LIMIT);
        learned.begin(1, 4096, now);
        learned.begin(2, 4096, now);
        assert_eq!(learned.deadline(), Some(now + LIMIT));
        for (machine, page) in [(1, 7), (2, 1), (1, 3), (1, 7)] {
            learned.touch(machine, page * 4096);
        }
        assert!(learned.is_of(1) && !learned.is_of(2));
        assert_eq!(learned.finish().unwrap().pages, [7, 3]);
        assert_eq!(learned.known().unwrap().pages, [7, 3]);
        assert_eq!(learned.finish(), None);
    }

    #[test]
    fn a_machine_that_touched_nothing_is_no_record() {
        let mut learned = Learned::Nothing(LIMIT);
        learned.begin(1, 4096, Instant::now());
        assert_eq!(learned.finish(), None);
        learned.begin(2, 4096, Instant::now());
        assert!(learned.is_of(2));
    }
}
