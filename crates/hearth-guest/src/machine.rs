//! What makes the guest one particular machine: its clock, its randomness, its name and its disks; and bringing the
//! disks to rest in the end.
//!
//! ```text
//! /run/hearth/image   the read-only image
//! /run/hearth/disk    the machine's own disk: upper and work, which outlive a restart
//! /run/hearth/root    both together: the workload's root
//! /run/hearth/etc     hosts, hostname, resolv.conf
//! ```

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use hearth_guest_protocol::message::{Configure, FailureCode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::boot::make_directory;
use crate::console::complain;
use crate::container::{FILE_NAMES, FILES, ROOT};
use crate::sys;
use crate::uevents::Uevents;

const IMAGE: &str = "/run/hearth/image";

/// Where the machine's own disk is mounted.
pub(crate) const DISK: &str = "/run/hearth/disk";

/// What an image may be.
const FILESYSTEMS: [&str; 3] = ["erofs", "squashfs", "ext4"];

/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the guest could not be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigureError {
    /// A device did not appear.
    #[error("there is no block device {0}")]
    NoDevice(String),
    /// The image is of a kind that is not used.
    #[error("the image's file system {0:?} is none of erofs, squashfs and ext4")]
    FileSystem(String),
    /// A mount.
    #[error("cannot mount {device} at {target}: {errno}")]
    Mount {
        device: String,
        target: &'static str,
        errno: Errno,
    },
    /// A directory or file of the agent's own.
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: io::Error },
    /// The clock, the name, the random numbers.
    #[error("cannot set the {what}: {source}")]
    Set { what: &'static str, source: io::Error },
}

impl ConfigureError {
    /// Returns what programs need to know of it.
    pub(crate) fn code(&self) -> FailureCode {
        match self {
            Self::NoDevice(_) | Self::FileSystem(_) | Self::Mount { .. } => FailureCode::Storage,
            Self::Write { .. } | Self::Set { .. } => FailureCode::System,
        }
    }
}

/// Makes this guest the machine that `request` describes. On an error nothing stays mounted.
///
/// # Errors
/// Returns [`ConfigureError`], which names the device concerned.
pub(crate) fn configure(request: &Configure) -> Result<(), ConfigureError> {
    let set = |what| move |source: io::Error| ConfigureError::Set { what, source };
    set_clock(request.clock_unix_ns).map_err(set("clock"))?;
    let random = File::open("/dev/urandom").map_err(set("random numbers"))?;
    sys::add_entropy(random.as_fd(), &request.entropy).map_err(set("random numbers"))?;
    rustix::system::sethostname(request.hostname.as_bytes())
        .map_err(|errno| set("host name")(errno.into()))?;
    write_files(request)?;
    mount_disks(request).inspect_err(|_| release())
}

pub(crate) fn set_clock(unix_ns: u64) -> io::Result<()> {
    let time = Timespec::try_from(Duration::from_nanos(unix_ns)).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn write_files(request: &Configure) -> Result<(), ConfigureError> {
    make_directory("/run/hearth");
    make_directory(FILES);
    let hostname = format!("{}\n", request.hostname);
    let contents: [&[u8]; 3] = [&request.hosts, hostname.as_bytes(), &request.resolv_conf];
    for (name, content) in FILE_NAMES.into_iter().zip(contents) {
        let path = Path::new(FILES).join(name);
        fs::write(&path, content).map_err(|source| ConfigureError::Write {
            path: path.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

fn mount_disks(request: &Configure) -> Result<(), ConfigureError> {
    let filesystem = &request.image_filesystem;
    if !FILESYSTEMS.contains(&filesystem.as_str()) {
        return Err(ConfigureError::FileSystem(filesystem.clone()));
    }
    wait_for(&[&request.image_device, &request.disk_device])?;
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    mount_one(&request.image_device, IMAGE, filesystem, read_only, "")?;
    // The kernel's own thread that initialises an ext4 lazily would write to a disk that nobody uses yet.
    mount_one(
        &request.disk_device,
        DISK,
        "ext4",
        MountFlags::NOATIME,
        "noinit_itable",
    )?;
    for name in ["upper", "work"] {
        let path = format!("{DISK}/{name}");
        own_directory(&path).map_err(|source| ConfigureError::Write { path, source })?;
    }
    let options = format!("lowerdir={IMAGE},upperdir={DISK}/upper,workdir={DISK}/work");
    mount_one("overlay", ROOT, "overlay", MountFlags::NOATIME, &options)
}

/// Makes a directory unless it is there, and root's: the host may have made it as another user.
fn own_directory(path: &str) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match std::os::unix::fs::MetadataExt::uid(&fs::metadata(path)?) {
                0 => Ok(()),
                _ => std::os::unix::fs::chown(path, Some(0), Some(0)),
            }
        }
        made => made,
    }
}

fn wait_for(devices: &[&str]) -> Result<(), ConfigureError> {
    let missing = || devices.iter().find(|device| !Path::new(device).exists());
    if missing().is_none() {
        return Ok(());
    }
    let found = Uevents::new()
        .ok()
        .and_then(|announcements| announcements.wait_for(PATIENCE, || missing().is_none().then_some(())));
    match (found, missing()) {
        (None, Some(device)) => Err(ConfigureError::NoDevice((*device).into())),
        _ => Ok(()),
    }
}

fn mount_one(
    device: &str,
    target: &'static str,
    filesystem: &str,
    flags: MountFlags,
    options: &str,
) -> Result<(), ConfigureError> {
    make_directory(target);
    let options = CString::new(options).ok();
    let mounted = mount(device, target, filesystem, flags, options.as_deref());
    mounted.map_err(|errno| ConfigureError::Mount {
        device: device.into(),
        target,
        errno,
    })
}

/// Lets go of what was mounted before a configuration failed.
fn release() {
    for target in [ROOT, DISK, IMAGE] {
        // Most often it is not mounted.
        let _ = unmount(target, UnmountFlags::DETACH);
    }
}

/// Brings the disks to rest in a child, since writing may take a while.
pub(crate) fn rest_aside() {
    let child = sys::fork(0, None, || {
        rest();
        sys::exit(0)
    });
    if let Err(error) = child {
        complain!("cannot make a process to unmount the disks: {error}");
        rest();
    }
}

/// Brings the disks to rest.
///
/// Read-only is as clean as unmounted, and is had in a third of the time; a file that is still open for writing refuses it.
pub(crate) fn rest() {
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    if mount_remount(DISK, read_only, c"").is_err() {
        unmount_all();
    }
    rustix::fs::sync();
}

/// Unmounts the disks; what is still in use is at least written out.
fn unmount_all() {
    for target in [ROOT, DISK, IMAGE] {
        match unmount(target, UnmountFlags::empty()) {
            // Not mounted: never configured.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => {
                complain!("cannot unmount {target}: {errno}");
                let _ = unmount(target, UnmountFlags::DETACH);
            }
        }
    }
}
