//! A guest that stands still for a snapshot, and becomes another machine before any program goes on.
//!
//! ```text
//! Moving --FREEZE--> Freezing --child done--> Still --RENEW--> Renewed
//!    ^                |    |failed              `------THAW------'|
//!    |              THAW   `------------- or time over -----------+--> Moving
//!    `--child gone-- Undoing
//! ```
//! First the processes stand still (the freezer of their cgroup), so that none waits in a write; then the file system, which is written
//! out by that, and before, while they still run. A child does it, since it may take a while. A host that dies in between never says
//! THAW: a timer does then. Each FREEZE has one answer, also where it comes to nothing: hosts tell answers apart by their order.
//!
//! RENEW comes only to a guest that goes on as another machine: one that stands still, or one without a workload ([`crate::core`]). It writes to the disk, so the file system goes on first; processes do
//! with THAW. Nothing is spawned for it: the first new process of a machine that was restored takes longer than all of this.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_guest_protocol::message::{FailureCode, Freeze, Renew};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use rustix::time::Timespec;

use crate::console::complain;
use crate::container::{FILE_NAMES, FILES, ROOT};
use crate::poller::{Poller, Source};
use crate::timer::Timer;
use crate::{connections, machine, stats, sys};

/// How time is counted until it goes on by itself. A restore under Firecracker sets the clock forward by the time that the snapshot lay, which
/// is to count as one of these at most.
const TICK: Duration = Duration::from_secs(1);

/// How long processes may take to stand still: one that waits for a disk does not before that has answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the child ends that freezes.
const DONE: u8 = 0;
const PROCESSES: u8 = 1;
const DISK: u8 = 2;

/// What hosts are told that asked for what another one has taken back.
const LET_GO: &str = "the machine was told to go on";

/// A request that is refused, and why.
type Refusal = (FailureCode, String);

/// How still it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Moving,
    /// A child is about it.
    Freezing(Pid),
    /// The child was told to leave it: what it has done is undone once it is gone.
    Undoing(Pid),
    Still,
    /// It is another machine; processes stand still.
    Renewed,
}

/// What hosts that asked are to be told.
pub(crate) struct Answers {
    /// How many questions there are.
    pub(crate) count: u32,
    /// Whether everything stands still.
    pub(crate) said: Result<(), Refusal>,
}

/// What was let go.
pub(crate) struct Thawed {
    /// Whether everything stood still until now.
    pub(crate) was_frozen: bool,
    /// What those are told who had asked for it and have no answer yet; they come first.
    pub(crate) answers: Answers,
}

/// Who stands still, and until when at most.
pub(crate) struct Stillness {
    phase: Phase,
    at_most: Duration,
    /// What is left of that.
    left: Duration,
    /// Questions that the end of the child answers.
    asked: u32,
    timer: Timer,
}

