//! What happens between fork and execve, in the child: namespaces, root, terminal, identity, working directory, program.
//! An error goes to the agent as a [`Report`]; then the child ends.
//!
//! ```text
//! run    settle ---------------------------------------> go_on -> execve
//! wait   settle -> Waiting -> (the order of a launch) -> go_on -> execve
//! ```
//! The process of a workload may be made ahead ([`wait`]): then its namespaces and mounts are there when it is launched, and in
//! a machine that is a clone of another one they never have to be made.

use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use hearth_guest_protocol::PROBE;
use hearth_guest_protocol::message::{Execute, Failure, FailureCode, Launch, ResourceLimit, Role, World};
use rustix::fs::{Mode, OFlags, fchown};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, chdir, ioctl_tiocsctty, set_dumpable_behavior, setsid};
use rustix::pty::ptsname;
use rustix::thread::{
    CapabilitySet, Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces,
    remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::container::{self, ContainerError};
use crate::program::{self, ProgramError};
use crate::report::{self, Report};
use crate::spawn::{Pipes, Place};
use crate::user::{self, Identity, UnknownUser};
use crate::waiting::Order;
use crate::{init, probe, sys, terminal, warmth};

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("the workload has ended")]
    WorkloadGone,
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    User(#[from] UnknownUser),
    #[error("cannot use the working directory {path:?}: {errno}")]
    WorkingDirectory { path: String, errno: Errno },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("{what} contains a zero byte")]
    ZeroByte { what: &'static str },
    #[error("cannot set up {what}: {errno}")]
    System { what: &'static str, errno: Errno },
}

impl ChildError {
    fn code(&self) -> FailureCode {
        match self {
            Self::WorkloadGone => FailureCode::WorkloadGone,
            Self::User(_) => FailureCode::UnknownUser,
            Self::WorkingDirectory { .. } => FailureCode::BadWorkingDirectory,
            Self::Program(error) => error.code(),
            Self::ZeroByte { .. } => FailureCode::BadRequest,
            Self::Container(_) | Self::System { .. } => FailureCode::System,
        }
    }
}

fn step(what: &'static str) -> impl FnOnce(Errno) -> ChildError {
    move |errno| ChildError::System { what, errno }
}

/// Becomes the requested program, or says why not and ends.
pub(crate) fn run(request: &Launch, place: Place<'_>, pipes: &Pipes, report: BorrowedFd<'_>) -> Infallible {
    let wants_binary = wants_init(&request.execute, &request.world) || is_probe(&request.execute);
    let become_program = || {
        go_on(
            request,
            settle(place, &request.world, wants_binary)?,
            pipes,
            report,
        )
    };
    or_fail(become_program(), report)
}

/// Gets as far as a workload can whose launch is not known, says so, and becomes its program once it is; ends when nobody launches it.
pub(crate) fn wait(pipes: Pipes, report: BorrowedFd<'_>, orders: OwnedFd) -> Infallible {
    // Nothing of the agent's stays open for as long as this waits.
    let ends = [&pipes.input, &pipes.output, &pipes.error];
    let kept = ends.into_iter().flatten().map(AsFd::as_fd);
    sys::close_others(&kept.chain([report, orders.as_fd()]).collect::<Vec<_>>());
    let become_program = || {
        let init = settle(Place::New, &World::default(), true)?;
        warmth::warm_up();
        report::send(report, &Report::Waiting, None);
        let Some(Order { hostname, launch }) = Order::receive(orders) else {
            match sys::exit(0) {}
        };
        rustix::system::sethostname(hostname.as_bytes()).map_err(step("the host name"))?;
        let wants_binary = wants_init(&launch.execute, &launch.world) || is_probe(&launch.execute);
        let init = init.filter(|_| wants_binary);
        go_on(&launch, init, &pipes.only(&launch), report)
    };
    or_fail(become_program(), report)
}

fn or_fail(became: Result<Infallible, ChildError>, report: BorrowedFd<'_>) -> Infallible {
    match became {
        Ok(never) => match never {},
        Err(error) => {
            let failure = Failure {
                code: error.code(),
                message: error.to_string(),
            };
            report::send(report, &Report::Failed(failure), None);
            sys::exit(127)
        }
    }
}

/// Becomes a process apart from the agent, in the world that it is to see; returns the agent's binary where that is wanted.
fn settle(place: Place<'_>, world: &World, wants_binary: bool) -> Result<Option<OwnedFd>, ChildError> {
    sys::reset_signals();
    // Until execve the agent's own program is in this process: the workload must not get at it through /proc.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("a process"))?;
    setsid().map_err(step("a session"))?;
    // Before the agent's root is out of sight.
    let binary = wants_binary
        .then(init::open_binary)
        .transpose()
        .map_err(step("an init"))?;
    enter(place, world)?;
    Ok(binary)
}

/// Becomes the program, in the world that it is to see; `init` is the agent's binary where that is to be its parent, or the program.
fn go_on(
    launch: &Launch,
    init: Option<OwnedFd>,
    pipes: &Pipes,
    report: BorrowedFd<'_>,
) -> Result<Infallible, ChildError> {
    let (request, world) = (&launch.execute, &launch.world);
    let identity = user::look_up(&request.user, &launch.groups)?;
    match request.terminal {
        Some(size) => {
            let (master, slave) = terminal::open(size).map_err(step("a terminal"))?;
            use_terminal(&slave, &identity)?;
            if request.role == Role::Main {
                let path = ptsname(&master, Vec::new()).map_err(step("the console"))?;
                container::show_console(&path)?;
            }
            report::send(report, &Report::Terminal, Some(master.as_fd()));
        }
        None => use_pipes(pipes, &identity)?,
    }
    let environment = environment(request, &identity)?;
    let working_directory = working_directory(request);
    go_to(working_directory, request.role)?;
    if request.role == Role::Main && world.read_only {
        container::seal()?;
    }
    launch.limits.iter().try_for_each(limit)?;
    assume(&identity)?;
    if holds(request) {
        let error = match init {
            Some(binary) => init::become_holder(binary.as_fd(), &environment),
            None => Errno::NOENT.into(),
        };
        return Err(ChildError::System {
            what: "what holds the machine",
            errno: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
        });
    }
    if is_probe(request)
        && let Some(binary) = &init
    {
        let words = request
            .arguments
            .iter()
            .skip(1)
            .map(|word| word.to_vec())
            .collect();
        let arguments = [vec![probe::NAME.to_owned()], strings(words, "an argument")?].concat();
        let error = sys::execute_opened(binary.as_fd(), &arguments, &environment);
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
        return Err(step("the probe")(errno));
    }
    let (file, arguments) = program(request, &environment)?;
    let error = match init {
        Some(binary) => init::become_init(binary.as_fd(), report, file, arguments, &environment),
        None => sys::execute(&file, &arguments, &environment),
    };
    let name = String::from_utf8_lossy(&request.arguments[0]).into_owned();
    Err(program::refusal(name, Errno::from_io_error(&error).unwrap_or(Errno::INVAL)).into())
}

fn wants_init(request: &Execute, world: &World) -> bool {
    request.role == Role::Main && (world.init || holds(request))
}

/// Tells whether the program is none of the image's, but the agent's own probe.
fn is_probe(request: &Execute) -> bool {
    let name = request.arguments.first();
    request.role != Role::Main && name.is_some_and(|name| &name[..] == PROBE.as_bytes())
}

/// Tells whether a workload is to be nothing: no program is named. Older agents refuse that as a program that is not found.
fn holds(request: &Execute) -> bool {
    request.role == Role::Main && request.arguments.is_empty()
}

/// Sets a limit; last, since the agent's own code needs what the program shall not have.
fn limit(limit: &ResourceLimit) -> Result<(), ChildError> {
    sys::set_limit(limit.resource, limit.soft, limit.hard).map_err(|error| ChildError::System {
        what: LIMITS.get(usize::from(limit.resource)).unwrap_or(&"a limit"),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
    })
}

/// What limits are called, by number.
const LIMITS: [&str; 16] = [
    "the limit cpu",
    "the limit fsize",
    "the limit data",
    "the limit stack",
    "the limit core",
    "the limit rss",
    "the limit nproc",
    "the limit nofile",
    "the limit memlock",
    "the limit as",
    "the limit locks",
    "the limit sigpending",
    "the limit msgqueue",
    "the limit nice",
    "the limit rtprio",
    "the limit rttime",
];

/// Joins or makes the workload's namespaces.
fn enter(place: Place<'_>, world: &World) -> Result<(), ChildError> {
    match place {
        Place::New => {
            // Here and not with the fork: the cgroup that is its root is the one this process is in by now.
            sys::unshare(libc::CLONE_NEWCGROUP).map_err(|error| ChildError::System {
                what: "a cgroup namespace",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::INVAL),
            })?;
            Ok(container::enter(world)?)
        }
        Place::Beside(workload) => {
            let all = ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
                | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
                | ThreadNameSpaceType::CONTROL_GROUP;
            match move_into_thread_name_spaces(workload, all) {
                Err(Errno::SRCH) => Err(ChildError::WorkloadGone),
                other => other.map_err(step("the workload's namespaces")),
            }
        }
    }
}

