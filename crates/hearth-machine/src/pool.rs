//! Pools of machines that are ready before somebody wants one: which are started, handed out, and retired, and when. The time is an
//! argument: since 1970, as everywhere in a pool.
//!
//! ```text
//! Starting --started--> Ready --hand_out--> Leased --release, or its time is over--> Leaving --gone--> (none)
//!     `--failed--> Leaving  `--too old, too many, dead--------------------------------^
//! ```
//! Who waits, waits in a [`Queue`]; whether there is memory is the caller's to say.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ByteSize;

/// The longest a lease can be.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The most machines of one pool.
pub const MACHINES_MAX: u32 = 1000;
/// How long a pool rests after a start that failed; twice as long after each one more in a row, up to a bound.
const REST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// What of a machine's time to live is left when its successor is started, as a divisor.
const AGEING: u32 = 10;

/// How large a pool is, and how old its machines become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Machines that are kept ready.
    pub min: u32,
    /// Machines in all: those that are handed out, too.
    pub max: u32,
    /// How old a machine that is ready becomes.
    pub ttl: Option<Duration>,
    /// What each takes.
    pub memory: ByteSize,
}

/// Says why a pool cannot be so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BoundsError {
    /// More machines ready than there may be.
    #[error("{min} machines cannot be kept ready of {max} at most")]
    MinAboveMax {
        /// Kept ready.
        min: u32,
        /// In all.
        max: u32,
    },
    /// No machine, or too many.
    #[error("a pool of {0} machines cannot be: 1 to {MACHINES_MAX} can")]
    Size(u32),
    /// More than all pools may have together.
    #[error("{max} machines of {each} are more than the {room} that pools may take on this host")]
    TooLarge {
        /// Machines in all.
        max: u32,
        /// What each takes.
        each: ByteSize,
        /// What there is.
        room: ByteSize,
    },
    /// No time at all.
    #[error("machines cannot be replaced at once: a time to live is a second at least")]
    Ttl,
}

impl Bounds {
    /// Checks the bounds against the memory that all pools may take.
    ///
    /// # Errors
    /// Returns the first thing that cannot be.
    pub fn check(self, room: ByteSize) -> Result<Self, BoundsError> {
        let Self { min, max, .. } = self;
        if max == 0 || max > MACHINES_MAX {
            return Err(BoundsError::Size(max));
        }
        if min > max {
            return Err(BoundsError::MinAboveMax { min, max });
        }
        if self.ttl.is_some_and(|ttl| ttl < Duration::from_secs(1)) {
            return Err(BoundsError::Ttl);
        }
        if self.memory.bytes().saturating_mul(max.into()) > room.bytes() {
            return Err(BoundsError::TooLarge {
                max,
                each: self.memory,
                room,
            });
        }
        Ok(self)
    }
}

/// How a machine of a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is brought up.
    Starting,
    /// It stands still until somebody wants it.
    Ready {
        /// Since when.
        since: Duration,
    },
    /// Somebody has it.
    Leased {
        /// Until when.
        until: Duration,
    },
    /// It is being removed.
    Leaving,
}

/// Names a machine of a pool before it has an id.
pub type Key = u64;

/// The machines of a pool.
#[derive(Debug, Clone)]
pub struct Pool {
    bounds: Bounds,
    members: BTreeMap<Key, Phase>,
    next: Key,
    /// Starts that failed in a row, and until when there is to be no other.
    failed: (u32, Duration),
    /// It is to end: nothing is started or handed out any more.
    closing: bool,
}

/// What a pool cannot know of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outside {
    /// The time.
    pub now: Duration,
    /// Memory that may be taken.
    pub free: ByteSize,
    /// How many wait for a machine of this pool.
    pub waiting: u32,
    /// Nobody is being handed a machine just now, and nothing of another pool starts: starts that nobody waits for take place then.
    pub idle: bool,
    /// Nobody has been for a while. As long as most of its machines are ready a pool waits for that.
    pub quiet: bool,
}

