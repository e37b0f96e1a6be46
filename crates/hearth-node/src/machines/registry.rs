//! All machines of the node: created, found by name or id, brought back after a restart of the node.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_api::v1::{Border, MachineSpec};
use hearth_machine::spec::check_environment;
use hearth_machine::{ByteSize, HostLimits, MachineId, MachineName, Process, Spec, State};
use tokio::sync::{mpsc, watch};

use super::actor::{self, Actor, MAILBOX, View};
use super::error::{CreateError, MachineError};
use super::handle::Machine;
use super::life::{self, Parts};
use crate::host::facts::{self, Place};
use crate::host::process::{Process as HostProcess, ProcessId, with_arguments};
use crate::host::{failpoint, files};
use crate::images::ResolvedImage;
use crate::records::{ImageFact, MachineRecord, ProcessFact, RecordError, RecordedState, Records, spec};
use crate::vmm::{self, Vmm as _};

/// How long a killed process may take to be gone.
const LEFTOVER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the node waits for guests of an earlier one before it serves; they go on answering after that.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(8);

/// What a new machine is to be.
#[derive(Debug, Clone)]
pub struct NewMachine {
    /// Its name; made up when absent.
    pub name: Option<String>,
    /// The spec as it came.
    pub spec: MachineSpec,
    /// Secrets by name.
    pub secrets: BTreeMap<String, String>,
}

/// The registry.
#[derive(Debug, Clone)]
pub struct Machines {
    parts: Arc<Parts>,
    table: Arc<Table>,
    records: Records,
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

/// What a machine of any host may have had: records are checked against this, so that none is lost on a smaller host.
const ANY_HOST: HostLimits = HostLimits {
    memory: ByteSize::from_bytes(u64::MAX),
    guest_memory: ByteSize::from_bytes(u64::MAX),
    processors: u32::MAX,
};

/// Returns what the host has now. A tmpfs has half of the host's memory unless somebody says otherwise, and can be mounted anew
/// with another size at any time.
pub(super) fn limits(parts: &Parts, host: HostLimits) -> HostLimits {
    let place = Place::of(facts::existing_ancestor(parts.layout.memory()));
    HostLimits {
        guest_memory: place.map_or(host.guest_memory, |place| place.size),
        ..host
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
    /// Makes an empty registry; [`Machines::recover`] fills it.
    pub fn new(parts: Arc<Parts>, host: HostLimits) -> Self {
        let records = Records::new(parts.layout.clone());
        Self {
            parts,
            table: Arc::default(),
            records,
            host,
        }
    }

    /// Returns what the machines need of the node.
    pub fn parts(&self) -> &Arc<Parts> {
        &self.parts
    }

    /// Creates a machine.
    ///
    /// # Errors
    /// Returns [`CreateError`]; nothing is left behind then.
    pub async fn create(&self, new: NewMachine) -> Result<Machine, CreateError> {
        let spec = spec::check(&new.spec, limits(&self.parts, self.host))?;
        for (name, value) in &new.secrets {
            check_environment(&format!("{name}={value}")).map_err(|_| CreateError::Secret(name.clone()))?;
        }
        let image = self.parts.images.resolve(&new.spec.image).await?;
        let process = Process::of(&spec, &image.defaults)?;
        let capabilities = self.parts.drivers.select(spec.driver).await?.capabilities();
        let id = self.unused_id()?;
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
            border: match capabilities.border {
                vmm::Border::Kvm => Border::Kvm,
                vmm::Border::Emulated => Border::Emulated,
            },
            vmm: None,
            stages: Vec::new(),
            ports: Vec::new(),
            paused: false,
        };
        self.write_first(id, &record, &image)?;
        failpoint::pass("create-recorded");
        let secrets = Some(Arc::new(new.secrets));
        self.adopt(Known {
            id,
            spec,
            process,
            secrets,
            state: State::Created,
            record,
        })
        .inspect_err(|_| drop(actor::remove_all(&self.parts, id)))
    }

    /// Makes the machine's directory with a link to its root file system, which lives as long as the machine, whatever
    /// becomes of the image, and its record. Only the node and the machine's own monitor may enter it.
    fn write_first(
        &self,
        id: MachineId,
        record: &MachineRecord,
        image: &ResolvedImage,
    ) -> Result<(), CreateError> {
        let directory = self.parts.layout.machine_data(id);
        let rootfs = self.parts.layout.machine_rootfs(id);
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CreateError::Directory { path, source }
        };
        let group = life::host_user(id).map(|user| user.gid);
        let written = files::make_directory(&directory, 0o710)
            .and_then(|()| failpoint::reach("create-directory-made"))
            .and_then(|()| files::give_to_group(&directory, group))
            .map_err(at(&directory))
            .and_then(|()| {
                files::link_for_readers(&image.rootfs, &rootfs)
                    .and_then(|()| failpoint::reach("create-linked"))
                    .map_err(at(&rootfs))
            })
            .and_then(|()| Ok(self.records.write(id, record)?));
        if written.is_err() {
            // The error that counts is the first one.
            let _ = files::remove_tree(&directory);
        }
        written
    }

    fn unused_id(&self) -> Result<MachineId, CreateError> {
        loop {
            let mut bytes = [0; 6];
            getrandom::fill(&mut bytes).map_err(|error| CreateError::Random(std::io::Error::other(error)))?;
            let id = MachineId::from_random(bytes);
            if !self.table.lock().contains_key(&id) {
                return Ok(id);
            }
        }
    }

