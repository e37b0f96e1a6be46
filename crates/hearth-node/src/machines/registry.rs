//! All machines of the node: created, found by name or id.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::v1::{Border, EventAction, MachineSpec, Owner};
use hearth_machine::spec::check_environment;
use hearth_machine::{HealthCheck, HostLimits, MachineId, MachineName, Process, Spec, State};
use hearth_machine::{MemoryBackend, NetworkMode, NetworkName};
use tokio::sync::{mpsc, watch};

use super::actor::Actor;
use super::command::{MAILBOX, View};
use super::drivers;
use super::error::{CreateError, MachineError};
use super::handle::Machine;
use super::life::{self, Parts};
use super::recovery::ANY_HOST;
use super::standby::Kind;
use crate::host::facts::{self, Place};
use crate::host::{failpoint, files};
use crate::network::{self, NetworkError, Networks};
use crate::records::{
    self, ImageFact, MachineRecord, ProcessFact, RecordedState, Records, RestartFact, spec,
};
use crate::vmm::{self, Vmm as _};

/// How long tasks of machines may take to end with the node.
pub(super) const LEFTOVER_DEADLINE: Duration = Duration::from_secs(10);

/// What a new machine is to be.
#[derive(Debug, Clone)]
pub struct NewMachine {
    /// Its name; made up when absent.
    pub name: Option<String>,
    /// The spec as it came.
    pub spec: MachineSpec,
    /// Secrets by name.
    pub secrets: BTreeMap<String, String>,
    /// Who makes it, where that is not a person.
    pub owner: Option<Owner>,
}

/// The registry.
#[derive(Debug, Clone)]
pub struct Machines {
    pub(super) parts: Arc<Parts>,
    table: Arc<Table>,
    pub(super) records: Records,
    host: HostLimits,
}

/// Who is who.
///
/// The mutex guards names and handles, for look-ups by every request; actors own the machines themselves. It is never held
/// across an await.
#[derive(Debug, Default)]
pub(super) struct Table {
    machines: Mutex<BTreeMap<MachineId, Machine>>,
}

/// Returns what the host has now. A tmpfs has half of the host's memory unless somebody says otherwise, and can be mounted anew
/// with another size at any time.
pub(super) fn limits(parts: &Parts, host: HostLimits) -> HostLimits {
    let place = Place::of(facts::existing_ancestor(parts.layout.memory()));
    HostLimits {
        guest_memory: place.map_or(host.guest_memory, |place| place.size),
        ..host
    }
}

