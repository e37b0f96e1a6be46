//! The task that owns one machine: its state, its record, and who waits for what.

mod change;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::v1::EventAction;
use hearth_machine::{Ended, Event, Health, History, MachineId, ProbeResult, Process, Signal, Spec, State};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::capture::{self, Capture};
use super::command::{Command, Reply, Rollback, View};
use super::error::{MachineError, StartError};
use super::health::{self, Patient, Prober};
use super::idle;
use super::life::{self, Life, LifeEvent, Limits, Order, Origin, Parts, Plan, Running};
use super::output::{Attached, Subscriber, subscription};
use super::registry::Table;
use super::restore::Restoration;
use super::session::WorkloadIo;
use super::standby::Kind;
use super::templates::Choice;
use crate::host::{failpoint, files};
use crate::records::{self, MachineRecord, RecordedState, Records, spec};
use crate::snapshots::Extent;
use crate::vmm::ControlError;

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
    pub(super) health: Option<Health>,
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
    prober: Option<Prober>,
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
    /// Who wants it to be started again once it has ended.
    restarters: Vec<Reply<()>>,
    /// When the restart policy starts it again.
    restart_at: Option<Instant>,
    /// The life has not been told of new time limits.
    limits_changed: bool,
    removers: Vec<Reply<()>>,
    /// What it is to be again, once it has ended.
    rollback: Option<Box<Rollback>>,
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
            prober: None,
            end: None,
            unwritten: false,
            early: Vec::new(),
            starters: Vec::new(),
            pauser: None,
            stoppers: Vec::new(),
            restarters: Vec::new(),
            restart_at: None,
            limits_changed: false,
            removers: Vec::new(),
            rollback: None,
        };
        self.carry_on(&mut work);
        loop {
            tokio::select! {
                command = mailbox.recv() => match command {
                    Some(command) => self.take_command(&mut work, command).await,
                    None => return,
                },
                Some(event) = work.events.recv() => self.take_event(&mut work, event).await,
                () = tokio::time::sleep(RETRY), if work.unwritten => self.write(&mut work),
                () = due(work.restart_at) => self.restart_by_policy(&mut work),
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
            Command::Start { terminal, reply } => self.start_by_hand(work, terminal, reply),
            Command::Restart { grace, reply } => {
                if !self.state.is_alive() {
                    return self.start_by_hand(work, None, reply);
                }
                work.restarters.push(reply);
                self.stop(work, Order::Stop { grace, reason: None }).await;
            }
            Command::EndByHand { reply } => {
                self.end_by_hand();
                answer(reply, Ok(()));
            }
            Command::Rename { name, reply } => answer(reply, self.rename(work, &name)),
            Command::Update { change, reply } => answer(reply, self.update(work, change).await),
            Command::Network { change, reply } => answer(reply, self.change_network(work, change).await),
            Command::Stop { grace, reply } => {
                self.end_by_hand();
                if self.rest(work) || !self.state.is_alive() {
                    return answer(reply, Ok(())); // Docker's rule: stopping what has stopped is no error.
                }
                self.stop(work, Order::Stop { grace, reason: None }).await;
                work.stoppers.push(reply);
            }
            Command::Kill { reply } => {
                self.end_by_hand();
                if self.rest(work) {
                    return answer(reply, Ok(()));
                }
                if !self.state.is_alive() {
                    return answer(reply, Err(self.not_running()));
                }
                self.tell(EventAction::Kill, [("signal", Signal::KILL.to_string())]);
                self.stop(work, Order::Kill { reason: None }).await;
                work.stoppers.push(reply);
            }
            Command::Pause { reply } => self.order_pause(work, Event::Pause, Order::Pause, reply).await,
            Command::Resume { reply } => self.order_pause(work, Event::Resume, Order::Resume, reply).await,
            Command::Remove { force, reply } => {
                if force {
                    self.rest(work);
                }
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
            Command::Capture(capture) => self.capture(work, *capture).await,
            Command::Restore { source, reply } => match self.start(work, None, Some(source)) {
                Ok(()) => work.starters.push(reply),
                Err(error) => answer(reply, Err(error.into())),
            },
            Command::Finish { reply } => {
                self.record.unfinished = false;
                self.enter(work, self.state.clone());
                answer(reply, Ok(()));
            }
            Command::Rollback(rollback) => self.rollback(work, rollback).await,
        }
    }

    fn start_by_hand(&mut self, work: &mut Work, terminal: Option<(u16, u16)>, reply: Reply<()>) {
        match self.start(work, terminal, None) {
            Ok(()) => {
                self.record.restart = History::default().into();
                work.starters.push(reply);
            }
            Err(error) => answer(reply, Err(error.into())),
        }
    }

    /// The restart policy's time has come.
    fn restart_by_policy(&mut self, work: &mut Work) {
        let history = History::from(self.record.restart).after_restart();
        self.record.restart = history.into();
        if let Err(error) = self.start(work, None, None) {
            // Nothing that time would mend: its secrets are gone, say.
            work.restart_at = None;
            let reason = life::chain(&error);
            tracing::warn!(machine = %self.id, %reason, "not restarted");
            self.enter(work, State::Failed { reason });
        }
    }

    /// Gives up a restart that was planned; tells whether one was.
    fn rest(&mut self, work: &mut Work) -> bool {
        let planned = work.restart_at.take().is_some();
        if planned && let Ok(state) = self.state.after(Event::StopAsked) {
            // Those that wait for its next run have waited long enough.
            work.early.clear();
            self.enter(work, state);
        }
        planned
    }

    fn end_by_hand(&mut self) {
        self.record.restart.stopped_by_hand = true;
    }

    /// Asks the policy whether a machine that has ended is to be started again, and when. Returns the state that follows.
    fn planned(&mut self, work: &mut Work, ended: &State, ran: Duration) -> State {
        let history = History::from(self.record.restart).after_run(ran);
        let after = self.spec.restart.restart_after(ended, history);
        work.restart_at = after.map(|after| Instant::now() + after);
        self.record.restart = history.into();
        let event = match after {
            Some(_) => Event::RestartPlanned,
            None => Event::StopAsked,
        };
        // Refused where nothing is to change: it rests already, or waits already.
        ended.after(event).unwrap_or_else(|_| ended.clone())
    }

    fn tell<const N: usize>(&self, action: EventAction, attributes: [(&str, String); N]) {
        self.parts.events.tell(&self.record, action, attributes);
    }

    fn start(
        &mut self,
        work: &mut Work,
        terminal: Option<(u16, u16)>,
        source: Option<Arc<Restoration>>,
    ) -> Result<(), StartError> {
        let state = self.state.after(Event::Start)?;
        let secrets = match (&self.secrets, &source) {
            (Some(secrets), _) => Arc::clone(secrets),
            // Its memory has them.
            (None, Some(_)) => Arc::default(),
            (None, None) => return Err(StartError::SecretsLost(self.record.secrets.clone())),
        };
        let plan = Plan {
            secrets,
            terminal,
            source,
            same_identity: !self.record.unfinished,
            subscribers: std::mem::take(&mut work.early),
            ..self.plan()
        };
        work.restart_at = None;
        work.limits_changed = false;
        idle::forget(&self.parts.layout.machine_data(self.id));
        work.end = None;
        self.enter_start(work, state)?;
        failpoint::pass("start-recorded");
        work.life = Some(life::begin(plan, Origin::Boot, work.send_events.clone()));
        Ok(())
    }

    /// Goes on with what an earlier node has started, where this actor was made for that.
    fn carry_on(&mut self, work: &mut Work) {
        if let State::Restarting(_) = self.state {
            let state = self.planned(work, &self.state.clone(), Duration::ZERO);
            return self.enter(work, state);
        }
        let Some(vmm) = self.record.vmm.filter(|_| self.state.is_alive()) else {
            return;
        };
        let mut plan = Plan {
            limits: self.limits(),
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
            image: self.record.image.digest.clone(),
            choice: if self.record.spec.no_template {
                Choice::Boot
            } else {
                Choice::Template
            },
            kind: Kind::of(
                &self.spec,
                &self.record.image.digest,
                self.record.owner.as_ref(),
                self.record.spec.no_template,
            ),
            source: None,
            same_identity: true,
            secrets: Arc::default(),
            io: WorkloadIo {
                terminal: self.record.spec.terminal,
                stdin: self.record.spec.stdin,
            },
            terminal: None,
            limits: Limits {
                time: self.spec.timeout,
                idle: self.spec.idle_timeout,
            },
            ephemeral: self.record.spec.auto_remove,
            paused: self.record.paused,
            first_order: None,
            subscribers: Vec::new(),
            border: self.record.border,
            parts: Arc::clone(&self.parts),
            limiting: None,
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
        let action = match event {
            Event::Pause => EventAction::Pause,
            _ => EventAction::Unpause,
        };
        let entered = done
            .map_err(MachineError::from)
            .and_then(|()| self.state.after(event).map_err(MachineError::from));
        let result = entered.map(|state| {
            self.enter(work, state);
            self.tell(action, []);
        });
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

    async fn take_event(&mut self, work: &mut Work, event: LifeEvent) {
        self.carry_out(work, event);
        self.pass_limits(work).await;
    }

    fn carry_out(&mut self, work: &mut Work, event: LifeEvent) {
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
                    self.record.template.clone_from(&running.template);
                    self.record.boot.clone_from(&running.boot);
                }
                work.prober = self.prober(work, &running);
                work.running = Some(Arc::from(running));
                let state = self
                    .state
                    .after(Event::Started)
                    .unwrap_or_else(|_| self.state.clone());
                self.enter(work, state);
                if !was_found {
                    self.tell(EventAction::Start, []);
                }
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
            LifeEvent::TimedOut => {
                self.end_by_hand();
                if let Ok(state) = self.state.after(Event::StopAsked) {
                    self.enter(work, state);
                }
            }
            LifeEvent::Probed(result) => self.probed(work, result),
            LifeEvent::Over { event, error } => self.end(work, event, error),
        }
    }

    fn end(&mut self, work: &mut Work, event: Event, error: Option<StartError>) {
        let ran = work.running.is_some();
        (work.life, work.running, work.prober, self.record.vmm) = (None, None, None, None);
        self.record.ports.clear();
        work.early.clear();
        let now = jiff::Timestamp::now();
        self.record.finished_at = Some(now.to_string());
        // Refused only if the life reports an end twice; then the first counts.
        let ended = self.state.after(event).unwrap_or_else(|_| self.state.clone());
        work.end = Some(ended.clone());
        // A start that a client waits for and that fails is told to him, and that is all.
        let asked = [&work.starters, &work.removers, &work.restarters];
        let rests = self.record.spec.auto_remove
            || work.rollback.is_some()
            || asked.iter().any(|waiting| !waiting.is_empty());
        let state = if rests {
            ended.clone()
        } else {
            let began = self.record.started_at.as_ref().and_then(|text| text.parse().ok());
            let took = began
                .filter(|_| ran)
                .map_or(Duration::ZERO, |began| since(began, now));
            self.planned(work, &ended, took)
        };
        self.enter(work, state);
        failpoint::pass("stop-recorded");
        self.tell(EventAction::Die, last_words(&ended));
        let mut error = error;
        for reply in work.starters.drain(..) {
            let reason = error.take().unwrap_or(StartError::Stopped);
            answer(reply, Err(reason.into()));
        }
        if let Some(reply) = work.pauser.take() {
            answer(reply, Err(self.not_running()));
        }
        match work.rollback.take() {
            Some(rollback) if work.removers.is_empty() => return self.go_back(work, *rollback),
            Some(rollback) => answer(rollback.reply, Err(MachineError::Gone)),
            None => {}
        }
        if work.removers.is_empty() && !work.restarters.is_empty() {
            return self.start_again(work);
        }
        if self.record.spec.auto_remove || !work.removers.is_empty() {
            // Always allowed from a state in which nothing is alive.
            if let Ok(state) = self.state.after(Event::Remove) {
                self.enter(work, state);
            }
        }
        if !work.stoppers.is_empty() {
            self.tell(EventAction::Stop, []);
        }
        for reply in work.stoppers.drain(..) {
            answer(reply, Ok(()));
        }
    }

    /// Lets the machine be captured, where its state allows it.
    async fn capture(&mut self, work: &mut Work, capture: Capture) {
        let disk_only = capture.extent == Extent::Disk;
        match (&self.state, &work.life) {
            (State::Running, Some(life)) if work.pauser.is_none() => {
                // Fails only when the life is just over: who asked hears that from the reply that is dropped.
                let _ = life.orders.send(Order::Capture(Box::new(capture))).await;
            }
            (State::Paused, Some(life)) if disk_only && work.pauser.is_none() => {
                let _ = life.orders.send(Order::Capture(Box::new(capture))).await;
            }
            (state, None) if disk_only && !state.is_alive() => {
                let plan = self.plan();
                let taken = capture::of_still(&plan, &capture).await;
                capture::answer(&plan, capture, taken);
            }
            // The state did not allow it any more; who asked has looked before, and is told that it has changed.
            _ => drop(capture),
        }
    }

    /// Makes the machine again what it was, once nothing of it runs.
    async fn rollback(&mut self, work: &mut Work, rollback: Box<Rollback>) {
        if work.rollback.is_some() || work.pauser.is_some() {
            let name = self.record.name.clone();
            return answer(rollback.reply, Err(MachineError::Busy { name }));
        }
        self.rest(work);
        if !self.state.is_alive() {
            return self.go_back(work, *rollback);
        }
        work.rollback = Some(rollback);
        let reason = "it was rolled back".to_owned();
        self.stop(work, Order::Discard { reason }).await;
    }

    /// Puts the disk in place and starts the machine with it.
    fn go_back(&mut self, work: &mut Work, rollback: Rollback) {
        let Rollback { disk, source, reply } = rollback;
        let in_place = std::fs::rename(&disk, self.parts.layout.machine_disk(self.id));
        failpoint::pass("rollback-disk");
        let started = in_place
            .map_err(StartError::DiskInPlace)
            .and_then(|()| self.start(work, None, source));
        match started {
            Ok(()) => work.starters.push(reply),
            Err(error) => answer(reply, Err(error.into())),
        }
    }

    /// Starts it for those that wanted it to be stopped and started.
    fn start_again(&mut self, work: &mut Work) {
        self.tell(EventAction::Stop, []);
        work.stoppers.drain(..).for_each(|reply| answer(reply, Ok(())));
        for reply in std::mem::take(&mut work.restarters) {
            if self.state.is_alive() {
                work.starters.push(reply);
            } else {
                self.start_by_hand(work, None, reply);
            }
        }
        self.tell(EventAction::Restart, []);
    }

    /// Enters the state of a start, which must be written down first: a virtual machine that nothing on the disk tells of
    /// would be lost with this node.
    fn enter_start(&mut self, work: &Work, state: State) -> Result<(), StartError> {
        let before = (self.state.clone(), self.record.clone());
        self.record.started_at = Some(jiff::Timestamp::now().to_string());
        self.record.finished_at = None;
        self.record.host_boot = Some(self.parts.host_boot.clone());
        self.health = self.record.health_check.as_ref().map(|_| Health::default());
        self.take_on(state);
        if let Err(error) = self.records.write(self.id, &self.record) {
            (self.state, self.record) = before;
            return Err(error.into());
        }
        self.show(work);
        Ok(())
    }

    fn prober(&self, work: &Work, running: &Running) -> Option<Prober> {
        let patient = Patient {
            process: self.process.clone(),
            container: self.spec.container.clone(),
            guest: running.guest.unseen(),
            view: self.view.subscribe(),
            events: work.send_events.clone(),
        };
        Prober::begin(patient, &self.record, &self.parts.tasks)
    }

    fn probed(&mut self, work: &mut Work, result: ProbeResult) {
        let changed = health::take(&mut self.health, &self.state, &self.record, result);
        let Some(status) = changed else {
            return self.show(work);
        };
        self.enter(work, State::Running);
        self.tell(EventAction::HealthStatus, [health::attribute(status)]);
    }

    /// Enters a state: writes it down, then shows it.
    fn enter(&mut self, work: &mut Work, state: State) {
        self.take_on(state);
        self.write(work);
        self.show(work);
    }

    fn take_on(&mut self, state: State) {
        self.state = state;
        self.record.health = self.health.as_ref().map(records::health::health_fact);
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
            health: self.health.clone(),
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
        self.tell(EventAction::Destroy, []);
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
    parts.standbys.give_up(id);
    parts.networks.forget(id);
    life::release(parts, id);
    failpoint::pass("remove-released");
    let path: PathBuf = parts.layout.machine_data(id);
    // The file system gives a disk's blocks back when nobody has it open any more, and that can take tens of milliseconds.
    let disk = std::fs::File::open(parts.layout.machine_disk(id)).ok();
    let removed = files::remove_tree(&path);
    parts.tasks.spawn_blocking(move || drop(disk));
    removed.map_err(|source| MachineError::Remove { path, source })?;
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

/// Waits for a moment; for ever where there is none.
async fn due(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// How a machine ended, as events tell it.
fn last_words(ended: &State) -> [(&'static str, String); 2] {
    let (exit_code, reason) = match ended {
        State::Exited(ended) => (ended.exit_code.to_string(), ended.reason.clone()),
        State::Failed { reason } => (String::new(), Some(reason.clone())),
        _ => Default::default(),
    };
    [("exit_code", exit_code), ("reason", reason.unwrap_or_default())]
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
