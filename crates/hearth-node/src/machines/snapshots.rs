//! What is kept of machines, and machines that are made of it: snapshots, restores, rollbacks and forks.
//!
//! A machine that is being made is marked so in its record, and nobody's until all is done: a node that finds such a one after a
//! crash sweeps it. So a fork makes all of its machines or none, and a restore one or none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use hearth_api::v1::{MemoryBackend, Origin, Owner};
use hearth_machine::spec::check_environment;
use hearth_machine::{MachineName, NetworkMode, Process, State};
use tokio::sync::oneshot;

use super::capture::{Capture, CaptureError, Captured};
use super::command::{Command, Rollback};
use super::drivers;
use super::error::{CreateError, MachineError};
use super::handle::Machine;
use super::life::{self, chain};
use super::recovery::ANY_HOST;
use super::registry::{Known, Machines, make_place};
use super::restore::Restoration;
use crate::host::{failpoint, files};
use crate::records::{BootFact, MachineRecord, RecordedState, RestartFact, spec};
use crate::snapshots::{Description, Draft, Extent, Form, Held, Moment, Snapshot, StoreError, TemplateKey};
use crate::vmm::{self, Vmm as _};

/// The most forks at once.
pub const FORKS_MAX: u32 = 100;
/// Forks that are made at the same time.
const FORKS_AT_ONCE: usize = 4;
/// The disk of a snapshot on its way into the place of a machine's own.
pub(super) const ROLLBACK_DISK: &str = "disk.rollback";

/// A machine's record, kept in each snapshot of it.
pub type MachineSnapshot = Snapshot<MachineRecord>;

/// What is to be kept of a machine.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its name; the machine's with a number when absent.
    pub name: Option<String>,
    /// Disk, or all.
    pub extent: Extent,
    /// The machine ends at that moment.
    pub stop: bool,
    /// How its memory is kept.
    pub form: Form,
}

/// What a machine that goes on with a snapshot is to be.
#[derive(Debug, Clone, Default)]
pub struct NewRestored {
    /// Its name; made up when absent.
    pub name: Option<String>,
    /// It may have the secrets that are in the snapshot's memory.
    pub keep_secrets: bool,
    /// Values of secrets, for later starts.
    pub secrets: BTreeMap<String, String>,
    /// Where its memory comes from; as with the machine of the snapshot when absent.
    pub memory_backend: Option<MemoryBackend>,
    /// Who makes it, where that is not a person.
    pub owner: Option<Owner>,
}

/// What forks are to be.
#[derive(Debug, Clone)]
pub struct NewForks {
    /// How many.
    pub count: u32,
    /// What their names begin with.
    pub name_prefix: Option<String>,
    /// They may have the secrets that are in the machine's memory.
    pub keep_secrets: bool,
    /// Where their memory comes from; as with the machine when absent.
    pub memory_backend: Option<MemoryBackend>,
}

impl NewForks {
    /// Tells whether so many can be made at once.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Count`].
    pub fn check(&self) -> Result<(), SnapshotError> {
        match (1..=FORKS_MAX).contains(&self.count) {
            true => Ok(()),
            false => Err(SnapshotError::Count(self.count)),
        }
    }
}

