//! The life of a machine as a state machine.
//!
//! ```text
//!   Created --Start--> Starting --Started--> Running --StopAsked--> Stopping
//!      |                | |  \                | ^  |                  |
//!      |                | |   \          Pause v | Resume             |
//!      |                | |    \            Paused ----StopAsked--->  |   (Starting --FoundPaused--> Paused)
//!      |                | |     `-----StopAsked-----------------> Stopping
//!      |      BootFailed  |                                            |
//!      |                v v                                            v
//!      |             Failed, Exited <------WorkloadEnded---------------'   (VmmDied: Failed, or Exited if Stopping)
//!      |              | ^
//!      | RestartPlanned v | StopAsked
//!      |            Restarting --Start--> Starting
//!      `--Remove--> Removing <--Remove-- Failed, Exited;   Failed, Exited --Start--> Starting
//! ```

/// How a workload ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The exit code: its own, or 128 plus the number of the signal that ended it.
    pub exit_code: u8,
    /// Why, when it is not the workload's own doing (stopped, timed out).
    pub reason: Option<String>,
}

/// How a machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Never started.
    Created,
    /// Its virtual machine boots.
    Starting,
    /// Its workload runs.
    Running,
    /// Its virtual processors stand still; everything else of it is kept.
    Paused,
    /// It was asked to end.
    Stopping,
    /// Its workload has ended, and its restart policy will start it again.
    Restarting(Ended),
    /// Its workload has ended.
    Exited(Ended),
    /// It did not come up, or its virtual machine died.
    Failed {
        /// What happened.
        reason: String,
    },
    /// It is being removed; the last state.
    Removing,
}

/// What happens to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to run.
    Start,
    /// Its workload runs.
    Started,
    /// Its virtual machine was found again, and stands still.
    FoundPaused,
    /// It did not come up.
    BootFailed {
        /// Why.
        reason: String,
    },
    /// Its virtual processors have been stopped.
    Pause,
    /// Its virtual processors go on.
    Resume,
    /// Somebody, or its time limit, wants it to end.
    StopAsked,
    /// Its workload has ended.
    WorkloadEnded(Ended),
    /// Its virtual machine monitor is gone without having been asked.
    VmmDied {
        /// Its last words.
        reason: String,
    },
    /// Its restart policy will start it again.
    RestartPlanned,
    /// Somebody wants it gone.
    Remove,
}

/// Says that a machine's state does not allow what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a machine that is {state} cannot be {asked}")]
pub struct Refused {
    state: &'static str,
    asked: &'static str,
}

/// The exit code of a workload that was killed with its machine: 128 + SIGKILL.
const KILLED: u8 = 137;

impl State {
    /// Returns the state's name, as people read it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
            Self::Failed { .. } => "failed",
            Self::Removing => "removing",
        }
    }

    /// Tells whether a virtual machine belongs to this state.
    pub const fn is_alive(&self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Stopping
        )
    }

    /// Tells whether it runs, or will by itself: what people mean by a machine that is up.
    pub const fn is_active(&self) -> bool {
        self.is_alive() || matches!(self, Self::Restarting(_))
    }

    /// Returns the state after `event`.
    ///
    /// # Errors
    /// Returns [`Refused`] when the event does not fit the state; the state stays as it is.
    pub fn after(&self, event: Event) -> Result<Self, Refused> {
        use State::{Created, Exited, Failed, Paused, Removing, Restarting, Running, Starting, Stopping};
        let asked = event.asks();
        match (self, event) {
            (Created | Exited(_) | Failed { .. } | Restarting(_), Event::Start) => Ok(Starting),
            (Starting, Event::Started) => Ok(Running),
            (Starting, Event::FoundPaused) => Ok(Paused),
            (Starting | Stopping, Event::BootFailed { reason }) => Ok(Failed { reason }),
            (Running, Event::Pause) => Ok(Paused),
            (Paused, Event::Resume) => Ok(Running),
            (Starting | Running | Paused | Stopping, Event::StopAsked) => Ok(Stopping),
            (Restarting(ended), Event::StopAsked) => Ok(Exited(ended.clone())),
            (Starting | Running | Paused | Stopping, Event::WorkloadEnded(ended)) => Ok(Exited(ended)),
            (Starting | Running | Paused, Event::VmmDied { reason }) => Ok(Failed { reason }),
            (Stopping, Event::VmmDied { reason }) => Ok(Exited(killed(reason))),
            (Exited(ended), Event::RestartPlanned) => Ok(Restarting(ended.clone())),
            (Failed { reason }, Event::RestartPlanned) => Ok(Restarting(killed(reason.clone()))),
            (Created | Exited(_) | Failed { .. }, Event::Remove) => Ok(Removing),
            (state, _) => Err(Refused {
                state: state.name(),
                asked,
            }),
        }
    }
}

