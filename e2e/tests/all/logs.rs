//! What a workload has printed, after the fact; and what its kernel has.

use anyhow::{Result, ensure};
use e2e::{DEADLINE, TestNode};

pub(crate) fn logs_keep_both_outputs(node: &TestNode) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done";
    node.run(["--name", "m", "busybox", "sh", "-c", script])
        .run()?
        .success()?;
    let all = node.hearth(["logs", "m"]).run()?.success()?;
    assert_eq!(all.stdout, b"out 1\nout 2\nout 3\nout 4\nout 5\n");
    assert_eq!(all.stderr, b"err 1\nerr 2\nerr 3\nerr 4\nerr 5\n");
    let tail = node.hearth(["logs", "--tail", "2", "m"]).run()?.success()?;
    let lines = String::from_utf8_lossy(&tail.stdout).lines().count()
        + String::from_utf8_lossy(&tail.stderr).lines().count();
    assert_eq!(lines, 2);
    let stamped = node.hearth(["logs", "-t", "m"]).ok()?;
    for line in stamped.lines() {
        let (time, text) = line.split_once(' ').unwrap_or_default();
        ensure!(
            time.len() >= 20 && time.contains('T') && text.starts_with("out "),
            "{line}"
        );
    }
    node.hearth(["logs", "no-such-machine"]).run()?.expect_code(1)?;
    Ok(())
}

pub(crate) fn logs_follow_to_the_end(node: &TestNode) -> Result<()> {
    node.start([
        "--name",
        "m",
        "busybox",
        "sh",
        "-c",
        "echo first; read line < /gate; echo last",
    ])?;
    let follower = node.hearth(["logs", "--follow", "m"]).spawn()?;
    // There is no gate yet, so the shell complains, and goes on.
    follower.stdout.wait_for("first", DEADLINE)?;
    let outcome = follower.finish(DEADLINE)?.success()?;
    assert_eq!(outcome.stdout, b"first\nlast\n");
    Ok(())
}

pub(crate) fn console_shows_the_kernel(node: &TestNode) -> Result<()> {
    node.run(["--name", "m", "busybox", "true"]).ok()?;
    let console = node.hearth(["console", "m"]).run()?.success()?;
    ensure!(!console.stdout.is_empty(), "the console is empty");
    Ok(())
}
