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
    /// How far the start of the machine had come that it was taken of.
    #[serde(default)]
    pub moment: TemplateMoment,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; when a machine was last made of it.
    pub used_at: String,
    /// What it takes on the disk, in bytes.
    pub size_bytes: u64,
}

/// How far the start of the machine had come that a template was taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateMoment {
    /// Its agent had greeted: for machines that start again, which have a disk already.
    #[default]
    Greeted,
    /// Its disks were mounted: for machines that start for the first time.
    Configured,
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
