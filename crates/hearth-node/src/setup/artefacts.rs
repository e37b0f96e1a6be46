//! The artefacts as they are: what is set up, whether it is whole, and what a machine boots with.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::agent::AGENT_NAME;
use super::build;
use super::digest::Digest;
use super::index::{FileStamp, INDEX_NAME, Index, Stored};
use crate::layout::Layout;

/// The variable by which tests name a kernel that is its own guest agent (`crates/bare-guest`), at the start of a node.
const BARE_GUEST: &str = "HEARTH_BARE_GUEST";

/// The directory of kernels, agents and initramfs images of one node.
#[derive(Debug, Clone)]
pub struct Artefacts {
    pub(super) directory: PathBuf,
    /// The agent beside the running executable, whether it is there or not.
    pub(super) own_agent: Option<PathBuf>,
    /// See [`BARE_GUEST`].
    bare_guest: Option<PathBuf>,
    /// Guards the directory against two set-ups in this process, one waiting for the other. (Another process is
    /// turned away by a lock on a file.) It is held across `.await` on purpose: it orders whole set-ups.
    pub(super) turn: Arc<Mutex<()>>,
}

/// What kind of thing an artefact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArtefactKind {
    /// An ELF kernel with a PVH entry.
    Kernel,
    /// A cpio archive of kernel modules.
    Modules,
    /// The guest agent's binary.
    Agent,
    /// A cpio archive of the modules and the agent.
    Initramfs,
    /// The virtual machine monitor.
    Firecracker,
    /// The program that locks it up.
    Jailer,
}

impl ArtefactKind {
    /// Returns the kind's name: `kernel`, `modules`, `agent`, `initramfs`, `firecracker` or `jailer`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Modules => "modules",
            Self::Agent => "agent",
            Self::Initramfs => "initramfs",
            Self::Firecracker => "firecracker",
            Self::Jailer => "jailer",
        }
    }
}

/// One artefact that is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artefact {
    /// What it is.
    pub kind: ArtefactKind,
    /// The kernel release for kernel and modules; twelve digits of the digest for the agent; both for the initramfs.
    pub version: String,
    /// Where it is.
    pub path: PathBuf,
    /// The digest of its bytes, which its name tells too.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Whether this version would make another of the same source: it chooses other modules, or configures kernels otherwise.
    pub outdated: bool,
}

/// What a Linux guest boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSet {
    /// The ELF kernel.
    pub kernel: PathBuf,
    /// The initramfs, not compressed.
    pub initramfs: PathBuf,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// The digest of the kernel.
    pub kernel_digest: Digest,
    /// The digest of the agent in the initramfs.
    pub agent_digest: Digest,
    /// The digest of the initramfs.
    pub initramfs_digest: Digest,
    /// Whether the agent's file has changed since.
    pub agent: AgentState,
}

