//! A guest that stands still for a snapshot, and becomes another machine before any program goes on.
//!
//! ```text
//! Moving --FREEZE--> Freezing --child done--> Still --RENEW--> Renewed
//!    ^                  |failed                  `------THAW------'|
//!    `------------------'------------- or time over ---------------'
//! ```
//! First the processes stand still (the freezer of their cgroup), so that none waits in a write; then the file system, which is written
//! out by that. A child does both, since it may take a while. A host that dies in between never says THAW: a timer does then.
//!
//! RENEW comes only to a guest that goes on as another machine. It writes to the disk, so the file system goes on first; processes do
//! with THAW.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_guest_protocol::message::{FailureCode, Freeze, Renew};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::console::complain;
use crate::container::{FILE_NAMES, FILES, ROOT};
use crate::poller::{Poller, Source};
use crate::{machine, stats, sys};

/// How long processes may take to stand still: one that waits for a disk does not before that has answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the child ends that freezes.
const DONE: u8 = 0;
const PROCESSES: u8 = 1;

/// A request that is refused, and why.
type Refusal = (FailureCode, String);

/// How still it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Moving,
    /// A child is about it.
    Freezing(Pid),
    Still,
    /// It is another machine; processes stand still.
    Renewed,
}

/// What the end of the child says.
pub(crate) enum Frozen {
    /// It was another child.
    Other,
    /// Everything stands still.
    Yes,
    /// It could not be, and nothing does.
    No(Refusal),
}

/// Who stands still, and until when at most.
pub(crate) struct Stillness {
    phase: Phase,
    at_most: Duration,
    timer: OwnedFd,
}

impl Stillness {
    /// Makes it, moving.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new(poller: &Poller) -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poller.add(&timer, Source::Stillness)?;
        Ok(Self {
            phase: Phase::Moving,
            at_most: Duration::ZERO,
            timer,
        })
    }

    /// Begins to stand still; the answer follows with the end of a child, unless it is true already.
    pub(crate) fn freeze(&mut self, request: Freeze) -> Result<bool, Refusal> {
        self.at_most = Duration::from_millis(u64::from(request.at_most_ms));
        match self.phase {
            Phase::Moving => {
                let child = sys::fork(0, None, || sys::exit(i32::from(stand_still())));
                let child = child.map_err(|error| refusal("make a process that freezes", &error))?;
                self.phase = Phase::Freezing(child.pid);
                Ok(false)
            }
            Phase::Freezing(_) => Ok(false),
            Phase::Still | Phase::Renewed => {
                self.set_timer(self.at_most);
                Ok(true)
            }
        }
    }

    /// Takes note that a child has ended.
    pub(crate) fn ended(&mut self, pid: Pid, status: Option<u8>) -> Frozen {
        if self.phase != Phase::Freezing(pid) {
            return Frozen::Other;
        }
        if status == Some(DONE) {
            self.phase = Phase::Still;
            self.set_timer(self.at_most);
            return Frozen::Yes;
        }
        self.phase = Phase::Moving;
        go_on();
        let why = match status {
            Some(PROCESSES) => "its processes do not stand still",
            _ => "its file system does not stand still",
        };
        Frozen::No((FailureCode::System, why.to_owned()))
    }

    /// Lets everything go on; tells whether it stood still. A child that is about it is ended first.
    pub(crate) fn thaw(&mut self) -> bool {
        let phase = std::mem::replace(&mut self.phase, Phase::Moving);
        match phase {
            Phase::Moving => return false,
            Phase::Freezing(child) => {
                sys::kill(child, libc::SIGKILL as u8);
                // It ends at once, unless it waits for the disk; what it has done by then is undone.
                let _ = waitpid(Some(child), WaitOptions::empty());
            }
            Phase::Still | Phase::Renewed => {}
        }
        self.set_timer(Duration::ZERO);
        go_on();
        matches!(phase, Phase::Still | Phase::Renewed)
    }

    /// Takes note that the time is over.
    pub(crate) fn expired(&mut self) {
        let mut count = [0; 8];
        if rustix::io::read(&self.timer, &mut count[..]).is_ok() && self.thaw() {
            complain!("nobody said that the machine may go on: it does");
        }
    }

    /// Makes the guest another machine while its processes stand still; `workload` is their first one.
    pub(crate) fn renew(&mut self, request: &Renew, workload: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        if !matches!(self.phase, Phase::Still | Phase::Renewed) {
            let message = "the machine does not stand still any more".to_owned();
            return Err((FailureCode::BadRequest, message));
        }
        self.set_timer(self.at_most);
        thaw_disk();
        self.phase = Phase::Renewed;
        let done = |what, result: io::Result<()>| result.map_err(|error| refusal(what, &error));
        done("reseed the random numbers", reseed(&request.entropy))?;
        done("set the clock", machine::set_clock(request.clock_unix_ns))?;
        done("set the host name", set_hostname(&request.hostname, workload))?;
        done("write the files of names", write_files(request))?;
        if let Some(id) = &request.machine_id {
            done("write the machine's id", write_machine_id(id))?;
        }
        Ok(())
    }

    fn set_timer(&self, after: Duration) {
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = Itimerspec {
            it_interval: none,
            it_value: Timespec::try_from(after).unwrap_or(none),
        };
        if let Err(errno) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time) {
            complain!("cannot set a timer: {errno}");
        }
    }
}

