//! The node dies: where something is half done, and at any moment. Machines go on, nothing is lost, doubled or left behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, Driver, Layout, Running, TestNode, check, is_soak, missing_program, skip};
use hearth_api::v1::MachineStatus;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::{nobodys, seconds, settled};

const TABLE: &str = include_str!("../../../crates/hearth-node/assets/failpoints.txt");

/// Machines that a test can afford on a busy host.
const SMALL: [&str; 2] = ["-m", "80m"];

/// Names another run's random numbers, to see the same again.
const SEED: &str = "HEARTH_E2E_SEED";

/// How long a node may live on after it came to an armed failpoint.
const LAST_BREATH: Duration = Duration::from_secs(60);

/// Machines that must not notice.
struct Herd<'a> {
    node: &'a TestNode,
    /// Names, and process ids of their monitors.
    members: Vec<(String, Option<u32>)>,
    /// How long each node took from its start until every machine answered.
    returns: Vec<Duration>,
}

impl<'a> Herd<'a> {
    fn start(node: &'a TestNode, count: usize) -> Result<Self> {
        let mut herd = Self {
            node,
            members: Vec::new(),
            returns: Vec::new(),
        };
        for number in 0..count {
            let name = format!("alive-{number}");
            node.start(
                SMALL
                    .into_iter()
                    .chain(["--name", &name, "busybox", "sleep", "36000"]),
            )?;
            let pid = node.inspect(&name)?.state.pid;
            herd.members.push((name, pid));
        }
        Ok(herd)
    }

    /// Has the next verb start a node, and looks whether everything is as it was: each machine is the one it was and answers, and
    /// nothing is left of others.
    fn verify(&mut self) -> Result<()> {
        let begun = Instant::now();
        let machines = settled(|| self.node.machines())?;
        for (name, pid) in &self.members {
            let of_name: Vec<_> = machines.iter().filter(|machine| machine.name == *name).collect();
            ensure!(of_name.len() == 1, "{} machines are called {name}", of_name.len());
            let state = &of_name[0].state;
            ensure!(
                state.status == MachineStatus::Running && state.pid == *pid,
                "{name} was process {pid:?} and is {state:?}"
            );
        }
        for (name, _) in &self.members {
            ensure!(self.node.exec([name, "echo", name]).ok()? == *name);
        }
        self.returns.push(begun.elapsed());
        // A machine that was told to end before may still be about it.
        settled(|| nothing_beside(self.node))
    }
}

/// Kills the node and starts one with failpoints armed, as in `NAME=kill`; returns a handle to it.
pub(crate) fn arm(node: &TestNode, failpoints: &str) -> Result<OwnedFd> {
    kill(&handle(node)?)?;
    // A process that the dead node was about to execute may have its socket for a moment longer: then nobody answers there.
    settled(|| node.hearth(["ps"]).env("HEARTH_FAILPOINTS", failpoints).ok())?;
    handle(node)
}

/// Checks that the node has a monitor, a memory file, a directory of sockets and a record for each machine, and none beside.
pub(crate) fn nothing_beside(node: &TestNode) -> Result<()> {
    let nobodys = nobodys(node)?;
    let machines = node.machines()?;
    let names: BTreeSet<_> = machines.iter().map(|machine| &machine.name).collect();
    ensure!(names.len() == machines.len(), "a name twice: {machines:?}");
    let is_alive = |status| {
        matches!(
            status,
            MachineStatus::Starting
                | MachineStatus::Running
                | MachineStatus::Paused
                | MachineStatus::Stopping
        )
    };
    let all = machines.iter().map(|machine| machine.id.clone());
    let all: BTreeSet<_> = all.chain(nobodys.iter().cloned()).collect();
    let alive: BTreeSet<_> = machines
        .iter()
        .filter(|machine| is_alive(machine.state.status))
        .map(|machine| machine.id.clone())
        .chain(nobodys)
        .collect();
    let location = node.location();
    let same = |what: &str, found: BTreeSet<String>, expected: &BTreeSet<String>| {
        ensure!(found == *expected, "{what}: {found:?} instead of {expected:?}");
        Ok(())
    };
    same(
        "directories of machines",
        listed(&location.data.join("machines")),
        &all,
    )?;
    same("directories of sockets", listed(&location.run.join("m")), &alive)?;
    // A clone has no file of its own for its memory.
    let memory = listed(&location.memory);
    ensure!(
        memory.is_subset(&alive),
        "memory: {memory:?}, and {alive:?} are alive"
    );
    let templates = listed(&location.data.join("templates"));
    ensure!(templates.iter().all(|name| !name.contains('.')), "{templates:?}");
    let snapshots = listed(&location.data.join("snapshots"));
    ensure!(snapshots.iter().all(|name| !name.contains('.')), "{snapshots:?}");
    same("monitors", monitors(node)?, &alive)?;
    let half_written = listed(&location.data.join("images/tmp"));
    ensure!(half_written.is_empty(), "half-written images: {half_written:?}");
    let disks = listed(&location.data.join("disks"));
    ensure!(disks.iter().all(|name| name.ends_with(".img")), "{disks:?}");
    Ok(())
}

