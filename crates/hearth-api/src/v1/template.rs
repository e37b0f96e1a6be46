//! Templates: what machines are clones of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a guest ran under that is kept, and its size: machines that are made of it have the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptGuest {
    /// The virtual machine monitor, as in `qemu`.
    pub driver: String,
    /// Its version.
    pub version: String,
    /// What lies between guest and host: `kvm` or `emulated`.
    pub border: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the writable disk in bytes.
    pub disk_bytes: u64,
}

/// A guest behind its boot, before it became a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Template {
    /// Sixteen hexadecimal digits.
    pub id: String,
    /// Manifest digest of the image that its machines have.
    pub image_digest: String,
    /// What it ran under, and its size.
    #[serde(flatten)]
    pub guest: KeptGuest,
    /// Digest of the kernel that it has booted.
    pub kernel_digest: String,
    /// Digest of the initramfs, which has the agent.
    pub initramfs_digest: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; when a machine was last made of it.
    pub used_at: String,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
}

/// Asks for the removal of templates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneTemplates {
    /// Every one, not only those that no machine could be made of any more.
    #[serde(default)]
    pub all: bool,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PrunedTemplates {
    /// Their ids.
    pub templates: Vec<String>,
    /// What they took on the disk, in bytes.
    pub freed_bytes: u64,
}