/// Makes sure that a driver has what a machine is to have.
pub(super) fn check_devices(spec: &Spec, capabilities: &vmm::Capabilities) -> Result<(), CreateError> {
    if spec.memory_backend == MemoryBackend::Pager && !capabilities.pager {
        return Err(CreateError::Unsupported {
            driver: capabilities.driver,
            what: "memory from a pager (--memory-backend pager)",
        });
    }
    let asked = [
        (spec.metadata.is_some(), "metadata service (--metadata)"),
        // The host limits what leads out, whatever the driver.
        (
            spec.net_rate.is_some() && !network::leads_out(spec.network),
            "rate limit of an interface that leads nowhere (--net-rate)",
        ),
        (spec.disk_rate.is_some(), "rate limit of a disk (--disk-rate)"),
        (spec.network != NetworkMode::None, "network interface (--network)"),
    ];
    let limits = asked.len() - 1;
    let lacking = match capabilities.devices {
        vmm::DeviceSupport::None => &asked[..],
        vmm::DeviceSupport::Interface => &asked[..limits],
        vmm::DeviceSupport::All => &[],
    };
    match lacking.iter().find(|(is_asked, _)| *is_asked) {
        Some(&(_, what)) => Err(CreateError::Unsupported {
            driver: capabilities.driver,
            what,
        }),
        None => Ok(Networks::check(spec.network)?),
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Machine>> {
        // Every update is one call on the map.
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self, id: MachineId) {
        self.lock().remove(&id);
    }

    /// Gives a machine another name unless that is taken. Its own is no obstacle.
    pub(super) fn rename(&self, id: MachineId, name: &MachineName) -> Result<(), MachineError> {
        let mut machines = self.lock();
        let taken = machines.values().find(|other| other.name == name.to_string());
        if let Some(owner) = taken.map(|other| other.id).filter(|&owner| owner != id) {
            let name = name.to_string();
            return Err(MachineError::NameTaken { name, owner });
        }
        if let Some(machine) = machines.get_mut(&id) {
            machine.name = name.to_string();
        }
        Ok(())
    }

    /// Adds a machine unless its name is taken.
    fn claim(&self, machine: Machine) -> Result<(), CreateError> {
        let mut machines = self.lock();
        if let Some(owner) = machines.values().find(|other| other.name == machine.name) {
            return Err(CreateError::NameTaken {
                name: machine.name.clone(),
                owner: owner.id,
            });
        }
        machines.insert(machine.id, machine);
        Ok(())
    }
}

impl Machines {
    /// Makes an empty registry; [`Machines::recover`] (`recovery.rs`) fills it.
    pub fn new(parts: Arc<Parts>, host: HostLimits) -> Self {
        let records = Records::new(parts.layout.clone());
        Self {
            parts,
            table: Arc::default(),
            records,
            host,
        }
    }

    /// Returns what the host has for machines now.
    pub fn host_limits(&self) -> HostLimits {
        limits(&self.parts, self.host)
    }

    /// Checks whether there could be such a machine on this host.
    ///
    /// # Errors
    /// Returns [`InvalidSpec`](spec::InvalidSpec) with the first thing that cannot be.
    pub fn check(&self, wire: &MachineSpec) -> Result<(), spec::InvalidSpec> {
        spec::check(wire, self.host_limits()).map(drop)
    }

    /// Returns what the machines need of the node.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Creates a machine.
    ///
    /// # Errors
    /// Returns [`CreateError`]; nothing is left behind then.
    pub async fn create(&self, mut new: NewMachine) -> Result<Machine, CreateError> {
        let mut spec = spec::check(&new.spec, limits(&self.parts, self.host))?;
        for (name, value) in &new.secrets {
            check_environment(&format!("{name}={value}")).map_err(|_| CreateError::Secret(name.clone()))?;
        }
        let image = self.parts.images.resolve(&new.spec.image).await?;
        let process = Process::of(&spec, &image.defaults)?;
        let check = HealthCheck::of(
            &spec.health,
            // The image's is for the image's program.
            image.defaults.health_check.as_ref().filter(|_| !spec.hold),
        );
        let selected = self.parts.drivers.select(spec.driver).await?;
        let capabilities = selected.driver.capabilities();
        let network_reason = self.settle_network(&mut new.spec, &mut spec, capabilities).await;
        check_devices(&spec, capabilities)?;
        if let Some(uplink) = &spec.uplink {
            self.parts.networks.check_uplink(uplink).await?;
        }
        spec.driver = drivers::kept(spec.driver, capabilities.driver);
        let kind = Kind::of(&spec, &image.digest, new.owner.as_ref(), new.spec.no_template);
        let claimed = kind.and_then(|kind| self.parts.standbys.claim(&kind));
        let id = claimed.map_or_else(|| self.unused_id(), Ok)?;
        let name: MachineName = match &new.name {
            Some(name) => name.parse()?,
            None => self.made_up_name(id).parse()?,
        };
        let record = MachineRecord {
            format: MachineRecord::FORMAT,
            generation: 0,
            id: id.to_string(),
            name: name.to_string(),
            spec: new.spec,
            secrets: new.secrets.keys().cloned().collect(),
            owner: new.owner,
            image: ImageFact {
                reference: image.reference.clone(),
                digest: image.digest.clone(),
            },
            process: ProcessFact::from(&process),
            created_at: jiff::Timestamp::now().to_string(),
            started_at: None,
            finished_at: None,
            state: RecordedState::Created,
            driver: capabilities.driver.to_owned(),
            driver_reason: Some(selected.reason.clone()),
            network_reason,
            border: match capabilities.border {
                vmm::Border::Kvm => Border::Kvm,
                vmm::Border::Emulated => Border::Emulated,
            },
            vmm: None,
            stages: Vec::new(),
            template: None,
            boot: None,
            origin: None,
            unfinished: false,
            ports: Vec::new(),
            paused: false,
            stopping: false,
            host_boot: None,
            restart: RestartFact::default(),
            health_check: check.as_ref().map(records::health::check_fact),
            health: None,
        };
        let secrets = Some(Arc::new(new.secrets));
        let known = Known {
            id,
            spec,
            process,
            secrets,
            state: State::Created,
            record,
        };
        // The name before the record: two records of one name would be one machine too many for the next node.
        self.enlist(known, |record| {
            if claimed.is_none() {
                make_place(&self.parts, id, &image.rootfs)?;
            }
            self.write_first(id, record)?;
            failpoint::pass("create-recorded");
            Ok(())
        })
        .inspect_err(|_| self.parts.standbys.give_up(id))
        .inspect(|machine| {
            self.parts
                .events
                .tell(&machine.view().record, EventAction::Create, [])
        })
    }

    /// Writes down which network a machine has that asks for none, and returns why.
    async fn settle_network(
        &self,
        wire: &mut MachineSpec,
        spec: &mut Spec,
        capabilities: &vmm::Capabilities,
    ) -> Option<String> {
        if wire.network.is_some() {
            return None;
        }
        // Whatever is only there with a way out has chosen.
        let has_said = wire.policy.is_some()
            || wire.uplink.is_some()
            || !(wire.name_servers.is_empty() && wire.networks.is_empty());
        let mut reason = None;
        if !has_said {
            let (mode, why) = self.default_network(spec.network, capabilities).await;
            spec.network = mode;
            reason = Some(why);
        }
        wire.network = Some(spec::network_mode(spec.network));
        reason
    }

    /// Says what a machine gets that asks for no network, and why: one that is filtered, where this driver's machines and this node can
    /// have one, or `otherwise`. It is recorded, so that the machine keeps it.
    async fn default_network(
        &self,
        otherwise: NetworkMode,
        capabilities: &vmm::Capabilities,
    ) -> (NetworkMode, String) {
        if self.parts.artefacts.bare_guest().is_some() {
            return (
                otherwise,
                "guests that are no Linux get none unless they ask".to_owned(),
            );
        }
        if capabilities.devices == vmm::DeviceSupport::None {
            let reason = format!("machines of {} cannot have one", capabilities.driver);
            return (otherwise, reason);
        }
        match self.parts.networks.try_out().await {
            Ok(()) => (NetworkMode::Filtered, "this node can give it".to_owned()),
            Err(error) => {
                let reason = life::chain(&error);
                tracing::info!(error = %reason, "machines that ask for no network get none");
                (otherwise, reason)
            }
        }
    }

    /// Writes the first record of a machine whose place is made; when that cannot be, the place goes with it.
    pub(super) fn write_first(&self, id: MachineId, record: &MachineRecord) -> Result<(), CreateError> {
        let written = self.join_networks(id, record);
        let written = written.and_then(|()| Ok(self.records.write(id, record)?));
        if written.is_err() {
            self.parts.networks.forget(id);
            // The error that counts is the first one.
            let _ = files::remove_tree(&self.parts.layout.machine_data(id));
        }
        written
    }

    /// Gives a machine its places on networks, before its record is written: what has places and no record is forgotten by the next
    /// node.
    fn join_networks(&self, id: MachineId, record: &MachineRecord) -> Result<(), CreateError> {
        if record.spec.uplink.is_some() {
            self.check_address(id, record)?;
        }
        let names = record.spec.networks.iter().map(|name| name.parse());
        let names: Vec<NetworkName> = names.collect::<Result<_, _>>().map_err(spec::InvalidSpec::from)?;
        let joined = self.parts.networks.users().join(id, &record.name, &names);
        Ok(joined.map_err(NetworkError::from)?)
    }

    /// Makes sure that no other machine has this one's address on a bridge of the host's.
    fn check_address(&self, id: MachineId, record: &MachineRecord) -> Result<(), CreateError> {
        let uplink_of = |record: &MachineRecord| spec::check(&record.spec, ANY_HOST).ok()?.uplink;
        let own = uplink_of(record);
        let collides = |machine: &Machine| {
            let other = uplink_of(&machine.view().record);
            own.as_ref()
                .zip(other)
                .is_some_and(|(own, other)| own.collides(&other))
        };
        let mut others = self.list().into_iter().filter(|machine| machine.id != id);
        match others.find(collides) {
            Some(other) => Err(CreateError::AddressTaken { owner: other.name }),
            None => Ok(()),
        }
    }

    pub(super) fn unused_id(&self) -> Result<MachineId, CreateError> {
        loop {
            let id = random_id()?;
            if !self.table.lock().contains_key(&id) {
                return Ok(id);
            }
        }
    }

    /// Two words that the id picks; with digits of the id behind them where the pair is taken.
    pub(super) fn made_up_name(&self, id: MachineId) -> String {
        let name = super::names::made_up(id);
        let taken = self.table.lock().values().any(|machine| machine.name == name);
        if taken { format!("{name}-{id}") } else { name }
    }

    pub(super) fn adopt(&self, known: Known) -> Result<Machine, CreateError> {
        self.enlist(known, |_| Ok(()))
    }

    /// Makes the actor of a machine whose name is free, once it is written down.
    pub(super) fn enlist(
        &self,
        known: Known,
        write: impl FnOnce(&MachineRecord) -> Result<(), CreateError>,
    ) -> Result<Machine, CreateError> {
        let (mailbox, receive) = mpsc::channel(MAILBOX);
        let view = View {
            state: known.state.clone(),
            end: None,
            record: Arc::new(known.record.clone()),
            health: known.record.health.as_ref().map(records::health::health),
            running: None,
        };
        let (show, view) = watch::channel(view);
        let machine = Machine {
            id: known.id,
            name: known.record.name.clone(),
            mailbox,
            view,
            process: Arc::new(known.process.clone()),
            container: Arc::new(known.spec.container.clone()),
            parts: Arc::clone(&self.parts),
            host: self.host,
        };
        self.table.claim(machine.clone())?;
        write(&known.record).inspect_err(|_| self.table.forget(known.id))?;
        let actor = Actor {
            id: known.id,
            spec: known.spec,
            process: known.process,
            secrets: known.secrets,
            state: known.state,
            health: known.record.health.as_ref().map(records::health::health),
            record: known.record,
            view: show,
            records: self.records.clone(),
            parts: Arc::clone(&self.parts),
            table: Arc::clone(&self.table),
        };
        self.parts.tasks.spawn(actor.run(receive));
        Ok(machine)
    }

    /// Returns all machines, oldest first.
    pub fn list(&self) -> Vec<Machine> {
        let mut machines: Vec<_> = self.table.lock().values().cloned().collect();
        machines.sort_by_cached_key(|machine| machine.view.borrow().record.created_at.clone());
        machines
    }

    /// Finds a machine by name, id, or the start of an id.
    ///
    /// # Errors
    /// Returns [`MachineError::NotFound`] or [`MachineError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<Machine, MachineError> {
        let machines = self.table.lock();
        let exact = machines
            .values()
            .find(|machine| machine.name == text || machine.id.to_string() == text);
        if let Some(machine) = exact {
            return Ok(machine.clone());
        }
        let mut matches = machines
            .values()
            .filter(|m| !text.is_empty() && m.id.to_string().starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(machine), None) => Ok(machine.clone()),
            (None, _) => Err(MachineError::NotFound(text.to_owned())),
            (Some(_), Some(_)) => Err(MachineError::Ambiguous(text.to_owned())),
        }
    }

    /// Returns the machines that were made from an image, by manifest digest.
    pub fn using_image(&self, digest: &str) -> Vec<Machine> {
        let uses = |machine: &Machine| machine.view.borrow().record.image.digest == digest;
        self.list().into_iter().filter(uses).collect()
    }

    /// Ends every actor, and waits until all tasks of machines have ended.
    pub async fn close(&self) {
        self.table.lock().clear();
        self.parts.tasks.close();
        if tokio::time::timeout(LEFTOVER_DEADLINE, self.parts.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.parts.tasks.len(), "tasks of machines are left");
        }
        self.parts.networks.close().await;
    }

    /// Returns how many machines run.
    pub fn alive(&self) -> usize {
        let is_alive = |machine: &Machine| machine.view().state.is_alive();
        self.list().iter().filter(|machine| is_alive(machine)).count()
    }

    /// Stops every machine that runs, all at once.
    pub async fn stop_all(&self, grace: Duration) {
        let stops: HashMap<_, _> = self
            .list()
            .into_iter()
            .map(|machine| (machine.id, tokio::spawn(async move { machine.stop(grace).await })))
            .collect();
        for (id, stop) in stops {
            if let Ok(Err(error)) = stop.await {
                tracing::error!(machine = %id, error = %life::chain(&error), "not stopped");
            }
        }
    }
}

