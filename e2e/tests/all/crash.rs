//! Node and monitors die at each step of snapshot, restore, rollback, fork and template, while a database in the guest is written to.
//! The machine lives or starts again, its file system is sound, the database is whole and has all that was committed, and whatever is
//! offered afterwards holds a whole one, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, Driver, Invocation, TestNode, check, debian_python, is_soak, missing_program, skip};
use hearth_api::v1::{MachineStatus, Snapshot};
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};

use crate::chaos::{Random, arm, ended, nothing_beside, points};
use crate::support::{logged, settled, until};

/// The verbs whose steps these are.
const VERBS: [&str; 5] = ["snapshot", "restore", "rollback", "fork", "template"];

/// Rounds, and rounds of a soak.
const ROUNDS: usize = 8;
const SOAK_ROUNDS: usize = 200;

/// Writes rows for ever, one for each transaction: each has the digest of all rows before it.
const WRITE: &str = r#"
import hashlib, os, sqlite3, time
db = sqlite3.connect("/db", isolation_level=None, timeout=60)
db.execute("pragma synchronous=full")
db.execute("create table if not exists chain(n integer primary key, payload blob, sum text)")
n, last = db.execute("select coalesce(max(n), 0), coalesce((select sum from chain order by n desc limit 1), '') from chain").fetchone()
print("writes", flush=True)
while True:
    n, payload = n + 1, os.urandom(200 + n % 3000)
    last = hashlib.sha256(last.encode() + payload).hexdigest()
    db.execute("insert into chain values(?, ?, ?)", (n, payload, last))
    time.sleep(0.02)
"#;

/// Prints how many rows there are, if the database is whole and so is their chain.
const CHECK: &str = r#"
import hashlib, sqlite3
db = sqlite3.connect("/db", timeout=30)
assert db.execute("pragma integrity_check").fetchone() == ("ok",), "integrity"
last, count = "", 0
for n, payload, sum in db.execute("select n, payload, sum from chain order by n"):
    last, count = hashlib.sha256(last.encode() + payload).hexdigest(), count + 1
    assert (n, sum) == (count, last), f"row {n}"
print(count)
"#;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// The node.
    Node,
    /// The monitor of the machine that the verb is about.
    Source,
    /// The youngest monitor: of what is being made, where something is.
    Youngest,
}

#[test]
fn a_database_is_whole_whoever_dies_at_whatever_step() -> Result<()> {
    if let Some(program) = missing_program(&["e2fsck"]) {
        return skip!("{program} is not installed");
    }
    let image = match debian_python() {
        Ok(image) => image,
        Err(error) => return skip!("no image of Debian can be made here: {error:#}"),
    };
    let rounds = if is_soak() { SOAK_ROUNDS } else { ROUNDS };
    check(TestNode::ready(Driver::Qemu), |node| {
        node.keep_standbys()?;
        let subject = Subject { node, image: &image };
        subject.start()?;
        until("it has written", || Ok(subject.rows("db")? > 20))?;
        let mut random = Random::new()?;
        let points: Vec<_> = points().filter(|(_, verb)| VERBS.contains(verb)).collect();
        let mut reached = 0;
        for round in 0..rounds {
            // All of them in turn, beginning anywhere.
            let first = usize::try_from(random.below(points.len() as u64))?;
            let (point, verb) = points[if is_soak() { round % points.len() } else { first }];
            let victims = [Victim::Node, Victim::Source, Victim::Youngest];
            let victim = victims[usize::try_from(random.below(3))?];
            let came = subject
                .round(point, verb, victim)
                .with_context(|| format!("round {round}: {victim:?} dies at {point} of {verb}"))?;
            println!("round {round}: {victim:?} at {point} of {verb}, come to: {came}");
            reached += usize::from(came);
        }
        println!(
            "{reached} of {rounds} rounds came to their step; {} rows",
            subject.rows("db")?
        );
        ensure!(
            reached * 2 > rounds,
            "{reached} of {rounds} rounds came to their step"
        );
        Ok(())
    })
}

