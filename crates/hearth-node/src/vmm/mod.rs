//! Drivers of virtual machine monitors: what each one can do, and how a machine is booted, found again and ended.
//!
//! [`Vmm`] and [`Machine`] are the contract; their comments say what every driver keeps to, and `contract` tests hold the
//! drivers to it. [`Driver`] and [`Vm`] dispatch by enum. Called by the machine actors; nothing above asks which
//! driver it has, it asks [`Capabilities`].
//!
//! ```text
//!              boot                    pause, snapshot
//!  (nothing) --------> [Vm: running] <-----------------> [Vm: paused] <-- restore -- (a snapshot)
//!      ^      adopt        |   resume                        |
//!      `---- exit <--------+------- quit, kill, guest -------'
//! ```
//!
//! A driver owns the process of the monitor, its sockets and the file of the guest's memory. It does not own the machine's
//! disks and records, and it knows nothing of what is said in the guest's stream.

#[cfg(test)]
mod contract;
#[cfg(test)]
pub mod fake;
pub mod firecracker;
pub mod qemu;
pub mod snapshot;
mod stream;

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_machine::{MacAddress, MachineId, Rate, Shape};
use tokio::sync::broadcast;

use crate::host::network_namespace::{NetworkNamespace, Tap};
use crate::host::process;

pub use crate::host::launch::HostUser;
pub use crate::host::process::{Exit, ProcessId};
pub use snapshot::{MemoryBackend, RestoreError, RestoreRequest, SnapshotError, SnapshotKind};
pub use stream::GuestStream;

/// What separates a guest from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Border {
    /// The processor's virtualization, by KVM.
    Kvm,
    /// An emulator in user space (QEMU's TCG): slower, and a weaker border, since a bug in it is a way out.
    Emulated,
}

impl fmt::Display for Border {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Emulated => "emulated",
        })
    }
}

/// What a driver can do on this host. Callers ask this, never the driver's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The driver's name, to be shown to people.
    pub driver: &'static str,
    /// The monitor's version, to be shown to people and kept with snapshots.
    pub version: String,
    /// What separates a guest from the host.
    pub border: Border,
    /// The most virtual processors that one machine may have.
    pub max_vcpus: u32,
    /// The most disks that one machine may have.
    pub max_disks: usize,
    /// Two of one driver and version with the same fingerprint restore each other's snapshots.
    pub fingerprint: String,
    /// Whether it takes snapshots and restores machines from them.
    pub snapshots: bool,
    /// Whether it takes [`SnapshotKind::Diff`].
    pub diff_snapshots: bool,
    /// Whether it restores from [`snapshot::CHANGES_FILE`].
    pub memory_changes: bool,
    /// Whether it restores from [`MemoryBackend::Pager`].
    pub pager: bool,
    /// Which of [`Devices`] it gives.
    pub devices: DeviceSupport,
    /// Whether a snapshot ends the guest's stream of the machine that goes on, too: it takes another one then.
    pub snapshots_end_stream: bool,
}

/// Which devices and limits beyond disks and the guest's stream a driver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceSupport {
    /// None.
    None,
    /// A network interface, without a limit.
    Interface,
    /// All of [`Devices`].
    All,
}

/// What a machine has beyond disks and the guest's stream. Nothing, unless it was asked for.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// A network interface.
    pub network: Option<NetworkAttachment>,
    /// How much each writable disk may carry.
    pub disk_rate: Option<Rate>,
    /// What the metadata service tells: a JSON object. Needs a network interface.
    pub metadata: Option<String>,
}

/// A network interface. Its other end is a TAP in a network namespace of the machine's own, in which the driver starts the monitor:
/// it lives as long as that. Whoever has a part in that network enters it by the monitor's process, also after the node's death.
#[derive(Debug, Clone)]
pub struct NetworkAttachment {
    /// Where the monitor is to live.
    pub namespace: Arc<NetworkNamespace>,
    /// The host's end.
    pub tap: Arc<Tap>,
    /// The interface's address; that of a restored machine is the source's.
    pub mac: MacAddress,
    /// How much it may carry, each way.
    pub rate: Option<Rate>,
}

/// A file that the guest sees as a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskAttachment {
    /// The raw image. With [`BootRequest::user`], a writable one must belong to that user and a read-only one be readable
    /// by all.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: DiskAccess,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskAccess {
    /// Read; any number of machines may share the file.
    ReadOnly,
    /// Read, write and discard; the file is one machine's own.
    ReadWrite,
}