/// Says why nothing was kept of a machine, or no machine was made of what was kept.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The snapshots on the disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The machine does not allow it.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The machine could not be captured; it goes on.
    #[error("machine {machine} was not captured")]
    Capture {
        /// Its name.
        machine: String,
        /// Why.
        #[source]
        source: CaptureError,
    },
    /// The machine was started by a node that did not write down what with.
    #[error("machine {0} was started by an older node, which did not write down what it booted with")]
    OlderStart(String),
    /// No machine can go on with it here.
    #[error("snapshot {name} cannot be used here: {reason}")]
    Unusable {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Secrets would get into other hands.
    #[error("the memory of {of} has secrets ({}), which a machine made of it would have, too", names.join(", "))]
    Secrets {
        /// Whose memory.
        of: String,
        /// The secrets' names.
        names: Vec<String>,
    },
    /// A rollback to what another machine was.
    #[error("snapshot {snapshot} is not of this machine, but of {of}")]
    OtherMachine {
        /// The snapshot.
        snapshot: String,
        /// The machine that it is of.
        of: String,
    },
    /// Too many forks, or none.
    #[error("{0} forks cannot be made at once: 1 to {FORKS_MAX} can")]
    Count(u32),
    /// A file could not be copied or linked.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl SnapshotError {
    fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// A machine that is being made of something that was captured.
struct Making<'a> {
    record: &'a MachineRecord,
    owner: Option<Owner>,
    name: Option<String>,
    origin: Origin,
    secrets: Option<BTreeMap<String, String>>,
    /// Published at ports of the host that are free, instead of those of the record.
    free_ports: bool,
    memory_backend: Option<MemoryBackend>,
}

impl Machines {
    /// Takes a snapshot of a machine; returns how long its processes stood still, too.
    ///
    /// # Errors
    /// Returns [`SnapshotError`]; nothing is kept then, and the machine goes on.
    pub async fn snapshot(
        &self,
        machine: &Machine,
        new: NewSnapshot,
    ) -> Result<(MachineSnapshot, Duration), SnapshotError> {
        let view = machine.view();
        if new.extent == Extent::Full {
            view.running()?;
        }
        let store = &self.parts.snapshots;
        let name = new.name.unwrap_or_else(|| store.free_name(&view.record.name));
        let draft = store.begin(&name)?;
        if new.form == Form::Changes {
            draft.keep_base(&life::dirs(&self.parts.layout, machine.id()).origin())?;
        }
        let captured = self.capture(machine, &draft, new.extent, new.stop).await?;
        if new.stop && machine.view().state.is_alive() {
            // What was asked for has not happened before that.
            machine.rested().await;
        }
        let record = machine.view().record;
        let key = self.key(machine, &record, new.extent)?;
        let finished = draft.finish(new.form, |name| Description {
            name,
            extent: new.extent,
            key,
            received: captured.received,
            facts: MachineRecord::clone(&record),
        });
        Ok((finished.await?, captured.pause))
    }

    async fn capture(
        &self,
        machine: &Machine,
        draft: &Draft<MachineRecord>,
        extent: Extent,
        stop: bool,
    ) -> Result<Captured, SnapshotError> {
        let files = draft.files();
        let rootfs = files.rootfs();
        files::link_for_readers(&self.parts.layout.machine_rootfs(machine.id()), &rootfs)
            .map_err(SnapshotError::write(&rootfs))?;
        let (reply, answer) = oneshot::channel();
        let capture = Capture {
            files,
            extent,
            stop,
            reply,
        };
        machine.send(Command::Capture(Box::new(capture))).await?;
        match answer.await {
            Ok(captured) => captured.map_err(|source| SnapshotError::Capture {
                machine: machine.view().record.name.clone(),
                source,
            }),
            // It was neither running nor at rest when the order came, or has ended meanwhile.
            Err(_) => Err(machine.not_running().into()),
        }
    }

    /// Says what a monitor must be to go on with a machine.
    fn key(
        &self,
        machine: &Machine,
        record: &MachineRecord,
        extent: Extent,
    ) -> Result<TemplateKey, SnapshotError> {
        let boot = match (&record.boot, extent) {
            (Some(boot), _) => boot.clone(),
            (None, Extent::Disk) => BootFact::default(),
            (None, Extent::Full) => return Err(SnapshotError::OlderStart(record.name.clone())),
        };
        let rootfs = self.parts.layout.machine_rootfs(machine.id());
        let spec = spec::check(&record.spec, ANY_HOST).map_err(MachineError::from)?;
        let shape = spec.shape();
        Ok(TemplateKey {
            driver: record.driver.clone(),
            version: boot.version,
            fingerprint: boot.fingerprint,
            border: border(record).to_string(),
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            image: record.image.digest.clone(),
            rootfs_bytes: std::fs::metadata(&rootfs)
                .map_err(SnapshotError::write(&rootfs))?
                .len(),
            disk_bytes: spec.disk.bytes(),
            interface: spec.network != NetworkMode::None,
            kernel: boot.kernel,
            initramfs: boot.initramfs,
            moment: Moment::default(),
        })
    }