struct Subject<'a> {
    node: &'a TestNode,
    image: &'a str,
}

impl Subject<'_> {
    /// Starts the machine with the database.
    fn start(&self) -> Result<()> {
        let python = ["--entrypoint", "python3", self.image, "-c", WRITE];
        let head = ["-m", "192m", "--name", "db"].into_iter();
        self.node.start(head.chain(python))?;
        logged(self.node, "db", "writes", 1)
    }

    /// Checks a machine's database; returns how many rows it has.
    fn rows(&self, machine: &str) -> Result<u64> {
        let said = self.node.exec([machine, "python3", "-c", CHECK]).ok()?;
        said.trim().parse().with_context(|| format!("it says {said:?}"))
    }

    /// Lets somebody die at a step, and looks at what is there then. Tells whether the step was come to.
    fn round(&self, point: &str, verb: &str, victim: Victim) -> Result<bool> {
        self.prepare(verb)?;
        let before = self.rows("db")?;
        let reached = match victim {
            Victim::Node => self.node_dies(point, verb)?,
            Victim::Source | Victim::Youngest => self.monitor_dies(point, verb, victim)?,
        };
        // The next node, if need be.
        settled(|| self.node.machines())?;
        self.comes_back()?;
        let after = self.rows("db")?;
        // A rollback takes back what came behind its snapshot.
        ensure!(
            after >= before || verb == "rollback",
            "of {before} rows {after} are left"
        );
        self.offers_are_whole()?;
        self.clear()?;
        settled(|| nothing_beside(self.node))?;
        Ok(reached)
    }

    fn prepare(&self, verb: &str) -> Result<()> {
        match verb {
            "restore" | "rollback" => self.snapshot().ok().map(drop),
            "template" => self.node.hearth(["template", "prune", "--all"]).ok().map(drop),
            _ => Ok(()),
        }
    }

    fn snapshot(&self) -> Invocation {
        self.node.hearth(["snapshot", "create", "db", "-n", "kept"])
    }

    /// Names what comes to a step of a verb.
    fn verb(&self, verb: &str) -> Invocation {
        match verb {
            "snapshot" => self.snapshot(),
            "rollback" => self.node.hearth(["rollback", "db", "kept"]),
            "fork" => self.node.hearth(["fork", "db", "-n", "2", "--name", "copy"]),
            "template" => {
                let flags = ["-m", "80m", "--name", "copy-0", "busybox", "true"];
                self.node.run(flags)
            }
            _ => self.node.hearth(["restore", "kept", "--name", "copy-0"]),
        }
    }

    fn node_dies(&self, point: &str, verb: &str) -> Result<bool> {
        let node = arm(self.node, &format!("{point}=kill"))?;
        self.verb(verb).run()?;
        // Whatever goes on behind the answer has its time.
        Ok(ended(&node, Duration::from_secs(10)).is_ok())
    }

    fn monitor_dies(&self, point: &str, verb: &str, victim: Victim) -> Result<bool> {
        let node = arm(self.node, &format!("{point}=stop"))?;
        let pid = self.node.status()?.pid;
        let source = self.node.inspect("db")?.state.pid;
        let running = self.verb(verb).spawn()?;
        let stopped = until("the node stands still", || {
            Ok(is_over(running.pid()) || state(pid)? == 'T')
        });
        let reached = stopped.is_ok() && state(pid)? == 'T';
        if reached {
            let dies = match victim {
                Victim::Source => source,
                _ => youngest_monitor(self.node)?.or(source),
            };
            let dies = dies.and_then(|pid| Pid::from_raw(pid.cast_signed()));
            kill_process(dies.context("nobody is there to die")?, Signal::KILL)?;
        }
        // It comes to the step again where several machines are made.
        until("the verb is over", || {
            pidfd_send_signal(&node, Signal::CONT)?;
            Ok(is_over(running.pid()))
        })?;
        running.finish(DEADLINE)?;
        // The failpoint is armed for as long as this node lives.
        pidfd_send_signal(&node, Signal::KILL)?;
        let again = until("the node is gone", || {
            let _ = pidfd_send_signal(&node, Signal::CONT);
            Ok(ended(&node, Duration::from_millis(10)).is_ok())
        });
        again.map(|()| reached)
    }

    /// Starts the machine again if it does not run; its file system must be sound by then.
    fn comes_back(&self) -> Result<()> {
        let machine = self.node.inspect("db")?;
        if machine.state.status == MachineStatus::Running {
            return Ok(());
        }
        let disk = self
            .node
            .location()
            .data
            .join("machines")
            .join(&machine.id)
            .join("disk.img");
        sound(&disk)?;
        let begun = self.node.hearth(["logs", "db"]).ok()?.matches("writes").count();
        self.node.hearth(["start", "db"]).ok()?;
        // Of two that find a journal to be played back one gives up.
        logged(self.node, "db", "writes", begun + 1)
    }

    /// What snapshots and machines there are hold whole databases.
    fn offers_are_whole(&self) -> Result<()> {
        let text = self.node.hearth(["snapshot", "ls", "--json"]).ok()?;
        let snapshots: Vec<Snapshot> = serde_json::from_str(&text)?;
        for snapshot in snapshots {
            let disk = self
                .node
                .location()
                .data
                .join("snapshots")
                .join(&snapshot.id)
                .join("disk");
            sound(&disk)?;
            self.node
                .hearth(["restore", &snapshot.id, "--name", "offered"])
                .ok()?;
            self.rows("offered")?;
            self.node.hearth(["rm", "-f", "offered"]).ok()?;
        }
        let copies = self
            .node
            .machines()?
            .into_iter()
            .filter(|machine| machine.name.starts_with("copy-"));
        let running: BTreeSet<_> = copies
            .filter(|machine| machine.state.status == MachineStatus::Running)
            .map(|machine| machine.name)
            .collect();
        running.iter().try_for_each(|name| self.rows(name).map(drop))
    }

    fn clear(&self) -> Result<()> {
        for machine in self.node.machines()? {
            if machine.name != "db" {
                self.node.hearth(["rm", "-f", &machine.name]).ok()?;
            }
        }
        self.node.hearth(["snapshot", "prune", "--all"]).ok().map(drop)
    }
}

