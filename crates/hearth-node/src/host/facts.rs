//! Facts about the host that can be had without changing it: processor, memory, kernel features, file systems.
//!
//! Each function answers one question with one look; what follows from the answer is the caller's matter (the
//! doctor's, and the choice of a driver).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hearth_machine::ByteSize;
use rustix::fs::{StatVfs, ioctl_ficlone, statfs, statvfs};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;
use rustix::thread::UnshareFlags;

/// Directories in which a system program may be although `PATH` does not name them.
const SYSTEM_DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The magic numbers of file systems (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Finds a program the way a shell would, and in the directories of system programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// What `/proc/cpuinfo` says about the first processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processor {
    /// Its name, as in `AMD EPYC 7763 64-Core Processor`.
    pub model: String,
    /// The kernel's names of its features, as in `avx2`.
    pub flags: Vec<String>,
}

impl Processor {
    /// Reads it.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/cpuinfo")?))
    }

    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
            Some(value.trim().to_owned())
        };
        let flags = field("flags").unwrap_or_default();
        Self {
            model: field("model name").unwrap_or_else(|| "unknown".to_owned()),
            flags: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// Tells whether it has a feature.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|known| known == flag)
    }
}

/// Returns how many processors this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: ByteSize,
    /// What programs could take without swapping.
    pub available: ByteSize,
}

impl Memory {
    /// Reads `/proc/meminfo`.
    ///
    /// # Errors
    /// When it is not there, or lacks a field.
    pub fn read() -> io::Result<Self> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024).map(ByteSize::from_bytes)
        };
        Some(Self {
            total: field("MemTotal:")?,
            available: field("MemAvailable:")?,
        })
    }
}

/// Whether guests can have KVM of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nested {
    /// They can.
    On,
    /// The module could, and was told not to.
    Off,
    /// No KVM module says anything about it.
    Unknown,
}

/// Tells whether KVM offers itself to guests.
pub fn nested_virtualization() -> Nested {
    let setting =
        |module: &str| std::fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok();
    match setting("kvm_intel").or_else(|| setting("kvm_amd")) {
        Some(text) if matches!(text.trim(), "1" | "Y") => Nested::On,
        Some(_) => Nested::Off,
        None => Nested::Unknown,
    }
}

/// The file system that a directory is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What it holds in all.
    pub size: ByteSize,
    /// What can still be written.
    pub free: ByteSize,
    /// Whether what is written stays in memory.
    pub in_memory: bool,
}

impl Place {
    /// Looks at a directory that exists.
    ///
    /// # Errors
    /// When it does not, or may not be looked at.
    pub fn of(directory: &Path) -> io::Result<Self> {
        let StatVfs {
            f_blocks,
            f_bavail,
            f_frsize,
            ..
        } = statvfs(directory)?;
        let magic = magic(directory)?;
        Ok(Self {
            size: ByteSize::from_bytes(f_blocks.saturating_mul(f_frsize)),
            free: ByteSize::from_bytes(f_bavail.saturating_mul(f_frsize)),
            in_memory: [TMPFS_MAGIC, RAMFS_MAGIC].contains(&magic),
        })
    }
}

fn magic(path: &Path) -> io::Result<u64> {
    // The kernel's type is signed, and the numbers are not.
    Ok(u64::from(statfs(path)?.f_type as u32))
}

/// Finds the nearest directory on the way to the root that is there: where a path that is not made yet will lie.
pub fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors()
        .find(|ancestor| ancestor.is_dir())
        .unwrap_or(Path::new("/"))
}

