//! Numbers under Firecracker: boots and restores one after the other, clones at once; and what they leave.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{BareGuest, TestNode, check, is_soak, skip};

use crate::firecracker::{BARE, exec_in, through, with};
use crate::lifecycle::nothing_of_machines;
use crate::support::until;

/// A guest that stands still does so for 30 seconds at most, which a snapshot may lie longer.
const OLD: Duration = Duration::from_secs(32);

/// Clones of one round.
const CROWD: usize = 25;

/// What the node and the host have of machines.
fn counts(node: &TestNode) -> Result<BTreeMap<&'static str, usize>> {
    let pid = node.status()?.pid;
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let targets: Vec<_> = open
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    let of = |word: &str| targets.iter().filter(|target| target.contains(word)).count();
    let home = node.home().to_string_lossy().into_owned();
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let here = |text: &str| text.lines().filter(|line| line.contains(&home)).count();
    Ok(BTreeMap::from([
        ("open files of the node", targets.len()),
        ("processes it watches", of("pidfd")),
        ("networks it holds", of("net:[")),
        ("interfaces it holds", of("/dev/net/tun")),
        ("sockets", here(&sockets)),
        ("mounts", here(&mounts)),
    ]))
}

/// Makes sure that nothing has grown since; what the kernel or the node takes back a moment later is waited for.
fn as_before(node: &TestNode, before: &BTreeMap<&'static str, usize>) -> Result<()> {
    nothing_of_machines(node)?;
    let mut last = BTreeMap::new();
    let back = until("everything is as before", || {
        last = counts(node)?;
        // Connections of clients come and go.
        Ok(last.iter().all(|(what, count)| *count <= before[what] + 2))
    });
    println!("before: {before:?}\nafter:  {last:?}");
    back
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let count = times.len();
    println!("{what}: {count} times, p50 {:.1?}, p99 {:.1?}", at(50), at(99));
}

/// As root, machines have interfaces: networks and TAPs are to be left nowhere, too.
fn flags() -> [&'static str; 4] {
    match rustix::process::geteuid().is_root() {
        true => ["-m", "96m", "--network", "isolated"],
        false => ["-m", "96m", "--network", "none"],
    }
}

#[test]
fn boots_one_after_the_other_leave_nothing() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return skip!("{reason}"),
    };
    check(bare.node(), |node| {
        let (mut times, mut before) = (Vec::new(), None);
        for number in 0..if is_soak() { 200 } else { 10 } {
            let text = format!("boot {number}");
            let head = with(&["--rm", "-i", "--no-template"], &flags());
            let run = node.run(with(&head, &["busybox", "echo"]));
            let outcome = run.stdin(text.as_bytes()).run()?.success()?;
            times.push(outcome.took);
            assert_eq!(outcome.text()?, text);
            if before.is_none() {
                before = Some(counts(node)?);
            }
        }
        report("run --rm --no-template, bare guest", &mut times);
        as_before(node, &before.context("nothing was booted")?)
    })
}

/// Starts a machine with something in memory, and keeps it as the snapshot `one`.
fn kept(node: &TestNode) -> Result<()> {
    let head = with(&["--name", "source"], &flags());
    node.start(with(&head, &with(&["busybox"], BARE.wait)))?;
    exec_in(node, "source", BARE.hold)?;
    node.hearth(["snapshot", "create", "source", "-n", "one"]).ok()?;
    Ok(())
}

/// Makes sure that a machine has what the snapshot has, and answers.
fn is_one(node: &TestNode, name: &str) -> Result<()> {
    let held = exec_in(node, name, BARE.held.0)?;
    ensure!(held.contains(BARE.held.1), "{name}: {held}");
    through(node, name, &BARE, name.as_bytes())
}

#[test]
fn restores_one_after_the_other_leave_nothing() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return skip!("{reason}"),
    };
    check(bare.node(), |node| {
        kept(node)?;
        node.hearth(["rm", "-f", "source"]).ok()?;
        let (kept_at, least) = (Instant::now(), if is_soak() { 200 } else { 10 });
        let (mut times, mut before) = (Vec::new(), None);
        while times.len() < least || kept_at.elapsed() < OLD {
            let begun = Instant::now();
            node.hearth(["restore", "one", "--name", "copy"]).ok()?;
            times.push(begun.elapsed());
            is_one(node, "copy")?;
            node.hearth(["rm", "-f", "copy"]).ok()?;
            if before.is_none() {
                before = Some(counts(node)?);
            }
        }
        report("restore, bare guest", &mut times);
        as_before(node, &before.context("nothing was restored")?)
    })
}

#[test]
fn clones_at_once_leave_nothing() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return skip!("{reason}"),
    };
    check(bare.node(), |node| {
        let (mut times, mut before) = (Vec::new(), None);
        let names: Vec<_> = (0..CROWD).map(|number| format!("clone-{number}")).collect();
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        for round in 0..if is_soak() { 20 } else { 1 } {
            kept(node)?;
            let begun = Instant::now();
            std::thread::scope(|scope| {
                let restore = |name| node.hearth(["restore", "one", "--name", name]).ok();
                let starts: Vec<_> = all
                    .iter()
                    .map(|name| scope.spawn(move || restore(name)))
                    .collect();
                starts.into_iter().try_for_each(|start| {
                    let started = start.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
                    started.map(drop)
                })
            })?;
            times.push(begun.elapsed());
            for name in &all {
                is_one(node, name).with_context(|| format!("round {round}"))?;
            }
            node.hearth(with(&["rm", "-f", "source"], &all)).ok()?;
            node.hearth(["snapshot", "rm", "one"]).ok()?;
            if before.is_none() {
                before = Some(counts(node)?);
            }
        }
        report(&format!("{CROWD} restores at once, bare guest"), &mut times);
        as_before(node, &before.context("nothing was cloned")?)
    })
}