/// Has a copy of a file system checked that nobody brought to rest: its journal is played back first, and nothing else is to be mended.
fn sound(disk: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("disk");
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .arg(disk)
        .arg(&copy)
        .status()?;
    ensure!(copied.success());
    for flags in [["-p", "-E", "journal_only"], ["-f", "-n", "-v"]] {
        let checked = Command::new("e2fsck").args(flags).arg(&copy).output()?;
        ensure!(
            checked
                .status
                .code()
                .is_some_and(|code| code <= i32::from(flags[0] == "-p")),
            "{}: {}",
            disk.display(),
            String::from_utf8_lossy(&checked.stdout)
        );
    }
    Ok(())
}

/// Tells whether a process has ended, waited for or not.
fn is_over(pid: u32) -> bool {
    state(pid).map_or(true, |state| state == 'Z')
}

/// Returns a process's state, proc_pid_stat(5).
fn state(pid: u32) -> Result<char> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.context("a process has a state")
}

/// Returns the monitor of a node that was started last.
fn youngest_monitor(node: &TestNode) -> Result<Option<u32>> {
    let run = node.location().run.join("m").to_string_lossy().into_owned();
    let mut found = None;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // It may end meanwhile.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let began = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(19)?.parse::<u64>().ok());
        if String::from_utf8_lossy(&line).contains(&run)
            && let Some(began) = began
        {
            found = found.max(Some((began, pid)));
        }
    }
    Ok(found.map(|(_, pid)| pid))
}
