//! What `stats` says of networks, held against what was carried and what was refused.

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;
use hearth_api::v1::{NetworkStats, StatsSample};

use crate::node::kill;
use crate::stage::{PRIVATE, Stage, WEB, on_stage};

/// What is carried each way.
const CARRIED: u64 = 8 << 20;

/// How many connections are refused.
const REFUSED: u64 = 7;

fn counted(node: &TestNode, machine: &str) -> Result<Option<NetworkStats>> {
    let said = node.hearth(["stats", "--no-stream", "--json", machine]).ok()?;
    let sample: StatsSample = serde_json::from_str(&said)?;
    let machine = sample.machines.into_iter().next().context("nothing is said")?;
    Ok(machine.network)
}

fn of(node: &TestNode, machine: &str) -> Result<NetworkStats> {
    counted(node, machine)?.with_context(|| format!("{machine} has no network"))
}

fn sh(node: &TestNode, machine: &str, script: &str) -> Result<()> {
    node.exec([machine, "sh", "-c", script]).run().map(drop)
}

#[test]
fn what_goes_through_a_network_and_what_does_not_is_counted() -> Result<()> {
    on_stage(|node, stage| {
        let allow = [format!("{WEB}:9"), format!("{WEB}:19")];
        node.start([
            "--name", "m", "--allow", &allow[0], "--allow", &allow[1], "busybox", "sleep", "3600",
        ])?;
        let carried = stage.count_and_pour(CARRIED)?;
        let before = of(node, "m")?;
        sh(node, "m", &format!("head -c {CARRIED} /dev/zero | nc {WEB} 9"))?;
        sh(node, "m", &format!("nc {WEB} 19 >/dev/null </dev/null"))?;
        for _ in 0..2 {
            ensure!(carried.recv()?.bytes == CARRIED);
        }
        let after = of(node, "m")?;
        // Headers and acknowledgements come on top: a few in a hundred, fewer where frames are long.
        let close = |now: u64, then: u64| (CARRIED..CARRIED + CARRIED / 8).contains(&(now - then));
        ensure!(close(after.sent_bytes, before.sent_bytes), "{before:?} {after:?}");
        ensure!(
            close(after.received_bytes, before.received_bytes),
            "{before:?} {after:?}"
        );
        ensure!(after.sent_packets > before.sent_packets && after.received_packets > before.received_packets);
        ensure!(after.sent_dropped == before.sent_dropped, "{before:?} {after:?}");
        refusals(node)?;
        rate(node, stage)?;
        // A network that leads nowhere counts, too; none counts nothing.
        node.start([
            "--name",
            "isolated",
            "--network",
            "isolated",
            "busybox",
            "sleep",
            "3600",
        ])?;
        ensure!(of(node, "isolated")?.sent_dropped == 0);
        node.start(["--name", "none", "--network", "none", "busybox", "sleep", "3600"])?;
        ensure!(counted(node, "none")?.is_none());
        let table = node.hearth(["stats", "--no-stream", "m", "none"]).ok()?;
        ensure!(table.contains("NET I/O"), "{table}");
        // The kernel counts, not the node.
        let known = of(node, "m")?;
        kill(node)?;
        ensure!(
            of(node, "m")?.sent_bytes >= known.sent_bytes
                && of(node, "m")?.sent_dropped >= known.sent_dropped
        );
        Ok(())
    })
}

/// Each connection that is refused is a packet that was dropped, and no other is.
fn refusals(node: &TestNode) -> Result<()> {
    let before = of(node, "m")?;
    sh(
        node,
        "m",
        &format!("for i in $(seq {REFUSED}); do nc {PRIVATE} 80 </dev/null; done"),
    )?;
    let after = of(node, "m")?;
    ensure!(
        after.sent_dropped == before.sent_dropped + REFUSED,
        "{before:?} {after:?}"
    );
    ensure!(after.sent_bytes > before.sent_bytes);
    Ok(())
}

/// What a rate has no room for is dropped at the queue.
fn rate(node: &TestNode, stage: &Stage) -> Result<()> {
    let carried = stage.count_and_pour(0)?;
    let limit = [
        "--name",
        "slow",
        "--net-rate",
        "1mbit",
        "--allow",
        &format!("{WEB}:9"),
    ];
    node.start(limit.into_iter().chain(["busybox", "sleep", "3600"]))?;
    let before = of(node, "slow")?;
    ensure!(before.sent_dropped == 0, "{before:?}");
    // TCP sends more and more until something is lost.
    sh(node, "slow", &format!("head -c 500000 /dev/zero | nc {WEB} 9"))?;
    ensure!(carried.recv()?.bytes == 500_000);
    let after = of(node, "slow")?;
    ensure!(after.sent_dropped > 0, "{before:?} {after:?}");
    Ok(())
}
