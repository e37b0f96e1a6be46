//! What must be there before QEMU starts: its log, its sockets, the console's pipe, the file of the guest's memory; and
//! the proof that QEMU's user can reach the files on its command line.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::machine;
use crate::host::launch::HostUser;
use crate::host::{console, unix_socket};
use crate::vmm::{BootError, BootRequest};

/// What QEMU inherits.
pub(super) struct Prepared {
    pub log: File,
    pub control: OwnedFd,
    pub guest: OwnedFd,
    /// Keeps the console's pipe alive; see [`console::make_pipe`].
    pub console: OwnedFd,
}

/// Whether the guest's memory is a file of the machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryFile {
    Own,
    None,
}

/// Makes everything anew, in place of what a former machine of that id left.
pub(super) fn prepare(request: &BootRequest, memory: MemoryFile) -> Result<Prepared, BootError> {
    let dirs = &request.dirs;
    let listen = |path: PathBuf| {
        unix_socket::listen(&path).map_err(|source| BootError::Socket {
            id: request.id,
            source,
        })
    };
    let prepared = Prepared {
        log: make_log(request)?,
        control: listen(machine::control_socket(dirs))?,
        guest: listen(machine::guest_socket(dirs))?,
        console: console::make_pipe(&machine::console_pipe(dirs), request.user).map_err(|source| {
            BootError::Console {
                id: request.id,
                source,
            }
        })?,
    };
    match memory {
        MemoryFile::Own => make_memory(request)?,
        MemoryFile::None => {}
    }
    if let Some(user) = request.user {
        check_reachable(request, user)?;
    }
    Ok(prepared)
}

fn make_log(request: &BootRequest) -> Result<File, BootError> {
    let path = request.dirs.vmm_log();
    // Truncated rather than appended to: it explains this run.
    let options = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path);
    options.map_err(|source| failed(request, "cannot create", &path, source))
}

fn make_memory(request: &BootRequest) -> Result<(), BootError> {
    let path = &request.dirs.memory;
    let make = || -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(request.shape.memory_mib << 20)?;
        if let Some(user) = request.user {
            std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    };
    make().map_err(|source| failed(request, "cannot create", path, source))
}

/// Checks every directory above every file on the command line. QEMU would say "Permission denied" and leave the rest to be
/// guessed.
fn check_reachable(request: &BootRequest, user: HostUser) -> Result<(), BootError> {
    let (pipe, memory) = (machine::console_pipe(&request.dirs), &request.dirs.memory);
    let disks = request.disks.iter().map(|disk| disk.path.as_path());
    let initramfs = request.initramfs.as_deref();
    let files = [request.kernel.as_path(), &pipe, memory];
    for path in files.into_iter().chain(initramfs).chain(disks) {
        let closed =
            closed_directory(path, user).map_err(|source| failed(request, "cannot reach", path, source))?;
        if let Some(closed) = closed {
            return Err(BootError::Unreachable {
                id: request.id,
                path: path.to_owned(),
                closed,
                uid: user.uid,
            });
        }
    }
    Ok(())
}

/// Finds the first directory above `path` that the user may not enter.
fn closed_directory(path: &Path, user: HostUser) -> io::Result<Option<PathBuf>> {
    let mut above: Vec<_> = path
        .ancestors()
        .skip(1)
        .filter(|a| !a.as_os_str().is_empty())
        .collect();
    above.reverse();
    for directory in above {
        let metadata = std::fs::metadata(directory)?;
        let enter = match (metadata.uid() == user.uid, metadata.gid() == user.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        if metadata.mode() & enter == 0 {
            return Ok(Some(directory.to_owned()));
        }
    }
    Ok(None)
}

pub(super) fn failed(request: &BootRequest, what: &'static str, path: &Path, source: io::Error) -> BootError {
    BootError::Prepare {
        id: request.id,
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_directory_that_is_closed_to_the_monitors_user_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            |mode| std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let stranger = HostUser {
            uid: 3_000_000,
            gid: 3_000_000,
        };
        let file = directory.path().join("disk.raw");
        open(0o700);
        assert_eq!(
            closed_directory(&file, stranger).unwrap().as_deref(),
            Some(directory.path())
        );
        open(0o711);
        assert_eq!(closed_directory(&file, stranger).unwrap(), None);
    }
}
