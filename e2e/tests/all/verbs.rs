//! The verbs that change machines, what starts them again, and what is told of all that.

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::{Event, EventAction, MachineStatus, ProcessList};
use rustix::process::{Pid, Signal, kill_process};

use crate::node::kill;
use crate::support::{STAY, logged, stay};

/// Kills the monitor of a machine.
fn kill_monitor(node: &TestNode, machine: &str) -> Result<()> {
    let pid = node.inspect(machine)?.state.pid.context("no monitor")?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

pub(crate) fn restart_policies_restart_what_they_say(node: &TestNode) -> Result<()> {
    for arguments in [&["--restart", "yes"][..], &["--rm", "--restart", "always"]] {
        node.run(arguments.iter().chain(&STAY))
            .run()?
            .expect_code(125)?
            .complains("restart")?;
    }
    node.start([
        "--name",
        "twice",
        "--restart",
        "on-failure:2",
        "busybox",
        "sh",
        "-c",
        "echo run; exit 3",
    ])?;
    assert_eq!(node.hearth(["wait", "twice"]).ok()?, "3");
    let twice = node.inspect("twice")?;
    assert_eq!(
        (twice.state.status, twice.restart_count),
        (MachineStatus::Exited, 2)
    );
    assert_eq!(node.hearth(["logs", "twice"]).ok()?, "run\nrun\nrun");
    // Nothing has failed.
    node.start([
        "--name",
        "once",
        "--restart",
        "on-failure",
        "busybox",
        "echo",
        "run",
    ])?;
    assert_eq!(node.hearth(["wait", "once"]).ok()?, "0");
    assert_eq!(node.inspect("once")?.restart_count, 0);
    // A start that fails is told to whoever asked for it.
    node.run([
        "--name",
        "none",
        "--restart",
        "always",
        "busybox",
        "no-such-program",
    ])
    .run()?
    .expect_code(127)?;
    assert_eq!(node.inspect("none")?.restart_count, 0);
    Ok(())
}

pub(crate) fn a_machine_that_always_runs_outlives_its_monitor_and_its_node(node: &TestNode) -> Result<()> {
    let script = "echo run; exec sleep 3600";
    node.start([
        "--name",
        "m",
        "--restart",
        "always",
        "busybox",
        "sh",
        "-c",
        script,
    ])?;
    logged(node, "m", "run", 1)?;
    kill_monitor(node, "m")?;
    logged(node, "m", "run", 2)?;
    // With nobody there to see it.
    let pid = node.inspect("m")?.state.pid;
    kill(node)?;
    let pid = pid
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .context("no monitor")?;
    kill_process(pid, Signal::KILL)?;
    logged(node, "m", "run", 3)?;
    assert_eq!(node.inspect("m")?.restart_count, 2);
    // By hand, and that counts, whatever happens to the node.
    node.hearth(["stop", "-t", "1", "m"]).ok()?;
    assert_eq!(node.inspect("m")?.state.status, MachineStatus::Exited);
    kill(node)?;
    assert_eq!(node.inspect("m")?.state.status, MachineStatus::Exited);
    node.hearth(["restart", "m"]).ok()?;
    logged(node, "m", "run", 4)?;
    let again = node.inspect("m")?;
    assert_eq!(
        (again.state.status, again.restart_count),
        (MachineStatus::Running, 0)
    );
    // One that waits for its next run has nothing that runs, and can be stopped and removed.
    node.start([
        "--name",
        "w",
        "--restart",
        "always",
        "busybox",
        "sh",
        "-c",
        "exit 1",
    ])?;
    let waiting = node.hearth(["wait", "w"]).spawn()?;
    node.hearth(["stop", "w"]).ok()?;
    waiting.finish(DEADLINE)?.success()?;
    assert_eq!(node.inspect("w")?.state.status, MachineStatus::Exited);
    node.hearth(["rm", "w"]).ok()?;
    Ok(())
}

pub(crate) fn machines_are_created_renamed_updated_and_pruned(node: &TestNode) -> Result<()> {
    // No names that could be the beginning of a machine's id.
    let id = node
        .hearth([
            "create", "--name", "one", "-l", "team=x", "-l", "old", "busybox", "echo", "hello",
        ])
        .ok()?;
    assert_eq!(node.inspect("one")?.state.status, MachineStatus::Created);
    assert_eq!(node.hearth(["start", "-a", "one"]).ok()?, "hello");
    node.hearth(["create", "-d", "busybox"])
        .run()?
        .expect_code(125)?
        .complains("detach")?;

    stay(node, "two")?;
    node.hearth(["rename", "one", "two"])
        .run()?
        .expect_code(1)?
        .complains("belongs to")?;
    node.hearth(["rename", "one", "-x"]).run()?.expect_code(2)?;
    node.hearth(["rename", "two", "c d"]).run()?.expect_code(1)?;
    node.hearth(["rename", "two", "three"]).ok()?;
    node.hearth(["inspect", "two"]).run()?.expect_code(1)?;
    node.hearth(["rename", "one", "two"]).ok()?;
    assert_eq!(node.inspect("two")?.id, id);

    node.hearth([
        "update",
        "-l",
        "team=y",
        "--remove-label",
        "old",
        "--restart",
        "unless-stopped",
        "two",
        "three",
    ])
    .ok()?;
    node.hearth(["update", "two"]).run()?.expect_code(1)?;
    node.hearth(["update", "--restart", "never", "two"])
        .run()?
        .expect_code(1)?
        .complains("never")?;
    kill(node)?;
    let two = node.inspect("two")?;
    assert_eq!(two.spec.labels, [("team".to_owned(), "y".to_owned())].into());
    assert_eq!(two.spec.restart.as_deref(), Some("unless-stopped"));

    let shown = |filters: &[&str]| -> Result<String> {
        let filters = filters.iter().flat_map(|filter| ["-f", filter]);
        node.hearth(["ps", "-aq"].into_iter().chain(filters)).ok()
    };
    assert_eq!(shown(&["name=two"])?, id);
    assert_eq!(shown(&["label=team=y"])?.lines().count(), 2);
    assert_eq!(shown(&["status=exited", "exited=0"])?, id);
    assert_eq!(shown(&["status=paused"])?, "");
    node.hearth(["ps", "-f", "colour=red"])
        .run()?
        .expect_code(1)?
        .complains("label")?;

    // The one that runs is told in time, and ends.
    node.hearth(["update", "--timeout", "1s", "three"]).ok()?;
    node.hearth(["wait", "three"]).ok()?;
    let ended = node.inspect("three")?.state;
    ensure!(ended.reason.unwrap_or_default().contains("time"), "no reason");
    assert_eq!(ended.status, MachineStatus::Exited);

    stay(node, "four")?;
    node.hearth(["prune"]).stdin("n\n").run()?.expect_code(1)?;
    assert_eq!(node.hearth(["prune", "-f", "--filter", "until=1h"]).ok()?, "");
    assert_eq!(node.hearth(["prune", "-f", "--filter", "label!=team"]).ok()?, "");
    let pruned = node.hearth(["prune", "-f", "--filter", "label=team=y"]).ok()?;
    assert_eq!(pruned.lines().count(), 2, "{pruned}");
    assert_eq!(node.machines()?.len(), 1);
    Ok(())
}

pub(crate) fn events_tell_what_happens_in_order(node: &TestNode) -> Result<()> {
    let follower = node.hearth(["events", "--json", "--since", "1h"]).spawn()?;
    node.run(
        ["--name", "m", "--stop-signal", "KILL"]
            .into_iter()
            .chain(["-d"])
            .chain(STAY),
    )
    .ok()?;
    node.hearth(["pause", "m"]).ok()?;
    node.hearth(["unpause", "m"]).ok()?;
    node.hearth(["rename", "m", "n"]).ok()?;
    follower.stdout.wait_for("rename", DEADLINE)?;
    kill(node)?;
    // It says that its node is gone.
    follower.finish(DEADLINE)?.expect_code(1)?;
    node.hearth(["stop", "-t", "1", "n"]).ok()?;
    node.hearth(["start", "n"]).ok()?;
    node.hearth(["rm", "-f", "n"]).ok()?;
    let text = node
        .hearth(["events", "--json", "--since", "1h", "--until", "0"])
        .ok()?;
    assert_eq!(text, "", "what is before the beginning");
    let text = node
        .hearth(["events", "--json", "--since", "1h", "--until", "0s"])
        .ok()?;
    let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let actions: Vec<_> = events.iter().map(|event| event.action).collect();
    use EventAction::{Create, Destroy, Die, Pause, Rename, Start, Stop, Unpause};
    assert_eq!(
        actions,
        [
            Create, Start, Pause, Unpause, Rename, Die, Stop, Start, Die, Destroy
        ],
        "{text}"
    );
    ensure!(
        events
            .windows(2)
            .all(|pair| pair[1].sequence == pair[0].sequence + 1 && pair[0].time <= pair[1].time),
        "{text}"
    );
    assert_eq!(events[4].attributes["old_name"], "m");
    assert_eq!(events[5].attributes["exit_code"], "137");
    let shown = node
        .hearth(["events", "--since", "1h", "--until", "0s", "-f", "event=die"])
        .ok()?;
    assert_eq!(shown.lines().count(), 2);
    ensure!(shown.contains(" die ") && shown.contains("name=n"), "{shown}");
    node.hearth(["events", "--since", "yesterday"])
        .run()?
        .expect_code(1)?
        .complains("yesterday")?;
    Ok(())
}

pub(crate) fn top_lists_the_processes_inside(node: &TestNode) -> Result<()> {
    node.start([
        "--name",
        "m",
        "busybox",
        "sh",
        "-c",
        "sleep 3600 & echo ready; exec sleep 7200",
    ])?;
    logged(node, "m", "ready", 1)?;
    let beside = node
        .exec(["-u", "1000", "m", "sh", "-c", "echo ready; exec sleep 999"])
        .spawn()?;
    beside.stdout.wait_for("ready", DEADLINE)?;
    let list: ProcessList = serde_json::from_str(&node.hearth(["top", "--json", "m"]).ok()?)?;
    let found: Vec<_> = list
        .processes
        .iter()
        .map(|process| (process.parent_pid, process.uid, process.command.as_str()))
        .collect();
    assert_eq!(list.total, 3, "{list:?}");
    assert_eq!(list.processes[0].pid, 1);
    ensure!(found[0].0 == 0 && found[0].1 == 0, "{found:?}");
    ensure!(found.contains(&(1, 0, "sleep 3600")), "{found:?}");
    ensure!(
        found.iter().any(|process| process.1 == 1000 && process.0 == 0),
        "{found:?}"
    );
    let table = node.hearth(["top", "m"]).ok()?;
    ensure!(
        table.starts_with("PID") && table.contains("sleep 3600") && table.contains("root"),
        "{table}"
    );
    node.hearth(["pause", "m"]).ok()?;
    node.hearth(["top", "m"])
        .run()?
        .expect_code(1)?
        .complains("paused")?;
    Ok(())
}

pub(crate) fn execs_are_told_as_events(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    node.exec(["m", "sh", "-c", "exit 7"]).run()?.expect_code(7)?;
    node.exec(["m", "no-such-program"]).run()?.expect_code(127)?;
    let text = node
        .hearth([
            "events",
            "--json",
            "--since",
            "1h",
            "--until",
            "0s",
            "-f",
            "event=exec_start",
            "-f",
            "event=exec_die",
        ])
        .ok()?;
    let events: Vec<Event> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event.action,
                event.attributes.get("exit_code").map(String::as_str),
            )
        })
        .collect();
    assert_eq!(
        told,
        [(EventAction::ExecStart, None), (EventAction::ExecDie, Some("7"))],
        "{text}"
    );
    // Arguments are nobody's business.
    assert_eq!(events[0].attributes["command"], "sh");
    Ok(())
}