/// Where one machine's files are. The directories exist before the boot, belong to the node, and hold no other machine's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDirs {
    /// What outlives the machine's run: `console.log`, `vmm.log`.
    pub data: PathBuf,
    /// What does not: sockets and pipes. Short, since a socket's path has a limit of 107 bytes.
    pub run: PathBuf,
    /// The file that backs the guest's memory, on a tmpfs.
    pub memory: PathBuf,
}

impl MachineDirs {
    /// Returns the log of what the guest says on its console, at most 1 MiB.
    pub fn console_log(&self) -> PathBuf {
        self.data.join("console.log")
    }

    /// Returns the log of what the monitor itself says.
    pub fn vmm_log(&self) -> PathBuf {
        self.data.join("vmm.log")
    }

    /// Returns the directory of the roots that a monitor is locked up in.
    pub fn jail(&self) -> PathBuf {
        self.data.join("jail")
    }

    /// Returns the directory of what a machine was restored from: links to the files of the snapshot. It is not there for one that
    /// was booted.
    pub fn origin(&self) -> PathBuf {
        self.data.join("origin")
    }

    /// Removes what a driver left that has no use once the monitor has ended: the guest's memory and what it began as, sockets, pipes,
    /// jails. Idempotent; logs stay.
    ///
    /// # Errors
    /// When something that is there cannot be removed; the rest is removed all the same.
    pub fn release(&self) -> Result<(), ReleaseError> {
        let run = std::fs::read_dir(&self.run).into_iter().flatten().flatten();
        let files = run.map(|entry| entry.path()).chain([self.memory.clone()]);
        let mut outcome = Ok(());
        for path in [self.jail(), self.origin()] {
            if let Err(source) = crate::host::files::remove_tree(&path) {
                outcome = Err(ReleaseError { path, source });
            }
        }
        for path in files {
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    outcome = Err(ReleaseError { path, source });
                }
                _ => {}
            }
        }
        outcome
    }
}

/// Says what could not be removed after a machine's end.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {}", path.display())]
pub struct ReleaseError {
    /// What is still there.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct BootRequest {
    /// The machine.
    pub id: MachineId,
    /// Its processors and memory.
    pub shape: Shape,
    /// The guest's kernel, an ELF `vmlinux` with a PVH entry.
    pub kernel: PathBuf,
    /// The initramfs with the guest agent; none for a kernel that is the guest agent itself.
    pub initramfs: Option<PathBuf>,
    /// Added to the kernel command line that the driver needs; no secrets, it is visible to all on the host.
    pub append: String,
    /// Whether [`SnapshotKind::Diff`] is wanted of it, which costs the guest a fault at its first write to each page.
    pub tracked: bool,
    /// The disks, in the order in which the guest sees them: `vda`, `vdb`, ...
    pub disks: Vec<DiskAttachment>,
    /// What else the machine has; where [`Capabilities::devices`] says so.
    pub devices: Devices,
    /// Where the machine's files go.
    pub dirs: MachineDirs,
    /// The user that the monitor runs as, when the node is root.
    pub user: Option<HostUser>,
}

/// What a record keeps of a running machine, so that a later node finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptRequest {
    /// The machine.
    pub id: MachineId,
    /// The monitor, as [`Machine::process`] told it.
    pub process: ProcessId,
    /// Where the machine's files are.
    pub dirs: MachineDirs,
}

