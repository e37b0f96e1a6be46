//! Clones that stand by: the next machine of a kind takes one on, is a machine of its own, and nothing is left of those that nobody wants.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{Driver, TestNode, check};
use rustix::process::{Pid, Signal, kill_process};

use crate::node::kill;
use crate::support::until;

/// A machine of which others follow.
const KIND: [&str; 3] = ["-m", "72m", "busybox"];

/// What tells machines apart, a line each.
const TELL: &str = "hostname; cat /proc/sys/kernel/random/uuid; tail -n 1 /etc/hosts; echo A=$A";

/// Waits until one stands by.
fn stands_by(node: &TestNode) -> Result<()> {
    until("one stands by", || Ok(node.status()?.standing_by == 1))
}

/// Waits until nothing is left of one.
fn gone(node: &TestNode, id: &str) -> Result<()> {
    until("nothing is left of it", || {
        Ok(monitor(id)?.is_none() && !machines(node).join(id).exists())
    })
}

/// Makes the template and the first one.
fn prepared(node: &TestNode) -> Result<()> {
    for _ in 0..2 {
        node.run(["--rm"].into_iter().chain(KIND).chain(["true"])).ok()?;
    }
    stands_by(node)
}

fn machines(node: &TestNode) -> PathBuf {
    node.location().data.join("machines")
}

/// Returns the one that stands by and has no record: its id.
fn nobodys(node: &TestNode) -> Result<String> {
    let places = fs::read_dir(machines(node))?.collect::<Result<Vec<_>, _>>()?;
    let mut ids = places
        .iter()
        .filter(|place| !place.path().join("record.json").exists());
    let id = ids.next().context("none stands by")?.file_name();
    Ok(id.to_string_lossy().into_owned())
}

/// Returns the process of a machine's monitor.
fn monitor(id: &str) -> Result<Option<Pid>> {
    let name = format!("hearth-{id}");
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end meanwhile.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|&byte| byte == 0).any(|word| word == name.as_bytes()) {
            return Ok(Pid::from_raw(pid));
        }
    }
    Ok(None)
}

fn stages(node: &TestNode, machine: &str) -> Result<Vec<String>> {
    let stages = node.inspect(machine)?.stages.into_iter();
    Ok(stages.map(|stage| stage.name).collect())
}

#[test]
fn the_next_machine_of_a_kind_takes_one_on_and_is_its_own() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        node.keep_standbys()?;
        prepared(node)?;
        let mut told = BTreeSet::new();
        let flags = ["--hostname", "h1", "-e", "A=1", "--add-host", "peer:192.0.2.7"];
        for (name, more, tail) in [("a", &[][..], "127.0.1.1"), ("b", &flags, "127.0.1.1\th1")] {
            stands_by(node)?;
            let id = nobodys(node)?;
            let head = ["--name", name].into_iter().chain(more.iter().copied());
            let said = node.run(head.chain(KIND).chain(["sh", "-c", TELL])).ok()?;
            ensure!(
                stages(node, name)? == ["standby", "renew", "start"],
                "{:?}",
                stages(node, name)?
            );
            let machine = node.inspect(name)?;
            ensure!(machine.id == id, "{} is not {id}", machine.id);
            ensure!(machine.template.is_some(), "of no template");
            ensure!(said.contains(tail), "{said}");
            let lines: Vec<_> = said.lines().map(str::to_owned).collect();
            ensure!(lines[0] == if name == "a" { id.as_str() } else { "h1" }, "{said}");
            ensure!(lines[3] == if name == "a" { "A=" } else { "A=1" }, "{said}");
            // Host name and random number.
            ensure!(
                lines[..2].iter().all(|line| told.insert(line.clone())),
                "{said} again in {told:?}"
            );
        }
        // Its clock is the host's, however long it stood.
        stands_by(node)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let said: u64 = node
            .run(["--rm"].into_iter().chain(KIND).chain(["date", "+%s"]))
            .ok()?
            .trim()
            .parse()?;
        ensure!((now..now + 5).contains(&said), "{said} and not {now}");
        // Another kind finds none, and takes none.
        stands_by(node)?;
        let id = nobodys(node)?;
        let others = [
            ["-m", "72m", "--network", "none"],
            ["-m", "72m", "--policy", "locked"],
            ["-m", "80m", "--network", "filtered"],
        ];
        for (name, flags) in ["none", "rule", "size"].into_iter().zip(others) {
            node.run(
                ["--name", name]
                    .into_iter()
                    .chain(flags)
                    .chain(["busybox", "true"]),
            )
            .ok()?;
            ensure!(!stages(node, name)?.contains(&"standby".to_owned()), "{name}");
        }
        ensure!(node.inspect(&id).is_err(), "{id} was taken on");
        Ok(())
    })
}