    /// Says why no machine can be made of a snapshot here, where none can.
    pub async fn unusable(&self, snapshot: &MachineSnapshot) -> Option<String> {
        let Description {
            key, facts, extent, ..
        } = &snapshot.description;
        if *extent == Extent::Disk {
            return None;
        }
        let spec = match spec::check(&facts.spec, self.host_limits()) {
            Ok(spec) => spec,
            Err(error) => return Some(chain(&error)),
        };
        let choice = drivers::kept(spec.driver, &facts.driver);
        let selected = match self.parts.drivers.select(choice).await {
            Ok(selected) => selected,
            Err(error) => return Some(chain(&error)),
        };
        let here = selected.driver.capabilities();
        let differs = |what: &str, was: &str, is: &str| {
            (was != is).then(|| format!("its {what} was {was}, and here is {is}"))
        };
        let boots = match self.parts.artefacts.boot_set() {
            Ok(set) => Some((set.kernel_digest.to_string(), set.initramfs_digest.to_string())),
            Err(_) => None,
        };
        let (kernel, initramfs) = boots.unwrap_or_default();
        let has_kernel = !key.kernel.is_empty();
        differs("monitor", &key.driver, here.driver)
            .or_else(|| differs("monitor's version", &key.version, &here.version))
            .or_else(|| differs("border to the host", &key.border, &here.border.to_string()))
            .or_else(|| {
                let other = key.fingerprint != here.fingerprint;
                other.then(|| "its monitor, or the processor that it saw, was another".to_owned())
            })
            .or_else(|| differs("kernel", &key.kernel, &kernel).filter(|_| has_kernel))
            .or_else(|| differs("initramfs", &key.initramfs, &initramfs).filter(|_| has_kernel))
    }

    async fn usable(&self, snapshot: &MachineSnapshot) -> Result<Held, SnapshotError> {
        if let Some(reason) = self.unusable(snapshot).await {
            let name = snapshot.description.name.clone();
            return Err(SnapshotError::Unusable { name, reason });
        }
        Ok(self.parts.snapshots.hold(snapshot).await?)
    }

    /// Makes a machine that goes on where a snapshot was taken; returns when its programs run.
    ///
    /// # Errors
    /// Returns [`SnapshotError`]; nothing is left of the machine then.
    pub async fn restore(&self, snapshot: &str, new: NewRestored) -> Result<Machine, SnapshotError> {
        let snapshot = self.parts.snapshots.find(snapshot)?;
        let Description { facts, extent, .. } = &snapshot.description;
        for (name, value) in &new.secrets {
            check_environment(&format!("{name}={value}")).map_err(|_| CreateError::Secret(name.clone()))?;
        }
        let all_given = facts.secrets.iter().all(|name| new.secrets.contains_key(name));
        if !facts.secrets.is_empty() && !new.keep_secrets && *extent == Extent::Full {
            return Err(SnapshotError::Secrets {
                of: format!("snapshot {}", snapshot.description.name),
                names: facts.secrets.clone(),
            });
        }
        let held = self.usable(&snapshot).await?;
        let making = Making {
            record: facts,
            owner: new.owner,
            name: new.name,
            origin: Origin::Snapshot(snapshot.id.to_string()),
            secrets: all_given.then_some(new.secrets),
            free_ports: false,
            memory_backend: new.memory_backend,
        };
        let machine = self.make(making, &held).await?;
        if let Err(error) = self.bring_up(&machine, &snapshot, held).await {
            discard(&machine).await;
            return Err(error);
        }
        machine.ask(|reply| Command::Finish { reply }).await?;
        Ok(machine)
    }

