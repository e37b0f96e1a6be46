//! The driver suite: what every driver does for every guest, and what Firecracker does beyond that.
//!
//! ```text
//!               bare-guest                      Linux
//! firecracker   where /dev/kvm opens            where KVM is native
//! qemu          (no virtio-mmio in its q35)     everywhere
//! ```
//! Each pair is one test on one node that runs every case and prints a row for each. A pair that cannot run here is printed as
//! skipped, case by case; with `HEARTH_E2E_METAL=1` (`make test-metal`) that is a failure.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{BareGuest, DEADLINE, Driver, TestNode, check, is_metal, is_soak, skip};
use hearth_api::v1::{ArtefactKind, Border, DoctorReport, DoctorState, MachineStatus, SetupReport};
use rustix::process::{Pid, Signal, kill_process};

use crate::firecracker_network as network;
use crate::firecracker_pager as pagers;
use crate::firecracker_snapshot as snapshot;
use crate::firecracker_template as template;
use crate::lifecycle::nothing_of_machines;
use crate::node::kill;
use crate::support::{logged, until};

/// How a guest is spoken to. The image is busybox for both; the bare guest has commands of its own.
pub(crate) struct Guest {
    name: &'static str,
    /// Waits, and ends with 143 on SIGTERM.
    pub(crate) wait: &'static [&'static str],
    /// Ends on SIGKILL only.
    stubborn: &'static [&'static str],
    /// Gives back what it reads.
    echo: &'static [&'static str],
    /// Ends with 1.
    fails: &'static [&'static str],
    /// Writes something to the machine's disk.
    pub(crate) keep: &'static [&'static str],
    /// Looks for it; and what that prints when it is there.
    pub(crate) kept: (&'static [&'static str], &'static str),
    /// Has something in memory.
    pub(crate) hold: &'static [&'static str],
    /// Looks for it; and what that prints of it when it is there.
    pub(crate) held: (&'static [&'static str], &'static str),
    /// Neither disk nor memory has it any more.
    pub(crate) lose: &'static [&'static [&'static str]],
    /// Prints its host name, maybe among other things.
    pub(crate) who: &'static [&'static str],
    /// Speaks of itself, and ends with 0.
    speak: &'static [&'static str],
}

pub(crate) const BARE: Guest = Guest {
    name: "bare-guest",
    wait: &["wait"],
    stubborn: &["stubborn"],
    echo: &["echo"],
    fails: &["block", "9", "info"],
    keep: &["block", "1", "write", "2048", "8", "7"],
    kept: (&["block", "1", "check", "2048", "8", "7"], "wrong_bytes=0"),
    hold: &["fill", "1048576", "7", "4096"],
    held: (&["check", "1048576", "7", "4096"], "wrong_words=0"),
    lose: &[
        &["block", "1", "write", "2048", "8", "9"],
        &["fill", "1048576", "9", "4096"],
    ],
    who: &["identity"],
    speak: &["status"],
};

pub(crate) const LINUX: Guest = Guest {
    name: "linux",
    wait: &[
        "sh",
        "-c",
        "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1 & wait $!; done",
    ],
    stubborn: &[
        "sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 0.1; done",
    ],
    echo: &["cat"],
    fails: &["false"],
    keep: &["sh", "-c", "echo here > /kept"],
    kept: (&["cat", "/kept"], "here"),
    hold: &["sh", "-c", "echo there > /dev/shm/held"],
    held: (&["sh", "-c", "cat /dev/shm/held; true"], "there"),
    lose: &[&["sh", "-c", "echo gone > /kept; echo gone > /dev/shm/held"]],
    who: &["hostname"],
    speak: &["uname"],
};

