//! A machine's state, out of one QEMU and into another, by what QEMU calls migration to a descriptor.
//!
//! ```text
//! memory        snapshot                                      restore
//! own file      stop, state without memory, copy of the file  the copy mapped privately, state
//! (booted)      (`x-ignore-shared`)
//! private       stop, state put together (`state`), what is   base and changes in one memfd, mapped privately,
//! (restored)    another than in the origin as changes         state
//! private, and  stop, state with memory                       a file of its own, filled from the state
//! the host forbids to read it
//! ```
//! A machine stands still while it is written: QEMU's emulated processors lose track of pages that they write to while a migration
//! is under way (seen with 7.2: one clone in three of a machine that went on had torn memory).
//!
//! Ends are told by events; nothing is polled.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::qmp::message::{
    AddDescriptor, Command, Continue, Event, GetDescriptor, Migrate, MigrateIncoming, MigrateSetCapabilities,
    MigrateSetParameters, MigrationCapability, MigrationStatus, QueryMemory, QueryMigrate, QueryStatus,
    RemoveDescriptors, SaveDevices, Stop,
};
use super::qmp::{Client, QmpError};
use super::state::Stream;
use crate::host::files::PRIVATE;
use crate::host::memory_changes::{self, Changes};
use crate::host::memory_image::{self, MemoryFiles};
use crate::host::process_memory::{self, ProcessMemory};
use crate::vmm::snapshot::{BASE_FILE, CHANGES_FILE, MEMORY_FILE, STATE_FILE};
use crate::vmm::{MachineDirs, ProcessId, SnapshotError};

/// How long QEMU may take for a command that it answers at once.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may take to read a state. It takes 10 ms, and as long as the disk does for the first time.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// How long QEMU may take to write one, with all of the memory.
const SAVE_LIMIT: Duration = Duration::from_secs(600);

/// How long to wait before QEMU is asked again whether it has let go; it takes microseconds.
const SETTLE_STEP: Duration = Duration::from_millis(1);

/// The name that QEMU knows the state's descriptor by.
const DESCRIPTOR: &str = "state";

/// The number of the set that the descriptor for processors and devices is in.
const DEVICES: u32 = 1;

/// As fast as the host can, in bytes per second.
const BANDWIDTH: u64 = 1 << 40;

/// Who has the pages of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// A file: the state goes without them.
    File,
    /// The state.
    State,
}

/// Loads the state from a descriptor that QEMU has inherited. Returns when the machine is what it was; it stands still.
pub(super) async fn load(control: &Client, descriptor: i32, pages: Pages) -> Result<(), QmpError> {
    let mut events = control.events();
    let uri = format!("fd:{descriptor}");
    prepare(control, pages).await?;
    control.execute(&MigrateIncoming { uri }, COMMAND_LIMIT).await?;
    done::<MigrateIncoming>(control, &mut events, LOAD_LIMIT).await
}

/// Writes a snapshot of a machine. When that is done the machine stands still; else it goes on as before, and the files are gone.
pub(super) async fn save(
    control: &Client,
    process: ProcessId,
    dirs: &MachineDirs,
    directory: &Path,
) -> Result<(), SaveError> {
    let ran = control.execute(&QueryStatus {}, COMMAND_LIMIT).await?.running;
    let saving = Saving {
        control,
        process,
        dirs,
        directory,
    };
    let saved = saving.save().await;
    if saved.is_err() {
        for name in [STATE_FILE, MEMORY_FILE, BASE_FILE, CHANGES_FILE] {
            // The error that counts is the first one.
            let _ = std::fs::remove_file(directory.join(name));
        }
        if ran && let Err(error) = control.execute(&Continue {}, COMMAND_LIMIT).await {
            tracing::error!(%error, "a machine whose snapshot failed does not go on");
        }
    }
    saved
}

