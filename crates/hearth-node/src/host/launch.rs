//! Starts a virtual machine monitor so that it outlives the node and can reach little of the host.
//!
//! Owns what happens between the node and the monitor's first instruction: a session of its own, an unprivileged user,
//! an empty network, no inherited descriptors, no way to gain privileges. Called by the drivers in `vmm`. Programs
//! that are run to their end go through [`super::command`] instead.
//!
//! The child is made the way Go's `forkExec` makes it: `clone(CLONE_VM | CLONE_VFORK)`. It borrows the node's memory until
//! it execs, so no page tables are copied and a big node starts machines as fast as a small one. The price is that the
//! child may do nothing but raw system calls: no allocation, no lock, no libc wrapper that keeps state. (glibc's
//! `setuid`, for one, signals every thread it knows, and those would be the node's.)

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ambient;
use super::fence::Fence;
use super::network_namespace::NetworkNamespace;
use super::process::Process;

/// The first descriptor that a launched program is given beyond the standard three.
pub const FIRST_PASSED_FD: RawFd = 3;

/// Copies of the passed descriptors are parked from here on while they are moved into place.
const PARKED_FD: RawFd = 512;

/// The child's stack until it execs, in bytes. It makes system calls only; a page would do.
const CHILD_STACK: usize = 64 << 10;

/// A user of the host that owns one machine's files and runs its monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What to start, and what it is left with.
#[derive(Debug)]
pub struct Launch {
    /// The program, by absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub args: Vec<OsString>,
    /// Where its standard error goes, and its standard output unless that goes elsewhere.
    pub log: File,
    /// Where its standard output goes.
    pub output: Option<OwnedFd>,
    /// Descriptors that it is given as [`FIRST_PASSED_FD`] and up, in this order.
    pub passed: Vec<OwnedFd>,
    /// The user that it runs as, when not the node's; only root may ask for one.
    pub user: Option<HostUser>,
    /// Supplementary groups, when `user` is set: none, or the group of a device that it must open.
    pub groups: Vec<u32>,
    /// The network that it sees, when not the node's.
    pub network: Option<Arc<NetworkNamespace>>,
    /// Where it works, when not in `/`.
    pub directory: Option<PathBuf>,
    /// What it alone sees elsewhere than it is; only root may ask for that.
    pub mounts: Vec<Mount>,
    /// What it may reach, when not all that its user may.
    pub fence: Option<Fence>,
    /// How gladly the kernel ends it when memory runs out: 0 as the node, 1000 first of all.
    pub oom_score_adj: i16,
}

impl Launch {
    /// Says to start a program as the node is: its user, its network, its files.
    pub const fn of(program: PathBuf, args: Vec<OsString>, log: File) -> Self {
        Self {
            program,
            args,
            log,
            output: None,
            passed: Vec::new(),
            user: None,
            groups: Vec::new(),
            network: None,
            directory: None,
            mounts: Vec::new(),
            fence: None,
            oom_score_adj: 0,
        }
    }
}

/// A file that a program sees at another place, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file.
    pub from: PathBuf,
    /// An empty file, which it covers.
    pub to: PathBuf,
}