    /// Starts a machine where a snapshot was.
    async fn bring_up(
        &self,
        machine: &Machine,
        snapshot: &MachineSnapshot,
        held: Held,
    ) -> Result<(), SnapshotError> {
        self.place_disk(
            machine,
            &held.disk(),
            &self.parts.layout.machine_disk(machine.id()),
        )
        .await?;
        if snapshot.description.extent == Extent::Disk {
            drop(held);
            return Ok(machine.start(None).await?);
        }
        let source = Arc::new(restoration(&snapshot.description, held));
        Ok(machine.ask(|reply| Command::Restore { source, reply }).await?)
    }

    /// Makes a machine again what it was when a snapshot of it was taken; returns when its programs run.
    ///
    /// # Errors
    /// Returns [`SnapshotError`]. The machine is as it was when that is found out before anything was done; else it has ended, and can be
    /// rolled back again.
    pub async fn roll_back(&self, machine: &Machine, snapshot: &str) -> Result<(), SnapshotError> {
        let snapshot = self.parts.snapshots.find(snapshot)?;
        let description = &snapshot.description;
        if description.facts.id != machine.id().to_string() {
            return Err(SnapshotError::OtherMachine {
                snapshot: description.name.clone(),
                of: description.facts.name.clone(),
            });
        }
        let held = self.usable(&snapshot).await?;
        let disk = self.parts.layout.machine_data(machine.id()).join(ROLLBACK_DISK);
        files::remove_file(&disk).map_err(SnapshotError::write(&disk))?;
        self.place_disk(machine, &held.disk(), &disk).await?;
        failpoint::reach("rollback-copied").map_err(SnapshotError::write(&disk))?;
        let source = match description.extent {
            Extent::Full => Some(Arc::new(restoration(description, held))),
            Extent::Disk => None,
        };
        let asked = machine.ask(|reply| {
            Command::Rollback(Box::new(Rollback {
                disk: disk.clone(),
                source,
                reply,
            }))
        });
        let done = asked.await;
        // It is there only when it could not be put in place.
        let _ = files::remove_file(&disk);
        Ok(done?)
    }

    /// Makes machines that go on where a running one is: all of them, or none. Returns how long that one's processes stood still, too.
    ///
    /// # Errors
    /// Returns [`SnapshotError`].
    pub async fn fork(
        &self,
        machine: &Machine,
        new: NewForks,
    ) -> Result<(Vec<Machine>, Duration), SnapshotError> {
        let view = machine.view();
        view.running()?;
        new.check()?;
        if !view.record.secrets.is_empty() && !new.keep_secrets {
            return Err(SnapshotError::Secrets {
                of: format!("machine {}", view.record.name),
                names: view.record.secrets.clone(),
            });
        }
        let base = new
            .name_prefix
            .unwrap_or_else(|| format!("{}-fork", view.record.name));
        let names = self.free_names(&base, new.count)?;
        let draft = self.parts.snapshots.begin_unlisted()?;
        let captured = self.capture(machine, &draft, Extent::Full, false).await?;
        let record = machine.view().record;
        let description = Description {
            name: record.name.clone(),
            extent: Extent::Full,
            key: self.key(machine, &record, Extent::Full)?,
            received: captured.received,
            facts: MachineRecord::clone(&record),
        };
        let secrets = captured.secrets.len() == record.secrets.len();
        let forking = Forking {
            machines: self,
            description: &description,
            origin: Origin::Fork(machine.id().to_string()),
            secrets: secrets.then(|| BTreeMap::clone(&captured.secrets)),
            draft: Arc::new(draft),
            memory_backend: new.memory_backend,
        };
        Ok((forking.all(names).await?, captured.pause))
    }

