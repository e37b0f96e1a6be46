//! How many nodes with machines run at once: on two cores without hardware virtualization, more than two starve each other
//! until deadlines pass that say nothing about the code.

use std::sync::{Condvar, Mutex, PoisonError};

/// A place among those that may run; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit(());

/// Guards the number of places taken. Tests are threads of the runner, which no single task could own.
static TAKEN: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

fn places() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))
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
