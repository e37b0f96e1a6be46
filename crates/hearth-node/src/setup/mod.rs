//! Set-up: makes what a Linux guest boots from (a kernel, its modules, the agent, an initramfs) and keeps it.
//!
//! Owns the directory of artefacts: every file in it is called by the digest of its bytes and never changes, and one
//! index says which ones are in use. Does not own images, and starts no machine. Called by `hearth setup` through the
//! API, and at every boot of a machine for [`Artefacts::boot_set`].
//!
//! ```text
//! package | file | source  ->  kernel (ELF) ----------------------------> index.json
//!                          ->  modules (cpio) --+                          ^
//! hearth-guest             ->  agent (cpio) ----+->  initramfs (cpio) -----'
//! release | file | archive ->  firecracker, jailer ---------------------> firecracker.json
//! ```

mod agent;
mod artefacts;
mod build;
mod deb;
mod decompress;
mod digest;
mod distribution;
mod firecracker;
mod index;
mod initramfs;
mod kernel;
mod modules;
mod progress;
mod run;
mod vmlinux;

pub use agent::AgentError;
pub use artefacts::{AgentState, Artefact, ArtefactKind, Artefacts, BootSet, NotSetUp, VerifyError};
pub use build::BuildError;
pub use deb::DebError;
pub use digest::{Digest, InvalidDigest};
pub use distribution::PackageError;
pub use firecracker::{FirecrackerError, FirecrackerRequest, InstalledFirecracker, NoFirecracker};
pub use index::Origin;
pub use kernel::KernelError;
pub use modules::ModulesError;
pub use progress::{Progress, Step, Unit};
pub use run::{KernelSource, Report, SetupError, SetupRequest};
pub use vmlinux::VmlinuxError;

#[cfg(test)]
pub(crate) mod tests;
