//! Memory of all machines together: never more than a share of what the host has for guests. What a person starts with `run` counts, and
//! is not held back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hearth_machine::ByteSize;
use hearth_machine::spec::MEMORY_DEFAULT;
use tokio::sync::Notify;

use crate::configuration::{self, ConfigurationError};
use crate::machines::Machines;

/// Permits that are out.
#[derive(Debug, Default)]
pub(super) struct Permits {
    bytes: AtomicU64,
    /// One came back.
    pub(super) back: Notify,
}

/// The right to run a machine of so much memory; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    memory: ByteSize,
    permits: Arc<Permits>,
}

impl Permit {
    pub(super) fn new(memory: ByteSize, permits: &Arc<Permits>) -> Self {
        permits.bytes.fetch_add(memory.bytes(), Ordering::Relaxed);
        Self {
            memory,
            permits: Arc::clone(permits),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits
            .bytes
            .fetch_sub(self.memory.bytes(), Ordering::Relaxed);
        self.permits.back.notify_one();
    }
}

/// Returns what machines may take together.
///
/// # Errors
/// The settings make no sense.
pub(super) fn room(machines: &Machines) -> Result<ByteSize, ConfigurationError> {
    let settings = configuration::read(machines.parts().layout.configuration())?;
    let limits = machines.host_limits();
    let all = limits.guest_memory.min(limits.memory).bytes();
    let share = u128::from(all) * u128::from(settings.memory_percent) / 100;
    Ok(ByteSize::from_bytes(u64::try_from(share).unwrap_or(u64::MAX)))
}

/// Returns what is left of `room` by the machines of persons and by permits; pools count their own. What stands by gives way.
pub(super) fn left(machines: &Machines, permits: &Permits, room: ByteSize) -> ByteSize {
    let views = machines.list().into_iter().map(|machine| machine.view());
    let others = views.filter(|view| view.state.is_alive() && view.record.owner.is_none());
    let taken = others.fold(0, |sum: u64, view| {
        let memory = view.record.spec.memory_bytes;
        sum.saturating_add(memory.unwrap_or(MEMORY_DEFAULT.bytes()))
    });
    let taken = taken.saturating_add(permits.bytes.load(Ordering::Relaxed));
    let left = ByteSize::from_bytes(room.bytes().saturating_sub(taken));
    let standbys = &machines.parts().standbys;
    if left < standbys.memory() {
        standbys.clear();
    }
    left
}
