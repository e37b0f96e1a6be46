//! The driver for Firecracker: one process per machine, told what to do over its API socket.
//!
//! Owns what a boot asks of Firecracker ([`configuration`]), the directory that it sees ([`place`]), and the machine while
//! it runs ([`machine`]). As root every Firecracker starts through its jailer, in a root of its own into which the machine's
//! files are mounted; as an ordinary user it works in the machine's run directory. Either way it hears only names
//! (`vsock`, `disk0`), never paths of the host: so any number of clones of one snapshot live side by side.

mod configuration;
mod machine;
mod place;
mod snapshot;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_firecracker::jailer::{self, InstanceId, Jailer, ResourceLimit};
use hearth_firecracker::model::{InstanceState, LoadSnapshot, LogLevel};
use hearth_firecracker::{Client, ClientError, Version};

use super::snapshot::keep_origin;
use super::{
    AdoptError, AdoptRequest, BootError, BootRequest, Border, Capabilities, DiskAccess, RestoreError,
    RestoreRequest, Vmm,
};
use crate::host::console::{self, ConsoleLog};
use crate::host::fence::{Fence, Reach};
use crate::host::launch::{Launch, launch};
use crate::host::network_namespace::{NetworkNamespace, TAP};
use crate::host::process::{KillOnDrop, Process};
use crate::host::watch::{Directories, DirectoryWatch};
use crate::host::{facts, failpoint};

pub use self::machine::FirecrackerVm;
use self::place::Place;

/// How long Firecracker may take until its API answers. It takes 5 to 10 ms behind the jailer on an idle host.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// How long a Firecracker whose API broke off may take to end.
const DYING_LIMIT: Duration = Duration::from_secs(5);

/// How long to wait where the socket is there and nobody listens yet: two system calls of Firecracker lie between.
const ALMOST_THERE: Duration = Duration::from_micros(50);

/// How gladly the kernel ends a machine when memory runs out: before the node, whose loss would be everybody's.
const OOM_SCORE_ADJ: i16 = 300;

/// The most virtual processors that Firecracker gives.
const MAX_VCPUS: u32 = 32;

/// The open files that a Firecracker may have: a connection over vsock takes one.
const OPEN_FILES: u64 = 4096;

/// What Firecracker opens of the host by itself: its virtual machine, its network interface, page faults.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/userfaultfd"];

/// What it reads: the metadata service's tokens are made of it.
const ENTROPY: &str = "/dev/urandom";

/// The driver, ready.
#[derive(Debug)]
pub struct Firecracker {
    program: PathBuf,
    /// What starts the program where the node is root.
    jailer: Option<PathBuf>,
    capabilities: Capabilities,
    network: Option<Arc<NetworkNamespace>>,
    /// Those in which sockets are waited for.
    directories: Directories,
}

impl Firecracker {
    /// Takes a program that was checked when it was installed, and makes the empty network that its machines see.
    pub fn open(program: PathBuf, jailer: Option<PathBuf>, version: Version) -> Self {
        let network = NetworkNamespace::create()
            .inspect_err(|error| {
                tracing::warn!(%error, "Firecracker keeps the node's network, which it has no use for: this host allows no other");
            })
            .ok();
        Self {
            program,
            jailer,
            capabilities: Capabilities {
                driver: "firecracker",
                version: version.to_string(),
                border: Border::Kvm,
                max_vcpus: MAX_VCPUS,
                max_disks: configuration::MAX_DISKS,
                fingerprint: format!("{:?}", facts::Processor::read().ok()),
                snapshots: true,
                diff_snapshots: true,
                memory_changes: false,
                pager: true,
                devices: super::DeviceSupport::All,
                snapshots_end_stream: true,
            },
            network: network.map(Arc::new),
            directories: Directories::default(),
        }
    }

    fn check_limits(&self, request: &BootRequest) -> Result<(), BootError> {
        let over = |asked: String, limit: String| BootError::OverLimit {
            id: request.id,
            asked,
            driver: self.capabilities.driver,
            limit,
        };
        let (vcpus, most) = (request.shape.vcpus, self.capabilities.max_vcpus);
        if vcpus > most {
            return Err(over(format!("{vcpus} processors"), format!("{most} processors")));
        }
        let (disks, most) = (request.disks.len(), self.capabilities.max_disks);
        if disks > most {
            return Err(over(format!("{disks} disks"), format!("{most} disks")));
        }
        Ok(())
    }