/// Says why a snapshot was not written.
#[derive(Debug)]
pub(super) enum SaveError {
    Qmp(QmpError),
    File(SnapshotError),
}

impl From<QmpError> for SaveError {
    fn from(error: QmpError) -> Self {
        Self::Qmp(error)
    }
}

impl From<SnapshotError> for SaveError {
    fn from(error: SnapshotError) -> Self {
        Self::File(error)
    }
}

/// A snapshot that is being written.
struct Saving<'a> {
    control: &'a Client,
    process: ProcessId,
    dirs: &'a MachineDirs,
    directory: &'a Path,
}

impl Saving<'_> {
    async fn save(&self) -> Result<(), SaveError> {
        let backends = self.control.execute(&QueryMemory {}, COMMAND_LIMIT).await?;
        if backends.iter().all(|backend| backend.share) {
            return self.with_file().await;
        }
        match self.stream() {
            Ok(stream) => self.with_changes(stream).await,
            Err(error) => {
                tracing::info!(%error, process = %self.process, "the memory goes into the state, where nobody can share it");
                self.with_pages().await
            }
        }
    }

    /// The memory is a file: it is copied.
    async fn with_file(&self) -> Result<(), SaveError> {
        let target = create(&self.directory.join(STATE_FILE))?;
        self.control.execute(&Stop {}, COMMAND_LIMIT).await?;
        write_state(self.control, target.into(), Pages::File).await?;
        let (from, to) = (self.dirs.memory.clone(), self.directory.join(MEMORY_FILE));
        Ok(blocking(&to.clone(), move || memory_image::copy(&from, &to)).await?)
    }

    /// QEMU writes all of the memory.
    async fn with_pages(&self) -> Result<(), SaveError> {
        let target = create(&self.directory.join(STATE_FILE))?;
        self.control.execute(&Stop {}, COMMAND_LIMIT).await?;
        write_state(self.control, target.into(), Pages::State).await?;
        drop(create(&self.directory.join(MEMORY_FILE))?);
        Ok(())
    }

    /// Begins the state of a machine whose memory can be read, beside QEMU.
    fn stream(&self) -> std::io::Result<Stream> {
        // Told before anything was done.
        process_memory::check(self.process)?;
        let state = self.directory.join(STATE_FILE);
        Stream::begin(&state, &self.dirs.origin().join(STATE_FILE)).inspect_err(|_| {
            // Another one is begun there; the error that counts is the first one.
            let _ = std::fs::remove_file(&state);
        })
    }

    /// The pages that are another than in the origin are written, and the origin is linked.
    async fn with_changes(&self, stream: Stream) -> Result<(), SaveError> {
        let at_state = self.directory.join(STATE_FILE);
        let descriptor = stream.descriptor().map_err(SnapshotError::write(&at_state))?;
        self.control.execute(&Stop {}, COMMAND_LIMIT).await?;
        write_devices(self.control, descriptor).await?;
        blocking(&at_state, || stream.end()).await?;
        let (process, origin, to) = (self.process, self.dirs.origin(), self.directory.to_owned());
        let changes = self.directory.join(CHANGES_FILE);
        Ok(blocking(&changes, move || write_changes(process, &origin, &to)).await?)
    }
}

async fn blocking(
    path: &Path,
    work: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<(), SnapshotError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(std::io::Error::other)
        .flatten()
        .map_err(SnapshotError::write(path))
}

/// Writes processors and devices.
async fn write_devices(control: &Client, target: OwnedFd) -> Result<(), QmpError> {
    let set = AddDescriptor { fdset_id: DEVICES };
    control.give(&set, target, COMMAND_LIMIT).await?;
    let save = SaveDevices {
        filename: format!("/dev/fdset/{DEVICES}"),
        live: false,
    };
    let saved = control.execute(&save, SAVE_LIMIT).await;
    // The next one must not find this descriptor there.
    control
        .execute(&RemoveDescriptors { fdset_id: DEVICES }, COMMAND_LIMIT)
        .await?;
    saved.map(drop)
}