/// How the agent in the initramfs relates to the file it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// The file is as it was, or there is none any more.
    Current,
    /// There is another file now: [`Artefacts::refresh_agent`] takes it in.
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// Says why there is nothing to boot with. The remedy is always `hearth setup`.
#[derive(Debug, thiserror::Error)]
pub enum NotSetUp {
    /// Nothing has been set up yet.
    #[error("no guest kernel is set up: run `hearth setup`")]
    Never,
    /// The index cannot be read.
    #[error("cannot read {}: run `hearth setup` to make it anew", path.display())]
    Unreadable {
        /// The index.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file is gone, or has another size.
    #[error("the artefact {} is damaged or gone: run `hearth setup`", path.display())]
    Damaged {
        /// The artefact.
        path: PathBuf,
    },
}

/// Says what [`Artefacts::verify`] found.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing to verify.
    #[error(transparent)]
    NotSetUp(#[from] NotSetUp),
    /// A file cannot be read.
    #[error("cannot read the artefact {}", path.display())]
    Read {
        /// The artefact.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file holds other bytes than its name says.
    #[error("the artefact {} is damaged (its bytes have the digest {found}): run `hearth setup`", path.display())]
    Damaged {
        /// The artefact.
        path: PathBuf,
        /// The digest of what it holds.
        found: Digest,
    },
}

impl Artefacts {
    /// Names the artefacts of a node; nothing is read.
    pub fn open(layout: &Layout) -> Self {
        let executable = std::env::current_exe().ok();
        let own_agent = executable.and_then(|path| Some(path.parent()?.join(AGENT_NAME)));
        Self {
            bare_guest: std::env::var_os(BARE_GUEST).map(PathBuf::from),
            ..Self::at(layout.artefacts(), own_agent)
        }
    }

    /// Returns the kernel that all machines of this node boot instead of Linux, when a test says so; it is its own agent.
    pub fn bare_guest(&self) -> Option<&Path> {
        self.bare_guest.as_deref()
    }

    pub(super) fn at(directory: PathBuf, own_agent: Option<PathBuf>) -> Self {
        Self {
            directory,
            own_agent,
            bare_guest: None,
            turn: Arc::default(),
        }
    }

    /// Lists what is set up; nothing when there was no set-up yet.
    ///
    /// # Errors
    /// [`NotSetUp::Unreadable`] when the index is broken.
    pub fn list(&self) -> Result<Vec<Artefact>, NotSetUp> {
        match self.index() {
            Ok(index) => Ok(self.artefacts(&index)),
            Err(NotSetUp::Never) => Ok(self.firecracker_artefacts()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn artefacts(&self, index: &Index) -> Vec<Artefact> {
        let artefact = |kind, stored: &Stored| Artefact {
            kind,
            version: stored.version.clone(),
            path: self.path(stored),
            digest: stored.digest,
            size: stored.size,
            outdated: false,
        };
        let origin = &index.kernel.origin;
        let kernel = Artefact {
            outdated: build::is_outdated(origin),
            ..artefact(ArtefactKind::Kernel, &index.kernel.stored)
        };
        let modules = index.modules.as_ref().map(|modules| Artefact {
            outdated: !modules.is_current(origin),
            ..artefact(ArtefactKind::Modules, &modules.stored)
        });
        std::iter::once(kernel)
            .chain(modules)
            .chain([
                artefact(ArtefactKind::Agent, &index.agent.stored),
                artefact(ArtefactKind::Initramfs, &index.initramfs),
            ])
            .chain(self.firecracker_artefacts())
            .collect()
    }

    /// Reads every artefact and compares it with its digest: a tenth of a second of work, and blocking.
    ///
    /// # Errors
    /// [`VerifyError`] for the first one that is not as it should be.
    pub fn verify(&self) -> Result<Vec<Artefact>, VerifyError> {
        let artefacts = self.artefacts(&self.index()?);
        for artefact in &artefacts {
            let found = Digest::of_file(&artefact.path).map_err(|source| VerifyError::Read {
                path: artefact.path.clone(),
                source,
            })?;
            if found != artefact.digest {
                return Err(VerifyError::Damaged {
                    path: artefact.path.clone(),
                    found,
                });
            }
        }
        Ok(artefacts)
    }

    /// Returns what a machine boots with.
    ///
    /// It reads one file of a kilobyte and looks at four, so that it can be asked at every boot; digests were
    /// compared when the artefacts were made.
    ///
    /// # Errors
    /// [`NotSetUp`].
    pub fn boot_set(&self) -> Result<BootSet, NotSetUp> {
        let index = self.whole_index()?;
        Ok(BootSet {
            kernel: self.path(&index.kernel.stored),
            initramfs: self.path(&index.initramfs),
            kernel_release: index.kernel.stored.version.clone(),
            kernel_digest: index.kernel.stored.digest,
            agent_digest: index.agent.stored.digest,
            initramfs_digest: index.initramfs.digest,
            agent: self.agent_state(&index),
        })
    }

    /// Returns the index whose files are there. A set that has been replaced twice since its index was read is gone, files and all:
    /// then the one in its place counts.
    fn whole_index(&self) -> Result<Index, NotSetUp> {
        let mut index = self.index()?;
        loop {
            let files = [&index.kernel.stored, &index.initramfs];
            let Err(error) = files.into_iter().try_for_each(|stored| self.look_at(stored)) else {
                return Ok(index);
            };
            let now = self.index()?;
            if now == index {
                return Err(error);
            }
            index = now;
        }
    }

    /// Tells whether the agent's file is another than the one that was taken in, without reading it.
    fn agent_state(&self, index: &Index) -> AgentState {
        let recorded = &index.agent.source;
        let own = self.own_agent.as_deref().filter(|_| !index.agent.named);
        let path = own.unwrap_or(&recorded.path);
        match FileStamp::of(path) {
            Ok(now) if now != *recorded => AgentState::Changed {
                path: path.to_owned(),
            },
            _ => AgentState::Current,
        }
    }

    pub(super) fn index(&self) -> Result<Index, NotSetUp> {
        Index::read(&self.directory)
            .map_err(|source| NotSetUp::Unreadable {
                path: self.directory.join(INDEX_NAME),
                source,
            })?
            .ok_or(NotSetUp::Never)
    }

    /// Checks that an artefact is there and has its size.
    pub(super) fn look_at(&self, stored: &Stored) -> Result<(), NotSetUp> {
        let path = self.path(stored);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == stored.size => Ok(()),
            _ => Err(NotSetUp::Damaged { path }),
        }
    }

    pub(super) fn path(&self, stored: &Stored) -> PathBuf {
        self.directory.join(stored.digest.file_name())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}