fn use_terminal(slave: &OwnedFd, identity: &Identity) -> Result<(), ChildError> {
    ioctl_tiocsctty(slave).map_err(step("a controlling terminal"))?;
    fchown(slave, Some(Uid::from_raw(identity.uid)), None).map_err(step("the terminal's owner"))?;
    (0..3).try_for_each(|number| place_stream(slave.as_fd(), number))
}

/// The streams belong to the user, so that it can open them anew through /dev/stdout and the like, as in docker.
fn use_pipes(pipes: &Pipes, identity: &Identity) -> Result<(), ChildError> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.map_err(step("/dev/null"))?;
    for (number, pipe) in (0..).zip([&pipes.input, &pipes.output, &pipes.error]) {
        if let Some(pipe) = pipe {
            fchown(pipe, Some(Uid::from_raw(identity.uid)), None).map_err(step("the streams' owner"))?;
        }
        place_stream(pipe.as_ref().unwrap_or(&null).as_fd(), number)?;
    }
    Ok(())
}

fn place_stream(fd: BorrowedFd<'_>, number: i32) -> Result<(), ChildError> {
    sys::place(fd, number).map_err(|error| ChildError::System {
        what: "the standard streams",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::BADF),
    })
}

fn working_directory(request: &Execute) -> &Path {
    match &request.working_directory[..] {
        [] => Path::new("/"),
        bytes => Path::new(OsStr::from_bytes(bytes)),
    }
}

