//! Connecting to a socket whose directory belongs to somebody who may be hostile: a Firecracker that was taken over.
//!
//! The path up to the directory is the caller's, and is followed as it is. The last name in it must be the socket itself: a
//! symbolic link there could lead to any other socket of the host, and whoever connects would speak to that with his own rights.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use tokio::net::UnixStream;

/// Connects to the socket at a path, which may be longer than a socket's address.
///
/// # Errors
/// The kernel's; `ELOOP` for a symbolic link, `ECONNREFUSED` for what is no socket.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = openat(CWD, directory, flags | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let socket = openat2(&directory, name, flags, Mode::empty(), beneath)?;
    if FileType::from_raw_mode(fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    // The kernel follows this link to the very file that was opened, whatever has its name by now.
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_link_in_the_place_of_a_socket_is_not_followed() {
        let (jail, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = host.path().join("secret");
        let listener = UnixListener::bind(&secret).unwrap();
        let api = jail.path().join("api");
        symlink(&secret, &api).unwrap();
        let refused = connect(&api).await.unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(rustix::io::Errno::LOOP.raw_os_error())
        );
        // Nor one that leads to a descriptor, nor what is no socket.
        std::fs::remove_file(&api).unwrap();
        symlink("/proc/self/fd/0", &api).unwrap();
        assert!(connect(&api).await.is_err());
        std::fs::remove_file(&api).unwrap();
        std::fs::write(&api, "").unwrap();
        let refused = connect(&api).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let nobody = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept());
        assert!(nobody.await.is_err(), "somebody connected");
    }

    #[tokio::test]
    async fn a_path_beyond_the_length_of_an_address_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = root.path().join("short");
        symlink(&deep, &short).unwrap();
        let listener = UnixListener::bind(short.join("api")).unwrap();
        connect(&deep.join("api")).await.unwrap();
        listener.accept().await.unwrap();
        let missing = connect(&deep.join("vsock")).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
