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
    if let Role::Guard(Some(directory)) = role {
        let opened = PathFd::new(directory).map_err(|source| ConfineError::Directory {
            directory: directory.display().to_string(),
            source,
        })?;
        let replace: BitFlags<AccessFs> =
            AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::RemoveFile;
        let rule = PathBeneath::new(opened, replace);
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

fn rules(role: Role<'_>) -> Result<BTreeMap<libc::c_long, Vec<SeccompRule>>, seccompiler::Error> {
    let own: &[libc::c_long] = match role {
        Role::Pages => &PAGES,
        Role::Guard(_) => &GUARD,
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
