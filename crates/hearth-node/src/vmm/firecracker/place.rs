//! The directory that a machine's Firecracker sees, and what is in it: names, the same for every machine.
//!
//! ```text
//! as root             DATA/machines/ID/jail/firecracker/hearth-ID/root/     its `/`, made by the jailer
//!                         kernel disk0 disk1 log                            mounted there from where they are
//!                         api vsock                                         its sockets; RUN/m/ID/ has links to them
//! an ordinary user    RUN/m/ID/                                             where it works
//!                         kernel disk0 disk1 log                            links to where they are
//!                         api vsock                                         its sockets
//! ```
//! The mounts are in the monitor's own mount namespace: they go with it, and whoever may not pass the directories on the way
//! to a file gets at it in the jail alone. Links could not do that, and hard links end at a file system's border.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use hearth_firecracker::jailer::Jailer;

use super::machine;
use crate::host::console;
use crate::host::launch::Mount;
use crate::host::unix_socket::{self, SocketError};
use crate::vmm::{BootError, BootRequest};

/// The name of Firecracker's own log.
pub(super) const LOG: &str = "log";

/// The group of all jailed Firecrackers: what several of them read, the files of a snapshot, is its. Each sees only its own
/// machine's. Below the users of machines, and as unused as those.
pub(super) const READERS: u32 = 0x6fff_fff0;

/// The directory, while it is being filled.
pub(super) struct Place<'a> {
    request: &'a BootRequest,
    root: PathBuf,
    jail: Option<Jailer>,
    mounts: Vec<Mount>,
    given: Vec<PathBuf>,
}

impl<'a> Place<'a> {
    /// Makes the directory anew, in place of what a former machine of that id left.
    pub(super) fn make(request: &'a BootRequest, jail: Option<Jailer>) -> Result<Self, BootError> {
        let dirs = &request.dirs;
        dirs.release()
            .map_err(|error| failed(request, "cannot remove", &error.path, error.source))?;
        let jail = jail.map(|jail| jail.base(dirs.jail()));
        let root = jail.as_ref().map_or_else(|| dirs.run.clone(), Jailer::root);
        for name in [machine::API, machine::VSOCK] {
            let path = dirs.run.join(name);
            unix_socket::check_length(&path).map_err(|source| socket_error(request, source))?;
            if jail.is_some() {
                // A socket's address has 107 bytes at most, and the jail's path may have more: a link to it counts as itself.
                symlink(root.join(name), &path)
                    .map_err(|source| failed(request, "cannot make", &path, source))?;
            }
        }
        if jail.is_some() {
            let mut builder = std::fs::DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(&root)
                .map_err(|source| failed(request, "cannot make", &root, source))?;
        }
        Ok(Self {
            request,
            root,
            jail,
            mounts: Vec::new(),
            given: Vec::new(),
        })
    }

    /// Lets Firecracker see a file under a name.
    pub(super) fn put(&mut self, name: &str, path: &Path) -> Result<(), BootError> {
        let (request, here) = (self.request, self.root.join(name));
        // Told here, where the file has a name that the user knows.
        std::fs::metadata(path).map_err(|source| failed(request, "cannot reach", path, source))?;
        let put = if self.is_jailed() {
            File::create(&here).map(drop)
        } else {
            symlink(path, &here)
        };
        put.map_err(|source| failed(request, "cannot make", &here, source))?;
        self.given.push(path.to_owned());
        if self.is_jailed() {
            self.mounts.push(Mount {
                from: path.to_owned(),
                to: here,
            });
        }
        Ok(())
    }

    /// Makes the log anew and lets Firecracker see it; returns it for what is said before that.
    pub(super) fn make_log(&mut self) -> Result<File, BootError> {
        let path = self.request.dirs.vmm_log();
        let make = || -> io::Result<File> {
            // Truncated rather than appended to: it explains this run.
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            if let Some(user) = self.request.user {
                std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
            }
            // Firecracker appends to it; what comes over this descriptor must not overwrite that.
            OpenOptions::new().append(true).open(&path)
        };
        let file = make().map_err(|source| failed(self.request, "cannot create", &path, source))?;
        self.put(LOG, &path)?;
        Ok(file)
    }

    /// Makes the pipe of the guest's serial console, which is Firecracker's standard output. It keeps itself alive; when it is full
    /// while no node reads it, what the guest says is dropped, and the guest goes on.
    pub(super) fn make_console(&self) -> Result<OwnedFd, BootError> {
        let path = machine::console_pipe(&self.request.dirs);
        console::make_pipe(&path, self.request.user)
            .and_then(|_held| console::writer(&path))
            .map_err(|source| BootError::Console {
                id: self.request.id,
                source,
            })
    }

    /// Returns where the directory is on the host.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns what Firecracker was given to see.
    pub(super) fn given(&self) -> &[PathBuf] {
        &self.given
    }

    pub(super) fn is_jailed(&self) -> bool {
        self.jail.is_some()
    }

    /// Returns the jail that it is the root of, if it is one.
    pub(super) fn jail(&self) -> Option<Jailer> {
        self.jail.clone()
    }

    /// Returns what is to be mounted before Firecracker starts.
    pub(super) fn into_mounts(self) -> Vec<Mount> {
        self.mounts
    }
}

fn socket_error(request: &BootRequest, source: SocketError) -> BootError {
    BootError::Socket {
        id: request.id,
        source,
    }
}

pub(super) fn failed(request: &BootRequest, what: &'static str, path: &Path, source: io::Error) -> BootError {
    BootError::Prepare {
        id: request.id,
        what,
        path: path.to_owned(),
        source,
    }
}
