//! What a workload has printed, after the fact; and what its kernel has.

use std::time::SystemTime;

use anyhow::{Result, ensure};
use e2e::{DEADLINE, TestNode};

use crate::support::logged;

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

/// Unix time, as `--since` takes it.
fn now() -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("{}.{:09}", now.as_secs(), now.subsec_nanos()))
}

pub(crate) fn since_and_until_cut_a_stretch_out(node: &TestNode) -> Result<()> {
    let script = "echo one; while [ ! -e /gate ]; do sleep 0.1; done; echo two; exec sleep 3600";
    node.start(["--name", "m", "busybox", "sh", "-c", script])?;
    logged(node, "m", "one", 1)?;
    let between = now()?;
    node.exec(["m", "touch", "/gate"]).ok()?;
    logged(node, "m", "two", 1)?;
    let logs = |flags: &[&str]| node.hearth(["logs"].iter().chain(flags).chain(&["m"])).ok();
    assert_eq!(logs(&["--since", &between])?, "two");
    assert_eq!(logs(&["--until", &between])?, "one");
    assert_eq!(logs(&["--since", "1h"])?, "one\ntwo");
    assert_eq!(logs(&["--since", "1h", "-n", "1"])?, "two");
    assert_eq!(logs(&["--until", "1h"])?, "");
    // The machine goes on, and the follower does not.
    assert_eq!(logs(&["--follow", "--until", &now()?])?, "one\ntwo");
    node.hearth(["logs", "--since", "yesterday", "m"])
        .run()?
        .expect_code(1)?
        .complains("yesterday")?;
    Ok(())
}

pub(crate) fn a_follower_sees_every_line_across_rotations(node: &TestNode) -> Result<()> {
    const ROUNDS: u32 = 8;
    const LINES: u32 = 3000;
    node.start(["--name", "m", "--log-max-size", "64k", "busybox", "sleep", "3600"])?;
    let follower = node.hearth(["logs", "--follow", "m"]).spawn()?;
    for round in 0..ROUNDS {
        let (first, last) = (round * LINES, round * LINES + LINES - 1);
        // Some 20 KiB: less than a file holds, so that who follows is not overtaken.
        let script = format!("busybox seq {first} {last} >/proc/1/fd/1");
        node.exec(["m", "sh", "-c", &script]).ok()?;
        follower.stdout.wait_for(&format!("\n{last}\n"), DEADLINE)?;
    }
    node.hearth(["stop", "-t", "0", "m"]).ok()?;
    let outcome = follower.finish(DEADLINE)?.success()?;
    let expected: String = (0..ROUNDS * LINES).map(|line| format!("{line}\n")).collect();
    assert!(outcome.stdout == expected.as_bytes());
    assert_eq!(outcome.stderr, b"");
    Ok(())
}

pub(crate) fn a_flood_reaches_who_is_attached_and_little_is_kept(node: &TestNode) -> Result<()> {
    let lines = if e2e::is_soak() { 30_000_000 } else { 1_000_000 };
    node.hearth(["ps"]).ok()?;
    let before = node.status()?.rss_bytes;
    let script = format!("busybox seq 1 {lines}");
    let arguments = [
        "--name",
        "m",
        "--log-max-size",
        "1m",
        "busybox",
        "sh",
        "-c",
        &script,
    ];
    let outcome = node.run(arguments).deadline(DEADLINE * 5).run()?.success()?;
    let mut printed = outcome.stdout.split(|&byte| byte == b'\n');
    for line in 1..=lines {
        let (printed, expected) = (printed.next().unwrap_or_default(), line.to_string());
        ensure!(
            printed == expected.as_bytes(),
            "line {line} is {:?}",
            String::from_utf8_lossy(printed)
        );
    }
    let directory = node.location().data.join("machines").join(node.inspect("m")?.id);
    let kept: u64 = ["output.log", "output.log.1"]
        .iter()
        .filter_map(|name| Some(directory.join(name).metadata().ok()?.len()))
        .sum();
    ensure!(kept > 256 << 10 && kept <= 1 << 20, "{kept} bytes are kept");
    let tail = node.hearth(["logs", "m"]).ok()?;
    ensure!(
        outcome.stdout.ends_with(format!("{tail}\n").as_bytes()),
        "the log is no end of the output"
    );
    let grown = node.status()?.rss_bytes.saturating_sub(before);
    ensure!(grown < 64 << 20, "the node has grown by {grown} bytes");
    let took = outcome.took;
    println!(
        "{} bytes printed in {took:.1?}, run and all; the node has grown by {grown}",
        outcome.stdout.len()
    );
    Ok(())
}

pub(crate) fn console_shows_the_kernel(node: &TestNode) -> Result<()> {
    node.run(["--name", "m", "--no-template", "busybox", "true"])
        .ok()?;
    let console = node.hearth(["console", "m"]).run()?.success()?;
    ensure!(!console.stdout.is_empty(), "the console is empty");
    Ok(())
}
