//! Health checks: what probes find out, and what follows from it.

use anyhow::{Context, Result, bail, ensure};
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::{Health, HealthStatus};
use std::time::Instant;

use crate::node::kill;
use crate::support::STAY;

/// Probes that come quickly.
const QUICK: [&str; 4] = ["--health-interval", "200ms", "--health-retries", "2"];

fn begin(node: &TestNode, name: &str, flags: &[&str], command: &[&str]) -> Result<String> {
    let head = ["--name", name, "-m", "96m"];
    node.start(head.iter().chain(&QUICK).chain(flags).chain(command))
}

fn health(node: &TestNode, machine: &str) -> Result<Health> {
    node.inspect(machine)?.state.health.context("it has no health")
}

/// Waits until a machine's health is as it should be.
fn until(node: &TestNode, machine: &str, wanted: impl Fn(&Health) -> bool) -> Result<Health> {
    let begun = Instant::now();
    loop {
        let health = health(node, machine)?;
        if wanted(&health) {
            return Ok(health);
        }
        if begun.elapsed() > DEADLINE {
            bail!("the health of {machine} stays {health:?}");
        }
    }
}

fn until_status(node: &TestNode, machine: &str, status: HealthStatus) -> Result<Health> {
    until(node, machine, |health| health.status == status)
}

pub(crate) fn health_follows_the_probes_and_outlives_the_node(node: &TestNode) -> Result<()> {
    let line = "echo looked; test -e /tmp/ok";
    begin(node, "m", &["--health-cmd", line], &STAY)?;
    let check = node.inspect("m")?.health_check.context("no check")?;
    assert_eq!(
        (check.interval_ms, check.retries, check.timeout_ms),
        (200, 2, 30_000)
    );
    let bad = until_status(node, "m", HealthStatus::Unhealthy)?;
    let last = bad.log.last().context("no results")?;
    assert_eq!((last.exit_code, last.output.as_str()), (1, "looked\n"));
    ensure!(bad.failing_streak >= 2 && bad.log.len() <= 5, "{bad:?}");
    assert!(node.hearth(["ps"]).ok()?.contains("(unhealthy)"));
    node.exec(["m", "touch", "/tmp/ok"]).ok()?;
    let good = until_status(node, "m", HealthStatus::Healthy)?;
    assert_eq!(good.failing_streak, 0);
    assert!(node.hearth(["ps"]).ok()?.contains("(healthy)"));
    kill(node)?;
    // What was known is known, and what happens is found out.
    assert_eq!(health(node, "m")?.status, HealthStatus::Healthy);
    node.exec(["m", "rm", "/tmp/ok"]).ok()?;
    until_status(node, "m", HealthStatus::Unhealthy)?;
    node.hearth(["restart", "-t", "1", "m"]).ok()?;
    let state = node.inspect("m")?.state;
    let (started, known) = (
        state.started_at.context("not started")?,
        state.health.context("no health")?,
    );
    // A start begins anew; to the second, which is how far times compare as texts.
    ensure!(
        known
            .log
            .iter()
            .all(|result| result.started_at[..19] >= started[..19]),
        "{known:?}"
    );
    Ok(())
}

pub(crate) fn probes_reach_the_guests_loopback(node: &TestNode) -> Result<()> {
    let serve = [
        "busybox",
        "sh",
        "-c",
        "mkdir /www; echo hi >/www/page; exec busybox httpd -f -p 8080 -h /www",
    ];
    begin(node, "page", &["--health-http", "8080/page"], &serve)?;
    let good = until_status(node, "page", HealthStatus::Healthy)?;
    let output = &good.log.last().context("no results")?.output;
    ensure!(output.starts_with("HTTP status 200"), "{output}");
    node.exec(["page", "rm", "/www/page"]).ok()?;
    let bad = until_status(node, "page", HealthStatus::Unhealthy)?;
    let output = &bad.log.last().context("no results")?.output;
    ensure!(output.starts_with("HTTP status 404"), "{output}");
    begin(node, "port", &["--health-tcp", "8080"], &serve)?;
    until_status(node, "port", HealthStatus::Healthy)?;
    node.exec(["port", "sh", "-c", "kill -STOP 1; kill -9 $(busybox pidof httpd)"])
        .run()?;
    node.hearth(["rm", "-f", "page", "port"]).ok()?;
    begin(node, "nobody", &["--health-tcp", "9"], &STAY)?;
    let bad = until_status(node, "nobody", HealthStatus::Unhealthy)?;
    assert_eq!(bad.log.last().context("no results")?.exit_code, 1);
    Ok(())
}

pub(crate) fn a_probe_that_hangs_is_killed_at_its_limit(node: &TestNode) -> Result<()> {
    let flags = ["--health-cmd", "sleep 3599", "--health-timeout", "300ms"];
    begin(node, "m", &flags, &STAY)?;
    let bad = until(node, "m", |health| health.log.len() == 5)?;
    assert_eq!(bad.status, HealthStatus::Unhealthy);
    for result in &bad.log {
        assert_eq!(result.exit_code, -1);
        ensure!(result.output.contains("longer than 300ms"), "{}", result.output);
    }
    // Of at least five, no more than the one that runs.
    let listed = node.exec(["m", "busybox", "ps", "-o", "args"]).ok()?;
    let left = listed
        .lines()
        .filter(|line| line.starts_with("sleep 3599"))
        .count();
    ensure!(left <= 1, "{left} probes are left:\n{listed}");
    Ok(())
}

pub(crate) fn nothing_is_probed_while_the_machine_is_paused(node: &TestNode) -> Result<()> {
    let flags = ["--health-cmd", "test ! -e /tmp/ill", "--health-timeout", "30s"];
    begin(node, "m", &flags, &STAY)?;
    until_status(node, "m", HealthStatus::Healthy)?;
    node.hearth(["pause", "m"]).ok()?;
    let paused = health(node, "m")?;
    // Longer than several intervals.
    let wait = node.hearth(["logs", "--follow", "--until", &in_seconds(2)?, "m"]);
    wait.ok()?;
    assert_eq!(health(node, "m")?, paused);
    node.hearth(["unpause", "m"]).ok()?;
    node.exec(["m", "touch", "/tmp/ill"]).ok()?;
    let bad = until_status(node, "m", HealthStatus::Unhealthy)?;
    ensure!(bad.log.iter().all(|result| result.exit_code != -1), "{bad:?}");
    Ok(())
}

/// Unix time so many seconds from now.
fn in_seconds(count: u64) -> Result<String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok((now.as_secs() + count).to_string())
}

pub(crate) fn a_health_check_that_cannot_be_is_refused(node: &TestNode) -> Result<()> {
    let refused = |flags: &[&str], words: &str| -> Result<()> {
        let call = node.run(["--rm"].iter().chain(flags).chain(&["busybox", "true"]));
        call.run()?.expect_code(125)?.complains(words)?;
        Ok(())
    };
    refused(&["--health-http", "https://localhost/"], "not https")?;
    refused(&["--health-http", "80/a b"], "not a path")?;
    refused(&["--health-tcp", "0"], "port 0")?;
    refused(&["--health-tcp", "1", "--health-cmd", "true"], "--health-cmd")?;
    refused(
        &["--no-healthcheck", "--health-interval", "1s"],
        "--no-healthcheck",
    )?;
    refused(&["--health-interval", "soon"], "soon")?;
    refused(&["--log-max-size", "1k"], "64 KiB")?;
    Ok(())
}
