//! Makes processes: the agent's half. What the new process does before it executes its program is in [`crate::child`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hearth_guest_protocol::credit::WINDOW;
use hearth_guest_protocol::message::{FailureCode, FileRequest, Launch, Role};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::limit::TimeLimit;
use crate::report;
use crate::sys::{self, Forked};
use crate::waiting::Waiting;
use crate::{child, files};

/// Twice a window: so a process can go on while the host's answer is under way.
const PIPE_BYTES: usize = 2 * WINDOW as usize;

/// The namespaces that are the workload's own; that of its cgroup it makes itself.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;

/// Why no process could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// The workload has ended, and its namespaces with it.
    #[error("the workload has ended")]
    WorkloadGone,
    /// No pipe or socket.
    #[error("cannot make a pipe: {0}")]
    Pipe(#[from] Errno),
    /// No process.
    #[error("cannot make a process: {0}")]
    Fork(io::Error),
}

impl SpawnError {
    /// Returns what programs need to know of it.
    pub(crate) fn code(&self) -> FailureCode {
        match self {
            Self::WorkloadGone => FailureCode::WorkloadGone,
            Self::Pipe(_) | Self::Fork(_) => FailureCode::System,
        }
    }
}

/// The agent's ends of a process's pipes.
#[derive(Debug, Default)]
pub(crate) struct Pipes {
    /// Where standard input is written.
    pub(crate) input: Option<OwnedFd>,
    /// Where standard output is read.
    pub(crate) output: Option<OwnedFd>,
    /// Where standard error is read.
    pub(crate) error: Option<OwnedFd>,
}

impl Pipes {
    /// Leaves those that a launch has no use for away.
    pub(crate) fn only(self, launch: &Launch) -> Self {
        let (input, output) = wanted(launch);
        Self {
            input: self.input.filter(|_| input),
            output: self.output.filter(|_| output),
            error: self.error.filter(|_| output),
        }
    }
}

/// Tells whether a launch has pipes for its input, and for what it prints.
fn wanted(launch: &Launch) -> (bool, bool) {
    let terminal = launch.execute.terminal.is_some();
    (launch.execute.stdin && !terminal, !terminal)
}

/// A process that was made.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// It.
    pub(crate) process: Forked,
    /// What it says of itself, see [`crate::report`].
    pub(crate) report: OwnedFd,
    /// Its pipes; a terminal comes with a report.
    pub(crate) pipes: Pipes,
}

/// What of the agent a new process needs.
pub(crate) struct Nursery {
    /// The agent's own process namespace.
    own: OwnedFd,
    /// The cgroup of the workload and the processes beside it.
    cgroup: Option<OwnedFd>,
}

/// Which namespaces a process belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// Its own: it is the workload.
    New,
    /// Those of the workload, whose process this is.
    Beside(BorrowedFd<'a>),
}