    /// Returns names of the form `base-N` that are free.
    fn free_names(&self, base: &str, count: u32) -> Result<Vec<String>, SnapshotError> {
        let taken: Vec<String> = self.list().into_iter().map(|machine| machine.name).collect();
        let free = (1_u32..).map(|number| format!("{base}-{number}"));
        let names: Vec<String> = free
            .filter(|name| !taken.contains(name))
            .take(count as usize)
            .collect();
        for name in &names {
            let _: MachineName = name.parse().map_err(CreateError::from)?;
        }
        Ok(names)
    }

    /// Makes a machine of a record, which is nobody's yet, with nothing on its disk.
    async fn make(&self, making: Making<'_>, files: &Held) -> Result<Machine, SnapshotError> {
        let id = self.unused_id()?;
        let name: MachineName = match making.name {
            Some(name) => name.parse().map_err(CreateError::from)?,
            None => self.made_up_name(id).parse().map_err(CreateError::from)?,
        };
        let mut wire = making.record.spec.clone();
        if making.free_ports {
            wire.ports.iter_mut().for_each(|port| port.host = 0);
        }
        wire.memory_backend = making.memory_backend.or(wire.memory_backend);
        let record = MachineRecord {
            generation: 0,
            id: id.to_string(),
            name: name.to_string(),
            spec: wire,
            owner: making.owner,
            created_at: jiff::Timestamp::now().to_string(),
            started_at: None,
            finished_at: None,
            state: RecordedState::Created,
            vmm: None,
            stages: Vec::new(),
            template: None,
            boot: None,
            origin: Some(making.origin),
            unfinished: true,
            ports: Vec::new(),
            paused: false,
            stopping: false,
            host_boot: None,
            restart: RestartFact::default(),
            health: None,
            ..making.record.clone()
        };
        let mut spec = spec::check(&record.spec, self.host_limits()).map_err(CreateError::from)?;
        spec.driver = drivers::kept(spec.driver, &record.driver);
        let selected = self.parts.drivers.select(spec.driver).await;
        let selected = selected.map_err(CreateError::from)?;
        super::registry::check_devices(&spec, selected.driver.capabilities())?;
        let known = Known {
            id,
            spec,
            process: Process::from(&record.process),
            secrets: match record.secrets.is_empty() {
                true => Some(Arc::default()),
                false => making.secrets.map(Arc::new),
            },
            state: State::Created,
            record,
        };
        let made = self.enlist(known, |record| {
            make_place(&self.parts, id, &files.rootfs())?;
            self.write_first(id, record)
        })?;
        failpoint::pass("restore-recorded");
        Ok(made)
    }

    /// Copies a disk to a place of a machine's.
    async fn place_disk(&self, machine: &Machine, from: &Path, to: &Path) -> Result<(), SnapshotError> {
        let (source, target) = (from.to_owned(), to.to_owned());
        let user = life::host_user(machine.id());
        let copied = tokio::task::spawn_blocking(move || {
            files::clone_file(&source, &target)?;
            failpoint::reach("restore-disk-made")?;
            user.map_or(Ok(()), |user| {
                std::os::unix::fs::chown(&target, Some(user.uid), Some(user.gid))
            })
        });
        copied
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(SnapshotError::write(to))
    }

    /// Takes the snapshot of an archive, under this name or the one that it has.
    ///
    /// # Errors
    /// Returns [`SnapshotError`], also when no machine could be made of it here; nothing is left then.
    pub async fn import_snapshot(
        &self,
        archive: impl std::io::Read + Send + 'static,
        name: Option<&str>,
    ) -> Result<MachineSnapshot, SnapshotError> {
        let imported = self.parts.snapshots.import(archive, name).await?;
        if let Some(reason) = self.unusable(&imported.snapshot()).await {
            let name = imported.snapshot().description.name;
            return Err(SnapshotError::Unusable { name, reason });
        }
        Ok(imported.finish()?)
    }