/// Says why a program was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program's path or an argument cannot be passed on.
    #[error("an argument for {} contains a NUL byte", program.display())]
    NulByte {
        /// The program.
        program: PathBuf,
    },
    /// More descriptors are passed than can be placed.
    #[error("{count} descriptors are too many to pass to {}", program.display())]
    TooManyDescriptors {
        /// The program.
        program: PathBuf,
        /// How many there were.
        count: usize,
    },
    /// Something that has to be there before the child is not.
    #[error("cannot prepare the start of {}", program.display())]
    Prepare {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The child failed before it became the program.
    #[error("cannot start {}: {step} failed", program.display())]
    Child {
        /// The program.
        program: PathBuf,
        /// The system call that failed, with what it was for.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The program was started, and cannot be watched.
    #[error("lost sight of {} right after its start", program.display())]
    Watch {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts the program and returns once it has been executed, so that a missing program is an error here.
///
/// Blocks for as long as the kernel takes to execute a file: about a millisecond when the file is in memory.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn launch(launch: Launch) -> Result<Process, LaunchError> {
    let inside = launch.network.clone();
    let namespaces = inside.as_deref().map(NetworkNamespace::descriptors);
    start(launch, namespaces.unwrap_or_default(), None)
}

/// Starts a program as [`launch`] does that stays out of a namespace and has [`ambient::RIGHTS`] over it. For a node that is not
/// root's: what root starts has all rights.
///
/// # Errors
/// [`LaunchError`]; nothing runs then.
pub fn launch_beside(launch: Launch, namespace: &NetworkNamespace) -> Result<Process, LaunchError> {
    let owner = namespace.owner().into_iter().collect();
    start(launch, owner, Some(ambient::RIGHTS))
}

fn start(launch: Launch, namespaces: Vec<RawFd>, rights: Option<u64>) -> Result<Process, LaunchError> {
    let program = launch.program.clone();
    let prepare = |source| LaunchError::Prepare {
        program: program.clone(),
        source,
    };
    if launch.passed.len() >= (PARKED_FD - FIRST_PASSED_FD) as usize {
        return Err(LaunchError::TooManyDescriptors {
            program: program.clone(),
            count: launch.passed.len(),
        });
    }
    let strings = Strings::of(&launch).ok_or_else(|| LaunchError::NulByte {
        program: program.clone(),
    })?;
    let output = launch
        .output
        .as_ref()
        .map_or(launch.log.as_raw_fd(), AsRawFd::as_raw_fd);
    let null = File::open("/dev/null").map_err(prepare)?;
    let oom_score_adj = launch.oom_score_adj.to_string();
    let lifeline = launch.network.as_deref().and_then(NetworkNamespace::lifeline);
    let passed: Vec<RawFd> = launch
        .passed
        .iter()
        .map(AsRawFd::as_raw_fd)
        .chain(lifeline)
        .collect();
    let standard = [null.as_raw_fd(), output, launch.log.as_raw_fd()];
    let fence = launch.fence.as_ref().map(|fence| fence.0.as_raw_fd());
    let needed = standard.iter().chain(&passed).chain(&namespaces).chain(&fence);
    let mut child = Child {
        foreign: between(needed.copied().collect()),
        program: strings.program.as_ptr(),
        argv: strings.argv(),
        envp: [c"LC_ALL=C.UTF-8".as_ptr(), std::ptr::null()],
        standard,
        parked: vec![0; passed.len() + 3],
        passed,
        namespaces,
        rights,
        mounts: strings.mounts(),
        fence,
        directory: strings.directory.as_ptr(),
        user: launch.user,
        groups: &launch.groups,
        oom_score_adj: oom_score_adj.as_bytes(),
        failure: None,
    };
    let pidfd = child.start().map_err(prepare)?;
    if let Some((step, errno)) = child.failure {
        reap(&pidfd);
        return Err(LaunchError::Child {
            program,
            step,
            source: io::Error::from_raw_os_error(errno),
        });
    }
    Process::of_child(pidfd).map_err(|source| LaunchError::Watch { program, source })
}

/// Takes the exit status of a child that has already ended, so that no zombie stays.
fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// The program's name, its arguments and its paths in the form that the kernel reads.
struct Strings {
    program: CString,
    args: Vec<CString>,
    directory: CString,
    mounts: Vec<(CString, CString)>,
}

impl Strings {
    fn of(launch: &Launch) -> Option<Self> {
        let c_string = |text: &OsStr| CString::new(text.as_bytes()).ok();
        let path = |path: &Path| c_string(path.as_os_str());
        let mount = |mount: &Mount| Some((path(&mount.from)?, path(&mount.to)?));
        Some(Self {
            program: path(&launch.program)?,
            args: launch
                .args
                .iter()
                .map(|arg| c_string(arg))
                .collect::<Option<_>>()?,
            directory: path(launch.directory.as_deref().unwrap_or(Path::new("/")))?,
            mounts: launch.mounts.iter().map(mount).collect::<Option<_>>()?,
        })
    }

    fn mounts(&self) -> Vec<[*const libc::c_char; 2]> {
        let pointers = self.mounts.iter().map(|(from, to)| [from.as_ptr(), to.as_ptr()]);
        pointers.collect()
    }

    fn argv(&self) -> Vec<*const libc::c_char> {
        std::iter::once(&self.program)
            .chain(&self.args)
            .map(|text| text.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect()
    }
}

/// What the child reads before it execs, all of it made beforehand, and the little that it writes.
struct Child<'a> {
    /// The descriptors that it has no use for, from one to another.
    foreign: Vec<[RawFd; 2]>,
    program: *const libc::c_char,
    argv: Vec<*const libc::c_char>,
    envp: [*const libc::c_char; 2],
    standard: [RawFd; 3],
    passed: Vec<RawFd>,
    /// Where the copies of `standard` and `passed` are, as long as they together.
    parked: Vec<usize>,
    namespaces: Vec<RawFd>,
    /// What it keeps of its rights over them.
    rights: Option<u64>,
    /// From where to where.
    mounts: Vec<[*const libc::c_char; 2]>,
    fence: Option<RawFd>,
    directory: *const libc::c_char,
    user: Option<HostUser>,
    groups: &'a [u32],
    oom_score_adj: &'a [u8],
    failure: Option<(&'static str, i32)>,
}

impl Child<'_> {
    /// Makes the child and waits until it has become the program or has written its failure.
    fn start(&mut self) -> io::Result<OwnedFd> {
        let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];
        let top = stack.as_mut_ptr_range().end;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut pidfd: RawFd = -1;
        let signals = AllSignalsBlocked::new();
        // SAFETY: `run_child` runs on a stack of its own that outlives it, since CLONE_VFORK suspends this thread until the
        // child has executed a program or ended; until then `self` is the child's alone. It makes raw system calls only, so it
        // takes no lock and changes no state that this process keeps, apart from `self.failure` and this thread's errno.
        let pid = unsafe {
            libc::clone(
                run_child,
                top.cast(),
                flags,
                std::ptr::from_mut(self).cast(),
                &raw mut pidfd,
            )
        };
        let outcome = if pid < 0 {
            Err(io::Error::last_os_error())
        } else {
            // SAFETY: clone succeeded with CLONE_PIDFD, so the kernel has stored a new descriptor that nobody else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
        };
        drop(signals);
        outcome
    }
}

/// Keeps signals from this thread, and so from the child, whose handlers would run in the node's memory.
pub(super) struct AllSignalsBlocked {
    before: libc::sigset_t,
}

impl AllSignalsBlocked {
    pub(super) fn new() -> Self {
        // SAFETY: both sets are valid memory that the calls fill; a signal set of zeros is a valid value before that.
        unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for AllSignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that pthread_sigmask returned.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut());
        }
    }
}

