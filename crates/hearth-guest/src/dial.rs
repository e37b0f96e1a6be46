//! Connections to TCP ports on the guest's loopback, IPv4 first, then IPv6; and sockets for UDP ports, IPv4 alone.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_nodelay, socket_error};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// A connection that is being made or stands.
#[derive(Debug)]
pub(crate) struct Connection {
    port: u16,
    address: SocketAddr,
    socket: Rc<OwnedFd>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It stands.
    Connected,
    /// The next event will tell.
    Underway,
    /// A new socket tries the other address; it must be watched.
    Retrying,
    /// Nobody takes it.
    Failed(Errno),
}

/// Returns a socket that talks to a UDP port and hears nobody else.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn datagrams(port: u16) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

impl Connection {
    /// Starts to connect.
    ///
    /// # Errors
    /// Returns the kernel's error when there is no socket to be had.
    pub(crate) fn start(port: u16) -> Result<Self, Errno> {
        Self::towards(port, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    fn towards(port: u16, address: SocketAddr) -> Result<Self, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        // What is typed must not wait for more of it; a socket without the option is only slower.
        let _ = set_tcp_nodelay(&socket, true);
        match connect(&socket, &address) {
            // A refusal is also found when the socket is asked for its error, as one that comes later.
            Ok(()) | Err(_) => {}
        }
        Ok(Self {
            port,
            address,
            socket: Rc::new(socket),
        })
    }

    /// Has the other side hear of a reset when it is closed, not of an end: what was to come never will.
    pub(crate) fn reset(&self) {
        // Fails only on what is no socket.
        let _ = set_socket_linger(&self.socket, Some(Duration::ZERO));
    }

    /// Returns the socket.
    pub(crate) fn socket(&self) -> &Rc<OwnedFd> {
        &self.socket
    }

    /// Returns the port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Looks at what an event brought.
    pub(crate) fn progress(&mut self) -> Progress {
        let failure = match socket_error(&self.socket) {
            Ok(Ok(())) => None,
            Ok(Err(errno)) | Err(errno) => Some(errno),
        };
        match failure {
            None if rustix::net::getpeername(&self.socket).is_ok() => Progress::Connected,
            None => Progress::Underway,
            Some(errno) if self.address.is_ipv6() => Progress::Failed(errno),
            Some(errno) => match Self::towards(self.port, SocketAddr::from((Ipv6Addr::LOCALHOST, self.port)))
            {
                Ok(next) => {
                    *self = next;
                    Progress::Retrying
                }
                Err(_) => Progress::Failed(errno),
            },
        }
    }
}
