//! How many nodes with machines run at once: one more than there are processors, as a test waits half of its time. On two of them, without
//! hardware virtualization, more would starve each other until deadlines pass that say nothing about the code.

use std::fs;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A place among those that may run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(());

/// Guards the number of places taken. Tests are threads of the runner, which no single task could own.
static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

fn places() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 1
}

/// For how long it is watched what a host does, and how much of its processors may be busy where it does nothing.
const WATCH: Duration = Duration::from_millis(300);
const QUIET_PERCENT: u64 = 20;

/// Tells whether this host has nothing to do but the test that asks: no other one has a node, and processors stand idle while it waits.
/// Only then do times say anything.
pub fn is_quiet() -> bool {
    let others = *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) > 1;
    let before = ticks();
    std::thread::sleep(WATCH);
    match (before, ticks()) {
        (Some(before), Some(after)) if !others => {
            let (idle, all) = (after.0 - before.0, after.1 - before.1);
            (all - idle) * 100 <= all * QUIET_PERCENT
        }
        _ => false,
    }
}

/// Returns how long the processors were idle, and how long they were there, in the kernel's ticks: proc_stat(5).
fn ticks() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let words = text.lines().next()?.split_whitespace().skip(1);
    let times: Vec<u64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
    // What guests had is in what users had.
    Some((times.get(3)? + times.get(4)?, times.iter().take(8).sum()))
}

impl Permit {
    /// Waits for a place. Whoever has one ends by its own deadlines, so this does, too.
    pub(crate) fn acquire() -> Self {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = GIVEN_BACK
            .wait_while(taken, |taken| *taken >= places())
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        GIVEN_BACK.notify_one();
    }
}
