//! Unix sockets with a path, made by the node and handed to a monitor: the path exists before the monitor does, so a
//! client connects at once, and a later node finds the same door.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sendmsg,
};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;

/// The longest path of a Unix socket, in bytes: `sun_path` has 108, and one is the NUL (unix(7)).
pub const PATH_LIMIT: usize = 107;

/// Says why there is no socket at a path.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel has no room for the path.
    #[error(
        "the socket path {} is {length} bytes long, and {PATH_LIMIT} is the limit: choose a shorter directory for sockets",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The kernel refused.
    #[error("cannot listen on the socket {}", path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Listens at `path`, for this user only, in place of what a former owner may have left there.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<OwnedFd, SocketError> {
    check_length(path)?;
    bind_and_listen(path).map_err(|source| SocketError::Listen {
        path: path.to_owned(),
        source,
    })
}

/// Makes sure that the kernel has room for a path.
///
/// # Errors
/// [`SocketError::TooLong`].
pub fn check_length(path: &Path) -> Result<(), SocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_LIMIT {
        return Err(SocketError::TooLong {
            path: path.to_owned(),
            length,
        });
    }
    Ok(())
}

/// Has accepting return at once when nobody waits.
///
/// # Errors
/// Returns the kernel's.
pub fn never_wait(listener: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(listener)?;
    Ok(rustix::fs::fcntl_setfl(
        listener,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

fn bind_and_listen(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Linux gives the file that bind makes the socket's own mode, so there is no moment in which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Writes bytes, with the first of which a descriptor goes to the other end.
///
/// # Errors
/// Returns the kernel's error.
pub async fn write_with(to: &mut OwnedWriteHalf, bytes: &[u8], descriptor: &OwnedFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let sent = loop {
        to.writable().await?;
        let stream: &UnixStream = to.as_ref();
        let sent = stream.try_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let flags = SendFlags::NOSIGNAL;
            Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, flags)?)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => break other?,
        }
    };
    to.write_all(&bytes[sent..]).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_takes_the_place_of_an_old_one_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn a_path_over_the_kernels_limit_is_named() {
        let path = Path::new("/tmp").join("x".repeat(103));
        let error = listen(&path).unwrap_err();
        assert!(
            matches!(error, SocketError::TooLong { length: 108, .. }),
            "{error}"
        );
    }
}