/// Returns the names in a directory.
fn listed(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Asks the kernel which machines of a node have a monitor.
fn monitors(node: &TestNode) -> Result<BTreeSet<String>> {
    let home = node.home().to_string_lossy();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(&*home)
            && let Some(name) = line.split('\0').find_map(|word| word.strip_prefix("hearth-"))
        {
            ensure!(found.insert(name.to_owned()), "two monitors of {name}");
        }
    }
    Ok(found)
}

/// Returns a handle to the node that answers.
fn handle(node: &TestNode) -> Result<OwnedFd> {
    let pid = i32::try_from(node.status()?.pid)?;
    let pid = Pid::from_raw(pid).context("a node has a process id")?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn kill(node: &OwnedFd) -> Result<()> {
    pidfd_send_signal(node, Signal::KILL)?;
    ended(node, LAST_BREATH)
}

/// Waits for a node's end.
pub(crate) fn ended(node: &OwnedFd, at_most: Duration) -> Result<()> {
    let limit = Timespec::try_from(at_most)?;
    let ready = poll(&mut [PollFd::new(node, PollFlags::IN)], Some(&limit))?;
    ensure!(ready == 1, "the node lives on");
    Ok(())
}

/// A line of the table: a failpoint, and what reaches it.
pub(crate) fn points() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.filter_map(|line| {
        let mut columns = line.split_whitespace();
        columns.next().zip(columns.next())
    })
}

/// Does what reaches a failpoint, with a node at which it is armed. What it says of that is of no interest: the node dies.
struct Victims<'a> {
    node: &'a TestNode,
    image: String,
}