    /// Starts Firecracker in its place. What it inherits is closed here once it runs.
    fn start(&self, request: &BootRequest, mut place: Place<'_>) -> Result<Started, BootError> {
        let id = request.id;
        let (log, output) = (place.make_log()?, place.make_console()?);
        let watch = (self.directories.watch(place.root()))
            .map_err(|source| place::failed(request, "cannot watch", place.root(), source))?;
        let console = ConsoleLog::start(
            &machine::console_pipe(&request.dirs),
            &request.dirs.console_log(),
            console::DEFAULT_CAP,
        )
        .map_err(|source| BootError::Console { id, source })?;
        let client = machine::client(&request.dirs);
        let network = match &request.devices.network {
            Some(attachment) => {
                let owner = request.user.map(|user| user.uid);
                attachment.tap.leave_to(owner).map_err(|source| {
                    place::failed(
                        request,
                        "cannot hand over the network interface",
                        TAP.as_ref(),
                        source,
                    )
                })?;
                Some(Arc::clone(&attachment.namespace))
            }
            None => self.network.clone(),
        };
        failpoint::pass("start-prepared");
        let (program, args) = self.command_line(request, &place);
        let fence = self.fence(request, &place)?;
        let process = launch(Launch {
            program,
            args,
            log,
            output: Some(output),
            passed: Vec::new(),
            // The jailer stays root until it has locked itself in.
            user: None,
            groups: Vec::new(),
            network,
            directory: (!place.is_jailed()).then(|| place.root().to_owned()),
            mounts: place.into_mounts(),
            fence,
            oom_score_adj: OOM_SCORE_ADJ,
        })
        .map_err(|source| BootError::Launch { id, source })?;
        failpoint::pass("start-launched");
        Ok(Started {
            process,
            client,
            console,
            watch,
        })
    }

    /// Starts Firecracker in its place and has it make the machine.
    async fn bring_up(
        &self,
        request: &BootRequest,
        origin: Origin,
        place: Place<'_>,
    ) -> Result<FirecrackerVm, BootError> {
        let started = self.start(request, place)?;
        let guard = KillOnDrop::armed(&started.process);
        let state = match origin {
            Origin::Snapshot(LoadSnapshot { resume: false, .. }) => InstanceState::Paused,
            Origin::Boot | Origin::Snapshot(_) => InstanceState::Running,
        };
        let made = async {
            started.answers().await?;
            failpoint::pass("start-connected");
            match origin {
                Origin::Boot => configuration::boot(request, &started.client).await,
                Origin::Snapshot(load) => {
                    let client = started.client.within(snapshot::LIMIT);
                    client.load_snapshot(&load).await?;
                    configuration::give_devices_anew(request, &started.client).await
                }
            }
        };
        if let Err(error) = made.await {
            return Err(explain(request, &started.process, error).await);
        }
        guard.disarm();
        Ok(FirecrackerVm::new(
            started.process,
            started.client,
            started.console,
            request.dirs.clone(),
            Some(state),
        ))
    }

    fn command_line(&self, request: &BootRequest, place: &Place<'_>) -> (PathBuf, Vec<OsString>) {
        let firecracker = jailer::Firecracker::new(machine::API).log(place::LOG, LogLevel::Warning);
        match (place.jail(), &self.jailer) {
            (Some(jail), Some(program)) => {
                let jail = jail.limit(ResourceLimit::OpenFiles(OPEN_FILES));
                (program.clone(), jail.arguments(&firecracker))
            }
            _ => (
                self.program.clone(),
                firecracker.arguments(&instance_id(request.id)),
            ),
        }
    }

    /// Says what a Firecracker without a jail may reach: what it was given, and the devices that it needs.
    fn fence(&self, request: &BootRequest, place: &Place<'_>) -> Result<Option<Fence>, BootError> {
        if place.is_jailed() {
            return Ok(None);
        }
        let log = request.dirs.vmm_log();
        let writable = request
            .disks
            .iter()
            .filter(|disk| disk.access == DiskAccess::ReadWrite);
        let written = writable.map(|disk| disk.path.as_path()).chain([log.as_path()]);
        let devices = DEVICES
            .map(Path::new)
            .into_iter()
            .filter(|device| device.exists());
        let places = (place.given().iter().map(|path| (path.as_path(), Reach::Read)))
            .chain(written.map(|path| (path, Reach::Write)))
            .chain(devices.map(|path| (path, Reach::Device)))
            .chain([
                (Path::new(ENTROPY), Reach::Read),
                (self.program.as_path(), Reach::Execute),
                (place.root(), Reach::Work),
            ]);
        Fence::around(places).map_err(|source| {
            place::failed(
                request,
                "cannot fence in",
                &self.program,
                io::Error::other(source),
            )
        })
    }

    /// Makes the directory that the machine's Firecracker sees.
    fn place<'a>(&self, request: &'a BootRequest) -> Result<Place<'a>, BootError> {
        let jail = match (request.user, &self.jailer) {
            (None, _) => None,
            (Some(_), None) => return Err(BootError::NoJailer { id: request.id }),
            (Some(user), Some(_)) => {
                let jail = Jailer::new(instance_id(request.id), &self.program, user.uid, place::READERS);
                Some(jail.map_err(|error| {
                    place::failed(request, "cannot jail", &self.program, io::Error::other(error))
                })?)
            }
        };
        Place::make(request, jail)
    }
}

/// Where a machine comes from.
enum Origin {
    /// A boot.
    Boot,
    /// A snapshot, whose files are in place.
    Snapshot(LoadSnapshot),
}

