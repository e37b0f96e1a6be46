//! One life of a machine: from its start to the moment when nothing of it is left but its disk and its record.
//!
//! ```text
//!  disk -> vmm -> (kernel boots) -> hello -> configure -> workload started  ==Running==>  workload ends
//!    `-------`----------`------------`---------`---------------`--> failed                    |
//!                                                             guest brings disks to rest <----'
//!                                                             vmm killed, memory and sockets removed
//! ```
//! A life may also begin with a virtual machine that an earlier node has left running: then it goes on at Running.
//! Whatever was acquired is released on every way out; the last event says how it ended.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::v1::{Border, Stage};
use hearth_guest_protocol::message::{FailureCode, Outcome, Stop};
use hearth_machine::{Ended, Event, MachineId, ProbeResult, Process, PublishedPort, Spec};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::attend;
use super::boot::{PoweredOn, Stages, last_words, meet, power_on, set_up, words};
use super::capture::Capture;
use super::drivers::Drivers;
use super::error::StartError;
use super::events::EventLog;
use super::full_disk;
use super::limits;
use super::log::LogWriter;
use super::missed::Missed;
use super::output::{Pump, SessionEnd, Subscriber};
use super::pace::Pace;
use super::pagers::{self, Pagers};
use super::paused;
use super::ports::Listeners;
use super::recovery::end_process;
use super::restore::{self, Restoration};
use super::session::WorkloadIo;
use super::standby::{self, Kind, Standbys};
use super::templates::{self, Choice, Model};
use crate::guest::{Guest, Input, RequestError, Session};
use crate::host::cgroup::Groups;
use crate::host::{failpoint, files, own};
use crate::images::Images;
use crate::layout::Layout;
use crate::network::{Networks, Wanted};
use crate::records::{BootFact, MachineRecord, VmmFact};
use crate::setup::Artefacts;
use crate::snapshots::{Snapshots, Templates};
use crate::storage::Disks;
use crate::vmm::{AdoptRequest, ControlError, HostUser, Machine as _, MachineDirs, ProcessId, Vm, Vmm as _};

/// What lives need of the node; shared by all machines.
#[derive(Debug)]
pub struct Parts {
    /// Paths.
    pub layout: Layout,
    /// Kernels and agents.
    pub artefacts: Artefacts,
    /// Images.
    pub images: Images,
    /// Writable disks.
    pub disks: Disks,
    /// What machines are clones of.
    pub templates: Templates,
    /// Clones that nobody has asked for yet.
    pub standbys: Standbys,
    /// What was kept of machines.
    pub snapshots: Arc<Snapshots<MachineRecord>>,
    /// Who serves the memory of machines.
    pub pagers: Pagers,
    /// The networks of machines.
    pub networks: Networks,
    /// Virtual machine monitors.
    pub drivers: Drivers,
    /// Every task of machines; joined when the node ends.
    pub tasks: TaskTracker,
    /// What happens to machines.
    pub events: EventLog,
    /// How long boots take here.
    pub pace: Pace,
    /// The host's present boot, as its kernel names it.
    pub host_boot: String,
    /// What limits monitors.
    pub groups: Groups,
}

/// What one life needs of its machine.
pub(super) struct Plan {
    pub(super) id: MachineId,
    pub(super) spec: Spec,
    pub(super) process: Process,
    /// The manifest digest of its image.
    pub(super) image: String,
    /// Whether it may be a clone.
    pub(super) choice: Choice,
    /// What others like it would have in common with it.
    pub(super) kind: Option<Kind>,
    /// What it goes on with, where that is no boot.
    pub(super) source: Option<Arc<Restoration>>,
    /// Whether that was captured of this very machine.
    pub(super) same_identity: bool,
    pub(super) secrets: Arc<BTreeMap<String, String>>,
    pub(super) io: WorkloadIo,
    /// What is left of its time.
    pub(super) limits: Limits,
    /// The attached client's terminal.
    pub(super) terminal: Option<(u16, u16)>,
    /// Whether the disk is thrown away afterwards, so that nothing on it need come to rest.
    pub(super) ephemeral: bool,
    /// Whether the virtual machine that is found is to stand still.
    pub(super) paused: bool,
    /// What came while it stood still, before its guest could be greeted.
    pub(super) first_order: Option<Order>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) border: Border,
    pub(super) parts: Arc<Parts>,
    /// Puts the monitor's limits in force; over before its groups are removed.
    pub(super) limiting: Option<JoinHandle<()>>,
}

