//! What makes a process the only node of its directories, and what it inherits from who started it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{FromRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// A lock. It is given back when this value goes, and by the kernel when this process ends, however it ends.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a child that another thread is just about to start has it until it executes its program
    /// (flock(2)).
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes a lock; `None` when another has it.
///
/// # Errors
/// Returns the file system's error.
pub fn try_lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Binds a Unix socket that only its owner can reach, from its first moment on, and that does not block.
///
/// # Errors
/// Returns the kernel's error.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The mask is the process's: other threads' files would get it, too; at this moment there are none.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes possession of a descriptor that this process was started with.
pub fn inherited(descriptor: RawFd) -> File {
    // SAFETY: the number comes from this process's own command line, given by who started it and passed the descriptor on;
    // nothing else in this process knows of it, and it is taken once.
    unsafe { File::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_lock_has_one_holder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = try_lock(&path).unwrap();
        assert!(held.is_some());
        assert!(try_lock(&path).unwrap().is_none());
        // As a child has it before it executes its program.
        let inherited = held.as_ref().map(|lock| lock.0.try_clone().unwrap());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
        drop(inherited);
    }

    #[test]
    fn the_socket_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = bind_private(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