impl Victims<'_> {
    /// Makes what the verb needs, before the failpoint is armed.
    fn prepare(&self, verb: &str) -> Result<()> {
        match verb {
            "stop" => drop(self.run(&["sleep", "3600"])?),
            "remove" => drop(
                self.node
                    .hearth(["create", "--name", "victim", "busybox"])
                    .run()?,
            ),
            "image-rm" => drop(self.node.hearth(["image", "pull", &self.image]).ok()?),
            "template" => drop(self.node.hearth(["template", "prune", "--all"]).ok()?),
            "snapshot" | "fork" => drop(self.run(&["sleep", "3600"])?),
            "snapshot-rm" | "restore" | "rollback" => {
                self.run(&["sleep", "3600"])?;
                self.snapshot()?;
            }
            // It has no machine before it is asked for one.
            "lease" => drop(self.pool("0", &[])?),
            "pool-golden" => {
                self.pool("0", &["--warm-cmd", "true"])?;
                self.lease()?;
            }
            _ => {}
        }
        if verb == "remove" && self.node.hearth(["inspect", "victim"]).run()?.code != 0 {
            self.node
                .run(SMALL.into_iter().chain(["--name", "victim", "busybox", "true"]))
                .ok()?;
        }
        Ok(())
    }

    fn run(&self, command: &[&str]) -> Result<String> {
        let head = SMALL.into_iter().chain(["--name", "victim", "busybox"]);
        self.node.start(head.chain(command.iter().copied()))
    }

    fn pool(&self, min: &str, more: &[&str]) -> Result<String> {
        // A lease whose client never heard of it lasts until its time is over: beside it there is to be room.
        let head = [
            "pool", "create", "victims", "--image", "busybox", "--max", "2", "--min", min,
        ];
        self.node.hearth(head.iter().chain(&SMALL).chain(more)).ok()
    }

    fn lease(&self) -> Result<()> {
        let acquire = ["pool", "acquire", "victims", "--wait", "60s"];
        let machine = self.node.hearth(acquire).ok()?;
        self.node.hearth(["pool", "release", &machine]).ok().map(drop)
    }

    fn snapshot(&self) -> Result<String> {
        self.node
            .hearth(["snapshot", "create", "victim", "-n", "kept"])
            .ok()
    }

    fn fork(&self) -> Result<String> {
        self.node
            .hearth(["fork", "victim", "-n", "2", "--name", "copy"])
            .ok()
    }

    fn restore(&self) -> Result<String> {
        self.node.hearth(["restore", "kept", "--name", "copy"]).ok()
    }

    fn remove_snapshots(&self) -> Result<()> {
        self.node.hearth(["snapshot", "prune", "--all"]).ok().map(drop)
    }

    fn reach(&self, verb: &str) -> Result<()> {
        let outcome = match verb {
            "create" | "start" | "template" => self.run(&["sleep", "3600"]).map(drop),
            "pool" => self.pool("1", &[]).map(drop),
            "lease" | "pool-golden" => self.lease(),
            "execute" => {
                let head = ["execute", "--image", "busybox"].iter().chain(&SMALL);
                self.node.hearth(head.chain(&["--cmd", "true"])).ok().map(drop)
            }
            "size" => {
                let head = SMALL.into_iter().chain(["--disk", "311m", "--name", "victim"]);
                self.node.start(head.chain(["busybox", "true"])).map(drop)
            }
            "output" => self.run(&["sh", "-c", "echo once; sleep 3600"]).map(drop),
            "exec" => self.node.exec(["alive-0", "true"]).ok().map(drop),
            "stop" => self.node.hearth(["stop", "-t", "1", "victim"]).ok().map(drop),
            "remove" => self.node.hearth(["rm", "victim"]).ok().map(drop),
            "pull" => self.node.hearth(["image", "pull", &self.image]).ok().map(drop),
            "image-rm" => self.node.hearth(["image", "rm", &self.image]).ok().map(drop),
            "snapshot" => self.snapshot().map(drop),
            "snapshot-rm" => self.node.hearth(["snapshot", "rm", "kept"]).ok().map(drop),
            "restore" => self.restore().map(drop),
            "rollback" => self.node.hearth(["rollback", "victim", "kept"]).ok().map(drop),
            "fork" => self.fork().map(drop),
            other => anyhow::bail!("failpoints.txt says {other:?}, which this test cannot do"),
        };
        // It fails unless it was answered first.
        drop(outcome);
        Ok(())
    }

    /// Does it again, or goes on with it, on a node that does not die: nothing that the death left is in the way.
    fn finish(&self, verb: &str) -> Result<()> {
        match verb {
            "pull" | "image-rm" => {
                self.node.hearth(["image", "pull", &self.image]).ok()?;
                self.node.hearth(["image", "rm", &self.image]).ok()?;
            }
            "output" => {
                let logs = self.node.hearth(["logs", "victim"]).ok()?;
                ensure!(logs == "once", "{logs:?}");
            }
            "stop" => drop(self.node.hearth(["stop", "-t", "1", "victim"]).ok()?),
            "snapshot" => {
                // The source lives, whatever became of it.
                ensure!(self.node.exec(["victim", "echo", "here"]).ok()? == "here");
                self.remove_snapshots()?;
                self.snapshot()?;
                self.remove_snapshots()?;
            }
            "snapshot-rm" => self.remove_snapshots()?,
            "restore" => {
                let _ = self.node.hearth(["rm", "-f", "copy"]).run()?;
                self.restore()?;
                ensure!(self.node.exec(["copy", "echo", "here"]).ok()? == "here");
                self.node.hearth(["rm", "-f", "copy"]).ok()?;
                self.remove_snapshots()?;
            }
            "rollback" => {
                self.node.hearth(["rollback", "victim", "kept"]).ok()?;
                ensure!(self.node.exec(["victim", "echo", "here"]).ok()? == "here");
                self.remove_snapshots()?;
            }
            "fork" => {
                for copy in ["copy-1", "copy-2"] {
                    self.node.hearth(["inspect", copy]).run()?.expect_code(1)?;
                }
                self.fork()?;
                self.node.hearth(["rm", "-f", "copy-1", "copy-2"]).ok()?;
            }
            "pool" | "lease" | "pool-golden" => {
                self.lease()?;
                self.node.hearth(["pool", "rm", "--force", "victims"]).ok()?;
            }
            _ => {}
        }
        let _ = self.node.hearth(["rm", "-f", "victim"]).run()?;
        self.node.hearth(["inspect", "victim"]).run()?.expect_code(1)?;
        Ok(())
    }
}

