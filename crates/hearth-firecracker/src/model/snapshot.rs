//! Snapshots.

use std::path::PathBuf;

use serde::Serialize;

use super::DeviceId;

/// What to write of a machine that is paused. Disks are the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// All of memory, or what changed.
    #[serde(rename = "snapshot_type")]
    pub kind: SnapshotKind,
    /// Where the state of devices and processors goes.
    #[serde(rename = "snapshot_path")]
    pub state: PathBuf,
    /// Where memory goes. A diff leaves holes for what did not change, and writes into a file that is there.
    #[serde(rename = "mem_file_path")]
    pub memory: PathBuf,
}

/// How much of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SnapshotKind {
    /// All.
    Full,
    /// What changed since the last one; the machine must note that, see `track_dirty_pages`.
    Diff,
}

/// Which machine to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadSnapshot {
    /// The state of devices and processors.
    #[serde(rename = "snapshot_path")]
    pub state: PathBuf,
    /// Where memory comes from.
    #[serde(rename = "mem_backend")]
    pub memory: MemoryBackend,
    /// Whether changed pages are noted from now on.
    #[serde(rename = "enable_diff_snapshots")]
    pub track_dirty_pages: bool,
    /// Whether the machine goes on at once.
    #[serde(rename = "resume_vm")]
    pub resume: bool,
    /// Other TAPs than the snapshot names. Firecracker 1.12 and newer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

impl LoadSnapshot {
    /// Loads state and memory from files and lets the machine go on.
    pub fn of_files(state: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            memory: MemoryBackend::File(memory.into()),
            track_dirty_pages: false,
            resume: true,
            network_overrides: Vec::new(),
        }
    }
}

/// Where memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "backend_type", content = "backend_path")]
pub enum MemoryBackend {
    /// A file, mapped privately: pages that nobody writes are shared by all machines of it.
    File(PathBuf),
    /// A Unix socket, where a process gets the userfaultfd and serves each page that is missing.
    Uffd(PathBuf),
}

/// Another TAP for an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkOverride {
    /// Which interface.
    #[serde(rename = "iface_id")]
    pub id: DeviceId,
    /// The TAP's name.
    #[serde(rename = "host_dev_name")]
    pub tap: String,
}
