//! Kernels, agents and initramfs images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for a kernel, an agent and an initramfs; what is there already is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetupRequest {
    /// A kernel of one's own (bzImage or ELF), an absolute path on the node's host; when absent the one that is set up stays, and
    /// where there is none it is the distribution's.
    #[serde(default)]
    pub kernel: Option<String>,
    /// Its modules, a `/lib/modules/VERSION` tree; none when absent.
    #[serde(default)]
    pub modules: Option<String>,
    /// The agent's binary; the one beside the node's executable when absent.
    #[serde(default)]
    pub agent: Option<String>,
    /// Builds the kernel from the distribution's source, with Hearth's configuration.
    #[serde(default)]
    pub build_kernel: bool,
    /// Takes the distribution's newest kernel, even if another one is set up. Not sent when false: older nodes do not know it.
    #[serde(default, skip_serializing_if = "super::machine::is_false")]
    pub distribution: bool,
    /// Installs Firecracker, and leaves everything else as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firecracker: Option<FirecrackerSetup>,
}

/// Which Firecracker to install.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FirecrackerSetup {
    /// The version that it must be, as in `1.12.1`; the pinned release, or what `from` holds, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// An absolute path on the node's host: the program, a directory, a release's tarball, a wheel. The official release when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// What is set up now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetupReport {
    /// Everything that is there.
    pub artefacts: Vec<Artefact>,
}

/// One artefact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Artefact {
    /// What it is.
    pub kind: ArtefactKind,
    /// A kernel's release, an agent's version.
    pub version: String,
    /// Where it lies.
    pub path: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Bytes.
    pub size_bytes: u64,
    /// The node would make another of the same source: an earlier one chose other modules, or configured the kernel otherwise.
    #[serde(default, skip_serializing_if = "super::machine::is_false")]
    pub outdated: bool,
}

/// What an artefact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArtefactKind {
    /// An ELF vmlinux.
    Kernel,
    /// The kernel modules that the guest loads.
    Modules,
    /// The agent in the guest.
    Agent,
    /// What the guest boots from: agent and modules.
    Initramfs,
    /// A virtual machine monitor beside QEMU.
    Firecracker,
    /// The program that locks it up.
    Jailer,
}