/// Says that a case cannot run here, and why.
#[derive(Debug)]
pub(crate) struct NotHere(pub(crate) &'static str);

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotHere {}

/// A row of the table: its name, what it does, and whether a slow pair runs it every time.
pub(crate) type Case = (&'static str, fn(&TestNode, &Guest) -> Result<()>, Often);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Often {
    Always,
    /// Under emulation with `HEARTH_E2E_SOAK=1` only; the tests of `qemu::` are about the same.
    NotSlowly,
}

/// What every pair runs.
const CASES: [Case; 12] = [
    ("boot and hello", boot, Often::Always),
    ("echo", echo, Often::NotSlowly),
    ("exec contract", exec, Often::Always),
    ("many execs at once", execs_at_once, Often::NotSlowly),
    ("pause and resume", pause, Often::NotSlowly),
    ("disk", disk, Often::NotSlowly),
    ("stop", stop, Often::NotSlowly),
    ("kill", kill_machine, Often::NotSlowly),
    ("logs, ps, inspect", told, Often::Always),
    ("monitor killed", monitor_killed, Often::NotSlowly),
    ("node killed and adopts", node_killed, Often::Always),
    ("ten machines at once", ten, Often::NotSlowly),
];

/// What every pair with network interfaces and limits runs; the guest is the bare one.
const DEVICE_CASES: [Case; 7] = [
    ("net interface", network::interface, Often::Always),
    ("net echo through a TAP", network::echo, Often::Always),
    ("ICMP echo through a TAP", network::icmp, Often::Always),
    ("net rate within 15 %", network::rate, Often::Always),
    ("disk rate within 15 %", disk_rate, Often::Always),
    ("metadata", metadata, Often::Always),
    ("no interface unasked", no_interface, Often::Always),
];

fn cases(driver: &str, guest: &Guest) -> Vec<Case> {
    let has_devices = driver == "firecracker" && guest.name == BARE.name;
    let more = template::CASES
        .into_iter()
        .chain(pagers::CASES)
        .chain(DEVICE_CASES);
    let all = CASES.into_iter().chain(snapshot::CASES);
    all.chain(more.filter(|_| has_devices)).collect()
}

pub(crate) fn with<'a>(head: &[&'a str], tail: &[&'a str]) -> Vec<&'a str> {
    head.iter().chain(tail).copied().collect()
}

pub(crate) fn start(node: &TestNode, name: &str, guest: &Guest) -> Result<()> {
    start_with(node, name, guest, guest.wait)
}

fn start_with(node: &TestNode, name: &str, guest: &Guest, command: &[&str]) -> Result<()> {
    node.start(with(&["-m", "96m", "--name", name, "busybox"], command))?;
    match guest.name == BARE.name {
        // Its commands listen to signals from the first moment on.
        true => Ok(()),
        false => logged(node, name, "ready", 1),
    }
}

pub(crate) fn exec_in(node: &TestNode, name: &str, command: &[&str]) -> Result<String> {
    node.exec(with(&[name], command)).ok()
}

/// Sends bytes through a command that gives them back.
pub(crate) fn through(node: &TestNode, name: &str, guest: &Guest, bytes: &[u8]) -> Result<()> {
    let outcome = node
        .exec(with(&["-i", name], guest.echo))
        .stdin(bytes)
        .run()?
        .success()?;
    ensure!(
        outcome.stdout == bytes,
        "{} bytes came back otherwise",
        bytes.len()
    );
    Ok(())
}

fn boot(node: &TestNode, guest: &Guest) -> Result<()> {
    let outcome = node
        .run(with(&["--rm", "-i", "-m", "96m", "busybox"], guest.echo))
        .stdin(*b"hello")
        .run()?
        .success()?;
    assert_eq!(outcome.text()?, "hello");
    node.run(with(&["--rm", "busybox"], guest.fails))
        .run()?
        .expect_code(1)?;
    node.run(["--rm", "busybox", "no-such-command"])
        .run()?
        .expect_code(127)?;
    Ok(())
}

fn echo(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "echo", guest)?;
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    through(node, "echo", guest, &bytes)
}

fn exec(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "exec", guest)?;
    through(node, "exec", guest, b"")?;
    node.exec(with(&["exec"], guest.fails)).run()?.expect_code(1)?;
    node.exec(["exec", "no-such-command"]).run()?.expect_code(127)?;
    // A client that goes away takes its command with it, and nothing else.
    let waiting = node.exec(with(&["exec"], guest.stubborn)).spawn()?;
    waiting.signal(Signal::KILL)?;
    waiting.finish(DEADLINE)?;
    through(node, "exec", guest, b"still here")
}