/// The end of a workload whose machine was taken from under it.
const fn killed(reason: String) -> Ended {
    Ended {
        exit_code: KILLED,
        reason: Some(reason),
    }
}

impl Event {
    const fn asks(&self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Started | Self::BootFailed { .. } => "told that it has booted",
            Self::Pause | Self::FoundPaused => "paused",
            Self::Resume => "resumed",
            Self::StopAsked => "stopped",
            Self::WorkloadEnded(_) => "told that its workload has ended",
            Self::VmmDied { .. } => "told that its virtual machine has died",
            Self::RestartPlanned => "started again by its restart policy",
            Self::Remove => "removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> Ended {
        Ended {
            exit_code: 3,
            reason: None,
        }
    }

    fn states() -> [State; 9] {
        let failed = State::Failed {
            reason: String::new(),
        };
        [
            State::Created,
            State::Starting,
            State::Running,
            State::Paused,
            State::Stopping,
            State::Restarting(ended()),
            State::Exited(ended()),
            failed,
            State::Removing,
        ]
    }

    fn events() -> [Event; 11] {
        [
            Event::Start,
            Event::Started,
            Event::FoundPaused,
            Event::BootFailed {
                reason: String::new(),
            },
            Event::Pause,
            Event::Resume,
            Event::StopAsked,
            Event::WorkloadEnded(ended()),
            Event::VmmDied {
                reason: String::new(),
            },
            Event::RestartPlanned,
            Event::Remove,
        ]
    }

    #[test]
    fn the_table_of_all_states_and_events() {
        // Rows: states; columns: Start, Started, FoundPaused, BootFailed, Pause, Resume, StopAsked, WorkloadEnded,
        // VmmDied, RestartPlanned, Remove.
        let expected = [
            [
                "starting", "-", "-", "-", "-", "-", "-", "-", "-", "-", "removing",
            ],
            [
                "-", "running", "paused", "failed", "-", "-", "stopping", "exited", "failed", "-", "-",
            ],
            [
                "-", "-", "-", "-", "paused", "-", "stopping", "exited", "failed", "-", "-",
            ],
            [
                "-", "-", "-", "-", "-", "running", "stopping", "exited", "failed", "-", "-",
            ],
            [
                "-", "-", "-", "failed", "-", "-", "stopping", "exited", "exited", "-", "-",
            ],
            ["starting", "-", "-", "-", "-", "-", "exited", "-", "-", "-", "-"],
            [
                "starting",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "restarting",
                "removing",
            ],
            [
                "starting",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "-",
                "restarting",
                "removing",
            ],
            ["-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"],
        ];
        for (state, row) in states().iter().zip(expected) {
            for (event, cell) in events().into_iter().zip(row) {
                let after = state.after(event.clone());
                let name = after.as_ref().map_or("-", State::name);
                assert_eq!(name, cell, "{} after {event:?}", state.name());
            }
        }
    }

    #[test]
    fn a_refusal_says_what_and_why() {
        let refused = State::Running.after(Event::Remove).unwrap_err();
        assert_eq!(refused.to_string(), "a machine that is running cannot be removed");
    }
}