#[test]
fn node_dies_at_every_failpoint_and_nothing_is_lost() -> Result<()> {
    if let Some(program) = missing_program(&["umoci"]) {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    check(TestNode::ready(Driver::Qemu), |node| {
        node.keep_standbys()?;
        let mut herd = Herd::start(node, if is_soak() { 10 } else { 2 })?;
        let victims = Victims {
            node,
            image: layout.reference("base"),
        };
        let mut count = 0;
        for (point, verb) in points() {
            die_at(&mut herd, &victims, point, verb)
                .with_context(|| format!("the node died at {point}, reached by {verb}"))?;
            count += 1;
        }
        report(&format!("{count} failpoints"), &mut herd.returns);
        Ok(())
    })
}

fn die_at(herd: &mut Herd<'_>, victims: &Victims<'_>, point: &str, verb: &str) -> Result<()> {
    let node = herd.node;
    match verb {
        "adopt" | "sweep" => {
            kill(&handle(node)?)?;
            if verb == "sweep" {
                fs::create_dir(node.location().data.join("machines/0123456789ab"))?;
            }
            let armed = format!("{point}=kill");
            // Its death may come before or behind its first word.
            drop(node.hearth(["ps"]).env("HEARTH_FAILPOINTS", armed).run()?);
        }
        _ => {
            victims.prepare(verb)?;
            let armed = arm(node, &format!("{point}=kill"))?;
            victims.reach(verb)?;
            ended(&armed, LAST_BREATH).context("it was not reached")?;
        }
    }
    let log = fs::read_to_string(node.location().run.join("node.log"))?;
    ensure!(
        log.contains(&format!("killed here failpoint=\"{point}\"")),
        "it was not reached"
    );
    herd.verify()?;
    victims.finish(verb)?;
    herd.verify()
}

/// Numbers that look random and come again with their seed (xorshift, G. Marsaglia 2003).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Result<Self> {
        let seed = match std::env::var(SEED) {
            Ok(text) => text
                .parse()
                .with_context(|| format!("{SEED}={text} is no number"))?,
            Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()) | 1,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed))
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn node_is_killed_at_random_moments_and_nothing_is_lost() -> Result<()> {
    if let Some(program) = missing_program(&["umoci"]) {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    let (rounds, machines) = if is_soak() { (200, 10) } else { (6, 3) };
    check(TestNode::ready(Driver::Qemu), |node| {
        let mut random = Random::new()?;
        let mut herd = Herd::start(node, machines)?;
        let image = layout.reference("base");
        let points: Vec<_> = points().collect();
        let mut deaths = 0;
        for round in 0..rounds {
            // Every other round at a failpoint that any of the verbs may come to first, or none of them.
            let armed = if round % 2 == 1 {
                let (point, _) = points[usize::try_from(random.below(points.len() as u64))?];
                deaths += 1;
                Some(format!("{point}=kill"))
            } else {
                None
            };
            let what = format!("round {round}, failpoint {armed:?}");
            one_round(&mut herd, &mut random, &image, armed).context(what)?;
        }
        println!("{rounds} rounds, {deaths} of them with a failpoint");
        report(&format!("{machines} machines adopted"), &mut herd.returns);
        clear(node)?;
        herd.verify()
    })
}

fn one_round(herd: &mut Herd<'_>, random: &mut Random, image: &str, armed: Option<String>) -> Result<()> {
    let node = herd.node;
    if let Some(armed) = armed {
        kill(&handle(node)?)?;
        // One that is reached while machines are adopted kills this node at once; then the verbs below start another.
        drop(node.hearth(["ps"]).env("HEARTH_FAILPOINTS", armed).run()?);
    }
    let begun: Vec<Running> = (0..2).map(|_| verb(node, random, image)).collect::<Result<_>>()?;
    // A moment that nothing announces is the point of this test.
    std::thread::sleep(Duration::from_millis(random.below(2500)));
    if let Ok(process) = handle(node) {
        kill(&process)?;
    }
    for call in begun {
        // It was answered or it was not.
        drop(call.finish(DEADLINE)?);
    }
    herd.verify()
}

/// Begins something, whatever comes of it.
fn verb(node: &TestNode, random: &mut Random, image: &str) -> Result<Running> {
    let name = format!("brief-{}", random.below(3));
    let call = match random.below(7) {
        0 => node.run(SMALL.into_iter().chain(["--rm", "busybox", "true"])),
        1 => node.run(
            SMALL
                .into_iter()
                .chain(["-d", "--name", &name, "busybox", "sleep", "3600"]),
        ),
        2 => node.hearth(["stop", "-t", "1", &name]),
        3 => node.hearth(["rm", "-f", &name]),
        4 => node.hearth(["image", "pull", image]),
        5 => node.hearth(["image", "rm", image]),
        _ => node.exec(["alive-0", "sh", "-c", "echo $$; sleep 1"]),
    };
    call.spawn()
}

/// Removes what the verbs of a test have left, as a user would.
fn clear(node: &TestNode) -> Result<()> {
    for machine in node.machines()? {
        if !machine.name.starts_with("alive-") {
            node.hearth(["rm", "-f", &machine.name]).ok()?;
        }
    }
    Ok(())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what}: from a verb without a node until every machine answered p50 {:.0?}, p99 {:.0?}, {} times",
        at(50),
        at(99),
        times.len()
    );
}

