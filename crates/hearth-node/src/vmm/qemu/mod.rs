//! The driver for QEMU: one process per machine, told what to do over its machine protocol.
//!
//! Owns QEMU's command line ([`command_line`]), its control connection ([`qmp`]), its sockets and the memory file. The
//! node makes the listening sockets and QEMU inherits them: they are there before QEMU is, so nobody polls for them, and they
//! serve the next node as well, since QEMU goes on listening when a connection ends.

mod command_line;
mod firmware;
#[cfg(fuzzing)]
pub mod fuzzing;
mod images;
mod machine;
mod migration;
mod prepare;
pub mod qmp;
mod state;
mod version;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::snapshot::{STATE_FILE, keep_origin};
use super::{
    AdoptError, AdoptRequest, BootError, BootRequest, Border, Capabilities, ControlError, MemoryBackend,
    RestoreError, RestoreRequest, Vmm,
};
use crate::host::console::{self, ConsoleLog};
use crate::host::launch::{FIRST_PASSED_FD, Launch, launch};
use crate::host::memory_image::MemoryFiles;
use crate::host::network_namespace::{NetworkNamespace, TAP};
use crate::host::process::{KillOnDrop, Process};
use crate::host::{facts, failpoint, files};

use self::command_line::{Descriptors, Memory};
use self::images::MemoryImages;
pub use self::machine::QemuVm;
use self::migration::Pages;
use self::prepare::{MemoryFile, Prepared};
use self::qmp::{Client, QmpError};
pub use self::version::{VersionError, find};

/// How long QEMU may take to build a machine and greet. It takes 30 to 60 ms on an idle host; a hundred of them starting on two
/// busy processors take seconds.
const GREETING_LIMIT: Duration = Duration::from_secs(60);

/// How long a QEMU that is found again may take to greet.
const ADOPT_LIMIT: Duration = Duration::from_secs(20);

/// How long a QEMU whose control connection broke may take to end.
const DYING_LIMIT: Duration = Duration::from_secs(5);

/// How gladly the kernel ends a machine when memory runs out: before the node, whose loss would be everybody's.
const OOM_SCORE_ADJ: i16 = 300;

/// The most virtual processors of QEMU's q35 machine without extended interrupt remapping.
const MAX_VCPUS: u32 = 255;

/// The driver, checked and ready.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// See [`firmware::find`].
    firmware: Option<PathBuf>,
    capabilities: Capabilities,
    network: Option<Arc<NetworkNamespace>>,
    /// The group that may open `/dev/kvm`, for monitors that run as users of their own.
    kvm_group: Option<u32>,
    /// The memory that machines were restored from.
    images: MemoryImages,
}

/// The descriptors that QEMU inherits, in this order from [`FIRST_PASSED_FD`] on: control, guest, console, state, memory.
const STATE_FD: i32 = FIRST_PASSED_FD + 3;
const MEMORY_FD: i32 = FIRST_PASSED_FD + 4;