/// The name that a machine's Firecracker has on its command line, where a later node looks for it.
pub fn name_of(id: hearth_machine::MachineId) -> String {
    format!("hearth-{id}")
}

/// The name is made of letters, digits and hyphens, fewer than 64.
fn instance_id(id: hearth_machine::MachineId) -> InstanceId {
    let parsed = name_of(id).parse();
    parsed.unwrap_or_else(|_| unreachable!("a machine's id is twelve hexadecimal digits"))
}

impl Vmm for Firecracker {
    type Machine = FirecrackerVm;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, request: &BootRequest) -> Result<FirecrackerVm, BootError> {
        self.check_limits(request)?;
        let mut cleanup = Cleanup(Some(request));
        let mut place = self.place(request)?;
        configuration::put_files(request, &mut place)?;
        let vm = self.bring_up(request, Origin::Boot, place).await?;
        cleanup.0 = None;
        Ok(vm)
    }

    async fn restore(&self, request: &RestoreRequest) -> Result<FirecrackerVm, RestoreError> {
        let boot = &request.boot;
        self.check_limits(boot)?;
        snapshot::check(request)?;
        let mut cleanup = Cleanup(Some(boot));
        let mut place = self.place(boot)?;
        configuration::put_disks(boot, &mut place)?;
        let load = snapshot::put(request, &mut place)?;
        keep_origin(&request.snapshot, &boot.dirs).map_err(RestoreError::read(&boot.dirs.origin()))?;
        let vm = self.bring_up(boot, Origin::Snapshot(load), place).await?;
        cleanup.0 = None;
        Ok(vm)
    }

    async fn adopt(&self, request: &AdoptRequest) -> Result<FirecrackerVm, AdoptError> {
        let (id, process) = (request.id, request.process);
        let found = Process::find(process)
            .map_err(|source| AdoptError::Watch { id, process, source })?
            .ok_or(AdoptError::Gone { id, process })?;
        let (pipe, log) = (machine::console_pipe(&request.dirs), request.dirs.console_log());
        let console = ConsoleLog::start(&pipe, &log, console::DEFAULT_CAP)
            .map_err(|source| AdoptError::Console { id, source })?;
        let control = |source: ClientError| AdoptError::Control {
            id,
            source: source.into(),
        };
        let client = machine::client(&request.dirs);
        match client.instance().await {
            Ok(instance) => {
                let (dirs, state) = (request.dirs.clone(), Some(instance.state));
                Ok(FirecrackerVm::new(found, client, console, dirs, state))
            }
            // Died between the look for it and the question.
            Err(_) if matches!(Process::find(process), Ok(None)) => Err(AdoptError::Gone { id, process }),
            Err(error) => Err(control(error)),
        }
    }
}

/// A Firecracker that was started.
struct Started {
    process: Process,
    client: Client,
    console: ConsoleLog,
    /// Tells of what appears in the directory that it sees.
    watch: DirectoryWatch,
}

impl Started {
    /// Waits until the API answers, or the process has ended.
    async fn answers(&self) -> Result<(), ClientError> {
        let gone = |source| ClientError::Connect {
            socket: self.client.socket().to_owned(),
            source,
        };
        let answering = async {
            loop {
                match self.client.instance().await {
                    Err(ClientError::Connect { source, .. }) => match source.kind() {
                        io::ErrorKind::ConnectionRefused => almost_there().await,
                        io::ErrorKind::NotFound => self.watch.changed().await.map_err(gone)?,
                        _ => return Err(gone(source)),
                    },
                    other => return other.map(drop),
                }
            }
        };
        tokio::select! {
            answered = tokio::time::timeout(ANSWER_LIMIT, answering) =>
                answered.unwrap_or_else(|_| Err(gone(io::ErrorKind::TimedOut.into()))),
            _ = self.process.wait() => Err(gone(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

/// Lets [`ALMOST_THERE`] pass. The runtime's own timer counts milliseconds.
async fn almost_there() {
    // It does not panic, and nobody aborts it.
    let _ = tokio::task::spawn_blocking(|| std::thread::sleep(ALMOST_THERE)).await;
}

/// Removes what a boot has made, unless it went well.
struct Cleanup<'a>(Option<&'a BootRequest>);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.0
            && let Err(error) = request.dirs.release()
        {
            tracing::warn!(machine = %request.id, %error, "a failed boot left something behind");
        }
    }
}

/// Finds out why there is no machine: Firecracker refused, and said why, or it has ended.
async fn explain(request: &BootRequest, process: &Process, error: ClientError) -> BootError {
    let id = request.id;
    if let ClientError::Refused { .. } = error {
        let source = error.into();
        return BootError::Refused { id, source };
    }
    let ended = tokio::time::timeout(DYING_LIMIT, process.wait()).await;
    let last_words = machine::last_words(&request.dirs);
    match ended {
        Ok(Ok(exit)) => BootError::Died { id, exit, last_words },
        Ok(Err(_)) | Err(_) => BootError::Control {
            id,
            last_words,
            source: error.into(),
        },
    }
}
