//! A machine's state, out of one QEMU and into another, by what QEMU calls migration to a descriptor.
//!
//! ```text
//! memory        snapshot                                      restore
//! own file      stop, state without memory, copy of the file  the copy mapped privately, state
//! (booted)      (`x-ignore-shared`)
//! private       stop, state with memory                       a file of its own, filled from the state
//! (restored)
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
    Command, Continue, Event, Migrate, MigrateIncoming, MigrateSetCapabilities, MigrateSetParameters,
    MigrationCapability, MigrationStatus, QueryMemory, QueryMigrate, QueryStatus, Stop,
};
use super::qmp::{Client, QmpError};
use crate::host::files::PRIVATE;
use crate::host::memory_image;
use crate::vmm::snapshot::{MEMORY_FILE, STATE_FILE};
use crate::vmm::{MachineDirs, SnapshotError};

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
pub(super) async fn save(control: &Client, dirs: &MachineDirs, directory: &Path) -> Result<(), SaveError> {
    let ran = control.execute(&QueryStatus {}, COMMAND_LIMIT).await?.running;
    let saved = save_to(control, dirs, directory).await;
    if saved.is_err() {
        for name in [STATE_FILE, MEMORY_FILE] {
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

async fn save_to(control: &Client, dirs: &MachineDirs, directory: &Path) -> Result<(), SaveError> {
    let backends = control.execute(&QueryMemory {}, COMMAND_LIMIT).await?;
    let pages = match backends.iter().all(|backend| backend.share) {
        true => Pages::File,
        false => Pages::State,
    };
    let (state, memory) = (directory.join(STATE_FILE), directory.join(MEMORY_FILE));
    let target = create(&state)?;
    control.execute(&Stop {}, COMMAND_LIMIT).await?;
    write_state(control, target.into(), pages).await?;
    match pages {
        Pages::File => {
            let (from, to) = (dirs.memory.clone(), memory.clone());
            let copied = tokio::task::spawn_blocking(move || memory_image::copy(&from, &to)).await;
            copied
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(SnapshotError::write(&memory))?;
        }
        Pages::State => drop(create(&memory)?),
    }
    Ok(())
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
    control.give(DESCRIPTOR, target, COMMAND_LIMIT).await?;
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
