//! The files of a snapshot: on their way out of the place that Firecracker sees, and into that of a clone.
//!
//! Firecracker writes where it is, which may be a jail; from there its files are moved. A clone sees them under names, mounted,
//! and maps the memory privately: pages that nobody writes are shared by all clones through the page cache.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_firecracker::model::{self, LoadSnapshot, Snapshot};

use super::place::{Place, READERS};
use super::{configuration, machine};
use crate::host::{files, own};
use crate::vmm::snapshot::{MEMORY_FILE, STATE_FILE};
use crate::vmm::{MachineDirs, MemoryBackend, RestoreError, RestoreRequest, SnapshotError, SnapshotKind};

/// How long a snapshot may take to be written or read: a gibibyte takes seconds on a slow disk.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

/// The names under which a clone sees what it is made of.
const STATE: &str = "state";
const MEMORY: &str = "memory";
const PAGER: &str = "pager";

/// The names under which a snapshot is written.
const NEW_STATE: &str = "new-state";
const NEW_MEMORY: &str = "new-memory";

/// The files of a snapshot that is being written. Dropped before it is finished, what there is of them is removed.
pub(super) struct SnapshotFiles {
    /// Where Firecracker writes, as the host sees it, and where the files go.
    moves: [(PathBuf, PathBuf); 2],
    finished: bool,
}

impl SnapshotFiles {
    /// Names the files; the directory must be there.
    pub(super) fn begin(dirs: &MachineDirs, directory: &Path) -> Result<Self, SnapshotError> {
        let (state, memory) = (directory.join(STATE_FILE), directory.join(MEMORY_FILE));
        std::fs::metadata(directory).map_err(SnapshotError::write(&state))?;
        let there = machine::socket(dirs, machine::API);
        let root = there.parent().unwrap_or(&there);
        Ok(Self {
            moves: [(root.join(NEW_STATE), state), (root.join(NEW_MEMORY), memory)],
            finished: false,
        })
    }

    /// Says what Firecracker is asked for.
    pub(super) fn request(kind: SnapshotKind) -> Snapshot {
        Snapshot {
            kind: match kind {
                SnapshotKind::Full => model::SnapshotKind::Full,
                SnapshotKind::Diff => model::SnapshotKind::Diff,
            },
            state: NEW_STATE.into(),
            memory: NEW_MEMORY.into(),
        }
    }

    /// Moves what was written to where it belongs.
    pub(super) async fn finish(mut self) -> Result<(), SnapshotError> {
        let moves = self.moves.clone();
        let moved = tokio::task::spawn_blocking(move || {
            moves
                .iter()
                .try_for_each(|(from, to)| move_file(from, to).map_err(SnapshotError::write(to)))
        });
        let here = &self.moves[0].1;
        moved
            .await
            .map_err(io::Error::other)
            .map_err(SnapshotError::write(here))??;
        self.finished = true;
        Ok(())
    }
}

impl Drop for SnapshotFiles {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        for path in self.moves.iter().flat_map(|(from, to)| [from, to]) {
            if let Err(error) = files::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "a failed snapshot left something behind");
            }
        }
    }
}

/// Moves a file, also to another file system, and makes it the node's. Whoever wrote it may have put a link there instead, to have a
/// file of the host's taken for it: that is refused.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let source = files::open_plain(from)?;
            files::clone_file(Path::new(&format!("/proc/self/fd/{}", source.as_raw_fd())), to)?;
            files::remove_file(from)?;
        }
        other => other?,
    }
    share(&files::open_plain(to)?, 0o640)
}

/// Lets the jailed Firecrackers have a file that they find, where the node is root.
fn share(file: &File, mode: u32) -> io::Result<()> {
    let metadata = file.metadata()?;
    if own::is_root() && (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777) != (0, READERS, mode) {
        fchown(file, Some(0), Some(READERS))?;
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Makes sure that a snapshot can be one of the machine that it is to become, before anything is started.
pub(super) fn check(request: &RestoreRequest) -> Result<(), RestoreError> {
    let state = request.snapshot.join(STATE_FILE);
    std::fs::metadata(&state).map_err(RestoreError::read(&state))?;
    if let MemoryBackend::Pager { socket } = &request.memory {
        std::fs::metadata(socket).map_err(RestoreError::read(socket))?;
        return Ok(());
    }
    let memory = request.snapshot.join(MEMORY_FILE);
    let found = std::fs::metadata(&memory)
        .map_err(RestoreError::read(&memory))?
        .len();
    let wanted = request.boot.shape.memory_mib << 20;
    if found != wanted {
        let text = format!("it has {found} bytes, and the machine's memory has {wanted}");
        let error = io::Error::new(io::ErrorKind::InvalidData, text);
        return Err(RestoreError::read(&memory)(error));
    }
    Ok(())
}

/// Puts the files of a snapshot where a clone sees them, and returns what it is told.
pub(super) fn put(request: &RestoreRequest, place: &mut Place<'_>) -> Result<LoadSnapshot, RestoreError> {
    let mut give = |name: &str, path: &Path| -> Result<(), RestoreError> {
        let shared = files::open_plain(path).and_then(|file| share(&file, 0o640));
        shared.map_err(RestoreError::read(path))?;
        Ok(place.put(name, path)?)
    };
    give(STATE, &request.snapshot.join(STATE_FILE))?;
    let memory = match &request.memory {
        MemoryBackend::File => {
            give(MEMORY, &request.snapshot.join(MEMORY_FILE))?;
            model::MemoryBackend::File(MEMORY.into())
        }
        MemoryBackend::Pager { socket } => {
            // Whoever connects must be allowed to write to the socket.
            if own::is_root() {
                chown(socket, Some(0), Some(READERS)).map_err(RestoreError::read(socket))?;
                std::fs::set_permissions(socket, Permissions::from_mode(0o660))
                    .map_err(RestoreError::read(socket))?;
            }
            place.put(PAGER, socket)?;
            model::MemoryBackend::Uffd(PAGER.into())
        }
    };
    Ok(LoadSnapshot {
        state: STATE.into(),
        memory,
        track_dirty_pages: request.boot.tracked,
        // A request of its own takes a processor's turn more where the guest's has just begun.
        resume: request.at_once && !configuration::has_devices_anew(&request.boot),
        network_overrides: Vec::new(),
    })
}
