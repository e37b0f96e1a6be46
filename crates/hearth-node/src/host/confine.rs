//! Takes away from this process what it needs no more: capabilities, files, networks, system calls.
//!
//! For helpers with one thread. Landlock is used as far as the kernel has it; seccomp it must have.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What a process is left with.
#[derive(Debug, Clone, Copy)]
pub enum Role<'p> {
    /// Serves page faults: no file, and on sockets and processes only what it was given or accepts.
    Pages,
    /// Kills processes that it was given, and replaces files in one directory.
    Guard(Option<&'p Path>),
    /// Carries frames between files that it is given by whoever connects, and removes its socket, in this directory.
    Frames(&'p Path),
}

/// Says why a process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Capabilities stay.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// Files and networks stay.
    #[error("cannot confine the process to its files (landlock)")]
    Files(#[source] landlock::RulesetError),
    /// The directory that is to stay cannot be opened.
    #[error("cannot open {directory}")]
    Directory {
        /// Its path.
        directory: String,
        /// Why.
        #[source]
        source: landlock::PathFdError,
    },
    /// System calls stay.
    #[error("cannot confine the process to its system calls (seccomp)")]
    Calls(#[source] seccompiler::Error),
}

/// Confines this process for good.
///
/// # Errors
/// [`ConfineError`]; the process is to end then.
pub fn confine(role: Role<'_>) -> Result<(), ConfineError> {
    drop_capabilities().map_err(ConfineError::Capabilities)?;
    confine_files(role)?;
    confine_calls(role).map_err(ConfineError::Calls)
}

/// Keeps the right to kill what runs as another user, if it was there.
fn drop_capabilities() -> io::Result<()> {
    let have = rustix::thread::capabilities(None)?.permitted;
    let kept = have & CapabilitySet::KILL;
    Ok(rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?)
}

fn confine_files(role: Role<'_>) -> Result<(), ConfineError> {
    let files = AccessFs::from_all(ABI::V5);
    let mut rules = Ruleset::default()
        .handle_access(files)
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp))
        .and_then(Ruleset::create)
        .map_err(ConfineError::Files)?;
    let replace = AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::RemoveFile;
    let place: Option<(&Path, BitFlags<AccessFs>)> = match role {
        Role::Pages | Role::Guard(None) => None,
        Role::Guard(Some(directory)) => Some((directory, replace)),
        Role::Frames(directory) => Some((directory, AccessFs::RemoveFile.into())),
    };
    if let Some((directory, access)) = place {
        let opened = PathFd::new(directory).map_err(|source| ConfineError::Directory {
            directory: directory.display().to_string(),
            source,
        })?;
        let rule = PathBeneath::new(opened, access);
        rules = rules.add_rule(rule).map_err(ConfineError::Files)?;
    }
    let status = rules.restrict_self().map_err(ConfineError::Files)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no landlock: only system calls are confined");
    }
    Ok(())
}

fn confine_calls(role: Role<'_>) -> Result<(), seccompiler::Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules(role)?, kill, allow, architecture)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)
}

/// What any process with one thread does: memory, time, words to the log, its end.
const COMMON: [libc::c_long; 28] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_newfstatat,
    libc::SYS_pidfd_send_signal,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_write,
    libc::SYS_writev,
];

const PAGES: [libc::c_long; 9] = [
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_ftruncate,
    libc::SYS_getsockopt,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    libc::SYS_sendmsg,
];

const GUARD: [libc::c_long; 9] = [
    libc::SYS_fchmod,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_waitid,
];

const FRAMES: [libc::c_long; 6] = [
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_sendto,
    libc::SYS_unlink,
];

fn rules(role: Role<'_>) -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, seccompiler::Error> {
    let own: &[libc::c_long] = match role {
        Role::Pages => &PAGES,
        Role::Guard(_) => &GUARD,
        Role::Frames(_) => &FRAMES,
    };
    let mut rules: BTreeMap<_, _> = COMMON.iter().chain(own).map(|call| (*call, Vec::new())).collect();
    // Memory never becomes code.
    let no_code = |argument| {
        let mask = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            mask,
            0,
        )?])
    };
    rules.insert(libc::SYS_mmap, vec![no_code(2)?]);
    rules.insert(libc::SYS_mprotect, vec![no_code(2)?]);
    if matches!(role, Role::Pages) {
        let of = |request: u32| {
            let (length, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            SeccompRule::new(vec![SeccompCondition::new(1, length, equal, u64::from(request))?])
        };
        let requests = [of(UFFDIO_COPY)?, of(UFFDIO_ZEROPAGE)?, of(UFFDIO_WAKE)?];
        rules.insert(libc::SYS_ioctl, requests.into());
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus};

    use super::*;

    /// Says to the test below what to do, and where: then it is the process that it has started.
    const DEED: &str = "HEARTH_TEST_DEED";
    const PLACE: &str = "HEARTH_TEST_PLACE";

    const SOCKET: &str = "switch";

    /// Does one thing as a switch, in a process of its own; tells how that ends.
    fn ends(deed: &str, place: &Path) -> ExitStatus {
        let this = "host::confine::tests::a_switch_removes_its_socket_and_does_nothing_else";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", this]).env(DEED, deed).env(PLACE, place);
        again.output().unwrap().status
    }

    /// Ends this process: with 0 when that could be done.
    fn attempt(deed: &str, place: &Path) -> ! {
        let (own, other) = (place.join("own"), place.join("other"));
        confine(Role::Frames(&own)).unwrap();
        let done = match deed {
            "remove" => std::fs::remove_file(own.join(SOCKET)),
            "remove another" => std::fs::remove_file(other.join(SOCKET)),
            "read" => File::open(own.join(SOCKET)).map(drop),
            "connect" => UnixStream::connect(own.join(SOCKET)).map(drop),
            "signal" => {
                rustix::process::test_kill_process(rustix::process::getpid()).map_err(io::Error::from)
            }
            _ => Command::new("/bin/true").status().map(drop),
        };
        std::process::exit(done.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0))
    }

    #[test]
    fn a_switch_removes_its_socket_and_does_nothing_else() {
        if let (Ok(deed), Some(place)) = (std::env::var(DEED), std::env::var_os(PLACE)) {
            attempt(&deed, Path::new(&place));
        }
        let root = tempfile::tempdir().unwrap();
        for name in ["own", "other"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
            File::create(root.path().join(name).join(SOCKET)).unwrap();
        }
        for deed in ["read", "connect", "signal", "start"] {
            let end = ends(deed, root.path());
            assert_eq!(end.signal(), Some(libc::SIGSYS), "{deed}: {end}");
        }
        assert_eq!(ends("remove", root.path()).code(), Some(0));
        assert!(!root.path().join("own").join(SOCKET).exists());
        match super::super::fence::Fence::around([]) {
            Ok(Some(_)) => {
                assert_eq!(ends("remove another", root.path()).code(), Some(libc::EACCES));
                assert!(root.path().join("other").join(SOCKET).exists());
            }
            _ => crate::host::skip::skipped("this kernel has no landlock"),
        }
    }
}