impl Stillness {
    /// Makes it, moving.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new(poller: &Poller) -> Result<Self, Errno> {
        let timer = Timer::new()?;
        poller.add(&timer, Source::Stillness)?;
        Ok(Self {
            phase: Phase::Moving,
            at_most: Duration::ZERO,
            left: Duration::ZERO,
            asked: 0,
            timer,
        })
    }

    /// Takes note that the host is gone: nobody waits for an answer any more.
    pub(crate) fn disconnected(&mut self) {
        self.asked = 0;
    }

    /// Tells whether nobody has asked it to stand still.
    pub(crate) fn is_moving(&self) -> bool {
        self.phase == Phase::Moving
    }

    /// Begins to stand still; the answer follows with the end of a child, unless it is true already.
    pub(crate) fn freeze(&mut self, request: Freeze) -> Result<bool, Refusal> {
        match self.phase {
            Phase::Undoing(_) => {
                let message = "the machine is about to go on".to_owned();
                return Err((FailureCode::BadRequest, message));
            }
            Phase::Moving | Phase::Renewed => {
                let child = sys::fork(0, None, || sys::exit(i32::from(stand_still())));
                let child = child.map_err(|error| refusal("make a process that freezes", &error))?;
                self.phase = Phase::Freezing(child.pid);
            }
            Phase::Freezing(_) | Phase::Still => {}
        }
        self.at_most = Duration::from_millis(request.at_most_ms.into());
        if self.phase == Phase::Still {
            self.arm();
            return Ok(true);
        }
        self.timer.unset();
        self.asked += 1;
        Ok(false)
    }

    /// Takes note that a child has ended; tells what follows from it, if it was the one that freezes.
    pub(crate) fn ended(&mut self, pid: Pid, status: Option<u8>) -> Option<Answers> {
        let said = match self.phase {
            Phase::Freezing(child) if child == pid => match status {
                Some(DONE) => Ok(()),
                Some(PROCESSES) => Err("its processes do not stand still"),
                _ => Err("its file system does not stand still"),
            },
            Phase::Undoing(child) if child == pid => Err(LET_GO),
            _ => return None,
        };
        match said {
            Ok(()) => {
                self.phase = Phase::Still;
                self.arm();
            }
            Err(_) => {
                self.phase = Phase::Moving;
                go_on();
            }
        }
        Some(self.answers(said))
    }

    fn answers(&mut self, said: Result<(), &str>) -> Answers {
        Answers {
            count: std::mem::take(&mut self.asked),
            said: said.map_err(|why| (FailureCode::System, why.to_owned())),
        }
    }

    /// Lets everything go on. A child that is about to freeze it is killed, and is not waited for: it may wait for the disk.
    pub(crate) fn thaw(&mut self) -> Thawed {
        let was_frozen = matches!(self.phase, Phase::Still | Phase::Renewed);
        self.phase = match self.phase {
            Phase::Freezing(child) | Phase::Undoing(child) => {
                sys::kill(child, libc::SIGKILL as u8);
                Phase::Undoing(child)
            }
            Phase::Moving | Phase::Still | Phase::Renewed => Phase::Moving,
        };
        self.timer.unset();
        match self.phase {
            // The file system follows with the end of the child, in whose hands it is.
            Phase::Undoing(_) => let_processes_go(),
            _ if was_frozen => go_on(),
            _ => {}
        }
        Thawed {
            was_frozen,
            answers: self.answers(Err(LET_GO)),
        }
    }

    /// Begins to count anew.
    fn arm(&mut self) {
        self.left = self.at_most;
        self.timer.set(self.left.min(TICK));
    }

    /// Takes note that a tick of the time is over.
    pub(crate) fn expired(&mut self) {
        // A question that came meanwhile has set the timer anew, or waits for a child.
        if !self.timer.take_end() || !matches!(self.phase, Phase::Still | Phase::Renewed) {
            return;
        }
        self.left = self.left.saturating_sub(TICK);
        if self.left.is_zero() {
            self.thaw();
            complain!("nobody said that the machine may go on: it does");
        } else {
            self.timer.set(self.left.min(TICK));
        }
    }

    /// Makes the guest another machine while its processes stand still; `workload` is their first one.
    pub(crate) fn renew(&mut self, request: &Renew, workload: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        if !matches!(self.phase, Phase::Still | Phase::Renewed) {
            let message = "the machine does not stand still any more".to_owned();
            return Err((FailureCode::BadRequest, message));
        }
        self.arm();
        thaw_disk();
        self.phase = Phase::Renewed;
        become_machine(request, workload)?;
        if let Err(error) = connections::close_stale() {
            complain!("connections of the machine that this was are left to time out: {error}");
        }
        Ok(())
    }
}

/// Makes the guest another machine, of which no program sees that: they stand still, or there are none.
pub(crate) fn become_machine(request: &Renew, workload: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
    let done = |what, result: io::Result<()>| result.map_err(|error| refusal(what, &error));
    // First: the time passes meanwhile.
    done("set the clock", machine::set_clock(request.clock_unix_ns))?;
    done("reseed the random numbers", reseed(&request.entropy))?;
    done("set the host name", set_hostname(&request.hostname, workload))?;
    done("write the files of names", write_files(request))?;
    match &request.machine_id {
        Some(id) => done("write the machine's id", write_machine_id(id)),
        None => Ok(()),
    }
}

