//! The cases of the driver suite about snapshots with names: what goes on of them, and what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{BareGuest, Driver, TestNode, check, skip};
use hearth_api::v1::{CreatedSnapshot, Extent, Forked, Machine, MachineStatus, Origin};

use crate::firecracker::{BARE, Case, Guest, LINUX, Often, exec_in, row, start, through, with};
use crate::node::kill;
use crate::support::until;

/// The cases of every pair.
pub(crate) const CASES: [Case; 6] = [
    ("snapshot and restore", restore, Often::NotSlowly),
    ("snapshot --diff, three in a row", diffs, Often::NotSlowly),
    ("snapshot --disk-only, --stop", parts, Often::NotSlowly),
    ("rollback", rollback, Often::NotSlowly),
    ("ten forks at once", forks, Often::NotSlowly),
    ("bad snapshots refused", bad_files, Often::NotSlowly),
];

/// Starts a machine with something on its disk and in its memory.
pub(crate) fn source(node: &TestNode, name: &str, guest: &Guest) -> Result<()> {
    start(node, name, guest)?;
    fill(node, name, guest)
}

fn fill(node: &TestNode, name: &str, guest: &Guest) -> Result<()> {
    exec_in(node, name, guest.keep)?;
    exec_in(node, name, guest.hold)?;
    has_all(node, name, guest)
}

/// Says whether a machine has the one and the other.
fn has(node: &TestNode, name: &str, guest: &Guest) -> Result<[bool; 2]> {
    let looks = |(command, there): (&[&str], &str)| anyhow::Ok(exec_in(node, name, command)?.contains(there));
    Ok([looks(guest.kept)?, looks(guest.held)?])
}

/// Makes sure that a machine has both.
pub(crate) fn has_all(node: &TestNode, name: &str, guest: &Guest) -> Result<()> {
    assert_eq!(has(node, name, guest)?, [true; 2], "{name}: disk, memory");
    Ok(())
}

/// Takes both away from it, and makes sure that it has neither.
pub(crate) fn lose(node: &TestNode, name: &str, guest: &Guest) -> Result<()> {
    for command in guest.lose {
        exec_in(node, name, command)?;
    }
    assert_eq!(has(node, name, guest)?, [false; 2], "{name}: disk, memory");
    Ok(())
}

pub(crate) fn take(node: &TestNode, machine: &str, name: &str, more: &[&str]) -> Result<CreatedSnapshot> {
    let head = ["snapshot", "create", machine, "-n", name, "--json"];
    let text = node.hearth(head.iter().chain(more)).ok()?;
    Ok(serde_json::from_str(&text)?)
}

/// Makes sure that a machine that was made of another one has its name, its memory and its disk, and answers.
pub(crate) fn is_a_copy(node: &TestNode, name: &str, guest: &Guest) -> Result<Machine> {
    let machine = node.inspect(name)?;
    assert_eq!(machine.state.status, MachineStatus::Running);
    has_all(node, name, guest)?;
    let said = exec_in(node, name, guest.who)?;
    ensure!(said.contains(&machine.id), "{name} is {said}, not {}", machine.id);
    through(node, name, guest, name.as_bytes())?;
    Ok(machine)
}

fn restore(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "source", guest)?;
    let created = take(node, "source", "one", &[])?.snapshot;
    ensure!(created.extent == Extent::Full && created.unusable.is_none());
    lose(node, "source", guest)?;
    for name in ["a", "b"] {
        assert_eq!(node.hearth(["restore", "one", "--name", name]).ok()?, name);
        let copy = is_a_copy(node, name, guest)?;
        ensure!(copy.origin == Some(Origin::Snapshot(created.id.clone())));
        let stages: Vec<_> = copy.stages.iter().map(|stage| stage.name.as_str()).collect();
        ensure!(
            stages.ends_with(&["disk", "restore", "hello", "renew", "thaw"]),
            "{stages:?}"
        );
    }
    // None has a part of another.
    lose(node, "a", guest)?;
    is_a_copy(node, "b", guest)?;
    through(node, "source", guest, b"undisturbed")?;
    // A node that follows finds it, and it is started again as any machine.
    kill(node)?;
    is_a_copy(node, "b", guest)?;
    node.hearth(["restart", "-t", "5", "b"]).ok()?;
    assert_eq!(exec_in(node, "b", guest.kept.0)?, guest.kept.1);
    // A copy of a copy, which outlives both.
    let again = ["snapshot", "create", "b", "-n", "two"];
    exec_in(node, "b", guest.hold)?;
    node.hearth(again).ok()?;
    node.hearth(["rm", "-f", "source", "a", "b"]).ok()?;
    node.hearth(["restore", "two", "--name", "c"]).ok()?;
    node.hearth(["snapshot", "rm", "one", "two"]).ok()?;
    is_a_copy(node, "c", guest).map(drop)
}

