//! One machine whose memory is served: its faults, what it gave back, what it is to get ahead of time.
//!
//! A fault is answered at once, unless the machine is just giving memory back: then the kernel takes no page (EAGAIN) before the
//! event that says so was read, and the fault waits for its turn.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::handshake::Memory;
use super::image::Image;
use super::ranges::Ranges;
use super::working_set::WorkingSet;
use crate::host::page_faults::{Event, PageFaults, Placed};
use crate::host::peer::Peer;

/// Faults that may wait: more threads than a monitor has.
const WAITING_MAX: usize = 4096;
/// Pieces that what was given back may consist of; a balloon gives back long stretches.
const REMOVED_MAX: usize = 1 << 20;
/// Bytes that are put in place ahead of faults at a time, between two looks for faults.
const AHEAD: u64 = 512 << 10;

/// Says why a machine's memory cannot be served any longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// It has ended. Its pidfd will tell.
    #[error("it has ended")]
    Ended,
    /// Its faults cannot be read.
    #[error("its page faults cannot be read")]
    Read(#[source] io::Error),
    /// A page was not put in place.
    #[error("the page at {address:#x} cannot be put in place")]
    Place {
        /// In the machine's monitor.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It misses a page beyond what it said its memory is.
    #[error("it misses a page at {0:#x}, where its memory is not")]
    Elsewhere(u64),
    /// It tells what was not agreed on.
    #[error("it reports an event of the unknown kind {0:#x}")]
    Unknown(u8),
    /// More of its threads wait than it can have, or its memory is in more pieces than is sensible.
    #[error("it asks for more than a machine can")]
    Flood,
}

/// What was done for a machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) faults: u64,
    pub(super) copied: u64,
    pub(super) zeroed: u64,
    /// Pages that were there before they were missed.
    pub(super) ahead: u64,
    /// Bytes given back.
    pub(super) removed: u64,
}

/// What there still is to put in place ahead of faults.
#[derive(Debug)]
struct Replay {
    set: Rc<WorkingSet>,
    next: usize,
}

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) peer: Peer,
    pub(super) faults: PageFaults,
    memory: Memory,
    removed: Ranges,
    /// Offsets of pages that are waited for.
    waiting: VecDeque<u64>,
    replay: Option<Replay>,
    pub(super) counts: Counts,
}

impl Machine {
    /// Takes over a machine whose memory was checked.
    pub(super) fn new(peer: Peer, faults: PageFaults, memory: Memory) -> Self {
        Self {
            peer,
            faults,
            memory,
            removed: Ranges::default(),
            waiting: VecDeque::new(),
            replay: None,
            counts: Counts::default(),
        }
    }

    /// Returns the bytes of its pages.
    pub(super) fn page_size(&self) -> u64 {
        self.memory.page_size()
    }

    /// Has pages put in place ahead of faults, unless they are of another size.
    pub(super) fn replay(&mut self, set: Rc<WorkingSet>) {
        if set.page_size == self.page_size() {
            self.replay = Some(Replay { set, next: 0 });
        }
    }

    /// Tells whether there is something to put in place ahead of faults.
    pub(super) fn is_ahead(&self) -> bool {
        self.replay.is_some()
    }