impl Pool {
    /// Makes a pool without machines.
    pub const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            members: BTreeMap::new(),
            next: 0,
            failed: (0, Duration::ZERO),
            closing: false,
        }
    }

    /// Returns its bounds.
    pub const fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Gives it other bounds. What is too many is retired, as far as nobody has it.
    pub fn resize(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Ends it: from now on everything that nobody has is to be retired.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Tells whether it is to end.
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Returns how a machine stands.
    pub fn phase(&self, key: Key) -> Option<Phase> {
        self.members.get(&key).copied()
    }

    /// Returns the machines in the order in which they came.
    pub fn members(&self) -> impl Iterator<Item = (Key, Phase)> {
        self.members.iter().map(|(&key, &phase)| (key, phase))
    }

    /// Returns how many machines stand so.
    pub fn count(&self, is: impl Fn(&Phase) -> bool) -> u32 {
        u32::try_from(self.members.values().filter(|phase| is(phase)).count()).unwrap_or(u32::MAX)
    }

    /// Returns the memory that its machines take, those too that leave.
    pub fn memory(&self) -> ByteSize {
        let bytes = self
            .bounds
            .memory
            .bytes()
            .saturating_mul(self.members.len() as u64);
        ByteSize::from_bytes(bytes)
    }

    /// Takes in a machine that is there already.
    pub fn adopt(&mut self, phase: Phase) -> Key {
        let key = self.next;
        self.next += 1;
        self.members.insert(key, phase);
        key
    }

    /// Tells whether one more machine is to be started now: one that somebody waits for, or one at a time beside nothing else.
    pub fn wants_start(&self, outside: Outside) -> bool {
        let starting = self.count(|phase| *phase == Phase::Starting);
        let fresh = self.count(|phase| match phase {
            Phase::Ready { since } => !self.is_ageing(*since, outside.now),
            _ => false,
        });
        let total = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        let usable = self.count(|phase| matches!(phase, Phase::Ready { .. }));
        let for_waiting = outside.waiting > usable + starting;
        let is_low = 2 * u64::from(usable) < u64::from(self.bounds.min);
        let may_fill = outside.idle && (outside.quiet || is_low);
        let for_later = starting == 0 && may_fill && fresh < self.bounds.min;
        !self.closing
            && total < self.bounds.max
            && outside.now >= self.failed.1
            && self.bounds.memory <= outside.free
            && (for_waiting || for_later)
    }

    /// Notes that a machine is being started.
    pub fn start(&mut self) -> Key {
        self.adopt(Phase::Starting)
    }

    /// Notes that a start is over. One that was to leave meanwhile, leaves.
    pub fn started(&mut self, key: Key, now: Duration) {
        self.failed = (0, Duration::ZERO);
        if let Some(phase @ Phase::Starting) = self.members.get_mut(&key) {
            *phase = Phase::Ready { since: now };
        }
    }

    /// Notes that a start has failed; what is left of it leaves.
    pub fn failed(&mut self, key: Key, now: Duration) {
        let (times, _) = self.failed;
        let rest = REST.saturating_mul(1 << times.min(10)).min(REST_MAX);
        self.failed = (times.saturating_add(1), now + rest);
        self.leave(key);
    }

    /// Hands out the machine that has been ready longest, among those that are not too old.
    pub fn hand_out(&mut self, now: Duration, lease: Duration) -> Option<Key> {
        if self.closing {
            return None;
        }
        let ttl = self.bounds.ttl;
        let ready = self.members.iter_mut().filter_map(|(&key, phase)| match *phase {
            Phase::Ready { since } if !is_over(since, ttl, now) => Some((since, key, phase)),
            _ => None,
        });
        let (_, key, phase) = ready.min_by_key(|(since, key, _)| (*since, *key))?;
        *phase = Phase::Leased { until: now + lease };
        Some(key)
    }

    /// Lets a lease last until another time; false when there is none.
    pub fn extend(&mut self, key: Key, until: Duration) -> bool {
        match self.members.get_mut(&key) {
            Some(phase @ Phase::Leased { .. }) => {
                *phase = Phase::Leased { until };
                true
            }
            _ => false,
        }
    }

    /// Notes that a machine is to be removed.
    pub fn leave(&mut self, key: Key) {
        if let Some(phase) = self.members.get_mut(&key) {
            *phase = Phase::Leaving;
        }
    }

    /// Notes that a machine is gone.
    pub fn gone(&mut self, key: Key) {
        self.members.remove(&key);
    }

    /// Returns the machines whose lease is over.
    pub fn expired(&self, now: Duration) -> Vec<Key> {
        let is_over = |phase: &Phase| matches!(phase, Phase::Leased { until } if *until <= now);
        self.keys(is_over)
    }

    /// Returns the machines that nobody has and nobody shall have: too old, or too many.
    pub fn superfluous(&self, now: Duration) -> Vec<Key> {
        let is_ready = |phase: &Phase| matches!(phase, Phase::Ready { .. });
        if self.closing {
            return self.keys(is_ready);
        }
        let is_old =
            |phase: &Phase| matches!(phase, Phase::Ready { since } if is_over(*since, self.bounds.ttl, now));
        let mut keys = self.keys(is_old);
        let staying = self.count(|phase| *phase != Phase::Leaving) as usize - keys.len();
        let excess = staying.saturating_sub(self.bounds.max as usize);
        let mut others: Vec<_> = self.keys(is_ready);
        others.retain(|key| !keys.contains(key));
        // The oldest ones, whose end is near.
        keys.extend(others.into_iter().take(excess));
        keys
    }

    /// Returns the next time at which something is to be done without anybody's asking.
    pub fn next_moment(&self, now: Duration) -> Option<Duration> {
        let of = |phase: &Phase| match (*phase, self.bounds.ttl) {
            (Phase::Leased { until }, _) => vec![until],
            (Phase::Ready { since }, Some(ttl)) => vec![since + ttl - ttl / AGEING, since + ttl],
            _ => Vec::new(),
        };
        let moments = self.members.values().flat_map(of);
        moments
            .chain([self.failed.1])
            .filter(|&moment| moment > now)
            .min()
    }

    fn keys(&self, is: impl Fn(&Phase) -> bool) -> Vec<Key> {
        let picked = self.members.iter().filter(|(_, phase)| is(phase));
        picked.map(|(&key, _)| key).collect()
    }

    fn is_ageing(&self, since: Duration, now: Duration) -> bool {
        let young = self.bounds.ttl.map(|ttl| ttl - ttl / AGEING);
        is_over(since, young, now)
    }
}