    /// Two words that the id picks; with digits of the id behind them where the pair is taken.
    fn made_up_name(&self, id: MachineId) -> String {
        let name = super::names::made_up(id);
        let taken = self.table.lock().values().any(|machine| machine.name == name);
        if taken { format!("{name}-{id}") } else { name }
    }

    fn adopt(&self, known: Known) -> Result<Machine, CreateError> {
        let (mailbox, receive) = mpsc::channel(MAILBOX);
        let view = View {
            state: known.state.clone(),
            end: None,
            record: Arc::new(known.record.clone()),
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
        let actor = Actor {
            id: known.id,
            spec: known.spec,
            process: known.process,
            secrets: known.secrets,
            state: known.state,
            record: known.record,
            view: show,
            records: self.records.clone(),
            parts: Arc::clone(&self.parts),
            table: Arc::clone(&self.table),
        };
        self.parts.tasks.spawn(actor.run(receive));
        Ok(machine)
    }

    /// Brings back what an earlier node has written down, finds the virtual machines that it left running, and sweeps what
    /// it left half done.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the records cannot be read at all.
    pub async fn recover(&self) -> Result<(), RecordError> {
        let loaded = self.records.load()?;
        failpoint::pass("adopt-read");
        for error in &loaded.unreadable {
            tracing::error!(error = %life::chain(error), "a machine's record is left alone");
        }
        for id in loaded.orphans {
            self.end_unrecorded(id).await;
            self.sweep(id);
        }
        let mut carried_on = Vec::new();
        for (id, record) in loaded.records {
            if record.state == RecordedState::Removing {
                self.end_vmm(id, &record).await;
                self.sweep(id);
            } else {
                carried_on.extend(self.bring_back(id, record).await);
            }
        }
        let found = carried_on.iter().map(Machine::started);
        if tokio::time::timeout(ADOPTION_DEADLINE, futures_util::future::join_all(found))
            .await
            .is_err()
        {
            tracing::warn!("not every machine of the earlier node has answered yet");
        }
        Ok(())
    }

    fn sweep(&self, id: MachineId) {
        tracing::info!(machine = %id, "swept what an earlier node left of it");
        if let Err(error) = actor::remove_all(&self.parts, id) {
            tracing::error!(machine = %id, error = %life::chain(&error), "left behind");
        }
        failpoint::pass("adopt-swept");
    }

    /// Makes the actor of a recorded machine. Returns the machine when its virtual machine may still run.
    async fn bring_back(&self, id: MachineId, mut record: MachineRecord) -> Option<Machine> {
        let runs = record.vmm.is_some() && was_alive(&record);
        if !runs && was_alive(&record) {
            self.end_unrecorded(id).await;
            life::release(&self.parts, id);
            record.state = RecordedState::Failed {
                reason: "the node ended while the machine was starting".to_owned(),
            };
        }
        let machine = self.known(id, record).and_then(|known| self.adopt(known));
        machine
            .inspect_err(
                |error| tracing::error!(machine = %id, error = %life::chain(error), "not brought back"),
            )
            .ok()
            .filter(|_| runs)
    }

    /// Ends a virtual machine that an earlier node left running.
    async fn end_vmm(&self, id: MachineId, record: &MachineRecord) {
        let Some(vmm) = record.vmm else {
            return self.end_unrecorded(id).await;
        };
        self.end(id, life::process_id(vmm)).await;
    }

    /// Ends a virtual machine that was started and not written down any more.
    async fn end_unrecorded(&self, id: MachineId) {
        for process in with_arguments(&["-name", &format!("hearth-{id}")]) {
            self.end(id, process).await;
        }
    }

    async fn end(&self, id: MachineId, process: ProcessId) {
        if let Err(error) = end_process(process).await {
            tracing::error!(machine = %id, %error, "a virtual machine of an earlier node does not end");
        }
    }

    fn known(&self, id: MachineId, record: MachineRecord) -> Result<Known, CreateError> {
        // The host may have shrunk since; that is said when the machine is started.
        let spec = spec::check(&record.spec, ANY_HOST)?;
        let process = Process::from(&record.process);
        let secrets = record.secrets.is_empty().then(Arc::default);
        let state = match &record.state {
            RecordedState::Exited { exit_code, reason } => State::Exited(hearth_machine::Ended {
                exit_code: *exit_code,
                reason: reason.clone(),
            }),
            RecordedState::Failed { reason } => State::Failed {
                reason: reason.clone(),
            },
            // Whether it still is will be found out by its actor.
            RecordedState::Alive => State::Starting,
            RecordedState::Restarting { exit_code, reason } => State::Restarting(hearth_machine::Ended {
                exit_code: *exit_code,
                reason: reason.clone(),
            }),
            RecordedState::Created | RecordedState::Removing => State::Created,
        };
        Ok(Known {
            id,
            spec,
            process,
            secrets,
            state,
            record,
        })
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

/// A machine about which everything is known.
struct Known {
    id: MachineId,
    spec: Spec,
    process: Process,
    secrets: Option<Arc<BTreeMap<String, String>>>,
    state: State,
    record: MachineRecord,
}

/// Kills a process that an earlier node has started, and waits for its end.
pub(super) async fn end_process(id: ProcessId) -> std::io::Result<()> {
    let Some(process) = HostProcess::find(id)? else {
        return Ok(());
    };
    process.kill()?;
    let gone = tokio::time::timeout(LEFTOVER_DEADLINE, process.wait()).await;
    gone.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
        .map(drop)
}

fn was_alive(record: &MachineRecord) -> bool {
    record.state == RecordedState::Alive
}