/// Goes to the working directory, which for the workload is made where it is missing, as docker does.
fn go_to(path: &Path, role: Role) -> Result<(), ChildError> {
    let failed = |errno| ChildError::WorkingDirectory {
        path: path.display().to_string(),
        errno,
    };
    if !path.is_absolute() {
        return Err(failed(Errno::INVAL));
    }
    if role == Role::Main {
        container::make_directories(path).map_err(failed)?;
    }
    chdir(path).map_err(failed)
}

/// Completes the environment as docker does.
fn environment(request: &Execute, identity: &Identity) -> Result<Vec<CString>, ChildError> {
    let given = request.environment.iter().map(|variable| variable.to_vec());
    let mut variables: Vec<Vec<u8>> = given.collect();
    let hostname = rustix::system::uname().nodename().to_bytes().to_vec();
    let terminal = request.terminal.map(|_| b"xterm".to_vec());
    let defaults: [(&[u8], Option<Vec<u8>>); 4] = [
        (b"PATH=", Some(program::DEFAULT_PATH.to_vec())),
        (b"HOSTNAME=", Some(hostname)),
        (b"TERM=", terminal),
        (b"HOME=", Some(identity.home.clone())),
    ];
    for (name, value) in defaults {
        if let Some(value) = value.filter(|_| !variables.iter().any(|variable| variable.starts_with(name))) {
            variables.push([name, &value].concat());
        }
    }
    strings(variables, "the environment")
}

fn strings(bytes: Vec<Vec<u8>>, what: &'static str) -> Result<Vec<CString>, ChildError> {
    let strings = bytes.into_iter().map(CString::new).collect::<Result<_, _>>();
    strings.map_err(|_| ChildError::ZeroByte { what })
}

/// The capabilities of a docker container.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Becomes the user. What the program may do follows from the bounding set: execve gives root all of it, others nothing.
fn assume(identity: &Identity) -> Result<(), ChildError> {
    for capability in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match remove_from_bounding_set(capability) {
            // The first number that this kernel does not know.
            Err(Errno::INVAL) => break,
            other => other.map_err(step("capabilities"))?,
        }
    }
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    set_thread_groups(&groups).map_err(step("groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(step("the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(step("the user"))
}

fn remove_from_bounding_set(capability: CapabilitySet) -> Result<(), Errno> {
    if CAPABILITIES.contains(capability) {
        return Ok(());
    }
    remove_capability_from_bounding_set(capability)
}

/// Finds the program's file, and puts its arguments together.
fn program(request: &Execute, environment: &[CString]) -> Result<(CString, Vec<CString>), ChildError> {
    let path = environment
        .iter()
        .find_map(|variable| variable.to_bytes().strip_prefix(b"PATH="));
    let command = request.arguments.first().map_or(&b""[..], |argument| argument);
    let file = program::find(command, path.unwrap_or(program::DEFAULT_PATH))?;
    let arguments = request
        .arguments
        .iter()
        .map(|argument| argument.to_vec())
        .collect();
    let arguments = strings(arguments, "an argument")?;
    let file = CString::new(file.as_os_str().as_bytes());
    let file = file.map_err(|_| ChildError::ZeroByte { what: "the program" })?;
    Ok((file, arguments))
}