fn execs_at_once(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "many", guest)?;
    std::thread::scope(|scope| {
        let speakers: Vec<_> = (0..8_u8)
            .map(|number| scope.spawn(move || through(node, "many", guest, &[number; 5000])))
            .collect();
        for speaker in speakers {
            speaker.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        }
        Ok(())
    })
}

fn pause(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "pause", guest)?;
    node.hearth(["pause", "pause"]).ok()?;
    assert_eq!(node.inspect("pause")?.state.status, MachineStatus::Paused);
    node.exec(with(&["pause"], guest.echo))
        .run()?
        .expect_code(125)?
        .complains("paused")?;
    // A new node lets it stand still.
    kill(node)?;
    assert_eq!(node.inspect("pause")?.state.status, MachineStatus::Paused);
    node.hearth(["unpause", "pause"]).ok()?;
    through(node, "pause", guest, b"goes on")
}

fn disk(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "disk", guest)?;
    exec_in(node, "disk", guest.keep)?;
    let (look, there) = guest.kept;
    assert_eq!(exec_in(node, "disk", look)?, there);
    node.hearth(["restart", "-t", "5", "disk"]).ok()?;
    assert_eq!(exec_in(node, "disk", look)?, there);
    if guest.name == BARE.name {
        // The image is a drive, too, and nobody writes to it.
        assert!(exec_in(node, "disk", &["block", "0", "info"])?.contains("read_only=true"));
        let write = ["disk", "block", "0", "write", "0", "1", "1"];
        node.exec(write).run()?.expect_code(1)?;
    }
    Ok(())
}

fn stop(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "stop", guest)?;
    node.hearth(["stop", "-t", "60", "stop"]).ok()?;
    assert_eq!(node.hearth(["wait", "stop"]).ok()?, "143");
    start_with(node, "stubborn", guest, guest.stubborn)?;
    node.hearth(["stop", "-t", "1", "stubborn"]).ok()?;
    assert_eq!(node.hearth(["wait", "stubborn"]).ok()?, "137");
    node.hearth(["start", "stop"]).ok()?;
    through(node, "stop", guest, b"it can be started again")
}

fn kill_machine(node: &TestNode, guest: &Guest) -> Result<()> {
    start_with(node, "kill", guest, guest.stubborn)?;
    node.hearth(["kill", "kill"]).ok()?;
    assert_eq!(node.hearth(["wait", "kill"]).ok()?, "137");
    Ok(())
}

fn told(node: &TestNode, guest: &Guest) -> Result<()> {
    node.run(with(&["--name", "told", "busybox"], guest.speak)).ok()?;
    let said = node.hearth(["logs", "told"]).ok()?;
    let expected = if guest.name == BARE.name {
        "generation=1"
    } else {
        "Linux"
    };
    ensure!(said.contains(expected), "{said}");
    let machine = node.inspect("told")?;
    let reason = machine.driver_reason.context("inspect does not say why")?;
    ensure!(reason == "it was asked for", "{reason}");
    let line = format!("{}/", machine.driver);
    ensure!(
        node.hearth(["ps", "-a"]).ok()?.contains(&line),
        "ps does not tell {line}"
    );
    let stages = machine.stages.iter().map(|stage| stage.name.as_str());
    let stages: Vec<_> = stages.filter(|name| *name != "network").collect();
    // The first one of its kind may have booted, or found a template of another test's.
    let (first, last) = (stages.first(), stages.last());
    let expected = if stages.contains(&"restore") {
        "template"
    } else {
        "disk"
    };
    assert_eq!((first, last), (Some(&expected), Some(&"start")), "{stages:?}");
    let begun = ["vmm", "restore"].iter().filter(|name| stages.contains(name));
    assert_eq!(begun.count(), 1, "{stages:?}");
    if guest.name == BARE.name {
        // A clone's console does not have the boot.
        let boots = ["--no-template", "--name", "booted", "busybox"];
        node.run(with(&boots, guest.speak)).ok()?;
        ensure!(node.hearth(["console", "booted"]).ok()?.contains("bare-guest"));
    }
    Ok(())
}

