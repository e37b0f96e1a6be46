//! Machines that stand by: clones of a template that were made before anybody asked for one.
//!
//! ```text
//! a clone runs --> [made: disk, restore, hello, rehearsal, paused] --claim, at a create of its kind--> go on, renew, launch
//!                        `--- idle too long, monitor died, room is wanted, node ends ---> removed
//! ```
//! One is made for each [`Kind`] of machine that was run lately, beside the run: nobody waits for it. It has an id, and with that its
//! place, user and network, and no record: an earlier node's is swept as whatever has none, or ended with the record of a machine that was to have it. What it lacks is what makes it somebody's:
//! RENEW and the launch. The rehearsal is a program of the agent's in the place of the workload; it tells machines apart as little as
//! the template does, and under emulation the workload's way is translated afterwards, which is half of its time.
//!
//! Each one is owned by a task; the table only has ways to ask for it. It is gone when its task has ended.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::v1::Owner;
use hearth_guest_protocol::GENERATION_REHEARSAL;
use hearth_machine::{
    ByteSize, Container, DriverChoice, MachineId, MemoryBackend, NetworkMode, Policy, Process, Rate, Shape,
    Spec,
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::actor;
use super::boot::{self, PoweredOn, Stages};
use super::error::StartError;
use super::life::{self, GUEST_DEADLINE, Limits, Parts, Plan, chain};
use super::registry::{self, LEFTOVER_DEADLINE};
use super::restore;
use super::session::{self, WorkloadIo};
use super::templates::{Beginning, Choice, KillOnDrop, Model};
use crate::configuration;
use crate::guest::{Guest, RequestError, SessionEvent};
use crate::host::facts::Memory;
use crate::host::files;
use crate::records::BootFact;
use crate::snapshots::TemplateId;
use crate::vmm::{Machine as _, Vm};

/// How long one waits to be asked for.
const IDLE: Duration = Duration::from_secs(300);

/// How long a rehearsal may take: whoever claims one that is being made waits for it.
const REHEARSAL_DEADLINE: Duration = Duration::from_secs(5);

/// How much of the memory that the host could give must be left by one, beside as much again as it has: it is the first to go without.
const SPARE: u64 = 256 << 20;

/// What machines have in common of which one stands by for the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kind {
    image: String,
    driver: DriverChoice,
    shape: Shape,
    disk: ByteSize,
    network: NetworkMode,
    policy: Policy,
    net_rate: Option<Rate>,
    name_servers: Vec<IpAddr>,
}

impl Kind {
    /// Returns a machine's; none of one that is not like others, or that nobody waits for.
    pub(super) fn of(spec: &Spec, image: &str, owner: Option<&Owner>, boots: bool) -> Option<Self> {
        let waited_for = matches!(owner, None | Some(Owner::Execute));
        let alike = spec.uplink.is_none()
            && spec.networks.is_empty()
            && spec.disk_rate.is_none()
            && spec.metadata.is_none()
            && spec.memory_backend == MemoryBackend::File;
        (waited_for && alike && !boots).then(|| Self {
            image: image.to_owned(),
            driver: spec.driver,
            shape: spec.shape(),
            disk: spec.disk,
            network: spec.network,
            policy: spec.policy.clone(),
            net_rate: spec.net_rate,
            name_servers: spec.name_servers.clone(),
        })
    }
}

/// One that is ready; killed when nobody takes it on.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) vm: Vm,
    pub(super) guest: Guest,
    pub(super) model: Model,
    pub(super) boot: BootFact,
    pub(super) unless: KillOnDrop,
}

/// Asks a task for its machine.
type Ask = oneshot::Sender<oneshot::Sender<Ready>>;

/// Those of a node.
#[derive(Debug, Default)]
pub struct Standbys {
    /// The mutex guards who is there; it is never held across an await.
    table: Mutex<Table>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Table {
    closed: bool,
    /// Those of nobody, oldest first.
    idle: Vec<Idle>,
    /// Those that belong to a machine which has not been started yet.
    claimed: HashMap<MachineId, Ask>,
}

/// One that nobody has asked for yet.
#[derive(Debug)]
struct Idle {
    kind: Kind,
    id: MachineId,
    ask: Ask,
    is_ready: bool,
}

impl Standbys {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every update is one call on a collection.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one of a kind for a machine that is being created, which gets its id.
    pub(super) fn claim(&self, kind: &Kind) -> Option<MachineId> {
        let mut table = self.lock();
        let index = table.idle.iter().position(|idle| idle.kind == *kind)?;
        let Idle { id, ask, .. } = table.idle.remove(index);
        table.claimed.insert(id, ask);
        Some(id)
    }

