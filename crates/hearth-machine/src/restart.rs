//! Restart policies, as pure code: what happens to a machine whose workload has ended, with time as an argument.
//!
//! The meaning and the delays are docker's: 100 ms, doubled with each restart up to a minute, and from the beginning again after a
//! run of ten seconds. A machine that was stopped by hand rests until it is started by hand, or the host has been rebooted.

use core::fmt;
use core::num::NonZeroU32;
use core::str::FromStr;
use std::time::Duration;

use crate::State;

/// The delay before the first restart.
pub const DELAY_FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
pub const DELAY_MAX: Duration = Duration::from_secs(60);
/// A run of so long is a good one: the next delay is the first one again.
pub const GOOD_RUN: Duration = Duration::from_secs(10);

/// When a machine that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When its workload failed; so many times at most, where that is said.
    OnFailure {
        /// Restarts since the last start by hand, at most.
        at_most: Option<NonZeroU32>,
    },
    /// Whenever it has ended otherwise than by hand; after a reboot of the host even then.
    Always,
    /// Whenever it has ended otherwise than by hand.
    UnlessStopped,
}

/// Says that a text is no restart policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: no, on-failure[:N], always and unless-stopped are")]
pub struct InvalidRestartPolicy(String);

impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidRestartPolicy(text.to_owned());
        match text.split_once(':') {
            None => match text {
                "no" => Ok(Self::No),
                "on-failure" => Ok(Self::OnFailure { at_most: None }),
                "always" => Ok(Self::Always),
                "unless-stopped" => Ok(Self::UnlessStopped),
                _ => Err(refused()),
            },
            Some(("on-failure", count)) => {
                // docker reads 0 as no limit.
                let at_most = NonZeroU32::new(count.parse().map_err(|_| refused())?);
                Ok(Self::OnFailure { at_most })
            }
            Some(_) => Err(refused()),
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { at_most: None } => f.write_str("on-failure"),
            Self::OnFailure { at_most: Some(count) } => write!(f, "on-failure:{count}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

/// What has been, as far as policies ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    /// Somebody stopped it, and nobody has started it since.
    pub stopped_by_hand: bool,
    /// Restarts by the policy since the last start by hand.
    pub restarts: u32,
    /// Those of them since the last good run.
    pub in_a_row: u32,
}

impl History {
    /// Returns the history after a run of `ran`: a good one begins a new row.
    #[must_use]
    pub fn after_run(self, ran: Duration) -> Self {
        Self {
            in_a_row: if ran >= GOOD_RUN { 0 } else { self.in_a_row },
            ..self
        }
    }

    /// Returns the history after a restart by the policy.
    #[must_use]
    pub const fn after_restart(self) -> Self {
        Self {
            restarts: self.restarts.saturating_add(1),
            in_a_row: self.in_a_row.saturating_add(1),
            ..self
        }
    }
}

impl RestartPolicy {
    /// Returns how long after its end a machine is to be started again; `None` when it rests.
    ///
    /// `state` is the one that it has ended in. One that a client started and that never ran is no end: whoever started it has been
    /// told why.
    pub fn restart_after(self, state: &State, history: History) -> Option<Duration> {
        if history.stopped_by_hand {
            return None;
        }
        let failed = match state {
            State::Exited(ended) | State::Restarting(ended) => ended.exit_code != 0,
            State::Failed { .. } => true,
            _ => return None,
        };
        let wanted = match self {
            Self::No => false,
            Self::OnFailure { at_most } => {
                failed && at_most.is_none_or(|count| history.restarts < count.get())
            }
            Self::Always | Self::UnlessStopped => true,
        };
        wanted.then(|| delay(history.in_a_row))
    }

    /// Tells whether a machine that rests is to be started because the host has been rebooted: docker's rule for its daemon's
    /// start. What ran when the host went down has ended without anybody's asking, and [`Self::restart_after`] is for that.
    pub fn starts_after_reboot(self, state: &State, history: History) -> bool {
        let rests = matches!(state, State::Exited(_) | State::Failed { .. });
        match self {
            Self::Always => rests,
            Self::UnlessStopped => rests && !history.stopped_by_hand,
            Self::No | Self::OnFailure { .. } => false,
        }
    }
}

fn delay(in_a_row: u32) -> Duration {
    // 2^10 times the first is beyond the longest.
    DELAY_FIRST.saturating_mul(1 << in_a_row.min(10)).min(DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ended;

    fn exited(exit_code: u8) -> State {
        State::Exited(Ended {
            exit_code,
            reason: None,
        })
    }

    fn row(in_a_row: u32) -> History {
        History {
            stopped_by_hand: false,
            restarts: in_a_row,
            in_a_row,
        }
    }

    const BY_HAND: History = History {
        stopped_by_hand: true,
        restarts: 0,
        in_a_row: 0,
    };

    #[test]
    fn policies_are_read_and_written_as_docker_does() {
        for text in ["no", "on-failure", "on-failure:3", "always", "unless-stopped"] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
        }
        assert_eq!(
            "on-failure:0".parse::<RestartPolicy>().unwrap().to_string(),
            "on-failure"
        );
        for text in [
            "",
            "yes",
            "always:3",
            "on-failure:",
            "on-failure:-1",
            "on-failure:x",
            "No",
        ] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn delays_double_up_to_a_minute_and_begin_anew_after_a_good_run() {
        let after = |count| {
            RestartPolicy::Always
                .restart_after(&exited(0), row(count))
                .unwrap()
        };
        let millis: Vec<_> = (0..12).map(|count| after(count).as_millis()).collect();
        assert_eq!(
            millis,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000
            ]
        );
        assert_eq!(after(u32::MAX), DELAY_MAX);
        assert_eq!(row(7).after_run(Duration::from_millis(9_999)).in_a_row, 7);
        let good = row(7).after_run(GOOD_RUN);
        assert_eq!((good.in_a_row, good.restarts), (0, 7));
        assert_eq!(good.after_restart().restarts, 8);
    }

    #[test]
    fn each_policy_restarts_what_it_says() {
        let failed = State::Failed {
            reason: String::new(),
        };
        // Columns: exit code 0, exit code 3, failed.
        for (policy, expected) in [
            ("no", [false, false, false]),
            ("on-failure", [false, true, true]),
            ("always", [true, true, true]),
            ("unless-stopped", [true, true, true]),
        ] {
            let policy: RestartPolicy = policy.parse().unwrap();
            for (state, expected) in [exited(0), exited(3), failed.clone()].iter().zip(expected) {
                assert_eq!(
                    policy.restart_after(state, row(0)).is_some(),
                    expected,
                    "{policy} {state:?}"
                );
                assert_eq!(policy.restart_after(state, BY_HAND), None, "{policy} by hand");
            }
            for state in [State::Created, State::Running, State::Removing] {
                assert_eq!(policy.restart_after(&state, row(0)), None);
            }
        }
    }

    #[test]
    fn on_failure_gives_up_after_its_count() {
        let policy: RestartPolicy = "on-failure:2".parse().unwrap();
        let restarts: Vec<_> = (0..4)
            .map(|count| policy.restart_after(&exited(1), row(count)).is_some())
            .collect();
        assert_eq!(restarts, [true, true, false, false]);
    }

    #[test]
    fn a_reboot_starts_what_always_runs() {
        // Columns: ended by itself, stopped by hand.
        for (policy, expected) in [
            ("no", [false, false]),
            ("on-failure", [false, false]),
            ("always", [true, true]),
            ("unless-stopped", [true, false]),
        ] {
            let policy: RestartPolicy = policy.parse().unwrap();
            let started = [row(0), BY_HAND].map(|history| policy.starts_after_reboot(&exited(0), history));
            assert_eq!(started, expected, "{policy}");
            assert!(
                !policy.starts_after_reboot(&State::Created, row(0)),
                "{policy}: nobody has started it"
            );
        }
    }
}