fn monitor_of(node: &TestNode, machine: &str) -> Result<Pid> {
    let pid = node.inspect(machine)?.state.pid.context("it has no monitor")?;
    Pid::from_raw(i32::try_from(pid)?).context("a monitor has a process id")
}

fn monitor_killed(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "victim", guest)?;
    start(node, "bystander", guest)?;
    kill_process(monitor_of(node, "victim")?, Signal::KILL)?;
    node.hearth(["wait", "victim"])
        .run()?
        .expect_code(1)?
        .complains("the virtual machine died")?;
    assert_eq!(node.inspect("victim")?.state.status, MachineStatus::Failed);
    through(node, "bystander", guest, b"unharmed")?;
    node.hearth(["start", "victim"]).ok()?;
    through(node, "victim", guest, b"alive again")
}

fn node_killed(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "kept", guest)?;
    let monitor = monitor_of(node, "kept")?;
    let first = node.status()?.pid;
    kill(node)?;
    through(node, "kept", guest, b"found again")?;
    ensure!(node.status()?.pid != first, "the node was not killed");
    assert_eq!(monitor_of(node, "kept")?, monitor);
    node.hearth(["stop", "-t", "60", "kept"]).ok()?;
    assert_eq!(node.hearth(["wait", "kept"]).ok()?, "143");
    Ok(())
}

fn ten(node: &TestNode, guest: &Guest) -> Result<()> {
    let count: u8 = if guest.name == BARE.name { 10 } else { 3 };
    let names: Vec<_> = (0..count).map(|number| format!("one-of-many-{number}")).collect();
    std::thread::scope(|scope| {
        let starts: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || start(node, name, guest)))
            .collect();
        starts
            .into_iter()
            .try_for_each(|start| start.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })?;
    let mut monitors = BTreeSet::new();
    for (number, name) in (0_u8..).zip(&names) {
        through(node, name, guest, &[number; 100])?;
        monitors.insert(node.inspect(name)?.state.pid);
    }
    assert_eq!(monitors.len(), names.len());
    Ok(())
}

/// How often a rate is measured that a busy host may keep from being reached.
const MEASURED_AT_MOST: u32 = 8;

/// Makes sure that a rate, of which the most and the least are measured, is never more than 15 % above what was asked for, and once no further
/// than that beneath it. A bucket holds a
/// quarter of a second's worth or more, so a host that lets its guests wait longer than that takes away from the rate, and gives nothing back.
pub(crate) fn is_near(name: &str, asked: f64, mut measure: impl FnMut() -> Result<[f64; 2]>) -> Result<()> {
    for _ in 0..MEASURED_AT_MOST {
        let [least, most] = measure()?.map(|measured| measured / asked);
        println!("{name}: {least:.3} to {most:.3} of the {asked:.0} bytes a second that were asked for");
        ensure!(
            most <= 1.15,
            "{name}: {most:.3} of the {asked:.0} bytes a second that were asked for"
        );
        if least >= 0.85 {
            return Ok(());
        }
    }
    anyhow::bail!("{name}: {asked:.0} bytes a second were asked for and never reached")
}

fn disk_rate(node: &TestNode, guest: &Guest) -> Result<()> {
    const RATE: u32 = 2 << 20;
    const BYTES: u32 = 4 << 20;
    node.start(with(
        &["-m", "96m", "--disk-rate", "2m", "--name", "slow", "busybox"],
        guest.wait,
    ))?;
    let sectors = (BYTES / 512).to_string();
    let scan = |drive| exec_in(node, "slow", &["block", drive, "scan", "0", &sectors]);
    is_near("disk", f64::from(RATE), || {
        let said = scan("1")?;
        let took = said
            .trim()
            .strip_prefix("took_us=")
            .context("no time")?
            .parse::<u32>()?;
        // The bucket is full at the beginning: a quarter of a second's worth.
        let limited = f64::from(BYTES) - f64::from(RATE) / 4.0;
        Ok([limited / (f64::from(took) / 1e6); 2])
    })
}