/// Tells whether a file below a directory can share its blocks with a copy (`FICLONE`), by trying it on two files
/// without names.
///
/// # Errors
/// When the files cannot be made; a file system that cannot do it is no error.
pub fn reflink(directory: &Path) -> io::Result<bool> {
    let (mut from, to) = (
        tempfile::tempfile_in(directory)?,
        tempfile::tempfile_in(directory)?,
    );
    from.write_all(&[1; 4096])?;
    match ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Who may serve page faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Userfaultfd {
    /// This user may, those of the kernel (that is, of KVM) too.
    Full,
    /// This user may for faults of programs only.
    UserModeOnly,
    /// Nobody: the kernel lacks it, or forbids it to this user.
    None,
}

/// Tries `userfaultfd`.
pub fn userfaultfd() -> Userfaultfd {
    // A constant of the kernel (UFFD_USER_MODE_ONLY) that rustix does not name.
    let user_mode_only = UserfaultfdFlags::from_bits_retain(1);
    // SAFETY: the descriptor is closed at once; no memory is registered with it.
    let opens = |flags| unsafe { rustix::mm::userfaultfd(flags) }.is_ok();
    if opens(UserfaultfdFlags::CLOEXEC) {
        Userfaultfd::Full
    } else if opens(UserfaultfdFlags::CLOEXEC | user_mode_only) {
        Userfaultfd::UserModeOnly
    } else {
        Userfaultfd::None
    }
}

/// Tells whether this user can make user namespaces: the kernel's limit, and the switches that distributions add.
///
/// It reads settings and tries nothing: a process with threads cannot make one.
pub fn user_namespaces() -> bool {
    let setting = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let root = rustix::process::geteuid().is_root();
    Path::new("/proc/self/ns/user").exists()
        && setting("user/max_user_namespaces").unwrap_or(0) > 0
        && (root
            || (setting("kernel/unprivileged_userns_clone") != Some(0)
                && setting("kernel/apparmor_restrict_unprivileged_userns") != Some(1)))
}

/// Tries to make a network and a mount namespace, in a thread that ends with them.
///
/// # Errors
/// What the kernel said.
pub fn network_and_mount_namespaces() -> io::Result<()> {
    let thread = std::thread::Builder::new().name("namespaces".to_owned());
    let attempt = || {
        // SAFETY: only namespaces are unshared, of a thread that does nothing else and ends here; descriptors, which
        // the safety of others rests on, stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
    };
    let ended = thread.spawn(attempt)?.join();
    Ok(ended.unwrap_or(Err(Errno::CANCELED))?)
}

/// Which cgroup hierarchy is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// The unified one.
    V2,
    /// One per controller.
    V1,
    /// One per controller, and the unified one without controllers beside them.
    Hybrid,
    /// None.
    None,
}

/// The cgroups of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// Which hierarchy.
    pub version: CgroupVersion,
    /// The controllers that can be used in it, as in `memory`.
    pub controllers: Vec<String>,
}

impl Cgroups {
    /// Looks at `/sys/fs/cgroup`.
    pub fn read() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = |path: &Path| magic(path).is_ok_and(|magic| magic == CGROUP2_MAGIC);
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        if is_v2(root) {
            let controllers = text("/sys/fs/cgroup/cgroup.controllers");
            return Self {
                version: CgroupVersion::V2,
                controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            };
        }
        let controllers = parse_v1_controllers(&text("/proc/cgroups"));
        let mounted = |name: &String| root.join(name).is_dir();
        let controllers: Vec<String> = controllers.into_iter().filter(mounted).collect();
        let version = match (is_v2(&root.join("unified")), controllers.is_empty()) {
            (true, _) => CgroupVersion::Hybrid,
            (false, false) => CgroupVersion::V1,
            (false, true) => CgroupVersion::None,
        };
        Self { version, controllers }
    }
}

/// Reads the enabled controllers out of `/proc/cgroups`: `name hierarchy count enabled`.
fn parse_v1_controllers(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, enabled) = (words.next()?, words.nth(2)?);
            (enabled == "1").then(|| name.to_owned())
        })
        .collect()
}

/// Tells whether the kernel filters system calls (seccomp with BPF).
pub fn seccomp() -> bool {
    Path::new("/proc/sys/kernel/seccomp/actions_avail").exists()
}

/// Asks the kernel for the version of its landlock interface; `None` when landlock is off or not there.
pub fn landlock_abi() -> Option<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel takes no pointer and makes nothing; it returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    u32::try_from(version).ok().filter(|&version| version > 0)
}

/// Tries to open a device for reading and writing.
///
/// # Errors
/// What the kernel said.
pub fn open_device(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_is_read() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.50GHz\nflags\t\t: fpu cx16 bmi2\n\nprocessor\t: 1\n\
                    model name\t: Other\nflags\t\t: fpu\n";
        let processor = Processor::parse(text);
        assert_eq!(processor.model, "Some CPU @ 2.50GHz");
        assert!(processor.has("bmi2") && !processor.has("bmi"));
    }

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24683612 kB\nMemFree:  1 kB\nMemAvailable:   24000000 kB\n";
        let memory = Memory::parse(text).unwrap();
        assert_eq!(memory.total.bytes(), 24_683_612 * 1024);
        assert_eq!(Memory::parse("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn disabled_controllers_are_left_out() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t0\t1\t0\n";
        assert_eq!(parse_v1_controllers(text), ["cpu"]);
    }

    #[test]
    fn a_tmpfs_is_told_from_a_disk() {
        assert!(Place::of(Path::new("/dev/shm")).unwrap().in_memory);
        assert!(!Place::of(Path::new("/proc")).unwrap().in_memory);
        assert!(Place::of(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn the_place_of_what_is_not_made_yet_is_its_ancestors() {
        assert_eq!(
            existing_ancestor(Path::new("/proc/none/at/all")),
            Path::new("/proc")
        );
    }

    #[test]
    fn a_program_is_found_although_path_lacks_its_directory() {
        assert!(find_program("ls").is_some());
        assert_eq!(find_program("no-such-program"), None);
    }
}
