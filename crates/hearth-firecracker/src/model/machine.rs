//! Processors, memory, kernel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Processors and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfiguration {
    /// 1 to 32; with `smt` 1 or an even number.
    pub vcpu_count: u8,
    /// Memory in MiB.
    #[serde(rename = "mem_size_mib")]
    pub memory_mib: u64,
    /// Whether two processors share a core in the guest's eyes.
    #[serde(default)]
    pub smt: bool,
    /// Whether changed pages are noted, which diff snapshots need.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Which pages of the host back the memory.
    #[serde(default)]
    pub huge_pages: HugePages,
    /// A set of hidden flags; deprecated in favour of [`super::CpuConfiguration`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

impl MachineConfiguration {
    /// Makes one of so many processors and so much memory, without anything else.
    pub const fn new(vcpu_count: u8, memory_mib: u64) -> Self {
        Self {
            vcpu_count,
            memory_mib,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_template: None,
        }
    }
}

/// What to change of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MachineConfigurationUpdate {
    /// See [`MachineConfiguration`], as all of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// Memory in MiB.
    #[serde(rename = "mem_size_mib", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Whether two processors share a core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// Whether changed pages are noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Which pages of the host back the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// A set of hidden flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

/// Pages of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary ones.
    #[default]
    None,
    /// 2 MiB of hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

/// Sets of processor flags that are hidden, so that machines of several hosts look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "they are called after instance types of AWS, and that is all there is to say"
)]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// An ELF of 64 bits.
    #[serde(rename = "kernel_image_path")]
    pub kernel: PathBuf,
    /// The initramfs.
    #[serde(rename = "initrd_path", default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line; Firecracker adds the devices. It has a default, so an empty one is said.
    #[serde(rename = "boot_args", default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}