    /// Takes the one that a machine claimed, if it is still there and is what a start would make now.
    pub(super) async fn take(&self, plan: &Plan, template: Option<TemplateId>) -> Option<Ready> {
        let (reply, answer) = oneshot::channel();
        {
            let mut table = self.lock();
            // One that is about to end takes the question along once nothing is left of it.
            let _ = table.claimed.remove(&plan.id)?.send(reply);
        }
        let ready = answer.await.ok()?;
        if template.as_ref() == Some(&ready.model.id) {
            return Some(ready);
        }
        tracing::info!(machine = %plan.id, "what stood by for it is not what it would be now");
        abandon(plan, &ready.vm).await;
        None
    }

    /// Gives up the one that a machine claimed.
    pub(super) fn give_up(&self, id: MachineId) {
        self.lock().claimed.remove(&id);
    }

    /// Tells whether one is a machine's, or was until now; from now on nobody claims it.
    fn is_claimed(&self, id: MachineId, asked: &mut oneshot::Receiver<oneshot::Sender<Ready>>) -> bool {
        let mut table = self.lock();
        table.idle.retain(|idle| idle.id != id);
        table.claimed.contains_key(&id) || asked.try_recv().is_ok()
    }

    /// Returns the memory that those of nobody have.
    pub fn memory(&self) -> ByteSize {
        let table = self.lock();
        let mebibytes: u64 = table.idle.iter().map(|idle| idle.kind.shape.memory_mib).sum();
        ByteSize::from_bytes(mebibytes << 20)
    }

    /// Returns how many wait to be asked for.
    pub fn count(&self) -> usize {
        self.lock().idle.iter().filter(|idle| idle.is_ready).count()
    }

    fn made(&self, id: MachineId) {
        let mut table = self.lock();
        if let Some(idle) = table.idle.iter_mut().find(|idle| idle.id == id) {
            idle.is_ready = true;
        }
    }

    /// Removes those of nobody: somebody wants the room.
    pub fn clear(&self) {
        self.lock().idle.clear();
    }

    /// Removes all, and makes no others.
    pub async fn close(&self) {
        {
            let mut table = self.lock();
            table.closed = true;
            table.idle.clear();
            table.claimed.clear();
        }
        self.tasks.close();
        let ended = tokio::time::timeout(LEFTOVER_DEADLINE, self.tasks.wait());
        if ended.await.is_err() {
            tracing::warn!(
                count = self.tasks.len(),
                "machines that stood by are left for the next node"
            );
        }
    }

    /// Sees to it that the next machine of this one's kind finds one, unless there is one or this host has no room for it. Tells
    /// whether one is being made.
    pub(super) fn prepare(&self, plan: &Plan) -> bool {
        let Some(kind) = plan.kind.clone().filter(|kind| self.may_make(kind, &plan.parts)) else {
            return false;
        };
        let made = registry::random_id()
            .map_err(|error| chain(&error))
            .and_then(|id| {
                let rootfs = plan.parts.layout.machine_rootfs(plan.id);
                registry::make_place(&plan.parts, id, &rootfs).map_err(|error| chain(&error))?;
                Ok(id)
            });
        let id = match made {
            Ok(id) => id,
            Err(error) => {
                tracing::info!(%error, "no machine stands by for the next of its kind");
                return false;
            }
        };
        let (ask, asked) = oneshot::channel();
        self.lock().idle.push(Idle {
            kind,
            id,
            ask,
            is_ready: false,
        });
        self.tasks.spawn(stand_by(of_nobody(plan, id), asked));
        true
    }

