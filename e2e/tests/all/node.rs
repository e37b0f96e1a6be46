//! The node: started by whoever needs it, once; private; stopped when it may be.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use e2e::{DEADLINE, Driver, TestNode, check};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use crate::support::{stay, until};

#[test]
fn node_is_started_once_by_whoever_comes_first() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["node", "status"]).run()?.expect_code(1)?;
        let calls: Vec<_> = (0..6)
            .map(|_| node.hearth(["ps", "--json"]).spawn())
            .collect::<Result<_>>()?;
        for call in calls {
            assert_eq!(call.finish(DEADLINE)?.success()?.text()?.trim(), "[]");
        }
        let first = node.status()?;
        assert_eq!(node.status()?.pid, first.pid);
        assert_eq!(Path::new(&first.socket), node.location().socket);
        assert_eq!((first.machines, first.running), (0, 0));
        Ok(())
    })
}

#[test]
fn node_is_its_owners_alone() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["ps"]).ok()?;
        let socket = node.location().socket.metadata()?.permissions().mode() & 0o777;
        assert_eq!(socket, 0o600, "{socket:o}");
        let run = node.location().run.metadata()?.permissions().mode() & 0o077;
        assert_eq!(run & 0o022, 0, "{run:o}");
        Ok(())
    })
}

#[test]
fn node_stops_with_its_machines_where_that_is_asked_for() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        stay(node, "m")?;
        let first = node.inspect("m")?;
        node.hearth(["node", "stop"]).ok()?;
        node.hearth(["node", "status"]).run()?.expect_code(1)?;
        let found = node.inspect("m")?;
        assert_eq!(found.state, first.state);
        node.exec(["m", "true"]).ok()?;
        node.hearth(["node", "stop", "--stop-machines"]).ok()?;
        node.hearth(["node", "status"]).run()?.expect_code(1)?;
        // Its machines are still known to the next one, and start again.
        assert_eq!(node.machines()?.len(), 1);
        node.hearth(["start", "m"]).ok()?;
        node.exec(["m", "true"]).ok()?;
        Ok(())
    })
}

#[test]
fn node_that_is_killed_loses_no_machine() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let count = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; sleep 0.2; done; exit 7";
        node.start(["--name", "count", "busybox", "sh", "-c", count])?;
        node.start([
            "--name",
            "secret",
            "--secret",
            "WORD=mellon",
            "busybox",
            "sleep",
            "3600",
        ])?;
        node.start(["--rm", "--name", "brief", "busybox", "sleep", "3600"])?;
        let mut exec = node.exec(["-i", "secret", "cat"]).spawn()?;
        exec.write(b"open\n")?;
        exec.stdout.wait_for("open", DEADLINE)?;
        let names = ["count", "secret", "brief"];
        let pids = |node: &TestNode| -> Result<Vec<_>> {
            names
                .iter()
                .map(|name| Ok(node.inspect(name)?.state.pid))
                .collect()
        };
        let before = pids(node)?;
        for _ in 0..3 {
            kill(node)?;
            assert_eq!(pids(node)?, before);
        }
        exec.finish(DEADLINE)?;
        // What the workload was given lives on in the guest; what others ran beside it is gone.
        let told = node
            .exec(["secret", "sh", "-c", "echo $WORD; ps | grep -c [c]at || true"])
            .ok()?;
        assert_eq!(told, "mellon\n0");
        assert_eq!(node.hearth(["wait", "count"]).ok()?, "7");
        let logs = node.hearth(["logs", "count"]).ok()?;
        let lines: Vec<_> = (1..=40).map(|i| format!("line {i}")).collect();
        assert_eq!(logs.lines().collect::<Vec<_>>(), lines);
        node.hearth(["stop", "-t", "1", "brief", "secret"]).ok()?;
        node.hearth(["start", "secret"])
            .run()?
            .expect_code(1)?
            .complains("secret")?;
        Ok(())
    })
}

/// Kills the node as nothing else does.
pub(crate) fn kill(node: &TestNode) -> Result<()> {
    let pid = i32::try_from(node.status()?.pid)?;
    let pid = Pid::from_raw(pid).context("a node has a process id")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    kill_process(pid, Signal::KILL)?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(())
}

/// Takes a descriptor of a process as well, as a child has it until it executes a program.
fn share(process: &OwnedFd, pid: Pid, is: impl Fn(&Path) -> bool) -> Result<OwnedFd> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        if std::fs::read_link(entry.path()).is_ok_and(|target| is(&target)) {
            let number = entry.file_name().to_string_lossy().parse()?;
            return Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?);
        }
    }
    bail!("the node has no such file")
}

/// The kernel's name of the socket that is bound to a path.
fn bound_to(path: &Path) -> Result<PathBuf> {
    let sockets = std::fs::read_to_string("/proc/net/unix")?;
    let named = |line: &&str| line.ends_with(&format!(" {}", path.display()));
    let line = sockets.lines().find(named).context("nobody listens")?;
    let inode = line.split_whitespace().nth(6).context("a socket has a number")?;
    Ok(format!("socket:[{inode}]").into())
}

#[test]
fn a_dead_nodes_socket_and_lock_keep_nobody_from_the_next() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["ps"]).ok()?;
        let first = node.status()?.pid;
        let pid = Pid::from_raw(i32::try_from(first)?).context("a node has a process id")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let socket = bound_to(&node.location().socket)?;
        let listener = share(&process, pid, |file| file == socket)?;
        let path = node.location().run.join("node.lock");
        let lock = share(&process, pid, |file| file == path)?;
        kill(node)?;
        let asked = node.hearth(["ps", "--json"]).spawn()?;
        // It has connected to the dead node's socket.
        poll(&mut [PollFd::new(&listener, PollFlags::IN)], None)?;
        drop(listener);
        let started = format!("/proc/{0}/task/{0}/children", asked.pid());
        until("it starts the next node", || {
            Ok(!std::fs::read_to_string(&started)?.is_empty())
        })?;
        drop(lock);
        assert_eq!(asked.finish(DEADLINE)?.success()?.text()?.trim(), "[]");
        assert_ne!(node.status()?.pid, first);
        Ok(())
    })
}

#[test]
fn node_is_small() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        node.run(["--rm", "busybox", "true"]).ok()?;
        let idle = node.status()?.rss_bytes;
        println!("node: {} KiB resident", idle >> 10);
        ensure!(idle <= 30 << 20, "{idle} bytes resident");
        Ok(())
    })
}