/// Says why there is no machine. Nothing of it is left: no process, no socket, no memory.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The driver cannot give what was asked for.
    #[error("machine {id} asks for {asked}, and {driver} has {limit} at most")]
    OverLimit {
        /// The machine.
        id: MachineId,
        /// What was asked for, with its unit.
        asked: String,
        /// The driver's name.
        driver: &'static str,
        /// What there is at most, with its unit.
        limit: String,
    },
    /// Something that the boot needs cannot be made or reached.
    #[error("cannot prepare machine {id}: {what} {}", path.display())]
    Prepare {
        /// The machine.
        id: MachineId,
        /// What was being done, as in "cannot create".
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The monitor's user cannot get to a file, because a directory on the way is closed to it.
    #[error("machine {id} cannot reach {}: the directory {} is closed to user {uid}", path.display(), closed.display())]
    Unreachable {
        /// The machine.
        id: MachineId,
        /// The file.
        path: PathBuf,
        /// The first directory on the way that others may not enter.
        closed: PathBuf,
        /// The monitor's user.
        uid: u32,
    },
    /// A socket cannot be made.
    #[error("cannot prepare machine {id}")]
    Socket {
        /// The machine.
        id: MachineId,
        /// Which one, and why.
        #[source]
        source: crate::host::unix_socket::SocketError,
    },
    /// The console cannot be recorded.
    #[error("cannot prepare machine {id}")]
    Console {
        /// The machine.
        id: MachineId,
        /// Why.
        #[source]
        source: crate::host::console::ConsoleError,
    },
    /// The monitor would have to start as root, with nothing to lock it up.
    #[error(
        "machine {id} cannot be locked up: as root, Firecracker starts through its jailer, and none came with the one that is \
         installed; name both in one directory or archive: `hearth setup firecracker --from PATH`"
    )]
    NoJailer {
        /// The machine.
        id: MachineId,
    },
    /// The monitor does not take what it was told. It has been killed.
    #[error("the monitor of machine {id} refuses")]
    Refused {
        /// The machine.
        id: MachineId,
        /// What it said.
        #[source]
        source: ControlError,
    },
    /// The monitor cannot be started.
    #[error("cannot boot machine {id}")]
    Launch {
        /// The machine.
        id: MachineId,
        /// Why.
        #[source]
        source: crate::host::launch::LaunchError,
    },
    /// The monitor ended before the machine ran.
    #[error("the monitor of machine {id} ended in boot ({exit}){}", said(last_words))]
    Died {
        /// The machine.
        id: MachineId,
        /// How it ended.
        exit: Exit,
        /// The end of what it wrote.
        last_words: String,
    },
    /// The monitor did not get the machine to run in time, or answered nonsense. It has been killed.
    #[error("the monitor of machine {id} does not answer{}", said(last_words))]
    Control {
        /// The machine.
        id: MachineId,
        /// The end of what it wrote.
        last_words: String,
        /// What went wrong on its control connection.
        #[source]
        source: ControlError,
    },
}

fn said(last_words: &str) -> String {
    match last_words.trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

/// Says why a running machine did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// QEMU's control connection.
    #[error(transparent)]
    Qmp(#[from] qemu::qmp::QmpError),
    /// Firecracker's API.
    #[error(transparent)]
    Firecracker(#[from] hearth_firecracker::ClientError),
    /// The monitor has ended.
    #[error("the monitor has ended")]
    Ended,
}

/// Says why a machine was not found again.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The process is gone, though its number may be in use again.
    #[error("the monitor of machine {id}, process {process}, is gone")]
    Gone {
        /// The machine.
        id: MachineId,
        /// The process that is gone.
        process: ProcessId,
    },
    /// The process is there and cannot be watched.
    #[error("cannot watch the monitor of machine {id}, process {process}")]
    Watch {
        /// The machine.
        id: MachineId,
        /// The process.
        process: ProcessId,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its console cannot be recorded.
    #[error("cannot adopt machine {id}")]
    Console {
        /// The machine.
        id: MachineId,
        /// Why.
        #[source]
        source: crate::host::console::ConsoleError,
    },
    /// It does not answer. It is left as it is.
    #[error("the monitor of machine {id} does not answer")]
    Control {
        /// The machine.
        id: MachineId,
        /// What went wrong on its control connection.
        #[source]
        source: ControlError,
    },
}

/// What a monitor tells on its own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmEvent {
    /// The virtual processors stand still.
    Paused,
    /// The virtual processors go on.
    Resumed,
    /// The machine is about to end, and this is why.
    Ending(EndCause),
    /// A disk could not be read or written; `operation` is `read` or `write`.
    DiskError {
        /// The disk, counted as in [`BootRequest::disks`], when the monitor tells.
        disk: Option<usize>,
        /// What the guest was doing.
        operation: String,
        /// What the host said.
        reason: String,
    },
}

/// Why a machine ended, as far as its monitor could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The guest powered off.
    GuestShutdown,
    /// The guest reset, which ends a machine; a kernel that panics does so as well.
    GuestReset,
    /// The guest's kernel panicked, and told its monitor.
    GuestPanic,
    /// [`Machine::quit`].
    Quit,
    /// Anything else that the monitor had a reason for.
    Other,
}

/// How a monitor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmExit {
    /// The process's end.
    pub exit: Exit,
    /// Why, when the monitor told before it ended; absent for a killed or crashed one.
    pub cause: Option<EndCause>,
    /// The end of what it wrote, at most 4 KiB; empty when it wrote nothing.
    pub last_words: String,
}