impl Nursery {
    /// Makes the cgroup and remembers the agent's namespace.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new() -> Result<Self, Errno> {
        let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty());
        crate::boot::make_directory(crate::stats::CGROUP);
        Ok(Self {
            own: open("/proc/self/ns/pid", OFlags::RDONLY)?,
            cgroup: open(crate::stats::CGROUP, OFlags::PATH | OFlags::DIRECTORY).ok(),
        })
    }

    /// Makes the process of an execute session, in the cgroup of its limit where it has one.
    ///
    /// # Errors
    /// Returns [`SpawnError`].
    pub(crate) fn launch(
        &self,
        request: &Launch,
        place: Place<'_>,
        limit: Option<&TimeLimit>,
    ) -> Result<Spawned, SpawnError> {
        let (report, child_report) = report::pair()?;
        let (input, output) = wanted(request);
        let (pipes, child_pipes) = make_pipes(input, output, output)?;
        let own = limit.and_then(TimeLimit::cgroup);
        let cgroup = own.or(self.cgroup.as_ref().map(AsFd::as_fd));
        let body = || child::run(request, place, &child_pipes, child_report.as_fd());
        let process = match place {
            Place::New => sys::fork(NAMESPACES, cgroup, body).map_err(SpawnError::Fork)?,
            Place::Beside(workload) => self.inside(workload, || sys::fork(0, cgroup, body))?,
        };
        Ok(Spawned {
            process,
            report,
            pipes,
        })
    }

    /// Makes the process of a workload or a rehearsal whose launch is not known yet. Returns when it waits for that.
    ///
    /// # Errors
    /// Returns [`SpawnError`]; nothing is left of it then.
    pub(crate) fn ahead(&self, role: Role) -> Result<Waiting, SpawnError> {
        let (report, child_report) = report::pair()?;
        let (pipes, child_pipes) = make_pipes(true, true, true)?;
        let (their_orders, orders) = pipe_with(PipeFlags::CLOEXEC)?;
        // Who looks at the workload's processes is not to see what only rehearses.
        let cgroup = self
            .cgroup
            .as_ref()
            .filter(|_| role == Role::Main)
            .map(AsFd::as_fd);
        // With the closure the child's ends are closed here.
        let process = sys::fork(NAMESPACES, cgroup, move || {
            child::wait(child_pipes, child_report.as_fd(), their_orders)
        });
        let spawned = Spawned {
            process: process.map_err(SpawnError::Fork)?,
            report,
            pipes,
        };
        Ok(Waiting::made(spawned, orders)?)
    }

    /// Makes the process of a file session; `workload` is the workload's process if there is one.
    ///
    /// # Errors
    /// Returns [`SpawnError`].
    pub(crate) fn files(
        &self,
        request: &FileRequest,
        workload: Option<BorrowedFd<'_>>,
    ) -> Result<Spawned, SpawnError> {
        let (report, child_report) = report::pair()?;
        let reads = matches!(request, FileRequest::Put { .. } | FileRequest::Trust);
        let writes = !matches!(request, FileRequest::Put { .. });
        let (pipes, child_pipes) = make_pipes(reads, writes, false)?;
        let process = sys::fork(0, None, || {
            files::run(request, workload, &child_pipes, child_report.as_fd())
        });
        let process = process.map_err(SpawnError::Fork)?;
        Ok(Spawned {
            process,
            report,
            pipes,
        })
    }

    /// Makes a process in the process namespace of the workload: the agent's children go there meanwhile.
    fn inside(
        &self,
        workload: BorrowedFd<'_>,
        fork: impl FnOnce() -> io::Result<Forked>,
    ) -> Result<Forked, SpawnError> {
        if has_ended(workload) {
            return Err(SpawnError::WorkloadGone);
        }
        let entered = move_into_thread_name_spaces(workload, ThreadNameSpaceType::PROCESS_ID);
        entered.map_err(|_| SpawnError::WorkloadGone)?;
        let forked = fork();
        if let Err(errno) = move_into_thread_name_spaces(self.own.as_fd(), ThreadNameSpaceType::PROCESS_ID) {
            crate::console::fatal(format_args!(
                "cannot return to the agent's own process namespace: {errno}"
            ));
        }
        match forked {
            // What a namespace says that is being torn down.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && has_ended(workload) => {
                Err(SpawnError::WorkloadGone)
            }
            other => other.map_err(SpawnError::Fork),
        }
    }
}

/// Tells whether a process is over, reaped or not.
fn has_ended(process: BorrowedFd<'_>) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

/// Makes the pipes that are wanted; returns the agent's and the child's ends. Only the agent's never block.
fn make_pipes(input: bool, output: bool, error: bool) -> Result<(Pipes, Pipes), Errno> {
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>), Errno> {
        if !wanted {
            return Ok((None, None));
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        // A kernel that is short of pipe memory gives a smaller one, which is slower and nothing else.
        let _ = fcntl_setpipe_size(&reader, PIPE_BYTES);
        Ok((Some(reader), Some(writer)))
    };
    let ((child_input, input), (output, child_output), (error, child_error)) =
        (pipe(input)?, pipe(output)?, pipe(error)?);
    for end in [&input, &output, &error].into_iter().flatten() {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    let child = Pipes {
        input: child_input,
        output: child_output,
        error: child_error,
    };
    Ok((Pipes { input, output, error }, child))
}