/// Writes what a process that stands still has made another of the memory that it began with.
fn write_changes(process: ProcessId, origin: &Path, to: &Path) -> std::io::Result<()> {
    let memory = ProcessMemory::of(process, memory_image::SEALED_NAME)?;
    let files = MemoryFiles::of(origin);
    std::fs::hard_link(&files.whole, to.join(BASE_FILE))?;
    let older = files.changes.map(|changes| Changes::open(&changes)).transpose()?;
    let older = older.as_ref().map(Changes::pieces).unwrap_or_default();
    let pieces = memory_changes::overlay(&older, &memory.pieces());
    memory_changes::write(&to.join(CHANGES_FILE), memory.bytes(), &pieces)
}

fn create(path: &Path) -> Result<File, SnapshotError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(PRIVATE);
    options.open(path).map_err(SnapshotError::write(path))
}

async fn write_state(control: &Client, target: OwnedFd, pages: Pages) -> Result<(), QmpError> {
    let mut events = control.events();
    prepare(control, pages).await?;
    let parameters = MigrateSetParameters {
        max_bandwidth: BANDWIDTH,
    };
    control.execute(&parameters, COMMAND_LIMIT).await?;
    let name = GetDescriptor { name: DESCRIPTOR };
    control.give(&name, target, COMMAND_LIMIT).await?;
    let uri = format!("fd:{DESCRIPTOR}");
    control.execute(&Migrate { uri }, COMMAND_LIMIT).await?;
    done::<Migrate>(control, &mut events, SAVE_LIMIT).await?;
    settle(control).await
}

/// Waits until QEMU's migration thread has let go of the machine: it tells the end before that, by a moment in which `cont` is
/// refused. Nothing tells that moment, so it is asked for.
async fn settle(control: &Client) -> Result<(), QmpError> {
    let settled = async {
        while control.execute(&QueryStatus {}, COMMAND_LIMIT).await?.status == "finish-migrate" {
            tokio::time::sleep(SETTLE_STEP).await;
        }
        Ok(())
    };
    match tokio::time::timeout(COMMAND_LIMIT, settled).await {
        Ok(settled) => settled,
        Err(_) => Err(QmpError::Deadline {
            command: Migrate::NAME,
            limit: COMMAND_LIMIT,
        }),
    }
}

async fn prepare(control: &Client, pages: Pages) -> Result<(), QmpError> {
    let ability = |capability, state| MigrationCapability { capability, state };
    let capabilities = vec![
        ability("events", true),
        ability("x-ignore-shared", pages == Pages::File),
    ];
    control
        .execute(&MigrateSetCapabilities { capabilities }, COMMAND_LIMIT)
        .await
        .map(drop)
}

/// Waits for the end of the migration that `C` began.
async fn done<C: Command>(
    control: &Client,
    events: &mut broadcast::Receiver<Event>,
    limit: Duration,
) -> Result<(), QmpError> {
    let ended = async {
        loop {
            match events.recv().await {
                Ok(Event::Migration { status }) if status != MigrationStatus::UnderWay => {
                    return Some(status);
                }
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    };
    match tokio::time::timeout(limit, ended).await {
        Ok(Some(MigrationStatus::Completed)) => Ok(()),
        Ok(Some(_)) => Err(QmpError::Migration {
            command: C::NAME,
            reason: reason(control).await,
        }),
        Ok(None) => Err(QmpError::Closed { command: C::NAME }),
        Err(_) => Err(QmpError::Deadline {
            command: C::NAME,
            limit,
        }),
    }
}

async fn reason(control: &Client) -> String {
    let told = control.execute(&QueryMigrate {}, COMMAND_LIMIT).await;
    told.ok()
        .and_then(|info| info.error_desc)
        .unwrap_or_else(|| "it does not say why".to_owned())
}
