//! The cases of the driver suite about memory: of restored machines and forks from a pager, and what a balloon takes and gives.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::MachineStatus;
use rustix::process::{Signal, kill_process};

use crate::firecracker::{Case, Guest, Often, exec_in, start, through};
use crate::firecracker_snapshot::{directory, forked, is_a_copy, lose, source, take};
use crate::firecracker_template::{PAGER, pagers, pagers_run};
use crate::node::kill;
use crate::support::until;

/// The cases.
pub(crate) const CASES: [Case; 4] = [
    ("restores with a pager", restores, Often::Always),
    ("forks with a pager", forks, Often::Always),
    ("pager death, restored", pager_killed, Often::Always),
    ("balloon in and out", balloon, Often::Always),
];

fn restores(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    source(node, "source", guest)?;
    let id = take(node, "source", "one", &[])?.snapshot.id;
    lose(node, "source", guest)?;
    // Machines of one image have one pager, whoever asks for it; others have none.
    for name in ["a", "b", "c"] {
        node.hearth(["restore", "one", "--name", name, PAGER[0], PAGER[1]])
            .ok()?;
    }
    let both = pagers(node)?;
    assert_eq!(both.len(), 2, "one pager of two processes");
    node.hearth(["restore", "one", "--name", "file"]).ok()?;
    for name in ["a", "b", "c", "file"] {
        is_a_copy(node, name, guest)?;
    }
    tells(node, "a", "pager")?;
    tells(node, "file", "file")?;
    // A rollback of one of them has the pager of its own snapshot's image.
    take(node, "a", "of-a", &[])?;
    lose(node, "a", guest)?;
    node.hearth(["rollback", "a", "of-a"]).ok()?;
    is_a_copy(node, "a", guest)?;
    ensure!(pagers(node)?.len() == 4, "two images have two pagers");
    // A node that follows finds both; a copy does not need its snapshot.
    kill(node)?;
    node.hearth(["snapshot", "rm", "one", "of-a"]).ok()?;
    for name in ["a", "b", "c"] {
        is_a_copy(node, name, guest)?;
    }
    node.hearth(["rm", "-f", "a"]).ok()?;
    until("the pager of the rollback ends", || Ok(pagers(node)? == both))?;
    through(node, "b", guest, b"served on")?;
    node.hearth(["rm", "-f", "b", "c"]).ok()?;
    until("the last pager ends", || Ok(pagers(node)?.is_empty()))?;
    ensure!(
        !directory(node, &id).exists(),
        "something of the snapshot is left"
    );
    Ok(())
}

/// Makes sure that a machine's memory comes from there, and `inspect` says so.
fn tells(node: &TestNode, name: &str, backend: &str) -> Result<()> {
    let shown: serde_json::Value = serde_json::from_str(&node.hearth(["inspect", name]).ok()?)?;
    let shown = shown.get(0).unwrap_or(&shown);
    let told = shown["spec"]["memory_backend"].as_str().unwrap_or("file");
    assert_eq!(told, backend, "{shown}");
    Ok(())
}

fn forks(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    source(node, "mother", guest)?;
    let names = forked(node, guest, "mother", 5, &PAGER)?;
    let both = pagers(node)?;
    assert_eq!(both.len(), 2, "one pager of two processes");
    tells(node, &names[0], "pager")?;
    lose(node, &names[0], guest)?;
    // What forks are made of goes with the request; who serves them has it still, also for their own forks.
    for name in &names[1..] {
        is_a_copy(node, name, guest)?;
    }
    let second = forked(node, guest, &names[1], 2, &["--name", "second"])?;
    assert_eq!(pagers(node)?.len(), 4, "forks of a fork are of another image");
    let all: Vec<_> = names.iter().chain(&second).map(String::as_str).collect();
    node.hearth(["rm", "-f"].iter().chain(&all)).ok()?;
    until("the pagers end", || Ok(pagers(node)?.is_empty()))?;
    let places = node.location().run.join("pagers");
    until("their places are removed", || {
        Ok(fs::read_dir(&places)?.count() == 0)
    })
}

