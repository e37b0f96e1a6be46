//! The workload's view of the world: its root, its /proc, /sys and /dev, as docker users know them. Runs in the child
//! that becomes PID 1 of the workload, in a mount namespace of its own.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hearth_guest_protocol::message::{Tmpfs, World};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, makedev, mkdirat, mknodat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, pivot_root};

/// Where the agent has mounted the workload's root.
pub(crate) const ROOT: &str = "/run/hearth/root";

/// Where the agent keeps the files of its own that the workload sees in its /etc.
pub(crate) const FILES: &str = "/run/hearth/etc";

/// Those files.
pub(crate) const FILE_NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Says which part of the workload's world could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what}: {source}")]
pub(crate) struct ContainerError {
    what: String,
    source: io::Error,
}

fn failed(what: impl Into<String>) -> impl FnOnce(Errno) -> ContainerError {
    let what = what.into();
    move |errno| ContainerError {
        what,
        source: errno.into(),
    }
}

const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Moves this process into the workload's root and fills it in.
///
/// # Errors
/// Returns [`ContainerError`], which names the path concerned.
pub(crate) fn enter(world: &World) -> Result<(), ContainerError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("mount propagation"))?;
    let files = detach_files()?;
    leave_agent()?;
    mount_kernel_filesystems()?;
    make_devices()?;
    world.tmpfs.iter().try_for_each(mount_tmpfs)?;
    for (name, file) in FILE_NAMES.into_iter().zip(files) {
        show_file(&Path::new("/etc").join(name), &file)?;
    }
    hide();
    Ok(())
}

/// Takes mounts of the agent's files along that do not belong to its root any more.
fn detach_files() -> Result<Vec<OwnedFd>, ContainerError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let detach = |name: &str| {
        let path = Path::new(FILES).join(name);
        open_tree(CWD, &path, flags).map_err(failed(path.display().to_string()))
    };
    FILE_NAMES.into_iter().map(detach).collect()
}

/// Makes the workload's root the root, and lets go of the agent's with everything mounted in it.
fn leave_agent() -> Result<(), ContainerError> {
    let root = |errno| failed("/")(errno);
    chdir(ROOT).map_err(root)?;
    pivot_root(".", ".").map_err(root)?;
    unmount(".", UnmountFlags::DETACH).map_err(root)?;
    chdir("/").map_err(root)
}