fn is_over(since: Duration, ttl: Option<Duration>, now: Duration) -> bool {
    ttl.is_some_and(|ttl| now >= since + ttl)
}

/// Who waits, in the order of coming; each until a deadline.
#[derive(Debug)]
pub struct Queue<T>(VecDeque<(T, Duration)>);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Queue<T> {
    /// Lets somebody wait behind all others.
    pub fn push(&mut self, waiting: T, deadline: Duration) {
        self.0.push_back((waiting, deadline));
    }

    /// Puts somebody back to the head, whose turn it was.
    pub fn put_back(&mut self, waiting: T, deadline: Duration) {
        self.0.push_front((waiting, deadline));
    }

    /// Returns whose turn it is.
    pub fn first(&self) -> Option<&T> {
        self.0.front().map(|(waiting, _)| waiting)
    }

    /// Takes out whose turn it is, with the deadline.
    pub fn take(&mut self) -> Option<(T, Duration)> {
        self.0.pop_front()
    }

    /// Takes out everybody whose deadline has passed, or who has gone away.
    pub fn take_over(&mut self, now: Duration, is_gone: impl Fn(&T) -> bool) -> Vec<T> {
        let (over, kept) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(waiting, deadline)| *deadline <= now || is_gone(waiting));
        self.0 = kept;
        let over: VecDeque<(T, Duration)> = over;
        over.into_iter().map(|(waiting, _)| waiting).collect()
    }

    /// Returns how many wait.
    pub fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Tells whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the earliest deadline.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.0.iter().map(|(_, deadline)| *deadline).min()
    }
}

#[cfg(test)]
mod tests;
