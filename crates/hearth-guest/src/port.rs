//! The channel's device: the virtio-serial port of the agreed name, or, where the machine has a vsock device instead, a listener on
//! the agreed port.
//!
//! The driver of the serial port takes at most 32 KiB in one write and gives at most 4 KiB in one read; while no host is connected a read
//! gives an end and a write would block, and a change of that wakes the poller.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hearth_guest_protocol::{PORT_NAME, VSOCK_PORT};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys;
use crate::uevents::Uevents;

/// Where the kernel lists the vsock devices that it has a driver for.
const VSOCK_DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";

/// The most that one write takes, in bytes.
pub(crate) const WRITE_MAX: usize = 32 * 1024;

/// How long the port may take to appear; under emulation a device takes tens of milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says why there is no channel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// No subscription to the kernel's announcements.
    #[error("cannot listen for devices: {0}")]
    Announcements(Errno),
    /// It did not appear.
    #[error("neither a virtio-serial port named {PORT_NAME} nor a vsock device appeared within {PATIENCE:?}")]
    Missing,
    /// It is there and cannot be opened.
    #[error("cannot open {}: {errno}", path.display())]
    Open { path: PathBuf, errno: Errno },
    /// There is a vsock device, and it cannot be listened on.
    #[error("cannot listen on vsock port {VSOCK_PORT}: {0}")]
    Listen(io::Error),
}

/// How the host comes to the agent.
pub(crate) enum Channel {
    /// One stream, which outlives the hosts that open their end of it.
    Port(OwnedFd),
    /// A listener; each host connects anew, and the last one counts.
    Listener(OwnedFd),
}

enum Device {
    Port(PathBuf),
    Vsock,
}

/// Waits for the channel's device and opens it.
///
/// # Errors
/// Returns [`PortError`] when it does not appear in time or cannot be opened.
pub(crate) fn open(announcements: &Uevents) -> Result<Channel, PortError> {
    let device = announcements.wait_for(PATIENCE, || find().map(Device::Port).or_else(find_vsock));
    match device.ok_or(PortError::Missing)? {
        Device::Port(path) => {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty())
                .map(Channel::Port)
                .map_err(|errno| PortError::Open { path, errno })
        }
        Device::Vsock => sys::listen_on_vsock(VSOCK_PORT)
            .map(Channel::Listener)
            .map_err(PortError::Listen),
    }
}

/// Looks for a vsock device: the driver's directory has a link to each one, named as `virtio3`.
fn find_vsock() -> Option<Device> {
    let mut entries = fs::read_dir(VSOCK_DRIVER).ok()?.flatten();
    let has_device = entries.any(|entry| entry.file_name().to_string_lossy().starts_with("virtio"));
    has_device.then_some(Device::Vsock)
}

/// Looks for the port: its name is told in sysfs, its device is named by number.
fn find() -> Option<PathBuf> {
    fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            let device = PathBuf::from("/dev").join(entry.file_name());
            (name.trim_end() == PORT_NAME && device.exists()).then_some(device)
        })
}
