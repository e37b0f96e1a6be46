//! What a closed node has left on the host. The kernel is asked, not the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use memchr::memmem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use walkdir::WalkDir;

use crate::text::sha256;

/// How long processes may take to end after the node said that it stops.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// How long to wait before the kernel is asked again whether interfaces have gone with their namespaces: it takes them away some time
/// after the last process, and does not tell.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How deep machines' cgroups may lie.
const CGROUP_DEPTH: usize = 8;

/// Where one node kept its things.
#[derive(Debug)]
pub(crate) struct Traces<'a> {
    /// The node's home.
    pub(crate) home: &'a Path,
    /// Its machines' memory.
    pub(crate) memory: &'a Path,
    /// Its data, after which its devices are called.
    pub(crate) data: &'a Path,
    /// Ids of machines that it had.
    pub(crate) machines: &'a [String],
}

impl Traces<'_> {
    /// Returns what is left, one line each.
    ///
    /// # Errors
    /// `/proc` or `/sys` cannot be read.
    pub(crate) fn find(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for process in self.wait_for_processes()? {
            left.push(format!("process {} ({})", process.pid, process.line));
        }
        left.extend(self.lines_of("/proc/self/mountinfo", "mount"));
        left.extend(self.lines_of("/proc/net/unix", "socket"));
        left.extend(self.loop_devices());
        if self.memory.exists() {
            left.push(format!("memory {}", self.memory.display()));
        }
        left.extend(self.named_by_machine());
        left.extend(self.wait_for_interfaces());
        left.extend(self.tables());
        Ok(left)
    }

    /// Ends what is left, so that one failed test does not starve the others.
    pub(crate) fn clean(&self) {
        for process in processes_of(self.home, self.machines).unwrap_or_default() {
            // It may have ended by now.
            let _ = kill_process(process.pid_for_kernel, Signal::KILL);
        }
        let _ = fs::remove_dir_all(self.memory);
    }

    fn wait_for_processes(&self) -> Result<Vec<Process>> {
        let end = Instant::now() + LAST_BREATH;
        loop {
            let processes = processes_of(self.home, self.machines)?;
            let left = end.saturating_duration_since(Instant::now());
            let Some(first) = processes.first() else {
                return Ok(processes);
            };
            if left.is_zero() {
                return Ok(processes);
            }
            first.wait(left);
        }
    }

    /// What the names of this node's bridge, links and rules have in common, in the namespace that the node was in.
    fn key(&self) -> String {
        sha256(self.data.as_os_str().as_encoded_bytes())[..8].to_owned()
    }

    fn wait_for_interfaces(&self) -> Vec<String> {
        let end = Instant::now() + LAST_BREATH;
        loop {
            let left = self.interfaces();
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn interfaces(&self) -> Vec<String> {
        let names = ["hearth", "hv", "hn"].map(|kind| format!("{kind}{}", self.key()));
        let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let lines = text.lines().map(str::trim_start);
        let hits = lines.filter(|line| names.iter().any(|name| line.starts_with(name.as_str())));
        hits.filter_map(|line| Some(format!("interface {}", line.split(':').next()?)))
            .collect()
    }

    /// Only root makes rules, and may look at them.
    fn tables(&self) -> Vec<String> {
        let listed = Command::new("nft").args(["list", "tables"]).output();
        let text = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned());
        let name = format!("hearth{}", self.key());
        let text = text.unwrap_or_default();
        let hits = text.lines().filter(|line| line.ends_with(&name));
        hits.map(|line| format!("rules: {line}")).collect()
    }

    fn lines_of(&self, file: &str, what: &str) -> Vec<String> {
        let home = self.home.to_string_lossy();
        let text = fs::read_to_string(file).unwrap_or_default();
        let hits = text.lines().filter(|line| line.contains(&*home));
        hits.map(|line| format!("{what} {line}")).collect()
    }

    fn loop_devices(&self) -> Vec<String> {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let files = devices.filter_map(|device| {
            let backing = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
            let ours = backing.contains(&*self.home.to_string_lossy());
            ours.then(|| format!("loop device {} on {}", device.path().display(), backing.trim()))
        });
        files.collect()
    }

    fn named_by_machine(&self) -> Vec<String> {
        let roots = [
            ("/sys/fs/cgroup", CGROUP_DEPTH),
            ("/run/netns", 1),
            ("/dev/shm", 2),
        ];
        let entries = roots
            .iter()
            .flat_map(|(root, depth)| WalkDir::new(root).max_depth(*depth).into_iter().flatten());
        let named = entries.filter(|entry| {
            let name = entry.file_name().to_string_lossy();
            self.machines.iter().any(|id| name.contains(id.as_str()))
        });
        named
            .map(|entry| format!("of a machine: {}", entry.path().display()))
            .collect()
    }
}