    /// Removes snapshots that no machine could be made of any more; or all. Returns those that it has removed.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Store`] when one cannot be removed.
    pub async fn prune_snapshots(&self, all: bool) -> Result<Vec<MachineSnapshot>, SnapshotError> {
        let mut pruned = Vec::new();
        for snapshot in self.parts.snapshots.list() {
            if !all && self.unusable(&snapshot).await.is_none() {
                continue;
            }
            match self.parts.snapshots.remove(&snapshot.id).await {
                Ok(()) => pruned.push(snapshot),
                // Somebody else removed it.
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(pruned)
    }
}

/// A fork under way.
struct Forking<'a> {
    machines: &'a Machines,
    description: &'a Description<MachineRecord>,
    origin: Origin,
    secrets: Option<BTreeMap<String, String>>,
    draft: Arc<Draft<MachineRecord>>,
    memory_backend: Option<MemoryBackend>,
}

impl Forking<'_> {
    /// Makes the machines of these names, or none.
    async fn all(&self, names: Vec<String>) -> Result<Vec<Machine>, SnapshotError> {
        let mut made = Vec::new();
        let done = self.bring_up(names, &mut made).await;
        let finished = match done {
            Ok(()) => self.finish(&made).await,
            Err(error) => Err(error),
        };
        if let Err(error) = finished {
            for machine in &made {
                discard(machine).await;
            }
            return Err(error);
        }
        Ok(made)
    }

    async fn bring_up(&self, names: Vec<String>, made: &mut Vec<Machine>) -> Result<(), SnapshotError> {
        let starts: Vec<_> = names.into_iter().map(|name| self.one(name)).collect();
        let mut others = stream::iter(starts).buffer_unordered(FORKS_AT_ONCE);
        // Each one that came up is known, also when another one did not.
        let mut failed = None;
        while let Some(one) = others.next().await {
            match one {
                Ok(machine) => made.push(machine),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        made.sort_by(|a, b| a.view().record.created_at.cmp(&b.view().record.created_at));
        failed.map_or(Ok(()), Err)
    }

    async fn one(&self, name: String) -> Result<Machine, SnapshotError> {
        let making = Making {
            record: &self.description.facts,
            owner: None,
            name: Some(name),
            origin: self.origin.clone(),
            secrets: self.secrets.clone(),
            free_ports: true,
            memory_backend: self.memory_backend,
        };
        let files = self.draft.files();
        let machine = self.machines.make(making, &files).await?;
        let disk = self.machines.parts.layout.machine_disk(machine.id());
        let brought_up = async {
            self.machines.place_disk(&machine, &files.disk(), &disk).await?;
            let mut source = restoration(self.description, self.draft.files());
            source._draft = Some(Arc::clone(&self.draft));
            let source = Arc::new(source);
            Ok(machine.ask(|reply| Command::Restore { source, reply }).await?)
        };
        if let Err(error) = brought_up.await {
            discard(&machine).await;
            return Err(error);
        }
        failpoint::pass("fork-made");
        Ok(machine)
    }

    async fn finish(&self, made: &[Machine]) -> Result<(), SnapshotError> {
        for machine in made {
            machine.ask(|reply| Command::Finish { reply }).await?;
        }
        Ok(())
    }
}

fn restoration(description: &Description<MachineRecord>, files: Held) -> Restoration {
    Restoration {
        files,
        received: description.received,
        boot: BootFact {
            kernel: description.key.kernel.clone(),
            initramfs: description.key.initramfs.clone(),
            version: description.key.version.clone(),
            fingerprint: description.key.fingerprint.clone(),
        },
        _draft: None,
    }
}

/// Takes back a machine that did not come up.
async fn discard(machine: &Machine) {
    if let Err(error) = machine.remove(true).await {
        tracing::error!(machine = %machine.id(), error = %chain(&error), "left behind");
    }
}

fn border(record: &MachineRecord) -> vmm::Border {
    match record.border {
        hearth_api::v1::Border::Kvm => vmm::Border::Kvm,
        hearth_api::v1::Border::Emulated => vmm::Border::Emulated,
    }
}