fn refusal(what: &str, error: &io::Error) -> Refusal {
    (FailureCode::System, format!("cannot {what}: {error}"))
}

/// Lets the processes stand still, then the file system; in a child. Returns how it went.
fn stand_still() -> u8 {
    if let Err(error) = freeze_processes() {
        complain!("processes do not stand still: {error}");
        return PROCESSES;
    }
    match disk(FIFREEZE) {
        Ok(()) => DONE,
        Err(error) => {
            complain!("the disk does not stand still: {error}");
            2
        }
    }
}

fn freeze_processes() -> io::Result<()> {
    // Opened before the order is given: from there on the kernel tells each change.
    let events = File::open(format!("{}/cgroup.events", stats::CGROUP))?;
    set_frozen(true)?;
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(format!("{}/cgroup.events", stats::CGROUP))?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let limit = Timespec::try_from(left).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&limit))?;
        // Reading is what makes the next poll wait.
        let mut seen = [0; 256];
        let _ = rustix::io::pread(&events, &mut seen[..], 0)?;
    }
}

fn set_frozen(frozen: bool) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(format!("{}/cgroup.freeze", stats::CGROUP))?;
    file.write_all(if frozen { b"1" } else { b"0" })
}

const FIFREEZE: u32 = 0xc004_5877;
const FITHAW: u32 = 0xc004_5878;

fn disk(request: u32) -> io::Result<()> {
    sys::file_system_control(File::open(machine::DISK)?.as_fd(), request)
}

fn thaw_disk() {
    match disk(FITHAW) {
        Ok(()) => {}
        // It moves.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => complain!("the disk does not go on: {error}"),
    }
}

/// Lets the file system go on, then the processes.
fn go_on() {
    thaw_disk();
    if let Err(error) = set_frozen(false) {
        complain!("processes do not go on: {error}");
    }
}

fn reseed(entropy: &[u8; 32]) -> io::Result<()> {
    sys::add_entropy(File::open("/dev/urandom")?.as_fd(), entropy)
}

/// Sets the host name where the workload sees it, too: in a namespace that only a process can enter.
fn set_hostname(name: &str, workload: Option<BorrowedFd<'_>>) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    let Some(workload) = workload else { return Ok(()) };
    let child = sys::fork(0, None, || {
        let entered = sys::enter(workload, libc::CLONE_NEWUTS);
        let set = entered.and_then(|()| Ok(rustix::system::sethostname(name.as_bytes())?));
        sys::exit(i32::from(set.is_err()))
    })?;
    let ended = waitpid(Some(child.pid), WaitOptions::empty())?;
    match ended.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        _ => Err(io::Error::other("the workload's namespace cannot be entered")),
    }
}

/// Writes over the files that the workload has in `/etc`: they stay the files that are mounted there.
fn write_files(request: &Renew) -> io::Result<()> {
    let hostname = format!("{}\n", request.hostname);
    let contents: [&[u8]; 3] = [&request.hosts, hostname.as_bytes(), &request.resolv_conf];
    for (name, content) in FILE_NAMES.into_iter().zip(contents) {
        fs::write(Path::new(FILES).join(name), content)?;
    }
    Ok(())
}

/// Where a machine's id is kept, in the workload's root; most images have none.
const MACHINE_IDS: [&str; 2] = ["etc/machine-id", "var/lib/dbus/machine-id"];

fn write_machine_id(id: &[u8; 16]) -> io::Result<()> {
    let text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let root = File::open(ROOT)?;
    for path in MACHINE_IDS {
        // A link leads where it does for the workload.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(file) = openat2(&root, path, flags, Mode::empty(), resolve) else {
            continue;
        };
        let mut file = File::from(file);
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.len() > 0 {
            file.set_len(0)?;
            file.write_all(format!("{text}\n").as_bytes())?;
        }
    }
    Ok(())
}