type Step = Result<(), (&'static str, i32)>;

extern "C" fn run_child(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the argument is the `Child` that `start` passed, which waits in the parent while this runs.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    if let Err(failure) = become_program(child) {
        child.failure = Some(failure);
    }
    127
}

fn become_program(child: &mut Child<'_>) -> Step {
    close_foreign(&child.foreign)?;
    reset_signal_handlers();
    call("setsid (own session)", libc::SYS_setsid, [0; 4])?;
    write_oom_score_adj(child.oom_score_adj)?;
    for descriptor in &child.namespaces {
        call(
            "setns (empty network)",
            libc::SYS_setns,
            [arg(*descriptor), 0, 0, 0],
        )?;
    }
    mount_files(child)?;
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let core = libc::RLIMIT_CORE as usize;
    call(
        "setrlimit (no core file)",
        libc::SYS_prlimit64,
        [0, core, address(&no_core), 0],
    )?;
    if let Some(fence) = child.fence {
        // The kernel wants it in this order.
        renounce_privileges()?;
        let fence = [arg(fence), 0, 0, 0];
        call("landlock (its files)", libc::SYS_landlock_restrict_self, fence)?;
    }
    place_descriptors(child)?;
    call("chdir", libc::SYS_chdir, [child.directory as usize, 0, 0, 0])?;
    call("umask", libc::SYS_umask, [0o077, 0, 0, 0])?;
    if let Some(user) = child.user {
        become_user(user, child.groups)?;
    }
    if let Some(rights) = child.rights {
        ambient::keep(rights).map_err(|errno| ("capset (its rights over a network)", errno))?;
    }
    renounce_privileges()?;
    let nothing_blocked = 0_u64;
    let set_mask = [
        libc::SIG_SETMASK as usize,
        address(&nothing_blocked),
        0,
        size_of::<u64>(),
    ];
    call("sigprocmask", libc::SYS_rt_sigprocmask, set_mask)?;
    let (argv, envp) = (child.argv.as_ptr() as usize, child.envp.as_ptr() as usize);
    call(
        "execve",
        libc::SYS_execve,
        [child.program as usize, argv, envp, 0],
    )
}

/// Returns the ranges of descriptors that none of these is in.
fn between(mut needed: Vec<RawFd>) -> Vec<[RawFd; 2]> {
    needed.sort_unstable();
    needed.dedup();
    let from = std::iter::once(0).chain(needed.iter().map(|used| used + 1));
    let to = needed.iter().map(|used| used - 1).chain([RawFd::MAX]);
    from.zip(to)
        .filter(|(from, to)| from <= to)
        .map(|(from, to)| [from, to])
        .collect()
}

/// Gives up what is the node's alone before anything that takes time. Should the node die meanwhile, its socket and its lock would be
/// this child's, and whoever wants the next node would wait for one that answers nobody.
fn close_foreign(foreign: &[[RawFd; 2]]) -> Step {
    for [from, to] in foreign {
        let range = [arg(*from), arg(*to), 0, 0];
        call("close_range (the node's)", libc::SYS_close_range, range)?;
    }
    Ok(())
}

/// Has no program that it executes gain any right, for good.
fn renounce_privileges() -> Step {
    let no_new_privileges = libc::PR_SET_NO_NEW_PRIVS as usize;
    let change = [no_new_privileges, 1, 0, 0];
    call("prctl (no new privileges)", libc::SYS_prctl, change)
}

/// Mounts files onto others in a mount namespace of the child's own, so that nobody else sees it and they go with it.
fn mount_files(child: &Child<'_>) -> Step {
    if child.mounts.is_empty() {
        return Ok(());
    }
    let namespace = libc::CLONE_NEWNS as usize;
    call("unshare (own mounts)", libc::SYS_unshare, [namespace, 0, 0, 0])?;
    let private = (libc::MS_REC | libc::MS_PRIVATE) as usize;
    let root = c"/".as_ptr() as usize;
    call("mount (own mounts)", libc::SYS_mount, [0, root, 0, private])?;
    for [from, to] in &child.mounts {
        let bind = [*from as usize, *to as usize, 0, libc::MS_BIND as usize];
        call("mount (its files)", libc::SYS_mount, bind)?;
    }
    Ok(())
}

/// Lets every signal have its default effect again: exec keeps what is ignored, and a handler of the node's must not run here.
fn reset_signal_handlers() {
    // The kernel's `struct sigaction` of the default action: zeros, whatever the architecture's order of fields.
    let default_action = [0_u64; 4];
    for signal in 1..=64_usize {
        // SIGKILL and SIGSTOP refuse, and have their default effect already.
        let change = [signal, address(&default_action), 0, size_of::<u64>()];
        let _ = call("sigaction", libc::SYS_rt_sigaction, change);
    }
}

fn write_oom_score_adj(score: &[u8]) -> Step {
    let step = "writing oom_score_adj";
    let path = c"/proc/self/oom_score_adj";
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
    let open = [arg(libc::AT_FDCWD), path.as_ptr() as usize, flags, 0];
    let descriptor = value(step, libc::SYS_openat, open)?;
    call(
        step,
        libc::SYS_write,
        [descriptor, score.as_ptr() as usize, score.len(), 0],
    )?;
    call(step, libc::SYS_close, [descriptor, 0, 0, 0])
}

/// Moves the descriptors to 0, 1, 2 and [`FIRST_PASSED_FD`] and up, by way of numbers out of the way, and has the others closed that
/// were needed until here.
fn place_descriptors(child: &mut Child<'_>) -> Step {
    let step = "placing descriptors";
    let duplicate = libc::F_DUPFD_CLOEXEC as usize;
    let all = child.standard.iter().chain(&child.passed);
    for (from, parked) in all.zip(child.parked.iter_mut()) {
        *parked = value(
            step,
            libc::SYS_fcntl,
            [arg(*from), duplicate, PARKED_FD as usize, 0],
        )?;
    }
    for (to, parked) in child.parked.iter().enumerate() {
        call(step, libc::SYS_dup3, [*parked, to, 0, 0])?;
    }
    let rest = child.parked.len();
    let limit = u32::MAX as usize;
    call("close_range", libc::SYS_close_range, [rest, limit, 0, 0])
}

fn become_user(user: HostUser, groups: &[u32]) -> Step {
    let (uid, gid) = (user.uid as usize, user.gid as usize);
    let list = [groups.len(), groups.as_ptr() as usize, 0, 0];
    call("setgroups", libc::SYS_setgroups, list)?;
    call("setresgid", libc::SYS_setresgid, [gid, gid, gid, 0])?;
    call("setresuid", libc::SYS_setresuid, [uid, uid, uid, 0])
}

fn arg(number: i32) -> usize {
    number as isize as usize
}

fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value) as usize
}

fn call(step: &'static str, number: libc::c_long, arguments: [usize; 4]) -> Step {
    value(step, number, arguments).map(|_| ())
}

/// Makes one raw system call in the child.
fn value(
    step: &'static str,
    number: libc::c_long,
    [a, b, c, d]: [usize; 4],
) -> Result<usize, (&'static str, i32)> {
    // SAFETY: every caller above passes what the call of that number takes: plain numbers, or the addresses of values and
    // NUL-terminated strings that live as long as the call (until exec, which copies them). The fifth argument matters to
    // prctl and mount alone, which want a zero.
    let returned = unsafe { libc::syscall(number, a, b, c, d, 0_usize) };
    usize::try_from(returned).map_err(|_| {
        // SAFETY: errno's address is this thread's own; the parent's thread, which shares it, is suspended.
        (step, unsafe { *libc::__errno_location() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_lies_between_what_is() {
        let all = [0, RawFd::MAX];
        assert_eq!(between(vec![]), [all]);
        assert_eq!(between(vec![7, 3, 7, 8]), [[0, 2], [4, 6], [9, RawFd::MAX]]);
        assert_eq!(between(vec![0, 1, 2]), [[3, RawFd::MAX]]);
    }
}
