//! The life of a machine: start, signals, stop, restart, removal.

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::{Border, MachineStatus};
use rustix::process::Signal;

use crate::support::{STAY, logged, nobodys, seconds, settled, stay};

/// Waits for signals and says which came; `sleep` in the background, since a shell hears nothing while it waits for another.
const LISTENER: &str = "trap 'echo heard USR1' USR1; trap 'echo heard TERM; exit 143' TERM; trap 'exit 7' INT; \
    echo ready; while :; do sleep 3600 & wait $!; done";

pub(crate) fn signals_reach_the_workload(node: &TestNode) -> Result<()> {
    for (signal, code) in [(Signal::INT, 7), (Signal::TERM, 143)] {
        let running = node.run(["--rm", "busybox", "sh", "-c", LISTENER]).spawn()?;
        running.stdout.wait_for("ready", DEADLINE)?;
        running.signal(signal)?;
        running.finish(DEADLINE)?.expect_code(code)?;
    }
    Ok(())
}

pub(crate) fn stop_asks_first_and_kills_then(node: &TestNode) -> Result<()> {
    node.start(["--name", "polite", "busybox", "sh", "-c", LISTENER])?;
    logged(node, "polite", "ready", 1)?;
    let asked = node.hearth(["stop", "-t", "60", "polite"]).run()?.success()?;
    ensure!(
        asked.took < seconds(60),
        "it was not asked but killed: {:?}",
        asked.took
    );
    let state = node.inspect("polite")?.state;
    assert_eq!(
        (state.status, state.exit_code),
        (MachineStatus::Exited, Some(143))
    );
    assert!(node.hearth(["logs", "polite"]).ok()?.contains("heard TERM"));

    // PID 1 without a handler is deaf to SIGTERM.
    stay(node, "deaf")?;
    let killed = node.hearth(["stop", "-t", "1", "deaf"]).run()?.success()?;
    ensure!(
        killed.took >= seconds(1),
        "it got no time to end: {:?}",
        killed.took
    );
    let state = node.inspect("deaf")?.state;
    assert_eq!(
        (state.status, state.exit_code),
        (MachineStatus::Exited, Some(137))
    );
    // Stopping what has stopped is no error, as in docker.
    node.hearth(["stop", "deaf"]).ok()?;
    Ok(())
}

pub(crate) fn kill_sends_any_signal(node: &TestNode) -> Result<()> {
    node.start(["--name", "m", "busybox", "sh", "-c", LISTENER])?;
    logged(node, "m", "ready", 1)?;
    node.hearth(["kill", "-s", "USR1", "m"]).ok()?;
    logged(node, "m", "heard USR1", 1)?;
    node.hearth(["kill", "-s", "NOSUCH", "m"])
        .run()?
        .expect_code(1)?
        .complains("NOSUCH")?;
    node.hearth(["kill", "m"]).ok()?;
    assert_eq!(node.hearth(["wait", "m"]).ok()?, "137");
    node.hearth(["kill", "m"]).run()?.expect_code(1)?;
    Ok(())
}

pub(crate) fn wait_prints_exit_codes(node: &TestNode) -> Result<()> {
    node.start(["--name", "three", "busybox", "sh", "-c", "exit 3"])?;
    assert_eq!(node.hearth(["wait", "three"]).ok()?, "3");
    stay(node, "killed")?;
    let waiting = node.hearth(["wait", "killed", "three"]).spawn()?;
    node.hearth(["kill", "killed"]).ok()?;
    assert_eq!(waiting.finish(DEADLINE)?.success()?.text()?, "137\n3");
    node.hearth(["wait", "no-such-machine"]).run()?.expect_code(1)?;
    Ok(())
}

pub(crate) fn remove_refuses_what_runs(node: &TestNode) -> Result<()> {
    let id = stay(node, "m")?;
    node.hearth(["rm", "m"]).run()?.expect_code(1)?;
    assert_eq!(node.inspect("m")?.state.status, MachineStatus::Running);
    // A part of an id will do.
    node.hearth(["rm", "--force", &id[..6]]).ok()?;
    assert_eq!(node.machines()?, []);
    node.hearth(["inspect", "m"]).run()?.expect_code(1)?;
    node.hearth(["rm", "m"]).run()?.expect_code(1)?.complains("m")?;
    node.hearth(["rm", "--force", "m"]).ok()?;
    Ok(())
}