/// How long a machine may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// From now on.
    pub(super) time: Option<Duration>,
    /// Without doing anything.
    pub(super) idle: Option<Duration>,
}

/// What a life is told.
#[derive(Debug)]
pub(super) enum Order {
    /// End, with this much time before the kill.
    Stop { grace: Duration, reason: Option<String> },
    /// End now.
    Kill { reason: Option<String> },
    /// End now; nothing on the disk is needed any more.
    Discard { reason: String },
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Live so long.
    Limits(Limits),
    /// Be captured.
    Capture(Box<Capture>),
}

/// What a life tells its actor.
#[derive(Debug)]
pub(super) enum LifeEvent {
    /// There is a virtual machine.
    VmmStarted(VmmFact),
    /// The workload runs.
    Running(Box<Running>),
    /// It was found again, and stands still.
    FoundPaused,
    /// An order to stand still was carried out, or could not be.
    Paused(Result<(), ControlError>),
    /// An order to go on was carried out, or could not be.
    Resumed(Result<(), ControlError>),
    /// Its time is over; it is being stopped.
    TimedOut,
    /// A probe has found something out.
    Probed(ProbeResult),
    /// Nothing is left; the last event.
    Over { event: Event, error: Option<StartError> },
}

/// A workload that runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) guest: Guest,
    pub(super) input: Input,
    pub(super) stages: Vec<Stage>,
    /// The template that it is a clone of.
    pub(super) template: Option<String>,
    /// What it booted with; absent in a machine that was found.
    pub(super) boot: Option<BootFact>,
    /// The ports that are published.
    pub(super) ports: Vec<PublishedPort>,
}

/// How to reach a life.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) attach: mpsc::Sender<Subscriber>,
}

/// How long the guest may take for what needs no booting: mounting, starting a process, bringing disks to rest.
pub(super) const GUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a guest that is killed may take to write its disks out.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long the pump may take to deliver what is left to attached clients once the machine is dead.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);
/// Orders and clients that wait to be taken.
const ORDERS: usize = 8;
const JOINING: usize = 4;

/// What a life begins with.
pub(super) enum Origin {
    /// A boot.
    Boot,
    /// A virtual machine that an earlier node has left running.
    Found(VmmFact),
}

/// Starts a life; its events come through `events`.
pub(super) fn begin(plan: Plan, origin: Origin, events: mpsc::Sender<LifeEvent>) -> Life {
    let (orders, receive_orders) = mpsc::channel(ORDERS);
    let (attach, joining) = mpsc::channel(JOINING);
    let tasks = plan.parts.tasks.clone();
    tasks.spawn(async move {
        let over = match origin {
            Origin::Boot => live(plan, receive_orders, joining, &events).await,
            Origin::Found(vmm) => live_on(plan, vmm, receive_orders, joining, &events).await,
        };
        // Fails only when the actor is gone, and then nobody is left to be told.
        let _ = events.send(over).await;
    });
    Life { orders, attach }
}