fn pager_killed(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    source(node, "bystander", guest)?;
    take(node, "bystander", "one", &[])?;
    let fails = |name: &str| -> Result<()> {
        node.hearth(["wait", name])
            .run()?
            .expect_code(1)?
            .complains("the pager that its memory came from has ended")?;
        assert_eq!(node.inspect(name)?.state.status, MachineStatus::Failed);
        Ok(())
    };
    node.hearth(["restore", "one", "--name", "a", PAGER[0], PAGER[1]])
        .ok()?;
    let forks = forked(node, guest, "bystander", 2, &PAGER)?;
    let all = pagers(node)?;
    assert_eq!(all.len(), 4, "two images have two pagers");
    for pager in &all {
        kill_process(*pager, Signal::KILL)?;
    }
    for name in forks.iter().map(String::as_str).chain(["a"]) {
        fails(name)?;
    }
    until("all of their processes end", || Ok(pagers(node)?.is_empty()))?;
    is_a_copy(node, "bystander", guest)?;
    // It can be started again, and restored again; found by the next node, its pager's death is explained as well.
    node.hearth(["start", "a"]).ok()?;
    through(node, "a", guest, b"on its own")?;
    node.hearth(["restore", "one", "--name", "b", PAGER[0], PAGER[1]])
        .ok()?;
    let again = pagers(node)?;
    kill(node)?;
    is_a_copy(node, "b", guest)?;
    kill_process(*again.last().context("it has no pager")?, Signal::KILL)?;
    fails("b")?;
    node.hearth(["snapshot", "rm", "one"]).ok()?;
    Ok(())
}

/// Sends a machine's Firecracker a request, as the node does, and returns the answer's first line.
fn patch(node: &TestNode, id: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = UnixStream::connect(node.location().run.join("m").join(id).join("api"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "PATCH {path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// Reads how much memory of a machine's monitor is in the host's, in KiB.
fn resident(node: &TestNode, name: &str) -> Result<u64> {
    let pid = node.inspect(name)?.state.pid.context("it has no monitor")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let words = line.context("a process without memory")?;
    Ok(words.trim().trim_end_matches(" kB").parse()?)
}

/// Returns how much memory of the bare guest is nobody's.
fn free_bytes(node: &TestNode, name: &str) -> Result<String> {
    let status = exec_in(node, name, &["status"])?;
    let line = status.lines().find_map(|line| line.strip_prefix("pages_free="));
    let pages: u64 = line.context("no count of pages")?.parse()?;
    Ok((pages * 4096).to_string())
}

/// Memory that a balloon takes is the host's again, and comes back as zeros; the same where a pager serves it.
fn balloon(node: &TestNode, guest: &Guest) -> Result<()> {
    const BALLOON_MIB: u32 = 48;
    start(node, "booted", guest)?;
    let all = free_bytes(node, "booted")?;
    let (fill, check) = (["fill", &all, "3", "4096"], ["check", &all, "3", "4096"]);
    exec_in(node, "booted", &fill)?;
    let mut names = vec!["booted"];
    if pagers_run().is_ok() {
        take(node, "booted", "full", &[])?;
        node.hearth(["restore", "full", "--name", "served", PAGER[0], PAGER[1]])
            .ok()?;
        node.hearth(["snapshot", "rm", "full"]).ok()?;
        // It has all of it.
        ensure!(exec_in(node, "served", &check)?.contains("wrong_words=0"));
        names.push("served");
    }
    for name in names {
        let id = node.inspect(name)?.id;
        let pages = |wanted: u32| {
            let wanted = format!("balloon_pages={}\n", wanted * 256);
            until(&format!("{name}: {wanted}"), || {
                Ok(format!("{}\n", exec_in(node, name, &["status"])?).contains(&wanted))
            })
        };
        let inflate = |mib: u32| {
            let answer = patch(node, &id, "/balloon", &format!("{{\"amount_mib\":{mib}}}"))?;
            ensure!(answer.contains("204"), "{name}: {answer}");
            pages(mib)
        };
        let before = resident(node, name)?;
        inflate(BALLOON_MIB)?;
        let less = before.saturating_sub(resident(node, name)?);
        ensure!(
            less >= u64::from(BALLOON_MIB) * 1024 * 9 / 10,
            "{name}: {BALLOON_MIB} MiB went into the balloon, and the host has {less} KiB more"
        );
        inflate(0)?;
        exec_in(node, name, &fill)?;
        ensure!(exec_in(node, name, &check)?.contains("wrong_words=0"));
        through(node, name, guest, b"breathes")?;
    }
    Ok(())
}
