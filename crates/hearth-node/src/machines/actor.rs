//! The task that owns one machine: its state, its record, and who waits for what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_machine::{Ended, Event, MachineId, Process, Spec, State};
use tokio::sync::{mpsc, oneshot, watch};

use super::error::{MachineError, StartError};
use super::life::{self, Life, LifeEvent, Order, Origin, Parts, Plan, Running};
use super::output::{Attached, Subscriber, subscription};
use super::registry::Table;
use super::session::WorkloadIo;
use crate::guest::{Guest, Input};
use crate::host::{failpoint, files};
use crate::records::{MachineRecord, RecordedState, Records, spec};
use crate::vmm::ControlError;

/// What everybody may see of a machine.
#[derive(Debug, Clone)]
pub struct View {
    /// How it stands.
    pub state: State,
    /// The state in which its last start ended; it stays when the machine is removed.
    pub end: Option<State>,
    /// Its record.
    pub record: Arc<MachineRecord>,
    /// The guest, while its workload runs.
    pub(super) running: Option<Arc<Running>>,
}

/// A client's connection to a workload.
#[derive(Debug)]
pub struct AttachedMachine {
    /// What it prints from here on.
    pub output: Attached,
    /// Its input, once it runs.
    pub input: Option<Input>,
}

/// What a machine's actor can be asked.
#[derive(Debug)]
pub(super) enum Command {
    Start {
        terminal: Option<(u16, u16)>,
        reply: Reply<()>,
    },
    Stop {
        grace: Duration,
        reply: Reply<()>,
    },
    Kill {
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Resume {
        reply: Reply<()>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    Attach {
        reply: Reply<Attached>,
    },
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, MachineError>>;

/// Commands that wait for the actor.
pub(super) const MAILBOX: usize = 32;
const EVENTS: usize = 8;
/// How long the disk has to make room before a record is tried again.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Actor {
    pub(super) id: MachineId,
    pub(super) spec: Spec,
    pub(super) process: Process,
    /// `None` when they were in the memory of a node that has ended.
    pub(super) secrets: Option<Arc<BTreeMap<String, String>>>,
    pub(super) state: State,
    pub(super) record: MachineRecord,
    pub(super) view: watch::Sender<View>,
    pub(super) records: Records,
    pub(super) parts: Arc<Parts>,
    pub(super) table: Arc<Table>,
}

/// What changes while an actor runs.
struct Work {
    life: Option<Life>,
    events: mpsc::Receiver<LifeEvent>,
    send_events: mpsc::Sender<LifeEvent>,
    running: Option<Arc<Running>>,
    /// The state in which the last start ended.
    end: Option<State>,
    /// Whether the record on the disk is not the one here.
    unwritten: bool,
    /// Attached before the start.
    early: Vec<Subscriber>,
    starters: Vec<Reply<()>>,
    /// Who waits for a pause or its end.
    pauser: Option<Reply<()>>,
    stoppers: Vec<Reply<()>>,
    removers: Vec<Reply<()>>,
}

impl Actor {
    /// Runs until the machine is removed, or nobody can ask for anything any more.
    pub(super) async fn run(mut self, mut mailbox: mpsc::Receiver<Command>) {
        let (send_events, events) = mpsc::channel(EVENTS);
        let mut work = Work {
            life: None,
            events,
            send_events,
            running: None,
            end: None,
            unwritten: false,
            early: Vec::new(),
            starters: Vec::new(),
            pauser: None,
            stoppers: Vec::new(),
            removers: Vec::new(),
        };
        self.carry_on(&mut work);
        loop {
            tokio::select! {
                command = mailbox.recv() => match command {
                    Some(command) => self.take_command(&mut work, command).await,
                    None => return,
                },
                Some(event) = work.events.recv() => self.take_event(&mut work, event),
                () = tokio::time::sleep(RETRY), if work.unwritten => self.write(&mut work),
            }
            if self.state == State::Removing {
                failpoint::pass("remove-recorded");
                self.finish_removal(&mut work);
                return;
            }
        }
    }

    async fn take_command(&mut self, work: &mut Work, command: Command) {
        match command {
            Command::Start { terminal, reply } => match self.start(work, terminal) {
                Ok(()) => work.starters.push(reply),
                Err(error) => answer(reply, Err(error.into())),
            },
            Command::Stop { grace, reply } => {
                if !self.state.is_alive() {
                    return answer(reply, Ok(())); // Docker's rule: stopping what has stopped is no error.
                }
                self.stop(work, Order::Stop { grace, reason: None }).await;
                work.stoppers.push(reply);
            }
            Command::Kill { reply } => {
                if !self.state.is_alive() {
                    return answer(reply, Err(self.not_running()));
                }
                self.stop(work, Order::Kill { reason: None }).await;
                work.stoppers.push(reply);
            }
            Command::Pause { reply } => self.order_pause(work, Event::Pause, Order::Pause, reply).await,
            Command::Resume { reply } => self.order_pause(work, Event::Resume, Order::Resume, reply).await,
            Command::Remove { force, reply } => {
                if force && self.state.is_alive() {
                    self.stop(
                        work,
                        Order::Discard {
                            reason: "it was removed".to_owned(),
                        },
                    )
                    .await;
                    return work.removers.push(reply);
                }
                match self.state.after(Event::Remove) {
                    Ok(state) => {
                        work.removers.push(reply);
                        self.enter(work, state);
                    }
                    Err(refused) => answer(reply, Err(refused.into())),
                }
            }
            Command::Attach { reply } => self.attach(work, reply).await,
        }
    }

    fn start(&mut self, work: &mut Work, terminal: Option<(u16, u16)>) -> Result<(), StartError> {
        let state = self.state.after(Event::Start)?;
        let Some(secrets) = self.secrets.clone() else {
            return Err(StartError::SecretsLost(self.record.secrets.clone()));
        };
        let plan = Plan {
            secrets,
            terminal,
            subscribers: std::mem::take(&mut work.early),
            ..self.plan()
        };
        work.end = None;
        self.enter_start(work, state)?;
        failpoint::pass("start-recorded");
        work.life = Some(life::begin(plan, Origin::Boot, work.send_events.clone()));
        Ok(())
    }

    /// Goes on with what an earlier node has started, where this actor was made for that.
    fn carry_on(&mut self, work: &mut Work) {
        let Some(vmm) = self.record.vmm.filter(|_| self.state.is_alive()) else {
            return;
        };
        let began = self.record.started_at.as_ref().and_then(|text| text.parse().ok());
        let gone = began.map_or(Duration::ZERO, |began| since(began, jiff::Timestamp::now()));
        let mut plan = Plan {
            time_limit: self.spec.timeout.map(|limit| limit.saturating_sub(gone)),
            ..self.plan()
        };
        // Those that clients know; written by this code, so none is left out.
        plan.spec.ports = self
            .record
            .ports
            .iter()
            .filter_map(|port| spec::port(port).ok())
            .collect();
        work.life = Some(life::begin(plan, Origin::Found(vmm), work.send_events.clone()));
    }

    fn plan(&self) -> Plan {
        Plan {
            id: self.id,
            spec: self.spec.clone(),
            process: self.process.clone(),
            secrets: Arc::default(),
            io: WorkloadIo {
                terminal: self.record.spec.terminal,
                stdin: self.record.spec.stdin,
            },
            terminal: None,
            time_limit: self.spec.timeout,
            ephemeral: self.record.spec.auto_remove,
            paused: self.record.paused,
            first_order: None,
            subscribers: Vec::new(),
            border: self.record.border,
            parts: Arc::clone(&self.parts),
        }
    }

    async fn stop(&mut self, work: &mut Work, order: Order) {
        if let Ok(state) = self.state.after(Event::StopAsked) {
            self.enter(work, state);
        }
        if let Some(life) = &work.life {
            // Fails only when the life is just over; its last event is on the way.
            let _ = life.orders.send(order).await;
        }
    }

    /// Passes an order to pause or to go on, where the state allows it; the life tells when it is carried out.
    async fn order_pause(&mut self, work: &mut Work, event: Event, order: Order, reply: Reply<()>) {
        if work.pauser.is_some() {
            let name = self.record.name.clone();
            return answer(reply, Err(MachineError::PauseUnderWay { name }));
        }
        match (self.state.after(event), &work.life) {
            (Err(refused), _) => answer(reply, Err(refused.into())),
            (Ok(_), None) => answer(reply, Err(self.not_running())),
            (Ok(_), Some(life)) => {
                // Fails only when the life is just over; its last event answers whoever waits.
                let _ = life.orders.send(order).await;
                work.pauser = Some(reply);
            }
        }
    }

    /// An order to pause or to go on was carried out, or could not be.
    fn paused(&mut self, work: &mut Work, event: Event, done: Result<(), ControlError>) {
        let entered = done
            .map_err(MachineError::from)
            .and_then(|()| self.state.after(event).map_err(MachineError::from));
        let result = entered.map(|state| self.enter(work, state));
        if let Some(reply) = work.pauser.take() {
            answer(reply, result);
        }
    }

    async fn attach(&mut self, work: &mut Work, reply: Reply<Attached>) {
        let (subscriber, attached) = subscription();
        match &work.life {
            // Fails only when the life is just over: then the subscriber is dropped, and the client sees the end.
            Some(life) => drop(life.attach.send(subscriber).await),
            None => work.early.push(subscriber),
        }
        answer(reply, Ok(attached));
    }

    fn take_event(&mut self, work: &mut Work, event: LifeEvent) {
        match event {
            LifeEvent::VmmStarted(vmm) => {
                self.record.vmm = Some(vmm);
                let state = self.state.clone();
                self.enter(work, state);
                failpoint::pass("start-vmm-recorded");
            }
            LifeEvent::Running(running) => {
                let was_found = running.stages.is_empty();
                self.record.ports = running.ports.iter().map(spec::port_mapping).collect();
                if !running.stages.is_empty() {
                    self.record.stages.clone_from(&running.stages);
                }
                work.running = Some(Arc::from(running));
                let state = self
                    .state
                    .after(Event::Started)
                    .unwrap_or_else(|_| self.state.clone());
                self.enter(work, state);
                if was_found {
                    failpoint::pass("adopt-running");
                } else {
                    failpoint::pass("start-running");
                }
                work.starters.drain(..).for_each(|reply| answer(reply, Ok(())));
            }
            LifeEvent::FoundPaused => {
                if let Ok(state) = self.state.after(Event::FoundPaused) {
                    self.enter(work, state);
                }
            }
            LifeEvent::Paused(done) => self.paused(work, Event::Pause, done),
            LifeEvent::Resumed(done) => self.paused(work, Event::Resume, done),
            LifeEvent::Over { event, error } => self.end(work, event, error),
        }
    }

    fn end(&mut self, work: &mut Work, event: Event, error: Option<StartError>) {
        (work.life, work.running, self.record.vmm) = (None, None, None);
        self.record.ports.clear();
        work.early.clear();
        self.record.finished_at = Some(jiff::Timestamp::now().to_string());
        // Refused only if the life reports an end twice; then the first counts.
        let ended = self.state.after(event).unwrap_or_else(|_| self.state.clone());
        work.end = Some(ended.clone());
        self.enter(work, ended);
        failpoint::pass("stop-recorded");
        let mut error = error;
        for reply in work.starters.drain(..) {
            let reason = error.take().unwrap_or(StartError::Stopped);
            answer(reply, Err(reason.into()));
        }
        if let Some(reply) = work.pauser.take() {
            answer(reply, Err(self.not_running()));
        }
        if self.record.spec.auto_remove || !work.removers.is_empty() {
            // Always allowed from a state in which nothing is alive.
            if let Ok(state) = self.state.after(Event::Remove) {
                self.enter(work, state);
            }
        }
        work.stoppers.drain(..).for_each(|reply| answer(reply, Ok(())));
    }

    /// Enters the state of a start, which must be written down first: a virtual machine that nothing on the disk tells of
    /// would be lost with this node.
    fn enter_start(&mut self, work: &Work, state: State) -> Result<(), StartError> {
        let before = (self.state.clone(), self.record.clone());
        self.record.started_at = Some(jiff::Timestamp::now().to_string());
        self.record.finished_at = None;
        self.record.host_boot = Some(self.parts.host_boot.clone());
        self.take_on(state);
        if let Err(error) = self.records.write(self.id, &self.record) {
            (self.state, self.record) = before;
            return Err(error.into());
        }
        self.show(work);
        Ok(())
    }

    /// Enters a state: writes it down, then shows it.
    fn enter(&mut self, work: &mut Work, state: State) {
        self.take_on(state);
        self.write(work);
        self.show(work);
    }

    fn take_on(&mut self, state: State) {
        self.state = state;
        self.record.state = recorded(&self.state);
        // One that is being found again is what it was until that is done.
        self.record.paused &= self.state == State::Starting;
        self.record.paused |= self.state == State::Paused;
        self.record.stopping = self.state == State::Stopping;
        self.record.generation += 1;
    }

    fn write(&mut self, work: &mut Work) {
        let written = self.records.write(self.id, &self.record);
        if let Err(error) = &written
            && !work.unwritten
        {
            // The machine goes on: what is shown is true, and the disk will hear of it once it has room.
            tracing::error!(machine = %self.id, error = %life::chain(error), "record not written; it is tried again");
        }
        work.unwritten = written.is_err();
    }

    fn show(&self, work: &Work) {
        self.view.send_replace(View {
            state: self.state.clone(),
            end: work.end.clone(),
            record: Arc::new(self.record.clone()),
            running: work.running.clone(),
        });
    }

    fn not_running(&self) -> MachineError {
        MachineError::NotRunning {
            name: self.record.name.clone(),
            state: self.state.name(),
        }
    }

    /// Removes everything that is the machine's; its record goes last, with its directory.
    fn finish_removal(&mut self, work: &mut Work) {
        let removed = remove_all(&self.parts, self.id);
        self.table.forget(self.id);
        if let Err(MachineError::Remove { path, source }) = &removed {
            tracing::error!(machine = %self.id, path = %path.display(), error = %source, "left behind");
        }
        let mut removed = Some(removed);
        for reply in work.removers.drain(..) {
            answer(reply, removed.take().unwrap_or(Ok(())));
        }
    }
}

/// Removes what a machine owns on this host; also for what a crash left of one.
pub(super) fn remove_all(parts: &Parts, id: MachineId) -> Result<(), MachineError> {
    life::release(parts, id);
    failpoint::pass("remove-released");
    let path: PathBuf = parts.layout.machine_data(id);
    files::remove_tree(&path).map_err(|source| MachineError::Remove { path, source })?;
    failpoint::pass("remove-emptied");
    Ok(())
}

/// Returns the time between two moments; none if the clock was set back.
fn since(began: jiff::Timestamp, now: jiff::Timestamp) -> Duration {
    now.duration_since(began).try_into().unwrap_or_default()
}

fn answer<T>(reply: Reply<T>, result: Result<T, MachineError>) {
    // Who asked has gone away.
    let _ = reply.send(result);
}

fn recorded(state: &State) -> RecordedState {
    match state {
        State::Created => RecordedState::Created,
        State::Starting | State::Running | State::Paused | State::Stopping => RecordedState::Alive,
        State::Restarting(Ended { exit_code, reason }) => RecordedState::Restarting {
            exit_code: *exit_code,
            reason: reason.clone(),
        },
        State::Exited(Ended { exit_code, reason }) => RecordedState::Exited {
            exit_code: *exit_code,
            reason: reason.clone(),
        },
        State::Failed { reason } => RecordedState::Failed {
            reason: reason.clone(),
        },
        State::Removing => RecordedState::Removing,
    }
}

impl View {
    /// Returns the guest of a running machine.
    ///
    /// # Errors
    /// Returns [`MachineError::NotRunning`] or [`MachineError::Paused`].
    pub fn guest(&self) -> Result<&Guest, MachineError> {
        self.running().map(|running| &running.guest)
    }

    pub(super) fn running(&self) -> Result<&Arc<Running>, MachineError> {
        let not_running = || MachineError::NotRunning {
            name: self.record.name.clone(),
            state: self.state.name(),
        };
        if self.state == State::Paused {
            return Err(MachineError::Paused {
                name: self.record.name.clone(),
            });
        }
        self.running.as_ref().ok_or_else(not_running)
    }
}