pub(crate) fn metadata(node: &TestNode, guest: &Guest) -> Result<()> {
    let refused = node.run(["--metadata", "{\"a\":", "busybox", "wait"]).run()?;
    refused.expect_code(125)?.complains("JSON")?;
    let refused = node
        .run(["--metadata", "{}", "--network", "none", "busybox", "wait"])
        .run()?;
    refused
        .expect_code(125)?
        .complains("--metadata needs a network interface")?;
    let told = [
        "-m",
        "96m",
        "--metadata",
        "{\"role\": {\"name\": \"web\"}}",
        "--name",
        "told",
        "busybox",
    ];
    node.start(with(&told, guest.wait))?;
    exec_in(node, "told", &["network", "169.254.7.2/16"])?;
    assert_eq!(exec_in(node, "told", &["metadata", "/role/name"])?, "web");
    // There is a token in each request, and nothing else of that name.
    node.exec(["told", "metadata", "/no/such"])
        .run()?
        .expect_code(1)?
        .complains("404")?;
    Ok(())
}

fn no_interface(node: &TestNode, guest: &Guest) -> Result<()> {
    start(node, "plain", guest)?;
    ensure!(exec_in(node, "plain", &["status"])?.contains("network=false"));
    Ok(())
}

/// Runs every case and prints what became of it; fails with the first that does.
fn run_all(driver: &str, guest: &Guest, node: &TestNode) -> Result<()> {
    let is_slow = driver == "qemu" && !is_soak() && !is_metal();
    let mut skipped = 0;
    for (name, case, often) in cases(driver, guest) {
        if is_slow && often == Often::NotSlowly {
            row(driver, guest, name, "in the long run (HEARTH_E2E_SOAK=1)");
            continue;
        }
        let begun = Instant::now();
        let outcome = case(node, guest);
        if let Some(reason) = outcome
            .as_ref()
            .err()
            .and_then(|error| error.downcast_ref::<NotHere>())
        {
            row(driver, guest, name, &format!("skipped: {reason}"));
            ensure!(
                !is_metal(),
                "{driver} x {}: {name} cannot run here: {reason}",
                guest.name
            );
            skipped += 1;
            continue;
        }
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        row(driver, guest, name, &format!("{word} in {:.1?}", begun.elapsed()));
        outcome.with_context(|| format!("{driver} x {}: {name}", guest.name))?;
        let left: Vec<_> = node.machines()?.into_iter().map(|machine| machine.id).collect();
        if !left.is_empty() {
            let remove = ["rm", "--force"]
                .into_iter()
                .chain(left.iter().map(String::as_str));
            node.hearth(remove).ok()?;
        }
        nothing_of_machines(node).with_context(|| format!("left by: {name}"))?;
    }
    println!("{driver} x {}: {skipped} cases skipped", guest.name);
    Ok(())
}

pub(crate) fn row(driver: &str, guest: &Guest, case: &str, outcome: &str) {
    println!("| {driver:<11} | {:<10} | {case:<24} | {outcome} |", guest.name);
}

/// Prints that a pair cannot run here. On bare metal everything has to.
fn not_here(driver: &str, guest: &Guest, reason: &str) -> Result<()> {
    for (name, ..) in cases(driver, guest) {
        row(driver, guest, name, &format!("skipped: {reason}"));
    }
    skip!("{driver} x {}: {reason}", guest.name)
}

#[test]
fn suite_with_the_bare_guest() -> Result<()> {
    match BareGuest::find() {
        Ok(bare) => check(bare.node(), |node| run_all("firecracker", &BARE, node)),
        Err(reason) => not_here("firecracker", &BARE, &reason),
    }
}

#[test]
fn suite_with_linux() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return not_here("firecracker", &LINUX, &reason),
    };
    check(TestNode::ready(Driver::Firecracker), |node| {
        bare.install(node)?;
        let report: DoctorReport = serde_json::from_str(&node.hearth(["doctor", "--json"]).ok()?)?;
        let kvm = report.checks.into_iter().find(|check| check.name == "kvm");
        let kvm = kvm.context("the doctor does not speak of KVM")?;
        if kvm.state != DoctorState::Ok {
            let (found, _) = kvm.detail.split_once(" (").unwrap_or((&kvm.detail, ""));
            return not_here("firecracker", &LINUX, &format!("KVM is {found}"));
        }
        run_all("firecracker", &LINUX, node)
    })
}