#[test]
fn no_line_is_lost_or_doubled_when_the_node_is_killed() -> Result<()> {
    let kills = if is_soak() { 200 } else { 8 };
    check(TestNode::ready(Driver::Qemu), |node| {
        let mut random = Random::new()?;
        // Bursts that fill the pipe, the guest's window and the channel, and pauses in which all is read.
        let script = "i=0; while [ ! -e /end ]; do seq $((i+1)) $((i+3000)); i=$((i+3000)); usleep 30000; done; \
                      seq $((i+1)) $((i+200000))";
        node.start(
            SMALL
                .into_iter()
                .chain(["--name", "count", "busybox", "sh", "-c", script]),
        )?;
        for _ in 0..kills {
            node.machines()?;
            std::thread::sleep(Duration::from_millis(random.below(150)));
            kill(&handle(node)?)?;
            // Without anybody who reads, now and then.
            std::thread::sleep(Duration::from_millis(random.below(50)));
        }
        node.exec(["count", "touch", "/end"]).ok()?;
        // In the middle of the last and longest burst, too.
        for _ in 0..5 {
            node.machines()?;
            kill(&handle(node)?)?;
        }
        ensure!(node.hearth(["wait", "count"]).ok()? == "0");
        let logs = node
            .hearth(["logs", "count"])
            .deadline(seconds(300))
            .run()?
            .success()?;
        let text = String::from_utf8(logs.stdout)?;
        let mut expected = 0_u64;
        for line in text.lines() {
            expected += 1;
            ensure!(
                line == expected.to_string(),
                "{line:?} stands where {expected} should"
            );
        }
        ensure!(expected >= 200_000, "{expected} lines");
        println!(
            "{} kills, {expected} lines, {} bytes, each once",
            kills + 5,
            text.len()
        );
        Ok(())
    })
}
