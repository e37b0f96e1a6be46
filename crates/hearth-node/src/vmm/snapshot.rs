//! What is said about snapshots between a driver and its callers.

use std::io;
use std::path::{Path, PathBuf};

use super::{BootError, BootRequest, ControlError, MachineDirs};
use crate::host::files;

pub use crate::host::memory_image::{BASE_FILE, CHANGES_FILE, MEMORY_FILE};

/// The files that [`super::Machine::snapshot`] writes, in the directory that it is given: this one, and either [`MEMORY_FILE`], which
/// is empty where this one has the memory, or [`BASE_FILE`] and [`CHANGES_FILE`].
pub const STATE_FILE: &str = "state";

/// Keeps what a machine is restored from for as long as it runs ([`MachineDirs::origin`]), as links: later snapshots of it may tell
/// only in what they differ. Where links cannot be made, as the snapshot is on another file system, they are whole.
///
/// # Errors
/// Returns the file system's error; nothing is kept then.
pub fn keep_origin(snapshot: &Path, dirs: &MachineDirs) -> io::Result<()> {
    let origin = dirs.origin();
    files::remove_tree(&origin)?;
    files::make_directory(&origin, 0o700)?;
    let link = |name: &str| match std::fs::hard_link(snapshot.join(name), origin.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    let linked = [STATE_FILE, MEMORY_FILE, BASE_FILE, CHANGES_FILE]
        .into_iter()
        .try_for_each(link);
    if linked.is_err() {
        files::remove_tree(&origin)?;
    }
    match linked {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(()),
        other => other,
    }
}

/// What a machine is restored from.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The machine that it becomes: same shape, same number and sizes of disks, kernel, initramfs and `append` as at the boot
    /// of the machine that the snapshot was taken of. Identity and directories are its own.
    pub boot: BootRequest,
    /// The directory with the files that [`super::Machine::snapshot`] wrote. They are read, and may be removed once the machine
    /// is there.
    pub snapshot: PathBuf,
    /// Where its memory comes from.
    pub memory: MemoryBackend,
    /// Whether its processors may go on before the restore returns, where that is quicker. [`super::Machine::resume`] follows in any case.
    pub at_once: bool,
}

/// Where a restored guest's memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryBackend {
    /// The file in the snapshot, mapped privately.
    File,
    /// A process that serves page faults; where [`super::Capabilities::pager`] is set.
    Pager {
        /// The socket on which it takes machines.
        socket: PathBuf,
    },
}

/// How much a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Everything.
    Full,
    /// What has changed since the last one; where [`super::Capabilities::diff_snapshots`] is set, of a machine that is
    /// [`BootRequest::tracked`](super::BootRequest).
    Diff,
}

/// Says why there is no restored machine. Nothing of it is left: no process, no socket, no memory.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// As in a boot. A monitor that does not take the state ends, or says so: [`BootError::Died`], [`BootError::Control`].
    #[error("cannot restore it")]
    Boot(#[from] BootError),
    /// The snapshot cannot be read.
    #[error("cannot read the snapshot's {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The driver cannot do that.
    #[error("{driver} cannot restore {what}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked for.
        what: &'static str,
    },
}

impl RestoreError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }
}

/// Says why there is no snapshot. What was begun of it is removed, and the machine goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The monitor did not write the state, or has ended.
    #[error("the monitor does not write the machine's state")]
    Control(#[from] ControlError),
    /// A file of the snapshot cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The driver cannot do that.
    #[error("{driver} cannot take {what}")]
    Unsupported {
        /// The driver's name.
        driver: &'static str,
        /// What was asked for.
        what: &'static str,
    },
}

impl SnapshotError {
    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}
