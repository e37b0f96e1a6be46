//! What a new node makes of what it finds: after a monitor's death, a restart of the host, an upgrade, on a full disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, Driver, Layout, TestNode, check, missing_program, skip};
use hearth_api::v1::MachineStatus;
use rustix::process::{Pid, Signal, kill_process};

use crate::node::kill;
use crate::support::{seconds, stay, until};

/// Ends a machine's monitor as an out-of-memory killer does.
fn kill_monitor(node: &TestNode, machine: &str) -> Result<()> {
    let pid = node.inspect(machine)?.state.pid.context("it has no monitor")?;
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a monitor has a process id")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

fn failed_because(node: &TestNode, machine: &str, reason: &str) -> Result<()> {
    let state = node.inspect(machine)?.state;
    let told = state.reason.clone().unwrap_or_default();
    ensure!(
        state.status == MachineStatus::Failed && told.contains(reason),
        "{state:?}"
    );
    ensure!(state.pid.is_none(), "{state:?}");
    Ok(())
}

#[test]
fn a_monitor_that_is_killed_ends_its_machine_and_no_other() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        stay(node, "m")?;
        stay(node, "other")?;
        kill_monitor(node, "m")?;
        node.hearth(["wait", "m"])
            .run()?
            .expect_code(1)?
            .complains("the virtual machine died")?;
        failed_because(node, "m", "died")?;
        node.hearth(["start", "m"]).ok()?;
        // Node and monitor at once: the next node finds neither.
        kill_monitor(node, "m").and_then(|()| kill(node))?;
        failed_because(node, "m", "")?;
        node.exec(["other", "true"]).ok()?;
        node.hearth(["start", "m"]).ok()?;
        node.exec(["m", "true"]).ok()?;
        Ok(())
    })
}

#[test]
fn a_restart_of_the_host_leaves_records_that_say_so() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        stay(node, "m")?;
        node.start(["--rm", "--name", "brief", "busybox", "sleep", "3600"])?;
        let again = ["-m", "80m", "--restart", "always", "--name", "again"];
        node.start(again.into_iter().chain(["busybox", "sleep", "3600"]))?;
        node.run(["--name", "over", "busybox", "sh", "-c", "echo x > /kept; exit 3"])
            .run()?
            .expect_code(3)?;
        let ids: Vec<_> = node.machines()?.into_iter().map(|machine| machine.id).collect();
        kill(node)?;
        end_all_monitors(node)?;
        // What a boot leaves of run time and memory, and another boot's name in place of the present one.
        let location = node.location();
        fs::remove_dir_all(&location.run)?;
        fs::remove_dir_all(&location.memory)?;
        for id in ids {
            let path = location.data.join("machines").join(id).join("record.json");
            let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
            record["host_boot"] = "a boot of before".into();
            fs::write(&path, serde_json::to_vec(&record)?)?;
        }
        let left: Vec<_> = node.machines()?.into_iter().map(|machine| machine.name).collect();
        ensure!(!left.contains(&"brief".to_owned()), "{left:?}");
        failed_because(node, "m", "the host was restarted")?;
        // By its policy, and by nobody's hand.
        until("it runs again", || {
            Ok(node.inspect("again")?.state.status == MachineStatus::Running)
        })?;
        node.exec(["again", "true"]).ok()?;
        assert_eq!(node.inspect("over")?.state.exit_code, Some(3));
        node.hearth(["start", "m"]).ok()?;
        node.exec(["m", "true"]).ok()?;
        Ok(())
    })
}

/// Ends every monitor of a node that is not there.
fn end_all_monitors(node: &TestNode) -> Result<()> {
    let home = node.home().to_string_lossy().into_owned();
    let of_node = || -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.contains(&home) && line.contains("qemu") {
                found.extend(entry.file_name().to_string_lossy().parse::<i32>());
            }
        }
        Ok(found)
    };
    for pid in of_node()? {
        let pid = Pid::from_raw(pid).context("a monitor has a process id")?;
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
    until("the monitors are gone", || Ok(of_node()?.is_empty()))
}

