//! Firecracker and its jailer: from a release, a file, a directory, a tarball or a wheel into the store.
//!
//! ```text
//! release (curl) | FILE | DIR | .tgz | .whl  ->  found  ->  checked, by sha256 and `--version`  ->  firecracker-DIGEST/  ->  firecracker.json
//! ```
//! The two lie in a directory of their own under the names that they have, since the jailer starts only what has
//! "firecracker" in its name. The index is replaced last; what a failed set-up made goes with its directory.

mod found;
mod index;
mod release;
#[cfg(test)]
mod tests;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_firecracker::Version;
use hearth_firecracker::version::Unsupported;

use self::found::{Found, Program};
use self::index::{INDEX_NAME, Index, Installed};
use super::artefacts::{Artefact, ArtefactKind, Artefacts};
use super::digest::Digest;
use super::index::{Stored, UNFINISHED, put};
use super::progress::{Listener, Progress, Step};
use super::run::{Report, SetupError, blocking};
use crate::host::command::{CommandError, HostCommand};

/// How long a program may take to tell its version. It is a millisecond on an idle host.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// What directories of installed versions are called before the digest of their Firecracker.
const DIRECTORY: &str = "firecracker-";

/// Which Firecracker is to be installed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirecrackerRequest {
    /// The version that it must be; the pinned one of the release, or whatever is in `from`, when absent.
    pub version: Option<Version>,
    /// A file, directory, tarball or wheel on this host; the official release when absent.
    pub from: Option<PathBuf>,
}

/// A Firecracker that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledFirecracker {
    /// The program.
    pub program: PathBuf,
    /// Its jailer, which came with it or did not.
    pub jailer: Option<PathBuf>,
    /// The version of both.
    pub version: Version,
}

