//! The channel's device: the virtio-serial port of the agreed name.
//!
//! The driver takes at most 32 KiB in one write and gives at most 4 KiB in one read; while no host is connected a read
//! gives an end and a write would block, and a change of that wakes the poller.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use hearth_guest_protocol::PORT_NAME;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::uevents::Uevents;

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
    #[error("no virtio-serial port named {PORT_NAME} appeared within {PATIENCE:?}")]
    Missing,
    /// It is there and cannot be opened.
    #[error("cannot open {}: {errno}", path.display())]
    Open { path: PathBuf, errno: Errno },
}

/// Waits for the port and opens it.
///
/// # Errors
/// Returns [`PortError`] when it does not appear in time or cannot be opened.
pub(crate) fn open(announcements: &Uevents) -> Result<OwnedFd, PortError> {
    let path = announcements.wait_for(PATIENCE, find).ok_or(PortError::Missing)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| PortError::Open { path, errno })
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
