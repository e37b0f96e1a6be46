//! Standard streams: whole, apart, binary-exact, and closed when one end is.

use anyhow::Result;
use e2e::{DEADLINE, TestNode, random_bytes, sha256};

use crate::support::stay;

pub(crate) fn outputs_stay_apart_and_whole(node: &TestNode) -> Result<()> {
    let script = "i=0; while [ $i -lt 2000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf end";
    let outcome = node
        .run(["--rm", "busybox", "sh", "-c", script])
        .run()?
        .success()?;
    let lines = |word: &str| -> String { (0..2000).map(|i| format!("{word} {i}\n")).collect() };
    assert_eq!(String::from_utf8_lossy(&outcome.stdout), lines("out") + "end");
    assert_eq!(String::from_utf8_lossy(&outcome.stderr), lines("err"));
    Ok(())
}

pub(crate) fn eight_mib_go_through_cat_unchanged(node: &TestNode) -> Result<()> {
    let bytes = random_bytes(8 << 20)?;
    let through_run = node
        .run(["--rm", "-i", "busybox", "cat"])
        .stdin(bytes.as_slice())
        .run()?
        .success()?;
    assert_eq!(
        sha256(&through_run.stdout),
        sha256(&bytes),
        "{} bytes",
        through_run.stdout.len()
    );
    stay(node, "m")?;
    let through_exec = node
        .exec(["-i", "m", "cat"])
        .stdin(bytes.as_slice())
        .run()?
        .success()?;
    assert_eq!(
        sha256(&through_exec.stdout),
        sha256(&bytes),
        "{} bytes",
        through_exec.stdout.len()
    );
    Ok(())
}

pub(crate) fn a_command_may_end_before_its_input(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let bytes = random_bytes(4 << 20)?;
    let outcome = node
        .exec(["-i", "m", "head", "-c", "10"])
        .stdin(bytes.as_slice())
        .run()?
        .success()?;
    assert_eq!(outcome.stdout, bytes[..10]);
    // Without -i there is nothing to read.
    let outcome = node.exec(["m", "wc", "-c"]).stdin("input").run()?.success()?;
    assert_eq!(outcome.text()?.trim(), "0");
    Ok(())
}

pub(crate) fn a_closed_pipe_ends_the_command_line(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let count = node
        .script("hearth exec m cat /dev/zero | head -c 1000 | wc -c")
        .ok()?;
    assert_eq!(count.trim(), "1000");
    Ok(())
}

pub(crate) fn several_execs_run_at_once(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(node.exec(["-i", "m", "cat"]).spawn()?);
    }
    // Each answers while the others are open, every time: none waits for another, or for its own end.
    for turn in 0..5 {
        for (number, exec) in running.iter_mut().enumerate().rev() {
            let line = format!("{turn}: I am {number}\n");
            exec.write(line.as_bytes())?;
            exec.stdout.wait_for(&line, DEADLINE)?;
        }
    }
    for mut exec in running {
        exec.close_stdin();
        exec.finish(DEADLINE)?.success()?;
    }
    Ok(())
}
