//! What several subjects need.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, TestNode};
use serde_json::Value;

/// A workload that stays until it is killed.
pub(crate) const STAY: [&str; 3] = ["busybox", "sleep", "3600"];

/// Waits until a machine's workload has printed a text so many times, over all its starts.
///
/// # Errors
/// It ends, or the deadline passes, before.
pub(crate) fn logged(node: &TestNode, machine: &str, text: &str, times: usize) -> Result<()> {
    let follower = node.hearth(["logs", "-f", machine]).spawn()?;
    follower.stdout.wait_for_times(text, times, DEADLINE)
}

/// Starts a machine called `name` that stays.
///
/// # Errors
/// It does not start.
pub(crate) fn stay(node: &TestNode, name: &str) -> Result<String> {
    let head = ["--name", name];
    node.start(head.into_iter().chain(STAY))
}

/// Waits until a condition holds of which nothing tells a test: what processes there are, what they do, what they wrote.
///
/// # Errors
/// Those of the condition, or the deadline passed.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !holds()? {
        ensure!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Waits until something holds that may be on its way.
///
/// # Errors
/// The last one, when the deadline passes before.
pub(crate) fn settled<T>(holds: impl Fn() -> Result<T>) -> Result<T> {
    let end = Instant::now() + DEADLINE;
    loop {
        match holds() {
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            Ok(holds) => return Ok(holds),
        }
    }
}

/// Returns the clones that nobody has asked for yet, by their ids: they have neither name nor record.
///
/// # Errors
/// There are others without a record than the node knows to stand by; one that is being made may be.
pub(crate) fn nobodys(node: &TestNode) -> Result<BTreeSet<String>> {
    let machines = node.location().data.join("machines");
    let places = std::fs::read_dir(machines).into_iter().flatten().flatten();
    let without = places.filter(|place| !place.path().join("record.json").exists());
    let ids: BTreeSet<_> = without
        .map(|place| place.file_name().to_string_lossy().into_owned())
        .collect();
    let standing_by = node.status()?.standing_by as usize;
    ensure!(
        ids.len() == standing_by,
        "left behind: {ids:?}, and {standing_by} stand by"
    );
    Ok(ids)
}

/// Returns seconds.
pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Sends the node a request as a program that knows nothing of hearth does, and returns the answer's last line of JSON.
///
/// # Errors
/// No node answers, or not with JSON.
pub(crate) fn post(node: &TestNode, path: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    let mut stream = UnixStream::connect(&node.location().socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let line = answer.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(line.unwrap_or_default()).with_context(|| answer.clone())
}
