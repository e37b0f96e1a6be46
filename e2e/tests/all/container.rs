//! How a workload sees its machine: init, read-only root, tmpfs, hosts, limits, groups; and processes that nobody waits for.

use anyhow::Result;
use e2e::{DEADLINE, TestNode};

use crate::node::kill;
use crate::support::{logged, stay};

pub(crate) fn settings_shape_the_workloads_world(node: &TestNode) -> Result<()> {
    // One line each, so that what differs is seen.
    let script = "exec 2>&1; echo pid $$; tr '\\0' ' ' < /proc/1/cmdline; echo; touch /x; \
        touch /scratch/y && echo written; stat -c %a /scratch /root; grep -w db /etc/hosts; ulimit -n; ulimit -Hn; id -G; \
        umask; cat /proc/self/oom_score_adj; (sleep 0.1 &); trap 'exit 9' TERM; echo rea''dy; while :; do sleep 1; done";
    let settings = [
        "--init",
        "--read-only",
        "--tmpfs=/scratch:size=1m,mode=750,uid=1815",
        "--tmpfs=/root",
        "--add-host=db:10.1.2.3",
        "--ulimit=nofile=100:200",
        "--group-add=root",
        "--group-add=77",
        "--user=1815:1852",
    ];
    let machine = ["--name", "m"].into_iter().chain(settings);
    node.start(machine.chain(["busybox", "sh", "-c", script]))?;
    logged(node, "m", "ready", 1)?;
    let told = node.hearth(["logs", "m"]).ok()?;
    let expected = "pid 2\nhearth-init /bin/sh sh -c";
    assert!(told.starts_with(expected), "{told}");
    let rest = "touch: /x: Read-only file system\nwritten\n750\n700\n10.1.2.3\tdb\n100\n200\n1852 0 77\n0022\n0\nready";
    assert!(told.ends_with(rest), "{told}");
    // What runs beside the workload has the same limits and groups, and joins the same world.
    let beside = node
        .exec(["m", "sh", "-c", "ulimit -Hn; id -G; ls /scratch"])
        .ok()?;
    assert_eq!(beside, "200\n1852 0 77\ny");
    // The init has reaped the orphan, and passes the stop signal on.
    let states = node.exec(["m", "ps", "-o", "stat,comm"]).ok()?;
    assert!(!states.lines().any(|line| line.starts_with('Z')), "{states}");
    node.hearth(["stop", "-t", "60", "m"]).ok()?;
    assert_eq!(node.inspect("m")?.state.exit_code, Some(9));
    Ok(())
}

pub(crate) fn a_machine_that_holds_runs_nothing_and_takes_what_comes(node: &TestNode) -> Result<()> {
    // An image without a single file: nothing in it could wait.
    let nothing = tempfile::tempdir()?;
    let image = format!("dir:{}", nothing.path().display());
    node.start(["--name", "empty", "--hold", &image])?;
    std::fs::write(nothing.path().join("greeting"), "hello")?;
    let file = nothing.path().join("greeting");
    node.hearth(["cp", &file.to_string_lossy(), "empty:/"]).ok()?;
    assert!(
        node.hearth(["cp", "empty:/greeting", "-"])
            .ok()?
            .contains("hello")
    );
    node.hearth(["stop", "-t", "60", "empty"]).ok()?;
    assert_eq!(node.inspect("empty")?.state.exit_code, Some(0));

    node.start(["--name", "m", "--hold", "-p", "127.0.0.1::7", "busybox"])?;
    // An orphan of an exec is its child, and is reaped.
    node.exec([
        "m",
        "sh",
        "-c",
        "(sleep 0.2 &) ; nc -ll -p 7 -e cat </dev/null >/dev/null 2>&1 &",
    ])
    .ok()?;
    let reaped = "until ! ps -o comm,args | grep -q '^sleep'; do sleep 0.1; done; ps -o pid,ppid,stat,comm";
    let told = node.exec(["m", "sh", "-c", reaped]).deadline(DEADLINE).ok()?;
    assert!(
        told.contains(" 1     0 ") && told.contains("hearth-init"),
        "{told}"
    );
    assert!(!told.contains(" Z "), "{told}");
    let refused = node.run(["--hold", "busybox", "true"]).run()?;
    refused.expect_code(125)?.complains("leave out the command")?;
    Ok(())
}

pub(crate) fn settings_that_cannot_be_are_refused(node: &TestNode) -> Result<()> {
    let refused = [
        ("--tmpfs=/proc/x", "tmpfs cannot be at"),
        ("--tmpfs=/t:lowerdir=/", "no option of a tmpfs"),
        ("--add-host=db:nowhere", "not an IP address"),
        ("--ulimit=files=3", "cannot be limited"),
        ("--ulimit=nofile=3:2", "above the hard one"),
        ("--group-add=a:b", "not a group"),
    ];
    for (setting, why) in refused {
        let outcome = node.run([setting, "busybox", "true"]).run()?;
        outcome.expect_code(125)?.complains(why)?;
    }
    assert_eq!(node.machines()?, []);
    node.run(["--rm", "--group-add=no-such-group", "busybox", "true"])
        .run()?
        .expect_code(125)?
        .complains("no-such-group")?;
    Ok(())
}

pub(crate) fn a_detached_exec_goes_on(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    // It prints more than any buffer holds before it is done, to nobody.
    let work = |name: &str| format!("head -c 8000000 /dev/zero; echo done > /{name}; exec sleep 3600");
    let started = node.exec(["-d", "m", "sh", "-c", &work("a")]).run()?.success()?;
    assert_eq!((started.stdout.len(), started.stderr.len()), (0, 0));
    node.exec(["-dt", "m", "sh", "-c", &work("b")]).ok()?;
    let arrived = "until test -s /a && test -s /b; do sleep 0.1; done; ps -o args | grep -c '^sleep 3600'";
    assert_eq!(
        node.exec(["m", "sh", "-c", arrived]).deadline(DEADLINE).ok()?,
        "3"
    );
    // They outlive the node that started them; a process that a client waited for does not.
    let waiting = node
        .exec(["m", "sh", "-c", "echo here; exec sleep 4000"])
        .spawn()?;
    waiting.stdout.wait_for("here", DEADLINE)?;
    kill(node)?;
    drop(waiting);
    let alone =
        "while ps -o args | grep -q '^sleep 4000'; do sleep 0.1; done; ps -o args | grep -c '^sleep 3600'";
    assert_eq!(node.exec(["m", "sh", "-c", alone]).ok()?, "3");
    node.exec(["-d", "m", "no-such-program"])
        .run()?
        .expect_code(127)?;
    Ok(())
}