    /// Whether one of a kind may be made; makes room among others.
    fn may_make(&self, kind: &Kind, parts: &Parts) -> bool {
        let most = configuration::read(parts.layout.configuration()).map_or(0, |it| it.standbys);
        let available = Memory::read().map_or(0, |memory| memory.available.bytes());
        let mut table = self.lock();
        if table.closed || most == 0 || table.idle.iter().any(|idle| idle.kind == *kind) {
            return false;
        }
        if available < ((2 * kind.shape.memory_mib) << 20) + SPARE {
            return false;
        }
        while table.idle.len() >= usize::from(most) {
            table.idle.remove(0);
        }
        true
    }
}

/// Makes one, and keeps it until somebody asks for it, or nobody will.
async fn stand_by(plan: Plan, mut asked: oneshot::Receiver<oneshot::Sender<Ready>>) {
    let (id, parts) = (plan.id, Arc::clone(&plan.parts));
    let made = make(&plan).await.unwrap_or_else(|error| {
        tracing::info!(machine = %id, error = %chain(&error), "it does not stand by");
        None
    });
    // Not before: what runs now would share its processors with that, too.
    parts.networks.refill(plan.spec.network);
    let mut is_somebodys = false;
    if let Some(ready) = made {
        parts.standbys.made(id);
        let reply = tokio::select! {
            reply = &mut asked => reply.ok(),
            () = tokio::time::sleep(IDLE) => None,
            _ = ready.vm.wait() => None,
        };
        is_somebodys = reply.is_some();
        let left = match reply {
            Some(reply) => reply.send(ready).err(),
            None => Some(ready),
        };
        match left {
            Some(ready) => life::end_vm(&ready.vm, id).await,
            None => return,
        }
    }
    is_somebodys |= parts.standbys.is_claimed(id, &mut asked);
    let cleaned = match is_somebodys {
        true => without_start(&parts, id).map_err(|error| error.to_string()),
        false => actor::remove_all(&parts, id).map_err(|error| chain(&error)),
    };
    if let Err(error) = cleaned {
        tracing::error!(machine = %id, %error, "left behind");
    }
    parts.standbys.give_up(id);
}

/// Ends the one that a machine took on and that does not serve it: the machine comes by another.
pub(super) async fn abandon(plan: &Plan, vm: &Vm) {
    life::end_vm(vm, plan.id).await;
    if let Err(error) = without_start(&plan.parts, plan.id) {
        tracing::error!(machine = %plan.id, %error, "left behind");
    }
}

/// Leaves of a machine what one has that was created and not started.
pub(super) fn without_start(parts: &Parts, id: MachineId) -> std::io::Result<()> {
    life::release(parts, id);
    files::remove_file(&parts.layout.machine_disk(id))
}

/// Makes a clone that lacks nothing but its name and its launch; none where there is no template for that any more.
async fn make(plan: &Plan) -> Result<Option<Ready>, StartError> {
    let PoweredOn { vm, beginning, boot } = boot::power_on(plan, &mut Stages::begin()).await?;
    let unless = KillOnDrop::armed(plan.id, &vm);
    let (Beginning::Template(model), true) = (&beginning, beginning.is_configured_clone()) else {
        life::end_vm(&vm, plan.id).await;
        return Ok(None);
    };
    match bring_up(plan, &vm).await {
        Ok(guest) => Ok(Some(Ready {
            guest,
            model: model.clone(),
            boot,
            unless,
            vm,
        })),
        Err(error) => {
            life::end_vm(&vm, plan.id).await;
            Err(error)
        }
    }
}

/// Takes the guest's way as far as all machines of its kind go, and lets it stand still there.
async fn bring_up(plan: &Plan, vm: &Vm) -> Result<Guest, StartError> {
    let guest = boot::greet(plan, vm).await?;
    guest
        .renew(&restore::renewal(plan, None)?, GUEST_DEADLINE)
        .await?;
    rehearse(&guest).await?;
    vm.pause().await.map_err(StartError::Resume)?;
    Ok(guest)
}

/// Lets a program of the agent's begin and end in the place of the workload.
async fn rehearse(guest: &Guest) -> Result<(), StartError> {
    if guest.info().generation < GENERATION_REHEARSAL {
        return Ok(());
    }
    let mut session = guest.launch(&session::rehearsal()).await?;
    let over = async {
        loop {
            match session.next().await {
                SessionEvent::Started { .. } | SessionEvent::Output(..) | SessionEvent::OutputEnded(_) => {}
                end => return end,
            }
        }
    };
    let end = tokio::time::timeout(REHEARSAL_DEADLINE, over).await;
    match end.map_err(|_| RequestError::Timeout(REHEARSAL_DEADLINE))? {
        SessionEvent::Failed(failure) => Err(StartError::Workload(failure)),
        SessionEvent::Ended(_) => Ok(()),
        _ => Err(RequestError::ChannelLost.into()),
    }
}

/// Returns what a machine like this one is before it is anybody's: nothing that this one was told is in it but its kind.
fn of_nobody(plan: &Plan, id: MachineId) -> Plan {
    let spec = Spec {
        command: Vec::new(),
        environment: Vec::new(),
        hostname: None,
        labels: BTreeMap::new(),
        ports: Vec::new(),
        container: Container::default(),
        certificates: Vec::new(),
        ..plan.spec.clone()
    };
    let process = Process {
        arguments: Vec::new(),
        environment: Vec::new(),
        ..plan.process.clone()
    };
    Plan {
        id,
        spec,
        process,
        image: plan.image.clone(),
        choice: Choice::Template,
        kind: None,
        source: None,
        same_identity: true,
        secrets: Arc::default(),
        io: WorkloadIo {
            terminal: false,
            stdin: false,
        },
        limits: Limits {
            time: None,
            idle: None,
        },
        terminal: None,
        ephemeral: true,
        paused: false,
        first_order: None,
        subscribers: Vec::new(),
        border: plan.border,
        parts: Arc::clone(&plan.parts),
        limiting: None,
    }
}
