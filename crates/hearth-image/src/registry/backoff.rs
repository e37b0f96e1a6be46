//! How often something is tried again, and how long is waited before. The decision is pure; waiting is the caller's.

use std::time::{Duration, SystemTime};

use super::RegistryError;

/// Times that something is tried in all.
const ATTEMPTS: u32 = 6;
/// The same of a host that has never answered: most often its name is wrong, and nobody wants to wait for that.
const ATTEMPTS_OF_A_STRANGER: u32 = 2;
/// The same at a mirror.
const ATTEMPTS_AT_A_MIRROR: u32 = 2;
/// Waited before the second attempt, and doubled for each further one.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(10);
/// The longest wait that a registry may ask for; with a longer one, the user is told instead.
const LONGEST_WISH: Duration = Duration::from_secs(60);

/// Counts the attempts at one manifest or blob.
#[derive(Debug)]
pub(super) struct Backoff {
    failed: u32,
    attempts: u32,
}

impl Backoff {
    /// Begins to count for the registry itself.
    pub(super) fn patient() -> Self {
        Self {
            failed: 0,
            attempts: ATTEMPTS,
        }
    }

    /// Begins to count for a mirror: others can be asked instead.
    pub(super) fn of_a_mirror() -> Self {
        Self {
            failed: 0,
            attempts: ATTEMPTS_AT_A_MIRROR,
        }
    }

    /// Counts a failure; returns how long to wait before the next attempt, or the error when there is to be none.
    pub(super) fn after(&mut self, error: RegistryError) -> Result<Duration, RegistryError> {
        self.failed += 1;
        let attempts = match error {
            RegistryError::Unreachable { stranger: true, .. } => ATTEMPTS_OF_A_STRANGER,
            _ => self.attempts,
        };
        if !error.is_transient() || self.failed >= attempts {
            return Err(error);
        }
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        let own = delay(self.failed, random);
        match error.asked_to_wait() {
            Some(wish) if wish > LONGEST_WISH => Err(error),
            // Many clients were told the same time: each adds a little of its own.
            Some(wish) => Ok(wish + own / 4),
            None => Ok(own),
        }
    }

    /// Starts counting anew: something came.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }
}

/// Doubles with each failure; `random` takes away up to a half, so that many clients do not come back at once.
fn delay(failed: u32, random: u32) -> Duration {
    let full = FIRST
        .saturating_mul(1 << failed.saturating_sub(1).min(16))
        .min(LONGEST);
    full.mul_f64(1.0 - 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// Reads a `Retry-After`: seconds, or a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = httpdate::parse_http_date(value).ok()?;
    // In the past: at once.
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(after: Option<u64>) -> RegistryError {
        RegistryError::Unavailable {
            registry: "r".into(),
            status: 503,
            after: after.map(Duration::from_secs),
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_vary_by_half() {
        let whole: Vec<_> = (1..=8).map(|failed| delay(failed, 0).as_millis()).collect();
        assert_eq!(whole, [250, 500, 1000, 2000, 4000, 8000, 10000, 10000]);
        assert_eq!(delay(2, u32::MAX).as_millis(), 250);
        assert_eq!(delay(u32::MAX, 0), LONGEST);
    }

    #[test]
    fn what_lasts_is_not_tried_again() {
        let registry = || "r".to_owned();
        for error in [
            RegistryError::Unknown { registry: registry() },
            RegistryError::Denied { registry: registry() },
            RegistryError::WrongPassword { registry: registry() },
        ] {
            assert!(Backoff::patient().after(error).is_err());
        }
    }

    #[test]
    fn what_may_pass_is_tried_six_times_and_anew_after_progress() {
        let mut backoff = Backoff::patient();
        for _ in 1..ATTEMPTS {
            backoff.after(unavailable(None)).unwrap();
        }
        assert!(backoff.after(unavailable(None)).is_err());
        backoff.progressed();
        assert!(backoff.after(unavailable(None)).is_ok());
    }

    #[test]
    fn a_mirror_is_tried_twice() {
        let mut backoff = Backoff::of_a_mirror();
        assert!(backoff.after(unavailable(None)).is_ok());
        assert!(backoff.after(unavailable(None)).is_err());
    }

    #[test]
    fn a_registrys_wish_is_honoured_within_bounds() {
        let wait = Backoff::patient().after(unavailable(Some(7))).unwrap();
        assert!(
            wait >= Duration::from_secs(7) && wait < Duration::from_secs(8),
            "{wait:?}"
        );
        assert!(Backoff::patient().after(unavailable(Some(61))).is_err());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:47 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(10)));
        assert_eq!(
            retry_after(date, now + Duration::from_secs(60)),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }
}
