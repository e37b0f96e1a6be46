//! One set-up from its request to the new index.

use std::fs::{DirEntry, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::agent::{AgentError, read_agent};
use super::artefacts::{AgentState, Artefact, Artefacts, NotSetUp};
use super::build;
use super::firecracker::FirecrackerError;
use super::index::{Agent, FileStamp, Index, Stored, UNFINISHED, store};
use super::initramfs;
use super::kernel::{self, KernelError, KernelSet};
use super::progress::{Listener, Progress, Step};
use crate::host::lock::{self, Lock};

/// The file whose lock keeps two processes from setting up one directory at a time.
const LOCK_NAME: &str = ".lock";

/// How long an artefact stays after it was made, in use or not.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// What is to be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupRequest {
    /// Where the kernel comes from.
    pub kernel: KernelSource,
    /// The guest agent's binary; the one beside the running executable when absent.
    pub agent: Option<PathBuf>,
}

/// Where a guest kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// The one that is set up stays; when there is none it comes from the distribution. Modules that this version would choose
    /// otherwise are taken anew, from where they came.
    Keep,
    /// The newest one of the distribution.
    Distribution,
    /// One that is built here, from the distribution's source: minutes of work.
    Build,
    /// A file of the user's: a bzImage or an ELF `vmlinux`.
    File {
        /// The file.
        kernel: PathBuf,
        /// Its `/lib/modules/RELEASE` directory; absent when everything that a guest needs is built in.
        modules: Option<PathBuf>,
    },
}

/// What a set-up came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What is set up now.
    pub artefacts: Vec<Artefact>,
    /// Whether that differs from what was set up before.
    pub changed: bool,
}

