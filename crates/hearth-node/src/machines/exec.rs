//! A process beside a workload, as events tell it: started, and ended.

use std::sync::Arc;

use hearth_api::v1::EventAction;

use super::events::EventLog;
use crate::guest::{Input, RequestError, Session, SessionEvent};
use crate::records::MachineRecord;

/// Such a process; dropped, it is killed, as its session is.
#[derive(Debug)]
pub struct Exec {
    session: Session,
    teller: Teller,
    is_limited: bool,
}

/// Tells each thing once.
#[derive(Debug)]
struct Teller {
    events: EventLog,
    record: Arc<MachineRecord>,
    program: String,
    runs: bool,
}

impl Teller {
    fn started(&mut self) {
        self.runs = true;
        let command = [("command", self.program.clone())];
        self.events.tell(&self.record, EventAction::ExecStart, command);
    }

    fn ended(&mut self, exit_code: Option<u8>, reason: &str) {
        if std::mem::take(&mut self.runs) {
            let attributes = [
                ("command", self.program.clone()),
                (
                    "exit_code",
                    exit_code.map(|code| code.to_string()).unwrap_or_default(),
                ),
                ("reason", reason.to_owned()),
            ];
            self.events.tell(&self.record, EventAction::ExecDie, attributes);
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.ended(None, "its client went away");
    }
}

impl Exec {
    pub(super) fn new(
        session: Session,
        events: EventLog,
        record: Arc<MachineRecord>,
        program: String,
        is_limited: bool,
    ) -> Self {
        let teller = Teller {
            events,
            record,
            program,
            runs: false,
        };
        Self {
            session,
            teller,
            is_limited,
        }
    }

    /// Tells whether the guest ends it at its time limit.
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Returns the sending side.
    pub fn input(&self) -> Input {
        self.session.input()
    }

    /// Waits for what comes next, as [`Session::next`] does.
    pub async fn next(&mut self) -> SessionEvent {
        let event = self.session.next().await;
        match &event {
            SessionEvent::Started { .. } => self.teller.started(),
            SessionEvent::Ended(outcome) => self.teller.ended(Some(outcome.exit_code()), ""),
            SessionEvent::Failed(failure) => self.teller.ended(None, &failure.message),
            SessionEvent::ChannelLost => self.teller.ended(None, "the machine is gone"),
            SessionEvent::Output(..) | SessionEvent::OutputEnded(_) => {}
        }
        event
    }

    /// Lets go of the process, as [`Session::let_go`] does; nobody hears of its end.
    ///
    /// # Errors
    /// Returns [`RequestError::OlderAgent`].
    pub fn let_go(mut self) -> Result<(), RequestError> {
        self.session.let_go()?;
        self.teller.runs = false;
        Ok(())
    }
}
