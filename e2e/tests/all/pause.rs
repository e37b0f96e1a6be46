//! Machines that stand still.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use anyhow::Result;
use e2e::TestNode;
use hearth_api::v1::MachineStatus;

use crate::node::kill;
use crate::support::logged;

/// Counts, answers on port 7, and says goodbye when it is asked to end.
const COUNTER: &str = "trap 'echo heard TERM; exit 7' TERM; nc -ll -p 7 -e cat & echo ready; \
    while :; do echo tick; sleep 0.1 & wait $!; done";

fn status(node: &TestNode) -> Result<MachineStatus> {
    Ok(node.inspect("m")?.state.status)
}

fn start(node: &TestNode) -> Result<()> {
    node.start([
        "--name",
        "m",
        "-p",
        "127.0.0.1::7",
        "busybox",
        "sh",
        "-c",
        COUNTER,
    ])?;
    logged(node, "m", "tick", 3)
}

pub(crate) fn a_paused_machine_stands_still_and_goes_on(node: &TestNode) -> Result<()> {
    start(node)?;
    let address = node.hearth(["port", "m", "7"]).ok()?;
    assert_eq!(node.hearth(["pause", "m"]).ok()?, "m");
    assert_eq!(status(node)?, MachineStatus::Paused);
    assert!(node.hearth(["ps"]).ok()?.contains("(Paused)"));
    for refused in [
        &["exec", "m", "true"][..],
        &["attach", "m"],
        &["cp", "m:/etc/passwd", "-"],
        &["kill", "-s", "USR1", "m"],
        &["pause", "m"],
        &["start", "m"],
        &["rm", "m"],
    ] {
        let outcome = node.hearth(refused).run()?.complains("paused")?;
        assert_ne!(outcome.code, 0, "{refused:?}");
    }
    // A new node finds it as it was, and lets it be.
    kill(node)?;
    assert_eq!(status(node)?, MachineStatus::Paused);
    node.exec(["m", "true"])
        .run()?
        .expect_code(125)?
        .complains("unpause")?;
    let mut waiting = TcpStream::connect(&address)?;
    waiting.write_all(b"hello")?;
    waiting.shutdown(Shutdown::Write)?;
    let before = node.hearth(["logs", "m"]).ok()?;
    node.run(["--rm", "busybox", "true"]).ok()?;
    assert_eq!(node.hearth(["logs", "m"]).ok()?, before, "it did not stand still");

    assert_eq!(node.hearth(["resume", "m"]).ok()?, "m");
    assert_eq!(status(node)?, MachineStatus::Running);
    logged(node, "m", "tick", before.matches("tick").count() + 3)?;
    let mut answer = String::new();
    waiting.read_to_string(&mut answer)?;
    assert_eq!(answer, "hello");
    // It knows how late it is: a minute's clock would show the time that another machine took to boot.
    let inside: i64 = node.exec(["m", "date", "+%s"]).ok()?.parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let behind = i64::try_from(now.as_secs())? - inside;
    assert!((0..=1).contains(&behind), "its clock is {behind} s behind");
    node.hearth(["unpause", "m"])
        .run()?
        .expect_code(1)?
        .complains("running")?;
    Ok(())
}

pub(crate) fn a_paused_machine_goes_on_to_be_stopped(node: &TestNode) -> Result<()> {
    start(node)?;
    node.hearth(["pause", "m"]).ok()?;
    node.hearth(["stop", "-t", "60", "m"]).ok()?;
    let state = node.inspect("m")?.state;
    assert_eq!((state.status, state.exit_code), (MachineStatus::Exited, Some(7)));
    assert!(node.hearth(["logs", "m"]).ok()?.contains("heard TERM"));
    // Paused by a node that has died; what was written is on its disk all the same.
    node.hearth(["start", "m"]).ok()?;
    node.exec(["m", "sh", "-c", "echo kept > /kept"]).ok()?;
    node.hearth(["pause", "m"]).ok()?;
    kill(node)?;
    node.hearth(["kill", "m"]).ok()?;
    assert_eq!(node.hearth(["wait", "m"]).ok()?, "137");
    node.hearth(["start", "m"]).ok()?;
    assert_eq!(node.exec(["m", "cat", "/kept"]).ok()?, "kept");
    node.hearth(["pause", "m"]).ok()?;
    node.hearth(["rm", "-f", "m"]).ok()?;
    assert_eq!(node.machines()?, []);
    Ok(())
}