fn diffs(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "source", guest)?;
    take(node, "source", "0", &[])?;
    lose(node, "source", guest)?;
    for (generation, before) in (1..=3).map(|number: u32| (number.to_string(), (number - 1).to_string())) {
        let copy = format!("copy-{generation}");
        node.hearth(["restore", &before, "--name", &copy]).ok()?;
        is_a_copy(node, &copy, guest)?;
        let diff = take(node, &copy, &generation, &["--diff"])?.snapshot;
        ensure!(diff.diff, "{diff:?}");
    }
    node.hearth(["rm", "-f", "source", "copy-1", "copy-2", "copy-3"])
        .ok()?;
    node.hearth(["snapshot", "rm", "0", "1", "2"]).ok()?;
    // Two at once, of a node that has to read it first; the second one has a part in the first one's memory.
    kill(node)?;
    node.hearth(["restore", "3", "--name", "a"]).ok()?;
    node.hearth(["restore", "3", "--name", "b"]).ok()?;
    node.hearth(["snapshot", "rm", "3"]).ok()?;
    lose(node, "a", guest)?;
    is_a_copy(node, "b", guest).map(drop)
}

fn parts(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "m", guest)?;
    let disk = take(node, "m", "disk", &["--disk-only"])?.snapshot;
    ensure!(disk.extent == Extent::Disk);
    node.hearth(["restore", "disk", "--name", "booted"]).ok()?;
    assert_eq!(exec_in(node, "booted", guest.kept.0)?, guest.kept.1);
    // Its processors stand still: a disk alone can be kept of it.
    node.hearth(["pause", "booted"]).ok()?;
    take(node, "booted", "still", &["--disk-only"])?;
    node.hearth(["snapshot", "create", "booted"])
        .run()?
        .expect_code(1)?
        .complains("paused")?;
    take(node, "m", "end", &["--stop"])?;
    let ended = node.inspect("m")?.state;
    assert_eq!(ended.status, MachineStatus::Exited);
    ensure!(
        ended.reason.as_ref().is_some_and(|why| why.contains("snapshot")),
        "{ended:?}"
    );
    node.hearth(["rollback", "m", "end"]).ok()?;
    is_a_copy(node, "m", guest)?;
    node.hearth(["snapshot", "rm", "disk", "still", "end"]).ok()?;
    Ok(())
}

fn rollback(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "m", guest)?;
    start(node, "other", guest)?;
    take(node, "m", "good", &[])?;
    let mut before = node.inspect("m")?;
    for _ in 0..2 {
        lose(node, "m", guest)?;
        assert_eq!(node.hearth(["rollback", "m", "good"]).ok()?, "m");
        let after = is_a_copy(node, "m", guest)?;
        ensure!(after.id == before.id && after.state.pid != before.state.pid);
        before = after;
    }
    let refused = node.hearth(["rollback", "other", "good"]).run()?;
    refused.expect_code(1)?.complains("not of this machine")?;
    through(node, "other", guest, b"unharmed")?;
    // One that does not run is taken back as well, and one whose node has died since.
    node.hearth(["stop", "-t", "5", "m"]).ok()?;
    node.hearth(["rollback", "m", "good"]).ok()?;
    is_a_copy(node, "m", guest)?;
    lose(node, "m", guest)?;
    kill(node)?;
    node.hearth(["rollback", "m", "good"]).ok()?;
    is_a_copy(node, "m", guest)?;
    node.hearth(["snapshot", "rm", "good"]).ok()?;
    Ok(())
}

/// Forks a machine, and makes sure that each one is its copy.
pub(crate) fn forked(
    node: &TestNode,
    guest: &Guest,
    of: &str,
    count: u32,
    flags: &[&str],
) -> Result<Vec<String>> {
    let count_text = count.to_string();
    let head = ["fork", of, "-n", &count_text, "--json"];
    let text = node.hearth(head.iter().chain(flags)).ok()?;
    let forked: Forked = serde_json::from_str(&text)?;
    let mother = node.inspect(of)?.id;
    let mut monitors = BTreeSet::new();
    for machine in &forked.machines {
        ensure!(machine.origin == Some(Origin::Fork(mother.clone())));
        monitors.insert(is_a_copy(node, &machine.name, guest)?.state.pid);
    }
    assert_eq!(monitors.len(), count as usize);
    Ok(forked.machines.into_iter().map(|machine| machine.name).collect())
}

fn forks(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "mother", guest)?;
    let names = forked(node, guest, "mother", 10, &[])?;
    has_all(node, "mother", guest)?;
    // Each has a disk and memory of its own.
    let (first, others) = names.split_first().context("ten forks are none")?;
    lose(node, first, guest)?;
    for name in others.iter().map(String::as_str).chain(["mother"]) {
        has_all(node, name, guest)?;
    }
    // A fork forks, and a node that follows finds all of them.
    let second = forked(node, guest, &others[0], 2, &["--name", "second"])?;
    kill(node)?;
    for name in second.iter().chain(others) {
        is_a_copy(node, name, guest)?;
    }
    Ok(())
}