async fn live(
    mut plan: Plan,
    mut orders: mpsc::Receiver<Order>,
    joining: mpsc::Receiver<Subscriber>,
    events: &mpsc::Sender<LifeEvent>,
) -> LifeEvent {
    let id = plan.id;
    let parts = Arc::clone(&plan.parts);
    let mut stages = Stages::begin();
    // Others like it are made ahead only where it turns out to be a clone.
    let kind = plan.kind.take();
    // First: a port that is taken need not cost a boot.
    let clients = match Listeners::bind(&plan.spec.ports).await {
        Ok(listeners) => Clients { listeners, joining },
        Err(error) => return failed(error.into()),
    };
    let (vm, brought_up) = loop {
        let started = unless_ordered(&mut orders, power_on(&plan, &mut stages)).await;
        let PoweredOn { vm, beginning, boot } = match started {
            Ok(started) => started,
            Err(error) => {
                release(&parts, id);
                return failed(error);
            }
        };
        // Fails only when the actor is gone; the life goes on and ends by itself.
        let _ = events.send(LifeEvent::VmmStarted(vm_fact(&vm))).await;
        if let Some(source) = plan.source.take() {
            let goes_on = restore::set_up(&mut plan, &vm, &source, &mut stages);
            let workload = unless_ordered(&mut orders, goes_on).await;
            break (vm, workload);
        }
        let (template, stood_by) = (beginning.template(), beginning.stood_by());
        let is_one_of_many = beginning.is_configured_clone();
        let met = unless_ordered(&mut orders, meet(&plan, &vm, beginning, &mut stages)).await;
        match (met, template) {
            (Err(error), _) if stood_by && !matches!(error, StartError::Stopped) => {
                tracing::warn!(machine = %id, error = %chain(&error), "what stood by for it does not serve it");
                standby::abandon(&plan, &vm).await;
                stages = Stages::begin();
            }
            (Err(error), Some(template)) if !matches!(error, StartError::Stopped) => {
                tracing::warn!(machine = %id, template = %template.id, error = %chain(&error), "the clone does not come up; it boots");
                end_vm(&vm, id).await;
                templates::discard(&plan, &template).await;
                (plan.choice, stages) = (Choice::Boot, Stages::begin());
            }
            (Err(error), _) => break (vm, Err(error)),
            (Ok(guest), template) => {
                let set_up = set_up(&mut plan, &vm, guest, &mut stages);
                let workload = unless_ordered(&mut orders, set_up).await;
                plan.kind = kind.filter(|_| is_one_of_many);
                break (vm, workload.map(|workload| workload.of(template, boot)));
            }
        }
    };
    let over = match brought_up {
        Ok(workload) => run_on(&mut plan, &vm, workload, clients, orders, events).await,
        Err(error) => failed(explained(error, &plan, &vm).await),
    };
    end_vm(&vm, id).await;
    limits::settled(&mut plan).await;
    release(&parts, id);
    failpoint::pass("stop-released");
    over
}

async fn live_on(
    mut plan: Plan,
    vmm: VmmFact,
    mut orders: mpsc::Receiver<Order>,
    joining: mpsc::Receiver<Subscriber>,
    events: &mpsc::Sender<LifeEvent>,
) -> LifeEvent {
    let id = plan.id;
    let parts = Arc::clone(&plan.parts);
    plan.kind = None;
    let vm = match unless_ordered(&mut orders, find_vm(&plan, vmm)).await {
        Ok(vm) => vm,
        Err(error) => {
            // Nobody could reach it any more, and what it runs on is about to be removed.
            if let Err(error) = end_process(process_id(vmm)).await {
                tracing::error!(machine = %id, %error, "a virtual machine of an earlier node does not end");
            }
            release(&parts, id);
            return over(Event::VmmDied {
                reason: chain(&error),
            });
        }
    };
    // The earlier node may have died before it did this.
    limits::impose(&mut plan, vmm);
    let monitor = process_id(vmm).pid;
    let wanted = Wanted::of(&plan.spec);
    if let Err(error) = parts.networks.adopt(id, &wanted, monitor).await {
        tracing::error!(machine = %id, error = %chain(&error), "its network is not served");
    }
    let listeners = Listeners::bind(&plan.spec.ports)
        .await
        .inspect_err(|error| tracing::error!(machine = %id, error = %chain(error), "no port is published"))
        .unwrap_or_default();
    let clients = Clients { listeners, joining };
    if let Err(over) = paused::adopt(&mut plan, &vm, &mut orders, events).await {
        end_vm(&vm, id).await;
        limits::settled(&mut plan).await;
        release(&parts, id);
        return over;
    }
    let over = match unless_ordered(&mut orders, find_workload(&plan, &vm)).await {
        Ok(workload) => run_on(&mut plan, &vm, workload, clients, orders, events).await,
        Err(error) => over(Event::VmmDied {
            reason: chain(&error),
        }),
    };
    end_vm(&vm, id).await;
    limits::settled(&mut plan).await;
    release(&parts, id);
    failpoint::pass("stop-released");
    over
}

/// A workload that runs, its session, and where its output goes.
pub(super) struct Workload {
    pub(super) running: Running,
    pub(super) session: Session,
    pub(super) log: Option<LogWriter>,
}

impl Workload {
    /// Notes what its virtual machine is a clone of, and what that booted with.
    fn of(mut self, template: Option<Model>, boot: BootFact) -> Self {
        self.running.template = template.map(|model| model.id.to_string());
        self.running.boot = Some(boot);
        self
    }
}

