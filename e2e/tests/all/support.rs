//! What several subjects need.

use std::time::Duration;

use anyhow::Result;
use e2e::{DEADLINE, TestNode};

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

/// Returns seconds.
pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
