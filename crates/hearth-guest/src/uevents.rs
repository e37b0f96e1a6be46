//! The kernel's announcements of devices, for whoever needs one that may appear a moment later.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// A subscription. Make it before looking for the device: so nothing is missed between looking and waiting.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Subscribes.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(KOBJECT_UEVENT),
        )?;
        bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self(socket))
    }

    /// Calls `find` now and after each announcement until it gives something; `None` when `patience` is over.
    pub(crate) fn wait_for<T>(&self, patience: Duration, mut find: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = find() {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = Timespec::try_from(left).ok()?;
            // An interrupted wait or an overrun queue is a reason to look again, like any announcement.
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
            let mut event = [0; 4096];
            while !matches!(
                recv(&self.0, &mut event[..], RecvFlags::empty()),
                Err(Errno::AGAIN)
            ) {}
        }
    }
}