#[test]
fn a_node_of_another_build_takes_over() -> Result<()> {
    let directory = tempfile::tempdir()?;
    check(TestNode::ready(Driver::Qemu), |node| {
        let newer = directory.path().join("hearth");
        for name in ["hearth", "hearth-guest"] {
            let copy = directory.path().join(name);
            fs::copy(node.program().with_file_name(name), &copy)?;
            // Behind what is loaded: another file, and another digest, of the same code.
            File::options()
                .append(true)
                .open(&copy)?
                .write_all(b"another build")?;
        }
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
        node.start(["--name", "m", "busybox", "sh", "-c", script])?;
        let before = node.inspect("m")?.state;
        let first = node.status()?.pid;
        kill(node)?;
        node.call(&newer, ["ps"]).ok()?;
        let status = node.status()?;
        let runs = fs::read_link(format!("/proc/{}/exe", status.pid))?;
        ensure!(status.pid != first && runs == newer, "{} runs", runs.display());
        assert_eq!(node.inspect("m")?.state.pid, before.pid);
        node.exec(["m", "true"]).ok()?;
        // Its own machines boot with its own agent, and the older node takes them over again.
        node.call(&newer, ["run", "-d", "--name", "n", "busybox", "sleep", "3600"])
            .ok()?;
        node.hearth(["node", "stop"]).ok()?;
        node.exec(["n", "true"]).ok()?;
        node.exec(["m", "true"]).ok()?;
        assert_eq!(node.inspect("m")?.state.pid, before.pid);
        node.hearth(["stop", "-t", "1", "m"]).ok()?;
        let logs = node.hearth(["logs", "m"]).ok()?;
        let expected: Vec<_> = (1..=logs.lines().count()).map(|i| i.to_string()).collect();
        assert_eq!(logs.lines().collect::<Vec<_>>(), expected);
        Ok(())
    })
}

#[test]
fn a_second_node_of_one_place_refuses() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["ps"]).ok()?;
        let pid = node.status()?.pid;
        node.hearth(["node"])
            .run()?
            .expect_code(125)?
            .complains("another node serves")?;
        assert_eq!(node.status()?.pid, pid);
        Ok(())
    })
}

/// Takes all the room that a file system has.
fn fill(directory: &Path) -> Result<std::path::PathBuf> {
    let path = directory.join("filler");
    let mut file = File::create(&path)?;
    for size in [1 << 20, 4 << 10, 1] {
        let bytes = vec![1_u8; size];
        while file.write_all(&bytes).is_ok() {}
    }
    Ok(path)
}

#[test]
fn a_full_disk_is_told_and_harms_no_machine_that_runs() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return skip!("only root can mount a small file system");
    }
    if let Some(program) = missing_program(&["umoci"]) {
        return skip!("{program} is not installed");
    }
    let layout = Layout::busybox()?;
    check(TestNode::ready_on_small_disk(Driver::Qemu, 64), |node| {
        let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
        node.start(["-m", "80m", "--name", "count", "busybox", "sh", "-c", script])?;
        node.start(["-m", "96m", "--name", "idle", "busybox", "sleep", "3600"])?;
        let filler = fill(node.home())?;
        let no_room = "No space left on device";
        node.run(["--rm", "-m", "80m", "busybox", "true"])
            .run()?
            .expect_code(125)?
            .complains(no_room)?;
        node.hearth(["image", "pull", &layout.reference("base")])
            .run()?
            .expect_code(1)?
            .complains(no_room)?;
        assert_eq!(
            node.machines()?.len(),
            2,
            "a machine that could not be made is left"
        );
        node.exec(["count", "true"]).ok()?;
        // A guest that writes stands still until there is room; what ends meanwhile is written down later.
        let write = "dd if=/dev/zero of=/big bs=1M count=24 && sync && echo written";
        let writer = node.exec(["count", "sh", "-c", write]).spawn()?;
        let log = node.location().run.join("node.log");
        until("the machine stands still", || {
            Ok(fs::read_to_string(&log)?.contains("the machine stands still"))
        })?;
        node.hearth(["stop", "-t", "1", "idle"]).ok()?;
        let id = node.inspect("idle")?.id;
        for machine in node.machines()? {
            let record = node
                .location()
                .data
                .join("machines")
                .join(&machine.id)
                .join("record.json");
            serde_json::from_slice::<serde_json::Value>(&fs::read(record)?)?;
        }
        fs::remove_file(filler)?;
        let written = writer.finish(DEADLINE)?.success()?.text()?;
        ensure!(written.trim() == "written", "{written}");
        let record = node.location().data.join("machines").join(id).join("record.json");
        until("the record is written", || {
            Ok(fs::read_to_string(&record)?.contains("exited"))
        })?;
        let last = |node: &TestNode| -> Result<u64> {
            let logs = node.hearth(["logs", "count"]).ok()?;
            let numbers: Vec<u64> = logs.lines().map(str::parse).collect::<Result<_, _>>()?;
            ensure!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
            numbers.last().copied().context("it printed nothing")
        };
        let now = last(node)?;
        until("output is logged again", || Ok(last(node)? > now))?;
        kill(node)?;
        assert_eq!(node.inspect("idle")?.state.status, MachineStatus::Exited);
        node.exec(["count", "true"]).deadline(seconds(60)).ok()?;
        node.run(["--rm", "-m", "80m", "busybox", "true"]).ok()?;
        Ok(())
    })
}
