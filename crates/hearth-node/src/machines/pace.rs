//! How fast this host boots guests: deadlines follow what was measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hearth_api::v1::Border;

/// The deadlines of this node.
#[derive(Debug)]
pub struct Pace {
    /// The slowest boot since the node began, in milliseconds; zero before the first.
    slowest_ms: AtomicU64,
    /// What a boot may take before anything was measured.
    least_kvm: Duration,
    least_emulated: Duration,
}

/// A boot may take so many times as long as the slowest one that went well: several may boot at once.
const MARGIN: u32 = 10;

impl Default for Pace {
    fn default() -> Self {
        Self {
            slowest_ms: AtomicU64::new(0),
            least_kvm: Duration::from_secs(10),
            least_emulated: Duration::from_secs(60),
        }
    }
}

impl Pace {
    /// Makes one that expects the first boot within this time, whatever the border is.
    #[cfg(test)]
    pub(super) fn expecting(least: Duration) -> Self {
        Self {
            least_kvm: least,
            least_emulated: least,
            ..Self::default()
        }
    }

    /// Returns how long a guest may take to say hello.
    pub fn boot_deadline(&self, border: Border) -> Duration {
        let least = match border {
            Border::Kvm => self.least_kvm,
            Border::Emulated => self.least_emulated,
        };
        let measured = Duration::from_millis(self.slowest_ms.load(Ordering::Relaxed)) * MARGIN;
        if measured.is_zero() {
            least
        } else {
            measured.clamp(least / 3, least * 10)
        }
    }

    /// Takes note of a boot that went well.
    pub fn booted_in(&self, took: Duration) {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.slowest_ms.fetch_max(took_ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_follows_the_slowest_boot_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.boot_deadline(Border::Emulated), Duration::from_secs(60));
        pace.booted_in(Duration::from_secs(3));
        pace.booted_in(Duration::from_secs(1));
        assert_eq!(pace.boot_deadline(Border::Emulated), Duration::from_secs(30));
        pace.booted_in(Duration::from_secs(1000));
        assert_eq!(pace.boot_deadline(Border::Emulated), Duration::from_secs(600));
    }
}