/// Makes a machine's directory with a link to its root file system, which lives as long as the machine, whatever becomes of the
/// image. Only the node and the machine's own monitor may enter it.
///
/// # Errors
/// [`CreateError::Directory`]; nothing is left.
pub(super) fn make_place(parts: &Parts, id: MachineId, image_rootfs: &Path) -> Result<(), CreateError> {
    let directory = parts.layout.machine_data(id);
    let rootfs = parts.layout.machine_rootfs(id);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| CreateError::Directory { path, source }
    };
    let group = life::host_user(id).map(|user| user.gid);
    let made = files::make_directory(&directory, 0o710)
        .and_then(|()| failpoint::reach("create-directory-made"))
        .and_then(|()| files::give_to_group(&directory, group))
        .map_err(at(&directory))
        .and_then(|()| {
            files::link_for_readers(image_rootfs, &rootfs)
                .and_then(|()| failpoint::reach("create-linked"))
                .map_err(at(&rootfs))
        });
    if made.is_err() {
        // The error that counts is the first one.
        let _ = files::remove_tree(&directory);
    }
    made
}

/// Makes an id up.
///
/// # Errors
/// [`CreateError::Random`].
pub(super) fn random_id() -> Result<MachineId, CreateError> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|error| CreateError::Random(std::io::Error::other(error)))?;
    Ok(MachineId::from_random(bytes))
}

/// A machine about which everything is known.
pub(super) struct Known {
    pub(super) id: MachineId,
    pub(super) spec: Spec,
    pub(super) process: Process,
    pub(super) secrets: Option<Arc<BTreeMap<String, String>>>,
    pub(super) state: State,
    pub(super) record: MachineRecord,
}