/// Says what of the program, its firmware, its command line and the processor goes into a machine's state.
fn fingerprint(program: &Path, border: Border, firmware: Option<&Path>) -> String {
    let mut hash = Sha256::new();
    for argument in command_line::model(border, firmware) {
        hash.update(argument.as_bytes());
        hash.update([0]);
    }
    for file in [Some(program), firmware].into_iter().flatten() {
        let stamp = std::fs::metadata(file).map(|it| (it.len(), it.mtime(), it.mtime_nsec()));
        hash.update(format!("{} {:?}", file.display(), stamp.ok()));
    }
    if border == Border::Kvm {
        hash.update(format!("{:?}", facts::Processor::read().ok()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a machine begins with.
enum Origin {
    Boot,
    /// The state, and the memory unless that is in the state.
    Snapshot(OwnedFd, Option<OwnedFd>),
}

impl Origin {
    const fn memory(&self) -> Memory {
        match self {
            Self::Boot => Memory::Boot,
            Self::Snapshot(_, None) => Memory::Filled,
            Self::Snapshot(_, Some(_)) => Memory::Private(MEMORY_FD),
        }
    }
}

impl Qemu {
    /// Checks the program's version and makes the empty network that its machines see.
    ///
    /// `border` is what the host can do: [`Border::Kvm`] only where KVM runs a real guest.
    ///
    /// # Errors
    /// [`VersionError`].
    pub async fn open(program: PathBuf, border: Border) -> Result<Self, VersionError> {
        let version = version::check(&program).await?;
        let network = NetworkNamespace::create()
            .inspect_err(|error| {
                tracing::warn!(%error, "QEMU keeps the node's network, which it has no use for: this host allows no other");
            })
            .ok();
        let firmware = firmware::find(&program);
        let fingerprint = fingerprint(&program, border, firmware.as_deref());
        Ok(Self {
            firmware,
            program,
            capabilities: Capabilities {
                driver: "qemu",
                version: version.to_string(),
                border,
                max_vcpus: MAX_VCPUS,
                max_disks: command_line::MAX_DISKS,
                fingerprint,
                snapshots: true,
                diff_snapshots: false,
                memory_changes: true,
                pager: false,
                devices: super::DeviceSupport::Interface,
                snapshots_end_stream: false,
            },
            network: network.map(Arc::new),
            kvm_group: match border {
                Border::Kvm => std::fs::metadata("/dev/kvm").ok().map(|device| device.gid()),
                Border::Emulated => None,
            },
            images: MemoryImages::default(),
        })
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

    /// Starts the process. What is inherited is closed here once it runs, so that its end is seen as the end of its sockets.
    fn start(&self, request: &BootRequest, prepared: Prepared, origin: Origin) -> Result<Process, BootError> {
        let mut passed = vec![prepared.control, prepared.guest, prepared.console];
        let memory = origin.memory();
        if let Origin::Snapshot(state, memory) = origin {
            passed.push(state);
            passed.extend(memory);
        }
        let attachment = request.devices.network.as_ref();
        let mut descriptors = Descriptors {
            control: FIRST_PASSED_FD,
            guest: FIRST_PASSED_FD + 1,
            tap: None,
        };
        if let Some(attachment) = attachment {
            let tap = attachment
                .tap
                .descriptor()
                .map_err(|source| prepare::failed(request, "cannot hand over", TAP.as_ref(), source))?;
            descriptors.tap = i32::try_from(passed.len())
                .ok()
                .map(|place| FIRST_PASSED_FD + place);
            passed.push(tap);
        }
        let args = command_line::arguments(
            request,
            self.capabilities.border,
            self.firmware.as_deref(),
            descriptors,
            memory,
        );
        launch(Launch {
            program: self.program.clone(),
            args,
            log: prepared.log,
            output: None,
            passed,
            user: request.user,
            groups: self.kvm_group.into_iter().collect(),
            network: attachment
                .map(|attachment| Arc::clone(&attachment.namespace))
                .or_else(|| self.network.clone()),
            directory: None,
            mounts: Vec::new(),
            fence: None,
            oom_score_adj: OOM_SCORE_ADJ,
        })
        .map_err(|source| BootError::Launch {
            id: request.id,
            source,
        })
    }

    /// Brings a machine to where its processors run, or stand still behind a restore. Whatever goes wrong on the way, and when it
    /// is given up, nothing is left.
    async fn begin(&self, request: &BootRequest, origin: Origin) -> Result<QemuVm, BootError> {
        self.check_limits(request)?;
        let console_error = |source| BootError::Console {
            id: request.id,
            source,
        };
        let pages = match origin.memory() {
            Memory::Boot => None,
            Memory::Filled => Some(Pages::State),
            Memory::Private(_) => Some(Pages::File),
        };
        let mut cleanup = Cleanup(Some(request));
        let prepared = prepare::prepare(
            request,
            match pages {
                Some(Pages::File) => MemoryFile::None,
                None | Some(Pages::State) => MemoryFile::Own,
            },
        )?;
        failpoint::pass("start-prepared");
        let console = ConsoleLog::start(
            &machine::console_pipe(&request.dirs),
            &request.dirs.console_log(),
            console::DEFAULT_CAP,
        )
        .map_err(console_error)?;
        let process = self.start(request, prepared, origin)?;
        failpoint::pass("start-launched");
        let guard = KillOnDrop::armed(&process);
        let ready = async {
            let control = machine::control_socket(&request.dirs);
            let connected = Client::connect(&control, GREETING_LIMIT).await?;
            if let Some(pages) = pages {
                migration::load(&connected.0, STATE_FD, pages).await?;
            }
            Ok(connected)
        };
        let (control, events) = match ready.await {
            Ok(connected) => connected,
            Err(error) => return Err(explain(request, &process, error).await),
        };
        failpoint::pass("start-connected");
        guard.disarm();
        cleanup.0 = None;
        Ok(QemuVm::new(
            process,
            control,
            events,
            console,
            request.dirs.clone(),
        ))
    }
}

impl Vmm for Qemu {
    type Machine = QemuVm;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, request: &BootRequest) -> Result<QemuVm, BootError> {
        let origin = request.dirs.origin();
        files::remove_tree(&origin)
            .map_err(|source| prepare::failed(request, "cannot remove", &origin, source))?;
        self.begin(request, Origin::Boot).await
    }

    async fn restore(&self, request: &RestoreRequest) -> Result<QemuVm, RestoreError> {
        if request.memory != MemoryBackend::File {
            return Err(RestoreError::Unsupported {
                driver: self.capabilities.driver,
                what: "from a pager",
            });
        }
        let files = MemoryFiles::of(&request.snapshot);
        let named = files.changes.as_ref().unwrap_or(&files.whole);
        let memory = self
            .images
            .open(&files)
            .await
            .map_err(RestoreError::read(named))?;
        let path = request.snapshot.join(STATE_FILE);
        let state = File::open(&path).map_err(RestoreError::read(&path))?;
        let mut cleanup = Cleanup(Some(&request.boot));
        let dirs = &request.boot.dirs;
        keep_origin(&request.snapshot, dirs).map_err(RestoreError::read(&dirs.origin()))?;
        let vm = self
            .begin(&request.boot, Origin::Snapshot(state.into(), memory))
            .await?;
        cleanup.0 = None;
        Ok(vm)
    }

    async fn adopt(&self, request: &AdoptRequest) -> Result<QemuVm, AdoptError> {
        let (id, process) = (request.id, request.process);
        let found = Process::find(process)
            .map_err(|source| AdoptError::Watch { id, process, source })?
            .ok_or(AdoptError::Gone { id, process })?;
        let (pipe, log) = (machine::console_pipe(&request.dirs), request.dirs.console_log());
        let console = ConsoleLog::start(&pipe, &log, console::DEFAULT_CAP)
            .map_err(|source| AdoptError::Console { id, source })?;
        let control = machine::control_socket(&request.dirs);
        match Client::connect(&control, ADOPT_LIMIT).await {
            Ok((client, events)) => Ok(QemuVm::new(found, client, events, console, request.dirs.clone())),
            // A process that ends closes its sockets first, and is gone a moment later.
            Err(error) => match tokio::time::timeout(DYING_LIMIT, found.wait()).await {
                Ok(Ok(_)) => Err(AdoptError::Gone { id, process }),
                Ok(Err(_)) | Err(_) => Err(AdoptError::Control {
                    id,
                    source: ControlError::Qmp(error),
                }),
            },
        }
    }
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

/// Finds out why there is no control connection: nearly always because QEMU ended, having said why.
async fn explain(request: &BootRequest, process: &Process, error: QmpError) -> BootError {
    let id = request.id;
    let ended = tokio::time::timeout(DYING_LIMIT, process.wait()).await;
    let last_words = machine::last_words(&request.dirs);
    match ended {
        Ok(Ok(exit)) => BootError::Died { id, exit, last_words },
        Ok(Err(_)) | Err(_) => BootError::Control {
            id,
            last_words,
            source: ControlError::Qmp(error),
        },
    }
}
