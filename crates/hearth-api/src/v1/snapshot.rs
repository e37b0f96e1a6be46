//! Snapshots: machines as they were at one moment; and what is made of running machines.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeptGuest, Machine, MemoryBackend};

/// A machine as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Snapshot {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The name that the machine had.
    pub machine: String,
    /// The machine's id.
    pub machine_id: String,
    /// How much of the machine it has.
    pub extent: Extent,
    /// Reference of the machine's image.
    pub image: String,
    /// Manifest digest of that.
    pub image_digest: String,
    /// Names of secrets that the machine had: its memory has their values.
    pub secrets: Vec<String>,
    /// What it ran under, and its size.
    #[serde(flatten)]
    pub guest: KeptGuest,
    /// RFC 3339.
    pub created_at: String,
    /// What it takes on the disk, in bytes; not what it shares.
    pub size_bytes: u64,
    /// Whether its memory is kept as what differs from another one, which it shares.
    #[serde(default)]
    pub diff: bool,
    /// Why no machine can be made of it here; absent when one can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// How much of a machine a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Disk, memory and processors: machines that are made of it go on where it was.
    Full,
    /// The disk: machines that are made of it boot.
    Disk,
}

/// What a machine was made of, where that was not an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The snapshot of that id.
    Snapshot(String),
    /// The running machine of that id.
    Fork(String),
}

/// Asks for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name; the machine's with a number when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// The disk alone.
    #[serde(default)]
    pub disk_only: bool,
    /// The machine ends at the moment of the snapshot, instead of going on.
    #[serde(default)]
    pub stop: bool,
    /// Keep of the memory what differs from the template or snapshot that the machine came from; all of it where that is no gain.
    #[serde(default)]
    pub diff: bool,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// How long the machine's processes stood still, in microseconds.
    pub pause_us: u64,
}

/// Asks for a machine that goes on where a snapshot was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// The machine's name; made up when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// The machine may have the secrets that are in the snapshot's memory.
    #[serde(default)]
    pub keep_secrets: bool,
    /// Values of the machine's secrets, for later starts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Where its memory comes from; as with the machine of the snapshot when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_backend: Option<MemoryBackend>,
}

/// Asks for a machine to be again what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackMachine {
    /// A snapshot of this machine, by name or id.
    pub snapshot: String,
}

/// Asks for machines that go on where a running one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkMachine {
    /// How many.
    pub count: u32,
    /// What their names begin with; a number follows. The machine's name and `fork` when absent.
    #[serde(default)]
    pub name_prefix: Option<String>,
    /// They may have the secrets that are in the machine's memory.
    #[serde(default)]
    pub keep_secrets: bool,
    /// Where their memory comes from; as with the machine when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_backend: Option<MemoryBackend>,
}

/// The forks of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forked {
    /// The new machines.
    pub machines: Vec<Machine>,
    /// How long the processes of the machine stood still, in microseconds.
    pub pause_us: u64,
}

/// Asks for the removal of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneSnapshots {
    /// Every one, not only those that no machine could be made of any more.
    #[serde(default)]
    pub all: bool,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedSnapshots {
    /// Their names.
    pub snapshots: Vec<String>,
    /// What they took on the disk, in bytes.
    pub freed_bytes: u64,
}