/// Says why no Firecracker was installed.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerError {
    /// What was named cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It is an archive, or a directory, and there is no Firecracker in it.
    #[error(
        "there is no program `firecracker` in {}: name the program, its directory, a release's .tgz or a wheel",
        path.display()
    )]
    NotInside {
        /// What was looked through.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a Firecracker: {reason}", path.display())]
    NotFirecracker {
        /// What was named.
        path: PathBuf,
        /// What it is instead, as far as can be told.
        reason: String,
    },
    /// It cannot be run.
    #[error("{} cannot be used: its program does not tell its version", path.display())]
    Ask {
        /// What was named.
        path: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// Hearth does not drive that version.
    #[error("{} cannot be used", path.display())]
    Unsupported {
        /// What was named.
        path: PathBuf,
        /// Why.
        #[source]
        source: Unsupported,
    },
    /// It is another version than was asked for, or than its jailer.
    #[error("{} is version {found}, and {wanted} is wanted", path.display())]
    OtherVersion {
        /// What was named.
        path: PathBuf,
        /// What it says.
        found: Version,
        /// What it should say.
        wanted: Version,
    },
    /// The version that was asked for is none that Hearth drives, so it is not fetched.
    #[error("that version cannot be used")]
    Refused(#[source] Unsupported),
    /// The release cannot be fetched.
    #[error(
        "cannot download {url}: fetch it where that is possible, and name the file: `hearth setup firecracker --from FILE`"
    )]
    Download {
        /// The release's address.
        url: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// What was fetched is not what was published.
    #[error("{what} has the digest {found}, and {wanted} was published: it is not used")]
    Checksum {
        /// The file.
        what: String,
        /// What it has.
        found: Digest,
        /// What it should have.
        wanted: String,
    },
    /// The store cannot be written.
    #[error("cannot write into {}", directory.display())]
    Store {
        /// The directory of artefacts.
        directory: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Says why there is no Firecracker to use. The remedy is always `hearth setup firecracker`.
#[derive(Debug, thiserror::Error)]
pub enum NoFirecracker {
    /// None was installed.
    #[error("no Firecracker is installed: run `hearth setup firecracker`")]
    Never,
    /// The index cannot be read.
    #[error("cannot read {}: run `hearth setup firecracker` to make it anew", path.display())]
    Unreadable {
        /// The index.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file is gone, or has another size.
    #[error("{} is damaged or gone: run `hearth setup firecracker`", path.display())]
    Damaged {
        /// The program.
        path: PathBuf,
    },
}

impl Artefacts {
    /// Installs a Firecracker in place of the one that was there. Machines that run keep theirs.
    ///
    /// # Errors
    /// [`SetupError`]; then everything is as it was before.
    pub async fn install_firecracker(
        &self,
        request: FirecrackerRequest,
        listener: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Report, SetupError> {
        let listener = Listener::to(listener);
        if let Some(version) = request.version {
            version.check().map_err(FirecrackerError::Refused)?;
        }
        let _held = self.hold().await?;
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.directory)
            .map_err(self.cannot_store())?;
        let (from, origin) = match &request.from {
            Some(path) => (path.clone(), path.display().to_string()),
            None => release::fetch(unfinished.path(), request.version, &listener).await?,
        };
        let pinned = request.from.is_none().then_some(Version::PINNED);
        listener.begin(Step::Firecracker);
        let wanted = request.version.or(pinned);
        let installed = self.check(unfinished.path(), &from, wanted).await?;
        if request.from.is_none() {
            release::verify(&installed)?;
        }
        let before = Index::read(&self.directory).ok().flatten();
        let index = Index::new(installed, origin);
        self.put_in_place(unfinished, &index, before.as_ref())?;
        listener.finish(Step::Firecracker, &index.installed.version);
        Ok(Report {
            artefacts: self.list()?,
            changed: before.as_ref() != Some(&index),
        })
    }

    /// Copies the programs into `place`, makes them runnable, and asks them who they are.
    async fn check(
        &self,
        place: &Path,
        from: &Path,
        wanted: Option<Version>,
    ) -> Result<Installed, FirecrackerError> {
        let (source, into) = (from.to_owned(), place.to_owned());
        let store = self.cannot_store();
        let Found { firecracker, jailer } = blocking(move || found::find(&source)).await?;
        let write = |program: &Program, name: &str| -> Result<Stored, FirecrackerError> {
            let path = into.join(name);
            std::fs::write(&path, &program.bytes).map_err(&store)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(&store)?;
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(&store)?;
            Ok(Stored {
                version: String::new(),
                digest: Digest::of(&program.bytes),
                size: program.bytes.len() as u64,
            })
        };
        let mut main = write(&firecracker, "firecracker")?;
        let version = ask(place.join("firecracker"), from).await?;
        version.check().map_err(|source| FirecrackerError::Unsupported {
            path: from.to_owned(),
            source,
        })?;
        let differs = |found, wanted| FirecrackerError::OtherVersion {
            path: from.to_owned(),
            found,
            wanted,
        };
        if let Some(wanted) = wanted.filter(|wanted| *wanted != version) {
            return Err(differs(version, wanted));
        }
        main.version = release::describe(version, &main.digest);
        let jailer = match jailer {
            None => None,
            Some(program) => {
                let mut stored = write(&program, "jailer")?;
                let found = ask(place.join("jailer"), &program.path).await?;
                if found != version {
                    return Err(differs(found, version));
                }
                stored.version = version.to_string();
                Some(stored)
            }
        };
        Ok(Installed {
            version: version.to_string(),
            firecracker: main,
            jailer,
        })
    }

    fn put_in_place(
        &self,
        unfinished: tempfile::TempDir,
        index: &Index,
        before: Option<&Index>,
    ) -> Result<(), FirecrackerError> {
        let store = self.cannot_store();
        let name = directory_of(&index.installed);
        let place = self.directory.join(&name);
        // What came with it is not kept: a download.
        let kept = ["firecracker", "jailer"];
        for entry in std::fs::read_dir(unfinished.path()).map_err(&store)?.flatten() {
            if !kept.iter().any(|kept| entry.file_name() == *kept) {
                std::fs::remove_file(entry.path()).map_err(&store)?;
            }
        }
        std::fs::set_permissions(unfinished.path(), Permissions::from_mode(0o755)).map_err(&store)?;
        // The same programs once more, perhaps with a jailer now, or undamaged.
        let _ = std::fs::remove_dir_all(&place);
        std::fs::rename(unfinished.keep(), &place).map_err(&store)?;
        let bytes = index.to_bytes().map_err(&store)?;
        put(&self.directory, INDEX_NAME, &bytes).map_err(&store)?;
        // The one before stays: a machine may be about to boot with it.
        let before = before.map(|index| directory_of(&index.installed));
        self.remove(|_, found| {
            found.starts_with(DIRECTORY) && found != name && before.as_deref() != Some(found)
        });
        Ok(())
    }

    /// Returns the Firecracker that is installed. It reads one small file and looks at two, so that it can be asked at every
    /// boot.
    ///
    /// # Errors
    /// [`NoFirecracker`].
    pub fn firecracker(&self) -> Result<InstalledFirecracker, NoFirecracker> {
        let unreadable = |source| NoFirecracker::Unreadable {
            path: self.directory.join(INDEX_NAME),
            source,
        };
        let index = Index::read(&self.directory)
            .map_err(unreadable)?
            .ok_or(NoFirecracker::Never)?;
        let directory = self.directory.join(directory_of(&index.installed));
        let whole = |name: &str, stored: &Stored| {
            let path = directory.join(name);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() == stored.size => Ok(path),
                _ => Err(NoFirecracker::Damaged { path }),
            }
        };
        let invalid = |error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error));
        Ok(InstalledFirecracker {
            program: whole("firecracker", &index.installed.firecracker)?,
            jailer: match &index.installed.jailer {
                Some(stored) => Some(whole("jailer", stored)?),
                None => None,
            },
            version: index.installed.version.parse().map_err(invalid)?,
        })
    }

    /// Lists what is installed of Firecracker.
    pub(super) fn firecracker_artefacts(&self) -> Vec<Artefact> {
        let Ok(Some(Index { installed, .. })) = Index::read(&self.directory) else {
            return Vec::new();
        };
        let directory = self.directory.join(directory_of(&installed));
        let artefact = |kind, name: &str, stored: &Stored| Artefact {
            kind,
            version: stored.version.clone(),
            path: directory.join(name),
            digest: stored.digest,
            size: stored.size,
            outdated: false,
        };
        let main = artefact(ArtefactKind::Firecracker, "firecracker", &installed.firecracker);
        let jailer = installed.jailer.as_ref();
        std::iter::once(main)
            .chain(jailer.map(|jailer| artefact(ArtefactKind::Jailer, "jailer", jailer)))
            .collect()
    }

    fn cannot_store(&self) -> impl Fn(io::Error) -> FirecrackerError + use<> {
        let directory = self.directory.clone();
        move |source| FirecrackerError::Store {
            directory: directory.clone(),
            source,
        }
    }
}

fn directory_of(installed: &Installed) -> String {
    format!("{DIRECTORY}{}", installed.firecracker.digest.short())
}

/// Asks a program for its version; `from` is what the user knows it by.
async fn ask(program: PathBuf, from: &Path) -> Result<Version, FirecrackerError> {
    let output = HostCommand::new(program, "none")
        .arg("--version")
        .time_limit(VERSION_LIMIT)
        .run()
        .await
        .map_err(|source| FirecrackerError::Ask {
            path: from.to_owned(),
            source,
        })?;
    let said = String::from_utf8_lossy(&output);
    Version::from_output(&said).map_err(|error| FirecrackerError::NotFirecracker {
        path: from.to_owned(),
        reason: error.to_string(),
    })
}
