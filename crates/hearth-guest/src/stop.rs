//! The order in which a machine comes to rest. Pure: [`crate::core`] says what happened and does what this says.
//!
//! ```text
//! Running --STOP--> Asked --workload gone, or grace over--> Ending --no process left--> Resting
//!                                                                                          | disks at rest
//!                                          Stopped <--last outputs sent, or time over-- Draining
//! ```

use std::time::Duration;

/// How long the last output may take to reach the host once the disks are at rest.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nobody asked.
    Running,
    /// The workload was asked to end.
    Asked,
    /// What is left was killed.
    Ending,
    /// The disks are being unmounted.
    Resting,
    /// They are; sessions still have something to say.
    Draining,
    /// All done.
    Stopped,
}

/// What there is when it is time to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The workload's process is not reaped.
    pub(crate) workload: bool,
    /// A child of the agent is not reaped.
    pub(crate) children: bool,
    /// A process's session has not ended.
    pub(crate) sessions: bool,
    /// The deadline that was set has passed.
    pub(crate) overdue: bool,
}

/// What must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait.
    Wait,
    /// Kill every process, and look again.
    Kill,
    /// Unmount the disks in a child.
    Rest,
    /// Set a deadline of [`DRAIN`], and look again.
    Drain,
    /// Tell the host.
    Tell,
}

impl Stop {
    /// Goes one step.
    pub(crate) fn step(&mut self, facts: Facts) -> Step {
        let (next, step) = match *self {
            Self::Asked if !facts.workload || facts.overdue => (Self::Ending, Step::Kill),
            Self::Ending if !facts.children => (Self::Resting, Step::Rest),
            Self::Resting if !facts.children => (Self::Draining, Step::Drain),
            Self::Draining if !facts.sessions || facts.overdue => (Self::Stopped, Step::Tell),
            same => (same, Step::Wait),
        };
        *self = next;
        step
    }

    /// Tells whether new sessions are taken.
    pub(crate) fn is_running(self) -> bool {
        self == Self::Running
    }
}

/// Asks the kernel whether the agent has children, reaped by nobody yet.
pub(crate) fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Facts = Facts {
        workload: true,
        children: true,
        sessions: true,
        overdue: false,
    };

    #[test]
    fn a_workload_that_ends_in_time_leads_to_rest_without_a_deadline() {
        let mut stop = Stop::Asked;
        assert_eq!(stop.step(BUSY), Step::Wait);
        assert_eq!(
            stop.step(Facts {
                workload: false,
                ..BUSY
            }),
            Step::Kill
        );
        assert_eq!(
            stop.step(Facts {
                workload: false,
                ..BUSY
            }),
            Step::Wait
        );
        let quiet = Facts {
            workload: false,
            children: false,
            ..BUSY
        };
        assert_eq!(stop.step(quiet), Step::Rest);
        assert_eq!(stop.step(quiet), Step::Drain);
        assert_eq!(stop.step(quiet), Step::Wait);
        assert_eq!(
            stop.step(Facts {
                sessions: false,
                ..quiet
            }),
            Step::Tell
        );
        assert_eq!(stop, Stop::Stopped);
    }

    #[test]
    fn deadlines_end_a_stubborn_workload_and_a_host_that_does_not_read() {
        let mut stop = Stop::Asked;
        assert_eq!(
            stop.step(Facts {
                overdue: true,
                ..BUSY
            }),
            Step::Kill
        );
        stop = Stop::Draining;
        assert_eq!(
            stop.step(Facts {
                overdue: true,
                ..BUSY
            }),
            Step::Tell
        );
    }

    #[test]
    fn disks_never_rest_while_a_process_lives() {
        let mut stop = Stop::Ending;
        assert_eq!(
            stop.step(Facts {
                overdue: true,
                ..BUSY
            }),
            Step::Wait
        );
    }
}