/// A process that has to do with a home.
#[derive(Debug)]
struct Process {
    pid: i32,
    pid_for_kernel: Pid,
    line: String,
}

impl Process {
    /// Waits until it has ended, at most so long.
    fn wait(&self, at_most: Duration) {
        let Ok(handle) = pidfd_open(self.pid_for_kernel, PidfdFlags::empty()) else {
            return;
        };
        let limit = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        // Whether it ended or time is up, the caller looks again.
        let _ = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit));
    }
}

/// Returns the processes whose command line, environment, working directory or open files name a home, and those that are named
/// after a machine: one in a jail of its own sees no home.
fn processes_of(home: &Path, machines: &[String]) -> Result<Vec<Process>> {
    let own = i32::try_from(std::process::id())?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| *pid != own) else {
            continue;
        };
        let Some(pid_for_kernel) = Pid::from_raw(pid) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let name = line.split(' ').find_map(|word| word.strip_prefix("hearth-"));
        let is_monitor = name.is_some_and(|name| machines.iter().any(|id| id == name));
        if is_monitor || has_to_do_with(&entry.path(), home.as_os_str().as_encoded_bytes()) {
            found.push(Process {
                pid,
                pid_for_kernel,
                line: line.chars().take(300).collect(),
            });
        }
    }
    Ok(found)
}

fn has_to_do_with(process: &Path, home: &[u8]) -> bool {
    let in_file = |name: &str| {
        let bytes = fs::read(process.join(name)).unwrap_or_default();
        memmem::find(&bytes, home).is_some()
    };
    let is_link = |path: PathBuf| {
        let target = fs::read_link(path).unwrap_or_default();
        target.as_os_str().as_encoded_bytes().starts_with(home)
    };
    let open_files = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    in_file("cmdline")
        || in_file("environ")
        || is_link(process.join("cwd"))
        || open_files().any(|entry| is_link(entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read as _, Write as _};
    use std::process::Stdio;
    use std::sync::{Mutex, PoisonError};

    /// Guards nothing but time: a process that one test makes holds, until it executes its program, what another has open.
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_process_that_stays_is_found_and_ended() {
        let _turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let home = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat")
            .env("HEARTH_HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Its answer says that it is what it is to be: spawn returns when the kernel has yet to write its environment.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = processes_of(home.path(), &[]).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(u32::try_from(found[0].pid), Ok(child.id()));
        let traces = Traces {
            home: home.path(),
            memory: Path::new("/nonexistent"),
            data: home.path(),
            machines: &[],
        };
        traces.clean();
        assert!(!child.wait().unwrap().success());
        assert_eq!(traces.find().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_interface_and_rules_that_stay_are_found() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIPPED: only root makes interfaces");
        }
        let home = tempfile::tempdir().unwrap();
        let traces = Traces {
            home: home.path(),
            memory: Path::new("/nonexistent"),
            data: home.path(),
            machines: &[],
        };
        let name = format!("hearth{}", traces.key());
        let call = |program: &str, line: &str| {
            let mut call = Command::new(program);
            call.args(line.split(' ')).status().is_ok_and(|it| it.success())
        };
        if !call("ip", &format!("link add {name} type bridge")) {
            return println!("SKIPPED: this host lets nobody make a bridge");
        }
        let has_rules = call("nft", &format!("add table inet {name}"));
        let found = [traces.interfaces(), traces.tables()];
        assert!(call("ip", &format!("link del {name}")));
        assert_eq!(has_rules, call("nft", &format!("delete table inet {name}")));
        assert_eq!(found[0], [format!("interface {name}")]);
        let rules = has_rules.then(|| format!("rules: table inet {name}"));
        assert_eq!(found[1], rules.into_iter().collect::<Vec<_>>());
        assert_eq!(traces.find().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_socket_that_stays_is_found() {
        let _turn = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let home = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(home.path().join("s")).unwrap();
        let traces = Traces {
            home: home.path(),
            memory: Path::new("/nonexistent"),
            data: home.path(),
            machines: &[],
        };
        let left = traces.find().unwrap();
        assert!(left.len() == 1 && left[0].starts_with("socket "), "{left:?}");
        drop(listener);
        assert_eq!(traces.find().unwrap(), Vec::<String>::new());
    }
}