/// The ways by which clients come.
struct Clients {
    listeners: Listeners,
    joining: mpsc::Receiver<Subscriber>,
}

/// Carries the workload's output and waits for its end, or for an order to end it.
async fn run_on(
    plan: &mut Plan,
    vm: &Vm,
    Workload {
        mut running,
        session,
        log,
    }: Workload,
    Clients { listeners, joining }: Clients,
    mut orders: mpsc::Receiver<Order>,
    events: &mpsc::Sender<LifeEvent>,
) -> LifeEvent {
    let pump = Pump {
        session,
        log,
        directory: plan.parts.layout.machine_data(plan.id),
        subscribers: std::mem::take(&mut plan.subscribers),
        joining,
        missed: Missed::new(plan.io.terminal),
    };
    let guest = running.guest.clone();
    let pump = plan.parts.tasks.spawn(pump.run());
    running.ports = listeners.ports();
    let way_in = plan.parts.networks.way_in(plan.id);
    let _published = listeners.serve(&guest, way_in, &plan.parts.tasks);
    // Fails only when the actor is gone; the life goes on and ends by itself.
    let _ = events.send(LifeEvent::Running(Box::new(running))).await;
    if !plan.parts.standbys.prepare(plan) {
        plan.parts.networks.refill(plan.spec.network);
    }
    let (id, directory) = (plan.id, plan.parts.layout.machine_data(plan.id));
    let pager = plan.parts.pagers.of(id);
    tokio::select! {
        over = attend::attend(plan, vm, &guest, pump, &mut orders, events) => pagers::explained(over, pager.clone()).await,
        never = pagers::end_with(pager.clone(), vm, id) => match never {},
        never = full_disk::hold_out(vm, id, &directory) => match never {},
    }
}

/// Returns what a record says of a process as the host takes it.
pub(super) fn process_id(vmm: VmmFact) -> ProcessId {
    ProcessId {
        pid: vmm.pid.cast_signed(),
        start_time: vmm.start_time,
    }
}

async fn find_vm(plan: &Plan, vmm: VmmFact) -> Result<Vm, StartError> {
    let driver = plan.parts.drivers.select(plan.spec.driver).await?.driver;
    let request = AdoptRequest {
        id: plan.id,
        process: process_id(vmm),
        dirs: dirs(&plan.parts.layout, plan.id),
    };
    let vm = driver.adopt(&request).await?;
    failpoint::pass("adopt-found");
    Ok(vm)
}

/// How long a guest that is found again may take to answer before it is called anew; twice as long each time.
pub(super) const FIRST_CALL: Duration = Duration::from_secs(2);

/// Finds the workload in a guest that an earlier node has set to work.
async fn find_workload(plan: &Plan, vm: &Vm) -> Result<Workload, StartError> {
    let directory = plan.parts.layout.machine_data(plan.id);
    let log = LogWriter::open(&directory, plan.spec.log.bytes())
        .inspect_err(|error| tracing::error!(directory = %directory.display(), %error, "no output log"))
        .ok();
    let received = log.as_ref().map_or(0, LogWriter::printed);
    let (guest, session) = greet_again(plan, vm, received).await?;
    failpoint::pass("adopt-greeted");
    // The earlier node may have died while it captured the machine.
    if guest.can_stand_still() && guest.thaw(GUEST_DEADLINE).await? {
        tracing::info!(machine = %plan.id, "it stood still, and goes on");
    }
    let session = session.ok_or(StartError::NoWorkload)?;
    let running = Running {
        guest,
        input: session.input(),
        stages: Vec::new(),
        template: None,
        boot: None,
        ports: Vec::new(),
    };
    Ok(Workload {
        running,
        session,
        log,
    })
}

/// Greets a guest that an earlier node has set to work; whoever does not answer is called anew.
///
/// QEMU 7.2 holds a guest's output back for good when the earlier node dies in the middle of a write: it throttles the port for the
/// connection that has just closed, and takes that back when the next one closes.
pub(super) async fn greet_again(
    plan: &Plan,
    vm: &Vm,
    received: u64,
) -> Result<(Guest, Option<Session>), StartError> {
    let greeting = async || {
        let stream = vm.connect_guest().await.map_err(crate::guest::ConnectError::Io)?;
        let (reader, writer) = stream.into_split();
        Guest::reconnect(reader, writer, &plan.parts.tasks, received, GUEST_DEADLINE).await
    };
    let all = async {
        let mut patience = FIRST_CALL;
        loop {
            if let Ok(greeted) = tokio::time::timeout(patience, greeting()).await {
                return greeted;
            }
            tracing::warn!(machine = %plan.id, ?patience, "the guest does not answer, and is called anew");
            patience *= 2;
        }
    };
    let greeted = tokio::time::timeout(GUEST_DEADLINE, all).await;
    Ok(greeted.map_err(|_| RequestError::Timeout(GUEST_DEADLINE))??)
}