    /// Tells whether faults wait for their turn.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what has happened and answers faults; tells `touched` of each page that was missed.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn serve(&mut self, image: &Image, mut touched: impl FnMut(u64)) -> Result<(), Lost> {
        for event in self.faults.read().map_err(Lost::Read)? {
            match event {
                Event::Missing { address } => {
                    let offset = self.memory.offset_of(address).ok_or(Lost::Elsewhere(address))?;
                    self.waiting.push_back(offset);
                    self.counts.faults += 1;
                    touched(offset);
                }
                Event::Removed { begin, end } => self.remove(begin, end),
                Event::Unknown(kind) => return Err(Lost::Unknown(kind)),
            }
        }
        if self.waiting.len() > WAITING_MAX || self.removed.len() > REMOVED_MAX {
            return Err(Lost::Flood);
        }
        for _ in 0..self.waiting.len() {
            let Some(offset) = self.waiting.pop_front() else {
                break;
            };
            if !self.answer(image, offset)? {
                self.waiting.push_back(offset);
            }
        }
        Ok(())
    }

    fn remove(&mut self, begin: u64, end: u64) {
        for range in self.memory.offsets_of(begin..end) {
            self.counts.removed += range.end - range.start;
            self.removed.insert(range);
        }
    }

    /// Puts a missed page in place; false when that has to wait.
    fn answer(&mut self, image: &Image, offset: u64) -> Result<bool, Lost> {
        let page = self.page_size();
        let (address, _) = self.memory.address_of(offset).ok_or(Lost::Elsewhere(offset))?;
        let is_zero = self.is_zero(image, offset);
        match self.place(image, offset, page, is_zero)? {
            Placed::All if is_zero => self.counts.zeroed += 1,
            Placed::All => self.counts.copied += 1,
            // Two threads missed it, or it was put there ahead. Who came late may not have been woken.
            Placed::UpToPresent(_) => {
                let woken = self.faults.wake(address, page);
                woken.map_err(|source| Lost::Place { address, source })?;
            }
            Placed::UpToChange(_) => return Ok(false),
            Placed::Gone => return Err(Lost::Ended),
        }
        Ok(true)
    }

    fn is_zero(&self, image: &Image, offset: u64) -> bool {
        self.removed.contains(offset) || image.is_zero(offset, self.page_size())
    }

    /// Puts pages in place that follow each other in memory and are all zero, or all not.
    fn place(&self, image: &Image, offset: u64, length: u64, is_zero: bool) -> Result<Placed, Lost> {
        let (address, _) = self.memory.address_of(offset).ok_or(Lost::Elsewhere(offset))?;
        let placed = match is_zero {
            false => self.faults.copy(image.part(offset, length), address),
            // The kernel has no huge page of zeros to give.
            true if self.page_size() > 4096 => self.faults.copy(image.zeros(length), address),
            true => self.faults.zero(address, length),
        };
        placed.map_err(|source| Lost::Place { address, source })
    }

    /// Puts some of what was recorded in place.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) fn go_ahead(&mut self, image: &Image) -> Result<(), Lost> {
        let Some(mut replay) = self.replay.take() else {
            return Ok(());
        };
        let page = self.page_size();
        let rest = &replay.set.pages[replay.next..];
        let count = rest.len().min((AHEAD / page).max(1) as usize);
        let mut offsets: Vec<u64> = rest[..count]
            .iter()
            .map(|number| u64::from(*number) * page)
            .collect();
        offsets.sort_unstable();
        let mut begin = 0;
        while begin < offsets.len() {
            let run = self.run(image, &offsets[begin..]);
            if run > 0 {
                self.place_run(image, offsets[begin], run)?;
            }
            begin += run.max(1);
        }
        replay.next += count;
        if replay.next < replay.set.pages.len() {
            self.replay = Some(replay);
        }
        Ok(())
    }

    /// Counts the pages from the first one on that one call can put in place: next to each other and of one kind. None
    /// when the first is not this machine's any more.
    fn run(&self, image: &Image, offsets: &[u64]) -> usize {
        let page = self.page_size();
        let first = offsets[0];
        let Some((_, room)) = self.memory.address_of(first) else {
            return 0;
        };
        if self.removed.contains(first) {
            return 0;
        }
        let is_zero = image.is_zero(first, page);
        let most = if is_zero && page > 4096 { 1 } else { offsets.len() };
        let belongs = |(index, offset): &(usize, &u64)| {
            **offset == first + *index as u64 * page
                && **offset < first + room
                && !self.removed.contains(**offset)
                && (*index == 0 || image.is_zero(**offset, page) == is_zero)
        };
        offsets.iter().take(most).enumerate().take_while(belongs).count()
    }

    fn place_run(&mut self, image: &Image, offset: u64, pages: usize) -> Result<(), Lost> {
        let page = self.page_size();
        let end = offset + pages as u64 * page;
        let is_zero = image.is_zero(offset, page);
        let mut at = offset;
        while at < end {
            let done = match self.place(image, at, end - at, is_zero)? {
                Placed::All => end - at,
                // The page behind what was done is there, because it was missed in the meantime.
                Placed::UpToPresent(done) => {
                    self.counts.ahead += done / page;
                    at += done + page;
                    continue;
                }
                // Memory is being given back: what is left is served when it is missed.
                Placed::UpToChange(done) => {
                    self.counts.ahead += done / page;
                    return Ok(());
                }
                Placed::Gone => return Err(Lost::Ended),
            };
            self.counts.ahead += done / page;
            at += done;
        }
        Ok(())
    }
}