#[test]
fn nothing_is_left_of_one_that_nobody_wants() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        node.keep_standbys()?;
        prepared(node)?;
        // Killed, it is none any more, and the next machine is a clone.
        let id = nobodys(node)?;
        let pid = monitor(&id)?.context("it has no monitor")?;
        kill_process(pid, Signal::KILL)?;
        gone(node, &id)?;
        ensure!(node.status()?.standing_by == 0);
        node.run(["--name", "a"].into_iter().chain(KIND).chain(["true"]))
            .ok()?;
        ensure!(stages(node, "a")?.contains(&"restore".to_owned()));
        // It gives way to whoever wants the room.
        stands_by(node)?;
        let id = nobodys(node)?;
        let template = node.inspect("a")?.template.context("it is no clone")?;
        node.hearth(["template", "rm", &template]).ok()?;
        gone(node, &id)?;
        node.run(["--name", "b"].into_iter().chain(KIND).chain(["true"]))
            .ok()?;
        ensure!(
            node.inspect("b")?.template.is_none(),
            "of a template that was removed"
        );
        // A machine that is created has it, and takes it along when it goes; one that is started later has it still.
        prepared(node)?;
        let id = nobodys(node)?;
        let created = node
            .hearth(["create", "--name", "c"].into_iter().chain(KIND).chain(["true"]))
            .ok()?;
        ensure!(
            created.trim() == id || node.inspect("c")?.id == id,
            "{created} is not {id}"
        );
        node.hearth(["rm", "c"]).ok()?;
        gone(node, &id)?;
        prepared(node)?;
        node.hearth(["create", "--name", "d"].into_iter().chain(KIND).chain(["true"]))
            .ok()?;
        let taken = node
            .hearth(["create", "--name", "d"].into_iter().chain(KIND))
            .run()?;
        taken.expect_code(125)?.complains("belongs to machine")?;
        node.hearth(["start", "-a", "d"]).ok()?;
        ensure!(
            stages(node, "d")? == ["standby", "renew", "start"],
            "{:?}",
            stages(node, "d")?
        );
        // A node that dies leaves one to the next, which ends it.
        stands_by(node)?;
        let id = nobodys(node)?;
        kill(node)?;
        ensure!(monitor(&id)?.is_some(), "it went with its node");
        // The next node.
        ensure!(node.inspect("d").is_ok());
        ensure!(node.status()?.standing_by == 0);
        ensure!(monitor(&id)?.is_none() && !machines(node).join(&id).exists());
        // So it does with one that a machine has which was not started; that one is a clone then.
        prepared(node)?;
        let id = nobodys(node)?;
        node.hearth(["create", "--name", "g"].into_iter().chain(KIND).chain(["true"]))
            .ok()?;
        ensure!(node.inspect("g")?.id == id);
        kill(node)?;
        ensure!(
            node.inspect("g").is_ok() && monitor(&id)?.is_none(),
            "its monitor is left"
        );
        node.hearth(["start", "-a", "g"]).ok()?;
        ensure!(stages(node, "g")?.contains(&"restore".to_owned()));
        // Who wants none has none.
        node.keep_no_standbys()?;
        for name in ["e", "f"] {
            node.run(["--name", name].into_iter().chain(KIND).chain(["true"]))
                .ok()?;
        }
        ensure!(!stages(node, "f")?.contains(&"standby".to_owned()));
        ensure!(node.status()?.standing_by == 0);
        Ok(())
    })
}