/// Runs a step of the start, unless an order to end comes first: then the step is dropped, and with it what it held.
async fn unless_ordered<T>(
    orders: &mut mpsc::Receiver<Order>,
    step: impl Future<Output = Result<T, StartError>>,
) -> Result<T, StartError> {
    tokio::select! {
        result = step => result,
        Some(_) = orders.recv() => Err(StartError::Stopped),
    }
}

/// A guest that dies after its greeting is noticed by its silence; its console says why.
async fn explained(error: StartError, plan: &Plan, vm: &Vm) -> StartError {
    if !matches!(error, StartError::Guest(RequestError::ChannelLost)) {
        return error;
    }
    match tokio::time::timeout(Duration::from_secs(1), vm.wait()).await {
        Ok(exit) => StartError::DiedInBoot {
            words: words(plan, exit),
        },
        Err(_) => error,
    }
}

/// The exit code that docker gives a workload that could not be started.
fn failed(error: StartError) -> LifeEvent {
    let event = match &error {
        StartError::Workload(failure) => Event::WorkloadEnded(Ended {
            exit_code: if failure.code == FailureCode::CommandNotFound {
                127
            } else {
                126
            },
            reason: Some(failure.message.clone()),
        }),
        StartError::Stopped => Event::WorkloadEnded(Ended {
            exit_code: 137,
            reason: Some(StartError::Stopped.to_string()),
        }),
        other => Event::BootFailed { reason: chain(other) },
    };
    LifeEvent::Over {
        event,
        error: Some(error),
    }
}

/// Returns an error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Removes what a virtual machine leaves: its memory, its sockets and its limits.
pub(super) fn release(parts: &Parts, id: MachineId) {
    let layout = &parts.layout;
    parts.pagers.release(id);
    parts.networks.release(id);
    if let Err(error) = parts.groups.release(&id.to_string()) {
        tracing::error!(machine = %id, %error, "its cgroups are left behind");
    }
    let memory = layout.machine_memory(id);
    let run = layout.machine_run(id);
    let jail = dirs(layout, id).jail();
    for (path, removed) in [
        (&memory, files::remove_file(&memory)),
        (&run, files::remove_tree(&run)),
        (&jail, files::remove_tree(&jail)),
    ] {
        if let Err(error) = removed {
            tracing::error!(path = %path.display(), %error, "left behind");
        }
    }
}

pub(super) fn vm_fact(vm: &Vm) -> VmmFact {
    let process = vm.process();
    VmmFact {
        pid: process.pid.unsigned_abs(),
        start_time: process.start_time,
    }
}

/// Where a machine's files are, as drivers take it.
pub(super) fn dirs(layout: &Layout, id: MachineId) -> MachineDirs {
    MachineDirs {
        data: layout.machine_data(id),
        run: layout.machine_run(id),
        memory: layout.machine_memory(id),
    }
}

/// The first of the user ids that monitors run as: above those that containers and people have (systemd's table of
/// UIDs and GIDs leaves 0x70000000 and up unused).
const FIRST_UID: u32 = 0x7000_0000;
/// All of them, first and last.
pub(super) const USERS: (u32, u32) = (FIRST_UID, FIRST_UID + 0xFF_FFFF);

/// Returns the user that a machine's monitor runs as, when the node is root: one of its own.
pub(super) fn host_user(id: MachineId) -> Option<HostUser> {
    let [.., a, b, c] = id.bytes();
    let uid = FIRST_UID + u32::from_be_bytes([0, a, b, c]);
    (own::uid() == 0).then_some(HostUser { uid, gid: uid })
}