pub(crate) fn ps_and_inspect_tell_the_state(node: &TestNode) -> Result<()> {
    let id = node.start(
        ["--name", "up", "-l", "role=test", "-m", "128m"]
            .into_iter()
            .chain(STAY),
    )?;
    node.run(["--name", "down", "busybox", "true"]).ok()?;
    assert_eq!(node.hearth(["ps", "-q"]).ok()?, id);
    assert_eq!(node.hearth(["ps", "-aq"]).ok()?.lines().count(), 2);
    let table = node.hearth(["ps", "-a"]).ok()?;
    for text in [id.as_str(), "up", "down", "Up ", "Exited (0)", "qemu"] {
        assert!(table.contains(text), "no {text:?} in:\n{table}");
    }
    let up = node.inspect("up")?;
    assert_eq!((up.id.as_str(), up.name.as_str()), (id.as_str(), "up"));
    assert_eq!(up.state.status, MachineStatus::Running);
    assert_eq!(up.driver, "qemu");
    assert_eq!(up.arguments, ["sleep", "3600"]);
    assert_eq!(up.memory_mib, 128);
    assert_eq!(up.spec.labels.get("role").map(String::as_str), Some("test"));
    assert_eq!(table.contains("emulated"), up.border == Border::Emulated);
    ensure!(!up.stages.is_empty(), "no stages of its start");
    let pid = up.state.pid.context("no process of the monitor")?;
    ensure!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "process {pid} is none"
    );
    let down = node.inspect("down")?;
    assert_eq!(
        (down.state.status, down.state.exit_code),
        (MachineStatus::Exited, Some(0))
    );
    assert_eq!(down.state.pid, None);
    Ok(())
}

pub(crate) fn a_name_belongs_to_one_machine(node: &TestNode) -> Result<()> {
    node.run(["--name", "m", "busybox", "true"]).ok()?;
    node.run(["--name", "m", "busybox", "true"])
        .run()?
        .expect_code(125)?
        .complains("m")?;
    node.hearth(["rm", "m"]).ok()?;
    node.run(["--name", "m", "--rm", "busybox", "true"]).ok()?;
    for name in ["../m", "-m", "a b", ""] {
        let flag = format!("--name={name}");
        node.run([flag.as_str(), "busybox", "true"])
            .run()?
            .expect_code(125)?;
    }
    assert_eq!(node.machines()?, []);
    Ok(())
}

pub(crate) fn a_restarted_machine_keeps_its_files(node: &TestNode) -> Result<()> {
    let script =
        "echo line >> /kept; echo scratch > /dev/shm/lost; echo starts: $(wc -l < /kept); exec sleep 3600";
    node.start(["--name", "m", "busybox", "sh", "-c", script])?;
    logged(node, "m", "starts: 1", 1)?;
    node.hearth(["stop", "-t", "1", "m"]).ok()?;
    node.hearth(["start", "m"]).ok()?;
    logged(node, "m", "starts: 2", 1)?;
    // A machine that is killed keeps what was on its disk, too.
    node.exec(["m", "sync"]).ok()?;
    node.hearth(["kill", "m"]).ok()?;
    node.hearth(["wait", "m"]).ok()?;
    node.hearth(["start", "m"]).ok()?;
    logged(node, "m", "starts: 3", 1)?;
    // The image itself is untouched.
    node.run(["--rm", "busybox", "test", "-e", "/kept"])
        .run()?
        .expect_code(1)?;
    Ok(())
}

pub(crate) fn run_rm_leaves_nothing(node: &TestNode) -> Result<()> {
    node.run(["--rm", "busybox", "true"]).ok()?;
    let id = node.start(["--rm"].into_iter().chain(STAY))?;
    node.hearth(["kill", &id]).ok()?;
    // The removal follows the end; `wait` answers when the machine has ended or is gone.
    node.hearth(["wait", &id]).run()?;
    node.run(["--rm", "busybox", "no-such-program"])
        .run()?
        .expect_code(127)?;
    nothing_of_machines(node)
}

/// Checks that no machine has a directory, a socket or memory on this node.
///
/// # Errors
/// One has.
pub(crate) fn nothing_of_machines(node: &TestNode) -> Result<()> {
    assert_eq!(node.machines()?, []);
    // One that is being made is not known to stand by.
    let nobodys = settled(|| nobodys(node))?;
    let location = node.location();
    let places = [
        location.data.join("machines"),
        location.run.join("m"),
        location.memory.clone(),
    ];
    for place in places {
        let entries = std::fs::read_dir(&place).into_iter().flatten().flatten();
        let others = entries.filter(|entry| !nobodys.contains(&*entry.file_name().to_string_lossy()));
        let left: Vec<_> = others.map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
    }
    Ok(())
}

pub(crate) fn timeout_stops_the_machine(node: &TestNode) -> Result<()> {
    let outcome = node
        .run(["--name", "m", "--timeout", "2s"].into_iter().chain(STAY))
        .run()?;
    assert_ne!(outcome.code, 0, "{}", outcome.errors());
    let machine = node.inspect("m")?;
    assert_eq!(machine.state.status, MachineStatus::Exited);
    let reason = machine.state.reason.context("no reason")?;
    ensure!(reason.to_lowercase().contains("time"), "{reason}");
    Ok(())
}