/// Boots machines and finds them again.
pub trait Vmm {
    /// A machine of this driver.
    type Machine: Machine;

    /// Says what this driver can do on this host. Does not change while the driver lives.
    fn capabilities(&self) -> &Capabilities;

    /// Boots a machine, and returns once its virtual processors run (not once the guest is up).
    ///
    /// Takes possession of the request's run directory and memory file: what a former machine of that id left there is
    /// replaced. The monitor lives in a session of its own and outlives the node. When the future is dropped, and on every
    /// error, the monitor is killed and what was made is removed.
    ///
    /// # Errors
    /// [`BootError`].
    fn boot(&self, request: &BootRequest) -> impl Future<Output = Result<Self::Machine, BootError>> + Send;

    /// Makes a machine of a snapshot. Its processors stand still when this returns, unless [`RestoreRequest::at_once`] says that they need
    /// not; [`Machine::resume`] lets them go on from the instant of the snapshot. What is written to the guest's stream before that waits. All else is as with [`Vmm::boot`].
    ///
    /// The snapshot must be of this driver, its version, border, and this kind of host: the caller makes sure of that. Any number of
    /// machines may be restored from one.
    ///
    /// # Errors
    /// [`RestoreError`].
    fn restore(
        &self,
        request: &RestoreRequest,
    ) -> impl Future<Output = Result<Self::Machine, RestoreError>> + Send;

    /// Finds a machine that a former node, or a dropped value, left running. At most one value per machine may be in use.
    ///
    /// # Errors
    /// [`AdoptError::Gone`] when its process has ended; [`MachineDirs::release`] is all that is left to do then. Any other
    /// error leaves the machine as it is.
    fn adopt(&self, request: &AdoptRequest)
    -> impl Future<Output = Result<Self::Machine, AdoptError>> + Send;
}

/// A machine that has been booted. Dropping the value leaves it running; [`Vmm::adopt`] finds it again.
///
/// Every method may be called by several tasks at once, and at any time, also after the machine's end.
pub trait Machine {
    /// Returns the identity of the monitor's process.
    fn process(&self) -> ProcessId;

    /// Opens the byte stream to the guest agent. Succeeds as soon as the machine exists: what is written waits until the guest
    /// opens its end. One stream is served at a time; a second one waits until the first is closed.
    ///
    /// Bytes of a former stream that were under way may come first, cut anywhere, in both directions: whoever connects again
    /// must find the beginning of the next message by himself.
    ///
    /// # Errors
    /// When the monitor has ended.
    fn connect_guest(&self) -> impl Future<Output = io::Result<GuestStream>> + Send;

    /// Stops the virtual processors; the guest's stream stays open, and stalls. Pausing what is paused succeeds.
    ///
    /// # Errors
    /// [`ControlError`].
    fn pause(&self) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Lets the virtual processors go on. Resuming what runs succeeds.
    ///
    /// # Errors
    /// [`ControlError`].
    fn resume(&self) -> impl Future<Output = Result<(), ControlError>> + Send;

    /// Writes a snapshot: files for [`Vmm::restore`] in `directory`, which exists and is empty, is the node's, and may be moved
    /// afterwards. When this returns the processors stand still at the instant of the snapshot, so that the caller can copy the
    /// disks, whose files are at that instant as well, and then resume. A machine may be one that was restored.
    ///
    /// Not to be given up half-way: the machine may then stand still.
    ///
    /// # Errors
    /// [`SnapshotError`]; the machine goes on as before then, and the directory is empty.
    fn snapshot(
        &self,
        directory: &Path,
        kind: SnapshotKind,
    ) -> impl Future<Output = Result<(), SnapshotError>> + Send;

    /// Listens to what the monitor tells. Bounded: a listener that is more than 64 events behind loses the oldest. Ends with
    /// the monitor.
    fn events(&self) -> broadcast::Receiver<VmmEvent>;

    /// Tells the monitor to end, as if the machine's power were cut, but with its disks flushed; kills it when it has not ended
    /// after `grace`. Asking the guest to shut down is the caller's affair, and comes before this.
    ///
    /// # Errors
    /// When the monitor cannot be killed or watched.
    fn quit(&self, grace: Duration) -> impl Future<Output = io::Result<VmmExit>> + Send;