fn mount_kernel_filesystems() -> Result<(), ContainerError> {
    let read_only = SAFE | MountFlags::RDONLY;
    let strict = MountFlags::NOSUID | MountFlags::STRICTATIME;
    let table: [(&str, &str, MountFlags, Option<&CStr>); 7] = [
        ("/proc", "proc", SAFE, None),
        ("/sys", "sysfs", read_only, None),
        ("/sys/fs/cgroup", "cgroup2", read_only, None),
        ("/dev", "tmpfs", strict, Some(c"mode=755,size=65536k")),
        (
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            Some(c"newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ),
        ("/dev/shm", "tmpfs", SAFE, Some(c"mode=1777,size=65536k")),
        ("/dev/mqueue", "mqueue", SAFE, None),
    ];
    for (target, filesystem, flags, options) in table {
        if target != "/sys/fs/cgroup" {
            make_directories(Path::new(target)).map_err(failed(target))?;
        }
        mount(filesystem, target, filesystem, flags, options).map_err(failed(target))?;
    }
    Ok(())
}

/// Mounts a file system in memory. Without a mode of its own it takes that of the directory it covers, as runc does.
fn mount_tmpfs(tmpfs: &Tmpfs) -> Result<(), ContainerError> {
    let path = Path::new(OsStr::from_bytes(&tmpfs.path));
    let name = || path.display().to_string();
    let covered = rustix::fs::stat(path).ok();
    make_directories(path).map_err(failed(name()))?;
    let flags = [
        (!tmpfs.executable, MountFlags::NOEXEC),
        (!tmpfs.set_uid, MountFlags::NOSUID),
        (!tmpfs.devices, MountFlags::NODEV),
    ];
    let set = flags.into_iter().filter_map(|(set, flag)| set.then_some(flag));
    let flags = set.fold(MountFlags::empty(), MountFlags::union);
    let options = CString::new(tmpfs.options.as_str()).map_err(|_| failed(name())(Errno::INVAL))?;
    mount("tmpfs", path, "tmpfs", flags, Some(options.as_c_str())).map_err(failed(name()))?;
    if let Some(covered) = covered.filter(|_| !tmpfs.options.contains("mode=")) {
        rustix::fs::chmod(path, Mode::from_raw_mode(covered.st_mode & 0o7777)).map_err(failed(name()))?;
    }
    if tmpfs.read_only {
        mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | flags, c"").map_err(failed(name()))?;
    }
    Ok(())
}

/// Makes the root, and the agent's files in /etc, read-only; last, since directories may have to be made before.
///
/// # Errors
/// Returns [`ContainerError`], which names the path concerned.
pub(crate) fn seal() -> Result<(), ContainerError> {
    let read_only = MountFlags::BIND | MountFlags::RDONLY;
    let files = FILE_NAMES.map(|name| format!("/etc/{name}"));
    for path in files.iter().map(String::as_str).chain(["/"]) {
        mount_remount(path, read_only | MountFlags::NOATIME, c"").map_err(failed(path))?;
    }
    Ok(())
}

fn make_devices() -> Result<(), ContainerError> {
    let all = Mode::from_raw_mode(0o666);
    let devices = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    let dev = openat(
        CWD,
        "/dev",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let dev = dev.map_err(failed("/dev"))?;
    for (name, major, minor) in devices {
        let path = || format!("/dev/{name}");
        mknodat(&dev, name, FileType::CharacterDevice, all, makedev(major, minor)).map_err(failed(path()))?;
        // The mask of this process has taken bits away.
        rustix::fs::chmodat(&dev, name, all, AtFlags::empty()).map_err(failed(path()))?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("/proc/kcore", "core"),
        ("pts/ptmx", "ptmx"),
    ];
    for (to, name) in links {
        symlinkat(to, &dev, name).map_err(failed(format!("/dev/{name}")))?;
    }
    let tty = rustix::fs::chownat(&dev, "tty", None, Some(Gid::from_raw(5)), AtFlags::empty());
    tty.map_err(failed("/dev/tty"))
}

/// Puts a file of the agent's over one of the image's, which is made if it is not there.
fn show_file(target: &Path, file: &OwnedFd) -> Result<(), ContainerError> {
    let name = || target.display().to_string();
    make_file(target).map_err(failed(name()))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
    move_mount(file.as_fd(), "", CWD, target, flags).map_err(failed(name()))
}

/// Makes a file where there is none; through a link that leads nowhere, the file it names (as in images made for
/// systemd, where /etc/resolv.conf leads into /run).
fn make_file(path: &Path) -> Result<(), Errno> {
    let create = |path: &Path| {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat(CWD, path, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match create(path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    make_directories(parent)?;
    if let Ok(link) = fs::read_link(path) {
        let target = parent.join(link);
        make_directories(target.parent().unwrap_or(Path::new("/")))?;
    }
    create(path)
}

/// Makes a directory and those above it, where they are missing; a link to a directory will do.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn make_directories(path: &Path) -> Result<(), Errno> {
    if path.is_dir() {
        return Ok(());
    }
    for ancestor in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
        match mkdirat(CWD, ancestor, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    if path.is_dir() { Ok(()) } else { Err(Errno::NOTDIR) }
}

/// Covers what docker covers in /proc and /sys. What a kernel does not have needs no cover.
fn hide() {
    const HIDDEN: [&str; 12] = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ];
    const READ_ONLY: [&str; 5] = [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ];
    for path in HIDDEN.map(PathBuf::from) {
        // Missing ones fail here, which is as good.
        let _ = if path.is_dir() {
            mount("tmpfs", &path, "tmpfs", SAFE | MountFlags::RDONLY, None)
        } else {
            mount_bind("/dev/null", &path)
        };
    }
    for path in READ_ONLY {
        if mount_bind(path, path).is_ok() {
            let _ = mount_remount(path, MountFlags::BIND | MountFlags::RDONLY | SAFE, c"");
        }
    }
}

/// Shows the terminal of this path as /dev/console.
///
/// # Errors
/// Returns [`ContainerError`].
pub(crate) fn show_console(terminal: &CStr) -> Result<(), ContainerError> {
    make_file(Path::new("/dev/console")).map_err(failed("/dev/console"))?;
    mount_bind(terminal, c"/dev/console").map_err(failed("/dev/console"))
}
