//! The first milliseconds: what the agent needs before it can talk. Called once by main.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit, umask};
use rustix::system::finit_module;
use rustix::time::{ClockId, clock_gettime};

use crate::console::complain;
use crate::network;
use crate::port::{self, Channel, PortError};
use crate::sys;
use crate::uevents::Uevents;

/// Where kernel modules lie in the initramfs; those right in it are loaded in the order of their names.
const MODULES: &str = "/modules";

/// The open files that a process of the workload may have, as docker sets it.
const OPEN_FILES: u64 = 1 << 20;

/// Those that most machines do without.
const MODULES_ON_DEMAND: &str = "/modules/optional";

/// Says what kept the agent from starting.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system of the agent's own.
    #[error("cannot mount {target}: {errno}")]
    Mount { target: &'static str, errno: Errno },
    /// The channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The event loop.
    #[error("cannot set up the event loop: {0}")]
    Loop(#[from] io::Error),
}

/// Returns the time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// Brings the guest to the point where it can talk; returns the channel.
///
/// # Errors
/// Returns [`BootError`] for what the agent cannot do without.
pub(crate) fn boot() -> Result<Channel, BootError> {
    umask(Mode::from_raw_mode(0o022));
    leave_rootfs()?;
    mount_all()?;
    let announcements = Uevents::new().map_err(PortError::Announcements)?;
    load_modules(Path::new(MODULES));
    if is_without_pci() {
        load_modules(Path::new(MODULES_ON_DEMAND));
    }
    // Before the channel: what is cloned from here on has it.
    network::set_up();
    Ok(port::open(&announcements)?)
}

/// Does what can wait until the guest has said hello: the host's answer is under way meanwhile.
pub(crate) fn settle() {
    set_limits();
    loopback_up();
}

/// Puts the same files on a mount of their own: pivot_root, which hides the agent from the workload, refuses to leave
/// the kernel's first mount.
fn leave_rootfs() -> Result<(), BootError> {
    let mounted = |errno| BootError::Mount { target: "/", errno };
    make_directory("/run");
    make_directory("/run/base");
    mount_bind("/", "/run/base").map_err(mounted)?;
    chdir("/run/base").map_err(mounted)?;
    mount_move(".", "/").map_err(mounted)?;
    chroot(".").map_err(mounted)?;
    chdir("/").map_err(mounted)
}

fn mount_all() -> Result<(), BootError> {
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    let table = [
        ("/proc", "proc", safe),
        ("/sys", "sysfs", safe),
        ("/dev", "devtmpfs", MountFlags::NOSUID),
        ("/sys/fs/cgroup", "cgroup2", safe),
    ];
    for (target, filesystem, flags) in table {
        if target != "/sys/fs/cgroup" {
            make_directory(target);
        }
        match mount(filesystem, target, filesystem, flags, None) {
            // A kernel that mounts devtmpfs by itself has done it already.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(BootError::Mount { target, errno }),
        }
    }
    Ok(())
}

/// Makes a directory of the agent's own; that it cannot is found out by what needs it.
pub(crate) fn make_directory(path: &str) {
    let _ = rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755));
}

/// Loads what the host put there; a module that fails is told once, and what needs it will say so too.
fn load_modules(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.retain(|name| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "ko")
    });
    names.sort_unstable();
    for path in names.into_iter().map(|name| directory.join(name)) {
        if let Err(error) = load_module(&path) {
            complain!("cannot load {}: {error}", path.display());
        }
        // The initramfs is memory: what was loaded need not lie there, too.
        let _ = fs::remove_file(&path);
    }
}

/// Loads these of the modules that most machines do without, in this order; those that are not there are built in, or missing.
pub(crate) fn load_on_demand(names: &[&str]) {
    let entries = fs::read_dir(MODULES_ON_DEMAND).into_iter().flatten().flatten();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    for name in names {
        // As in `014-inet_diag.ko`.
        let is_it = |path: &&PathBuf| {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            stem.and_then(|stem| stem.split_once('-'))
                .is_some_and(|(_, it)| it == *name)
        };
        let Some(path) = paths.iter().find(is_it) else {
            continue;
        };
        if let Err(error) = load_module(path) {
            complain!("cannot load {}: {error}", path.display());
        }
        let _ = fs::remove_file(path);
    }
}

/// Tells whether the machine has no PCI bus, as under Firecracker: its devices are virtio-mmio, and its channel is vsock.
fn is_without_pci() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_ascii_whitespace().any(|word| word == "pci=off")
}

fn load_module(path: &PathBuf) -> Result<(), io::Error> {
    match finit_module(File::open(path)?, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets what every process of the guest inherits, as docker does; a core file would land on the machine's own disk, so
/// its soft limit stays at zero.
fn set_limits() {
    let limit = |current, maximum| Rlimit { current, maximum };
    let limits = [
        (Resource::Nofile, limit(Some(OPEN_FILES), Some(OPEN_FILES))),
        (Resource::Nproc, limit(None, None)),
        (Resource::Core, limit(Some(0), None)),
    ];
    for (resource, limit) in limits {
        if let Err(errno) = setrlimit(resource, limit) {
            complain!("cannot set the limit {resource:?}: {errno}");
        }
    }
    // As in docker's containers: ping and low ports without privileges.
    for (path, value) in [
        ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
        ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ] {
        let _ = fs::write(path, value);
    }
}

fn loopback_up() {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let up = socket.map_err(io::Error::from).and_then(|socket| {
        use std::os::fd::AsFd;
        sys::interface_up(socket.as_fd(), b"lo")
    });
    if let Err(error) = up {
        complain!("cannot bring the loopback up: {error}");
    }
}