/// Files of a snapshot that a restore may not take, and what it says of them.
type Damage = (&'static str, fn(&Path) -> Result<()>);

const DAMAGES: [Damage; 8] = [
    ("the bytes of vm/memory are not those", |files| {
        flip(&files.join("vm/memory"))
    }),
    ("the bytes of vm/state are not those", |files| {
        flip(&files.join("vm/state"))
    }),
    ("the bytes of disk are not those", |files| {
        flip(&files.join("disk"))
    }),
    ("vm/memory has 4096 bytes", |files| {
        let file = fs::OpenOptions::new().write(true).open(files.join("vm/memory"))?;
        Ok(file.set_len(4096)?)
    }),
    ("vm/state has 0 bytes", |files| {
        Ok(fs::write(files.join("vm/state"), "")?)
    }),
    ("cannot read vm/state", |files| {
        Ok(fs::remove_file(files.join("vm/state"))?)
    }),
    ("monitor's version was 1.99.0, and here is", |files| {
        change_key(files, "version", "1.99.0")
    }),
    ("the processor that it saw, was another", |files| {
        change_key(files, "fingerprint", "another one")
    }),
];

/// Changes a bit in the middle of a file.
fn flip(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], middle)?)
}

fn change_key(files: &Path, field: &str, value: &str) -> Result<()> {
    let path = files.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    let found = &mut manifest["key"]["key"][field];
    ensure!(found.is_string(), "the key has no {field}");
    *found = value.into();
    Ok(fs::write(path, serde_json::to_vec(&manifest)?)?)
}

fn bad_files(node: &TestNode, guest: &Guest) -> Result<()> {
    let head = ["--no-template", "-m", "96m", "--name", "m", "busybox"];
    node.start(with(&head, guest.wait))?;
    fill(node, "m", guest)?;
    for (number, (words, damage)) in DAMAGES.into_iter().enumerate() {
        let context = || format!("damage {number}, {words:?}");
        let created = take(node, "m", "bad", &[])?.snapshot;
        damage(&directory(node, &created.id)).with_context(context)?;
        // A node reads each byte before it uses a snapshot for the first time.
        kill(node)?;
        for verb in [&["restore", "bad"][..], &["rollback", "m", "bad"]] {
            let refused = node.hearth(verb).run()?;
            refused.expect_code(1)?.complains(words).with_context(context)?;
        }
        // Nothing was begun, and the machine is as it was.
        assert_eq!(node.machines()?.len(), 1);
        is_a_copy(node, "m", guest).with_context(context)?;
        node.hearth(["snapshot", "rm", "bad"]).ok()?;
    }
    Ok(())
}

/// Leaves so much room on the file system of a directory, and returns the file that has the rest.
fn leave(directory: &Path, bytes: u64) -> Result<PathBuf> {
    let path = directory.join("filler");
    let there = rustix::fs::statvfs(directory)?;
    let rest = (there.f_bavail * there.f_frsize).saturating_sub(bytes);
    let file = fs::File::create(&path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, rest)?;
    Ok(path)
}

/// A snapshot that has no room is refused, and so are forks; the machine does not notice.
fn full_disk(node: &TestNode, guest: &Guest) -> Result<()> {
    source(node, "m", guest)?;
    let filler = leave(node.home(), 16 << 20)?;
    for verb in [
        &["snapshot", "create", "m", "-n", "one"][..],
        &["fork", "m", "-n", "2"],
    ] {
        let refused = node.hearth(verb).run()?;
        refused.expect_code(1)?.complains("No space left on device")?;
        is_a_copy(node, "m", guest)?;
        assert_eq!(node.machines()?.len(), 1, "a fork is left");
        let kept = node.location().data.join("snapshots");
        until("nothing of it is left", || Ok(fs::read_dir(&kept)?.count() == 0))?;
    }
    fs::remove_file(filler)?;
    take(node, "m", "one", &[])?;
    node.hearth(["rollback", "m", "one"]).ok()?;
    is_a_copy(node, "m", guest).map(drop)
}

/// Room for a template and for a snapshot of a machine of 96 MiB.
const SPARE_MIB: u64 = 320;

fn on_a_small_disk(driver: &str, guest: &Guest, node: impl FnOnce() -> Result<TestNode>) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return skip!("only root can mount a small file system");
    }
    let begun = Instant::now();
    check(node(), |node| full_disk(node, guest))?;
    let outcome = format!("ok in {:.1?}", begun.elapsed());
    row(driver, guest, "disk full during snapshot", &outcome);
    Ok(())
}

#[test]
fn a_snapshot_of_the_bare_guest_that_has_no_room_harms_nothing() -> Result<()> {
    match BareGuest::find() {
        Ok(bare) => on_a_small_disk("firecracker", &BARE, || bare.node_on_small_disk(SPARE_MIB)),
        Err(reason) => skip!("{reason}"),
    }
}

#[test]
fn a_snapshot_of_linux_that_has_no_room_harms_nothing() -> Result<()> {
    on_a_small_disk("qemu", &LINUX, || {
        TestNode::ready_on_small_disk(Driver::Qemu, SPARE_MIB)
    })
}

/// Where a snapshot's files are.
pub(crate) fn directory(node: &TestNode, id: &str) -> PathBuf {
    node.location().data.join("snapshots").join(id)
}
