//! When a guest was last busy: for machines that are to end when they do nothing.
//!
//! Bytes of any session count, and so does opening one; while a process beside the workload runs, or files are copied, the guest is
//! busy. Questions of the node (statistics, pings) and its own probes do not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// One guest's activity; as exact as the moments at which it is noted.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    /// Milliseconds from `began` to the last sign of life.
    last: AtomicU64,
    /// Milliseconds that it had been idle before `began`; gone with the first sign of life.
    before: AtomicU64,
    /// Sessions that count as busy as long as they are open.
    busy: AtomicUsize,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            before: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Activity {
    /// Notes a sign of life.
    pub fn touch(&self) {
        self.last
            .store(milliseconds(self.began.elapsed()), Ordering::Relaxed);
        self.before.store(0, Ordering::Relaxed);
    }

    /// Takes over how long it had been idle when an earlier node saw it last.
    pub fn was_idle(&self, before: Duration) {
        self.before.store(milliseconds(before), Ordering::Relaxed);
    }

    /// Returns how long it has been idle; nothing while it is busy.
    pub fn idle(&self) -> Duration {
        if self.busy.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        let since = milliseconds(self.began.elapsed()).saturating_sub(self.last.load(Ordering::Relaxed));
        Duration::from_millis(since.saturating_add(self.before.load(Ordering::Relaxed)))
    }

    pub(super) fn work(self: &Arc<Self>) -> Work {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Work(Arc::clone(self))
    }
}

/// Something that goes on; dropped at its end.
#[derive(Debug)]
pub(super) struct Work(Arc<Activity>);

impl Drop for Work {
    fn drop(&mut self) {
        self.0.touch();
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_no_idleness_and_what_was_before_counts_until_the_next_sign_of_life() {
        let activity = Arc::new(Activity::default());
        let hour = Duration::from_secs(3600);
        activity.was_idle(hour);
        assert!(activity.idle() >= hour);
        let work = activity.work();
        assert_eq!(activity.idle(), Duration::ZERO);
        drop(work);
        assert!(activity.idle() < hour);
    }
}
