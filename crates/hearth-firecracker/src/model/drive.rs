//! Drives.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{DeviceId, RateLimiter};

/// A drive. The guest sees them in the order in which they are added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its name in later requests.
    #[serde(rename = "drive_id")]
    pub id: DeviceId,
    /// Whether Firecracker adds `root=` to the kernel's command line.
    pub is_root_device: bool,
    /// The partition that is the root, by its unique id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether the guest's flush reaches the disk.
    #[serde(default)]
    pub cache_type: CacheType,
    /// What is behind it.
    #[serde(flatten)]
    pub backend: DriveBackend,
}

/// What is behind a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DriveBackend {
    /// A file or block device that Firecracker reads and writes.
    File {
        /// Which.
        path_on_host: PathBuf,
        /// Whether it is only read.
        is_read_only: bool,
        /// How it is read and written.
        #[serde(default)]
        io_engine: IoEngine,
        /// How much.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate_limiter: Option<RateLimiter>,
    },
    /// Another process, by vhost-user.
    VhostUser {
        /// Its socket.
        socket: PathBuf,
    },
}

impl Drive {
    /// Makes a drive of a file, flushed as the guest says, without limits.
    pub fn of_file(id: DeviceId, path: impl Into<PathBuf>, access: Access) -> Self {
        Self {
            id,
            is_root_device: false,
            partuuid: None,
            cache_type: CacheType::Writeback,
            backend: DriveBackend::File {
                path_on_host: path.into(),
                is_read_only: access == Access::ReadOnly,
                io_engine: IoEngine::Sync,
                rate_limiter: None,
            },
        }
    }
}

/// What the guest may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// What becomes of a guest's flush.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// It is passed over.
    #[default]
    Unsafe,
    /// It reaches the disk.
    Writeback,
}

/// How a file is read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// By system calls, one after the other.
    #[default]
    Sync,
    /// By `io_uring`, on Linux 5.10.51 or newer.
    Async,
}

/// What to change of a drive while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DriveUpdate {
    /// Which drive.
    #[serde(rename = "drive_id")]
    pub id: DeviceId,
    /// Another file, or the same one that has another size now: the guest is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