pub(super) async fn obey(
    plan: &Plan,
    vm: &Vm,
    guest: &Guest,
    mut pump: JoinHandle<SessionEnd>,
    orders: &mut mpsc::Receiver<Order>,
    order: Order,
) -> LifeEvent {
    failpoint::pass("stop-asked");
    let now = Stop {
        signal: 0,
        grace_ms: 0,
    };
    let (stop, deadline, reason) = match order {
        Order::Stop { grace, reason } if !grace.is_zero() => {
            let stop = Stop {
                signal: plan.process.stop_signal.number(),
                grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
            };
            (stop, grace + GUEST_DEADLINE, reason)
        }
        Order::Stop { reason, .. } => (now, GUEST_DEADLINE, reason),
        Order::Kill { reason } if plan.ephemeral => (now, Duration::ZERO, reason),
        Order::Kill { reason } => (now, KILL_DEADLINE, reason),
        Order::Discard { reason } => (now, Duration::ZERO, Some(reason)),
        // Carried out by whoever has the order; none comes here.
        Order::Pause | Order::Resume | Order::Limits(_) | Order::Capture(_) => (now, Duration::ZERO, None),
    };
    if !deadline.is_zero() {
        tokio::select! {
            stopped = guest.stop(stop, deadline) => if let Err(error) = stopped {
                tracing::warn!(machine = %plan.id, error = %chain(&error), "the guest did not come to rest; it is killed");
            },
            Some(_) = sharper_order(orders) => {}
            _ = vm.wait() => {}
        }
    }
    failpoint::pass("stop-at-rest");
    end_vm(vm, plan.id).await;
    failpoint::pass("stop-killed");
    let end = drain(&mut pump).await;
    let exit_code = match end {
        Some(SessionEnd::Ended(outcome)) => outcome.exit_code(),
        _ => Outcome::Signaled(9).exit_code(),
    };
    over(Event::WorkloadEnded(Ended { exit_code, reason }))
}

/// Waits for an order that is sharper than the one being carried out.
async fn sharper_order(orders: &mut mpsc::Receiver<Order>) -> Option<Order> {
    loop {
        match orders.recv().await {
            Some(
                Order::Stop { .. } | Order::Pause | Order::Resume | Order::Limits(_) | Order::Capture(_),
            ) => {}
            other => return other,
        }
    }
}

/// The workload has ended by itself.
pub(super) async fn ended(
    plan: &Plan,
    vm: &Vm,
    guest: &Guest,
    end: SessionEnd,
    reason: Option<String>,
) -> LifeEvent {
    let outcome = match end {
        SessionEnd::Ended(outcome) => outcome,
        SessionEnd::Failed(failure) => {
            return over(Event::VmmDied {
                reason: failure.message,
            });
        }
        SessionEnd::ChannelLost => {
            let exit = tokio::time::timeout(Duration::from_secs(1), vm.wait()).await;
            let words = exit.map(last_words).unwrap_or_default();
            return over(died(plan.id, &words));
        }
    };
    if !plan.ephemeral {
        let rest = guest
            .stop(
                Stop {
                    signal: 0,
                    grace_ms: 0,
                },
                GUEST_DEADLINE,
            )
            .await;
        if let Err(error) = rest {
            tracing::warn!(machine = %plan.id, error = %chain(&error), "the guest's disks did not come to rest");
        }
    }
    over(Event::WorkloadEnded(Ended {
        exit_code: outcome.exit_code(),
        reason,
    }))
}

/// Kills the monitor; nothing that counts is in it any more.
pub(super) async fn end_vm(vm: &Vm, id: MachineId) {
    if let Err(error) = vm.kill().await {
        tracing::error!(machine = %id, %error, "the virtual machine does not end");
    }
}

pub(super) fn over(event: Event) -> LifeEvent {
    LifeEvent::Over { event, error: None }
}

/// Says that a virtual machine has ended that nobody had asked to, to who reads the node's log, too.
pub(super) fn died(id: MachineId, words: &str) -> Event {
    let reason = match words.trim() {
        "" => "the virtual machine died".to_owned(),
        words => format!("the virtual machine died: {words}"),
    };
    tracing::warn!(machine = %id, reason);
    Event::VmmDied { reason }
}

/// Lets the pump deliver what is left.
pub(super) async fn drain(pump: &mut JoinHandle<SessionEnd>) -> Option<SessionEnd> {
    match tokio::time::timeout(DRAIN_DEADLINE, &mut *pump).await {
        Ok(end) => end.ok(),
        Err(_) => {
            pump.abort();
            None
        }
    }
}