/// Ends when it is asked to.
const POLITE: &str = "trap 'exit 5' TERM; while :; do sleep 3600 & wait $!; done";

pub(crate) fn an_idle_machine_ends_and_a_busy_one_does_not(node: &TestNode) -> Result<()> {
    let ticking = "trap 'exit 5' TERM; while :; do echo tick; sleep 1 & wait $!; done";
    for (name, script) in [("busy", ticking), ("idle", POLITE), ("held", POLITE)] {
        node.start([
            "--name",
            name,
            "--idle-timeout",
            "4s",
            "--restart",
            "always",
            "busybox",
            "sh",
            "-c",
            script,
        ])?;
    }
    let holding = node.exec(["held", "sleep", "3600"]).spawn()?;
    let mut waiting = node.hearth(["wait", "idle"]).spawn()?;
    // Looking at it does not keep it.
    while !waiting.stdout.has("\n") {
        node.inspect("idle")?;
    }
    waiting.close_stdin();
    assert_eq!(waiting.finish(DEADLINE)?.success()?.text()?, "5");
    let ended = node.inspect("idle")?;
    assert_eq!(ended.restart_count, 0);
    ensure!(ended.state.reason.context("no reason")?.contains("idle for 4 s"));
    assert_eq!(node.inspect("busy")?.state.status, MachineStatus::Running);
    assert_eq!(node.inspect("held")?.state.status, MachineStatus::Running);
    // What held it ends with its node; the next one goes on counting.
    kill(node)?;
    assert_eq!(node.hearth(["wait", "held"]).ok()?, "5");
    drop(holding);
    assert_eq!(node.inspect("busy")?.state.status, MachineStatus::Running);
    Ok(())
}