/// Says why a set-up failed. What was set up before it is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The directory of artefacts cannot be made or written.
    #[error("cannot write into {}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Another process sets up the same directory.
    #[error("another `hearth setup` is at work in {}: wait for it to end", directory.display())]
    Busy {
        /// The directory.
        directory: PathBuf,
    },
    /// There is no kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// There is no guest agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent is not named, and it is not known which program runs, so there is no place to look for it.
    #[error("cannot tell where this program lies: name the guest agent's file")]
    NoAgentNamed,
    /// The agent was to be renewed, and there is nothing yet that it could be renewed in.
    #[error(transparent)]
    NotSetUp(#[from] NotSetUp),
    /// No Firecracker was installed.
    #[error(transparent)]
    Firecracker(#[from] FirecrackerError),
}

impl Artefacts {
    /// Makes what the request asks for, and puts it in use. Doing it twice changes nothing the second time.
    ///
    /// `listener` is called from other threads too, and must not block.
    ///
    /// # Errors
    /// [`SetupError`]; then everything is as it was before.
    pub async fn run(
        &self,
        request: SetupRequest,
        listener: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Report, SetupError> {
        let listener = Listener::to(listener);
        let _held = self.hold().await?;
        let before = self.intact();
        let current = before.as_ref().map(KernelSet::of);
        let kernel = self.kernel(request.kernel, current, &listener).await?;
        self.finish(kernel, request.agent, before, listener).await
    }

    /// Takes in the agent that lies beside the executable now (or where the user said), with the kernel that there is.
    ///
    /// It writes a few megabytes. Several callers at once do the work once.
    ///
    /// # Errors
    /// [`SetupError`]; then everything is as it was before.
    pub async fn refresh_agent(&self) -> Result<Report, SetupError> {
        let _held = self.hold().await?;
        let index = self.index()?;
        if self.boot_set()?.agent == AgentState::Current {
            return Ok(Report {
                artefacts: self.artefacts(&index),
                changed: false,
            });
        }
        let kernel = KernelSet::of(&index);
        let named = index.agent.named.then(|| index.agent.source.path.clone());
        self.finish(kernel, named, Some(index), Listener::to(|_| {}))
            .await
    }

    async fn kernel(
        &self,
        source: KernelSource,
        current: Option<KernelSet>,
        listener: &Listener,
    ) -> Result<KernelSet, KernelError> {
        match (source, current) {
            (KernelSource::Keep, Some(current)) if current.is_current() => Ok(current),
            (KernelSource::Keep, Some(old)) => kernel::anew(self.directory(), old, listener).await,
            (KernelSource::Keep, None) => kernel::from_distribution(self.directory(), None, listener).await,
            (KernelSource::Distribution, current) => {
                kernel::from_distribution(self.directory(), current, listener).await
            }
            (KernelSource::Build, current) => build::build(self.directory(), current, listener).await,
            (KernelSource::File { kernel, modules }, _) => {
                kernel::from_file(self.directory(), kernel, modules, listener).await
            }
        }
    }

    /// Makes the initramfs of kernel and agent, and the index that names it all.
    async fn finish(
        &self,
        kernel: KernelSet,
        agent: Option<PathBuf>,
        before: Option<Index>,
        listener: Listener,
    ) -> Result<Report, SetupError> {
        let named = agent.is_some();
        let path = agent
            .or_else(|| self.own_agent.clone())
            .ok_or(SetupError::NoAgentNamed)?;
        let work = self.clone();
        blocking(move || {
            listener.begin(Step::Agent);
            let (agent, bytes) = work.take_in_agent(&path, named)?;
            listener.finish(Step::Agent, &agent.stored.version);
            listener.begin(Step::Initramfs);
            let initramfs = work.initramfs(&kernel, &agent, &bytes)?;
            listener.finish(Step::Initramfs, format_args!("{} bytes", initramfs.size));
            let index = Index::new(kernel.kernel, kernel.modules, agent, initramfs);
            let changed = before.as_ref() != Some(&index);
            if changed {
                index.write(&work.directory).map_err(work.cannot_write())?;
                work.prune(&index, before.as_ref());
            }
            Ok(Report {
                artefacts: work.artefacts(&index),
                changed,
            })
        })
        .await
    }

    fn take_in_agent(&self, path: &Path, named: bool) -> Result<(Agent, Vec<u8>), SetupError> {
        // The stamp is taken first: if the file is replaced meanwhile, the next boot sees a change.
        let source = FileStamp::of(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => AgentError::NotFound {
                path: path.to_owned(),
            },
            _ => AgentError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        let bytes = read_agent(path)?;
        let mut stored = store(&self.directory, "", &bytes).map_err(self.cannot_write())?;
        stored.version = stored.digest.short();
        Ok((
            Agent {
                stored,
                source,
                named,
            },
            bytes,
        ))
    }

    fn initramfs(&self, kernel: &KernelSet, agent: &Agent, bytes: &[u8]) -> Result<Stored, SetupError> {
        let make = || -> io::Result<Stored> {
            let mut archive = match &kernel.modules {
                Some(modules) => std::fs::read(self.path(&modules.stored))?,
                None => Vec::new(),
            };
            archive.extend_from_slice(&initramfs::agent_archive(bytes)?);
            let version = format!("{}+{}", kernel.kernel.stored.version, agent.stored.version);
            store(&self.directory, &version, &archive)
        };
        make().map_err(self.cannot_write())
    }

    /// Makes the directory, waits for the others in this process, keeps other processes out, and sweeps what a killed
    /// set-up left behind.
    pub(super) async fn hold(&self) -> Result<(OwnedMutexGuard<()>, Lock), SetupError> {
        let turn = self.turn.clone().lock_owned().await;
        make_directory(&self.directory).map_err(self.cannot_write())?;
        let lock = lock::try_lock(&self.directory.join(LOCK_NAME)).map_err(self.cannot_write())?;
        let lock = lock.ok_or_else(|| SetupError::Busy {
            directory: self.directory.clone(),
        })?;
        self.remove(|_, name| name.starts_with(UNFINISHED));
        Ok((turn, lock))
    }

    /// Reads the index if there is one and the files that it names are there.
    fn intact(&self) -> Option<Index> {
        let index = self.index().ok()?;
        let whole = index.files().all(|stored| self.look_at(stored).is_ok());
        whole.then_some(index)
    }

    /// Removes artefacts that are no longer named. Those of the index before stay, and young ones: a machine may have
    /// read an index just now and be about to boot with what it named.
    fn prune(&self, now: &Index, before: Option<&Index>) {
        let named: Vec<String> = now
            .files()
            .chain(before.into_iter().flat_map(Index::files))
            .map(|stored| stored.digest.file_name())
            .collect();
        self.remove(|entry, name| {
            name.starts_with("sha256-") && !named.iter().any(|kept| kept == name) && is_old(entry)
        });
    }

    /// Removes the entries that are unwanted. What cannot be removed costs space and nothing else.
    pub(super) fn remove(&self, unwanted: impl Fn(&DirEntry, &str) -> bool) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| unwanted(&entry, name)) {
                continue;
            }
            let path = entry.path();
            let removed = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "cannot remove an artefact that is no longer used");
            }
        }
    }

    fn cannot_write(&self) -> impl Fn(io::Error) -> SetupError + use<> {
        let directory = self.directory.clone();
        move |source| SetupError::Directory {
            directory: directory.clone(),
            source,
        }
    }
}

fn is_old(entry: &DirEntry) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    let age = modified.map(|modified| modified.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age > KEPT)
}

/// Makes a directory that others can read, whatever the umask is: the virtual machine monitor runs as a user of its own
/// and reads kernels here.
fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Runs blocking work on a thread that may block, and passes on its panic.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work that has started is never cancelled, and what has not started is only when the runtime
            // shuts down: then nobody polls this.
            Err(_) => std::future::pending().await,
        },
    }
}