fn refusal(what: &str, error: &io::Error) -> Refusal {
    (FailureCode::System, format!("cannot {what}: {error}"))
}

/// Lets the processes stand still, then the file system; in a child. Returns how it went.
fn stand_still() -> u8 {
    // What is written out while processes run need not be while they stand still. What fails here fails again below.
    let _ = File::open(machine::DISK).map(|disk| rustix::fs::syncfs(&disk));
    if let Err(error) = freeze_processes() {
        complain!("processes do not stand still: {error}");
        return PROCESSES;
    }
    match disk(FIFREEZE) {
        Ok(()) => DONE,
        Err(error) => {
            complain!("the disk does not stand still: {error}");
            DISK
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
    let_processes_go();
}

fn let_processes_go() {
    if let Err(error) = set_frozen(false) {
        complain!("processes do not go on: {error}");
    }
}

fn reseed(entropy: &[u8; 32]) -> io::Result<()> {
    sys::add_entropy(File::open("/dev/urandom")?.as_fd(), entropy)
}

/// Sets the host name, also where the workload sees it: in a namespace of its own, which the agent enters for it.
fn set_hostname(name: &str, workload: Option<BorrowedFd<'_>>) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    let Some(workload) = workload else { return Ok(()) };
    let names = ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    let own = File::open("/proc/self/ns/uts")?;
    match move_into_thread_name_spaces(workload, names) {
        // It has just ended, and nobody sees its name.
        Err(Errno::SRCH) => return Ok(()),
        entered => entered?,
    }
    let set = rustix::system::sethostname(name.as_bytes());
    move_into_thread_name_spaces(own.as_fd(), names)?;
    Ok(set?)
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
    let root = File::open(ROOT)?;
    MACHINE_IDS
        .iter()
        .try_for_each(|path| renew_machine_id(&root, path, id))
}

/// Writes over a machine's id, where there is one: an image that is to get its own at the first boot still does.
fn renew_machine_id(root: &File, path: &str, id: &[u8; 16]) -> io::Result<()> {
    // A link leads where it does for the workload.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(file) = openat2(root, path, flags, Mode::empty(), resolve) else {
        return Ok(());
    };
    let file = File::from(file);
    let mut old = Vec::new();
    if file.metadata()?.is_file() {
        (&file).take(MACHINE_ID_MAX).read_to_end(&mut old)?;
    }
    let old = old.trim_ascii();
    if old.is_empty() || old == b"uninitialized" {
        return Ok(());
    }
    let mut text: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    // Never shorter than an id in between.
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

/// The most of a machine's id that is looked at, in bytes; it has 33.
const MACHINE_ID_MAX: u64 = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn renewed(root: &Path, path: &str) -> io::Result<()> {
        renew_machine_id(&File::open(root).unwrap(), path, &[0xab; 16])
    }

    #[test]
    fn a_machine_id_is_renewed_only_where_there_is_one() {
        let old = "0123456789abcdef0123456789abcdef and more\n";
        let root = root(&[
            ("id", old),
            ("empty", ""),
            ("first", "uninitialized\n"),
            ("directory/x", ""),
        ]);
        for path in ["id", "empty", "first", "missing", "directory"] {
            renewed(root.path(), path).unwrap();
        }
        let read = |path| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("id"), format!("{}\n", "ab".repeat(16)));
        assert_eq!(
            (read("empty").as_str(), read("first").as_str()),
            ("", "uninitialized\n")
        );
        assert!(!root.path().join("missing").exists());
    }

    #[test]
    fn a_link_leads_to_the_machine_id_of_the_workload_and_not_to_the_agents() {
        let outside = root(&[("id", "outside")]);
        let inside = root(&[("id", "inside")]);
        let target = outside.path().join("id");
        symlink(&target, inside.path().join("absolute")).unwrap();
        symlink("../../../../id", inside.path().join("relative")).unwrap();
        renewed(inside.path(), "absolute").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "outside");
        renewed(inside.path(), "relative").unwrap();
        assert_eq!(fs::read_to_string(inside.path().join("id")).unwrap().len(), 33);
    }
}
