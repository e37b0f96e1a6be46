//! The init of a workload that asked for one: PID 1 of its namespaces, which reaps orphans and passes signals on to the one
//! program it runs. The agent's own binary, executed anew under another name: so nothing of the agent's memory is in it,
//! and an image need not bring one.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

use hearth_guest_protocol::message::{Failure, FailureCode};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, getpid, setpgid, wait};
use rustix::termios::{isatty, tcsetpgrp};

use crate::program;
use crate::report::{self, Report};
use crate::sys;

/// How the agent's binary is called when it is to be an init.
pub(crate) const NAME: &CStr = c"hearth-init";

/// The descriptor by which it hears the agent's end of the report.
const REPORT: i32 = 3;

/// Opens the agent's binary, which the workload's root does not have.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn open_binary() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Replaces this process by an init that runs `file`; returns only with the error.
pub(crate) fn become_init(
    binary: BorrowedFd<'_>,
    report: BorrowedFd<'_>,
    file: CString,
    arguments: Vec<CString>,
    environment: &[CString],
) -> io::Error {
    let all: Vec<CString> = [NAME.to_owned(), file].into_iter().chain(arguments).collect();
    let placed = || -> io::Result<OwnedFd> {
        // Both above the report's number: whatever else has that is not needed any more.
        let above = |fd| rustix::io::fcntl_dupfd_cloexec(fd, REPORT + 1);
        let (binary, report) = (above(binary)?, above(report)?);
        sys::place(report.as_fd(), REPORT)?;
        Ok(binary)
    };
    match placed() {
        Ok(binary) => sys::execute_opened(binary.as_fd(), &all, environment),
        Err(error) => error,
    }
}

/// Replaces this process by an init that runs nothing; returns only with the error. The report ends with this program.
pub(crate) fn become_holder(binary: BorrowedFd<'_>, environment: &[CString]) -> io::Error {
    sys::execute_opened(binary, &[NAME.to_owned()], environment)
}

/// Runs the program that the arguments name, and ends as it ends; without one, holds.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> Infallible {
    sys::leave_agent();
    let _ = rustix::thread::set_name(NAME);
    let strings = arguments.map(|argument| CString::new(argument.into_vec()));
    let Ok(strings) = strings.collect::<Result<Vec<_>, _>>() else {
        return sys::exit(127);
    };
    let [file, arguments @ ..] = &strings[..] else {
        return hold();
    };
    let Ok(report) = sys::inherited(REPORT) else {
        return sys::exit(127);
    };
    sys::block_signals();
    let child = match sys::fork(0, None, || program(file, arguments, report.as_fd())) {
        Ok(child) => child,
        Err(error) => {
            return refuse(
                report.as_fd(),
                FailureCode::System,
                format!("cannot make a process: {error}"),
            );
        }
    };
    // The agent takes it for started once nobody holds the report any more.
    drop(report);
    attend(child.pid)
}

/// Reaps orphans until it is told to end, which is then no failure.
fn hold() -> Infallible {
    sys::block_signals();
    loop {
        match i32::from(sys::wait_for_signal()) {
            libc::SIGCHLD => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP => return sys::exit(0),
            _ => {}
        }
    }
}

/// The child: leads a group of its own, which has the terminal where there is one, so that keys reach it and not the init.
fn program(file: &CStr, arguments: &[CString], report: BorrowedFd<'_>) -> Infallible {
    let stdin = rustix::stdio::stdin();
    let grouped = setpgid(None, None).and_then(|()| match isatty(stdin) {
        true => tcsetpgrp(stdin, getpid()),
        false => Ok(()),
    });
    if let Err(errno) = grouped {
        return refuse(
            report,
            FailureCode::System,
            format!("cannot make a process group: {errno}"),
        );
    }
    sys::reset_signals();
    let error = sys::execute_inheriting(file, arguments);
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    let name = arguments.first().map_or(file, |name| name.as_c_str());
    let refusal = program::refusal(name.to_string_lossy().into_owned(), errno);
    refuse(report, refusal.code(), refusal.to_string())
}

fn refuse(report: BorrowedFd<'_>, code: FailureCode, message: String) -> Infallible {
    report::send(report, &Report::Failed(Failure { code, message }), None);
    sys::exit(127)
}

/// Reaps and passes on, until the program has ended.
fn attend(child: Pid) -> Infallible {
    loop {
        let signal = sys::wait_for_signal();
        if signal != libc::SIGCHLD as u8 {
            sys::kill(child, signal);
            continue;
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == child {
                let killed = status.terminating_signal().map(|signal| 128 + signal);
                return sys::exit(status.exit_status().or(killed).unwrap_or(127));
            }
        }
    }
}