#[test]
fn suite_of_qemu_with_linux() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        run_all("qemu", &LINUX, node)
    })
}

#[test]
fn set_up_lists_it_and_what_is_none_is_refused() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return skip!("{reason}"),
    };
    check(TestNode::bare(Driver::Firecracker), |node| {
        let refused = node
            .hearth(["setup", "firecracker", "--from", "/bin/busybox"])
            .run()?;
        refused.expect_code(1)?.complains("/bin/busybox")?;
        let refused = node
            .hearth(["setup", "firecracker", "--version", "1.16.0"])
            .run()?;
        refused.expect_code(1)?.complains("dead vsock")?;
        let other = ["setup", "firecracker", "--version", "1.13.1", "--from"];
        let other = other
            .into_iter()
            .map(Into::into)
            .chain([bare.firecracker.clone().into_os_string()]);
        let refused = node.hearth(other).run()?;
        refused.expect_code(1)?.complains("1.13.1 is wanted")?;
        bare.install(node)?;
        let report: SetupReport = serde_json::from_str(&node.hearth(["setup", "--list", "--json"]).ok()?)?;
        for kind in [ArtefactKind::Firecracker, ArtefactKind::Jailer] {
            let artefact = report.artefacts.iter().find(|artefact| artefact.kind == kind);
            let artefact = artefact.with_context(|| format!("no {kind:?}"))?;
            assert_eq!(artefact.version, "1.12.1");
            let bytes = fs::read(&artefact.path)?;
            assert_eq!(artefact.digest, format!("sha256:{}", e2e::sha256(&bytes)));
        }
        Ok(())
    })
}

#[test]
fn without_one_the_driver_is_refused_and_auto_says_what_it_took() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let asked = node
            .hearth(["create", "--driver", "firecracker", "busybox", "true"])
            .run()?
            .expect_code(125)?;
        ensure!(
            ["KVM", "hearth setup firecracker"]
                .iter()
                .any(|word| asked.errors().contains(word)),
            "{}",
            asked.errors()
        );
        assert_eq!(node.machines()?, []);
        node.hearth(["create", "--name", "m", "busybox", "true"]).ok()?;
        let machine = node.inspect("m")?;
        assert_eq!(machine.driver, "qemu");
        let reason = machine.driver_reason.context("inspect does not say why")?;
        ensure!(
            reason.contains("KVM") && reason.contains("Firecracker"),
            "{reason}"
        );
        Ok(())
    })
}

#[test]
fn a_machine_is_jailed_and_its_jail_goes_with_it() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return skip!("{reason}"),
    };
    if !rustix::process::geteuid().is_root() {
        return skip!("only root's machines are jailed");
    }
    check(bare.node(), |node| {
        start(node, "m", &BARE)?;
        let machine = node.inspect("m")?;
        assert_eq!((&*machine.driver, machine.border), ("firecracker", Border::Kvm));
        let directory = node.location().data.join("machines").join(&machine.id);
        let jail = directory.join("jail");
        ensure!(jail.is_dir(), "there is no jail");
        let pid = machine.state.pid.context("it has no monitor")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(
            status.contains("Seccomp:\t2"),
            "no filter of system calls: {status}"
        );
        let user = status
            .lines()
            .find(|line| line.starts_with("Uid:"))
            .unwrap_or_default();
        ensure!(!user.contains("\t0"), "{user}");
        ensure!(fs::read_link(format!("/proc/{pid}/ns/net"))? != fs::read_link("/proc/self/ns/net")?);
        // No start waits for it.
        let own = format!("/hearth/{}", machine.id);
        until("its monitor is in its cgroups", || {
            Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(&own))
        })?;
        node.hearth(["stop", "-t", "60", "m"]).ok()?;
        ensure!(!jail.exists(), "the jail is still there");
        ensure!(!node.location().run.join("m").join(&machine.id).exists());
        Ok(())
    })
}