    /// Kills the monitor and waits for its end. Disks may miss what was under way.
    ///
    /// # Errors
    /// When the monitor cannot be killed or watched.
    fn kill(&self) -> impl Future<Output = io::Result<VmmExit>> + Send;

    /// Waits for the monitor's end, however it comes. Returns the same again after it.
    ///
    /// # Errors
    /// When the monitor cannot be watched.
    fn wait(&self) -> impl Future<Output = io::Result<VmmExit>> + Send;
}

/// The drivers that there are.
#[derive(Debug)]
pub enum Driver {
    /// QEMU.
    Qemu(qemu::Qemu),
    /// Firecracker.
    Firecracker(firecracker::Firecracker),
    /// A driver for tests that behaves.
    #[cfg(test)]
    Fake(fake::Fake),
}

/// Finds monitors of a machine that no record tells of: by what their command lines say.
pub fn find_strays(id: MachineId) -> Vec<ProcessId> {
    let name = format!("hearth-{id}");
    let named = ["-name", "--id"].map(|option| process::with_arguments(&[option, &name]));
    named.concat()
}

/// A machine of any driver.
#[derive(Debug)]
pub enum Vm {
    /// Of QEMU.
    Qemu(qemu::QemuVm),
    /// Of Firecracker.
    Firecracker(firecracker::FirecrackerVm),
    /// Of the driver for tests.
    #[cfg(test)]
    Fake(fake::FakeVm),
}

macro_rules! dispatch {
    ($type:ident, $self:expr, $it:ident => $call:expr) => {
        match $self {
            $type::Qemu($it) => $call,
            $type::Firecracker($it) => $call,
            #[cfg(test)]
            $type::Fake($it) => $call,
        }
    };
}

impl Vmm for Driver {
    type Machine = Vm;

    fn capabilities(&self) -> &Capabilities {
        dispatch!(Driver, self, driver => driver.capabilities())
    }

    async fn boot(&self, request: &BootRequest) -> Result<Vm, BootError> {
        match self {
            Self::Qemu(qemu) => qemu.boot(request).await.map(Vm::Qemu),
            Self::Firecracker(firecracker) => firecracker.boot(request).await.map(Vm::Firecracker),
            #[cfg(test)]
            Self::Fake(fake) => fake.boot(request).await.map(Vm::Fake),
        }
    }

    async fn restore(&self, request: &RestoreRequest) -> Result<Vm, RestoreError> {
        match self {
            Self::Qemu(qemu) => qemu.restore(request).await.map(Vm::Qemu),
            Self::Firecracker(firecracker) => firecracker.restore(request).await.map(Vm::Firecracker),
            #[cfg(test)]
            Self::Fake(fake) => fake.restore(request).await.map(Vm::Fake),
        }
    }

    async fn adopt(&self, request: &AdoptRequest) -> Result<Vm, AdoptError> {
        match self {
            Self::Qemu(qemu) => qemu.adopt(request).await.map(Vm::Qemu),
            Self::Firecracker(firecracker) => firecracker.adopt(request).await.map(Vm::Firecracker),
            #[cfg(test)]
            Self::Fake(fake) => fake.adopt(request).await.map(Vm::Fake),
        }
    }
}

impl Machine for Vm {
    fn process(&self) -> ProcessId {
        dispatch!(Vm, self, vm => vm.process())
    }

    async fn connect_guest(&self) -> io::Result<GuestStream> {
        dispatch!(Vm, self, vm => vm.connect_guest().await)
    }

    async fn pause(&self) -> Result<(), ControlError> {
        dispatch!(Vm, self, vm => vm.pause().await)
    }

    async fn resume(&self) -> Result<(), ControlError> {
        dispatch!(Vm, self, vm => vm.resume().await)
    }

    async fn snapshot(&self, directory: &Path, kind: SnapshotKind) -> Result<(), SnapshotError> {
        dispatch!(Vm, self, vm => vm.snapshot(directory, kind).await)
    }

    fn events(&self) -> broadcast::Receiver<VmmEvent> {
        dispatch!(Vm, self, vm => vm.events())
    }

    async fn quit(&self, grace: Duration) -> io::Result<VmmExit> {
        dispatch!(Vm, self, vm => vm.quit(grace).await)
    }

    async fn kill(&self) -> io::Result<VmmExit> {
        dispatch!(Vm, self, vm => vm.kill().await)
    }

    async fn wait(&self) -> io::Result<VmmExit> {
        dispatch!(Vm, self, vm => vm.wait().await)
    }
}
