//! Pools: machines that are ready, handed out for a time, and replaced.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;
use hearth_api::v1::{ExecuteResult, Lease, MachineStatus, Owner, Pool};

use crate::node::kill;
use crate::support::seconds;

const SETTLING: Duration = Duration::from_secs(120);

fn pool(node: &TestNode) -> Result<Pool> {
    let text = node.hearth(["pool", "inspect", "p"]).ok()?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

/// Waits until the pool is as it should be.
fn becomes(node: &TestNode, is: impl Fn(&Pool) -> bool) -> Result<Pool> {
    let end = Instant::now() + SETTLING;
    loop {
        let pool = pool(node)?;
        if is(&pool) {
            return Ok(pool);
        }
        ensure!(Instant::now() < end, "it stays {pool:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn create(node: &TestNode, more: &[&str]) -> Result<String> {
    let head = ["pool", "create", "p", "--image", "busybox", "-m", "80m"];
    node.hearth(head.iter().chain(more)).ok()
}

fn acquire(node: &TestNode, more: &[&str]) -> Result<Lease> {
    let head = ["pool", "acquire", "p", "--json", "--wait", "120s"];
    let text = node.hearth(head.iter().chain(more)).deadline(seconds(180)).ok()?;
    serde_json::from_str(&text).with_context(|| text.clone())
}

pub(crate) fn a_pool_hands_out_machines_and_fills_up(node: &TestNode) -> Result<()> {
    create(
        node,
        &[
            "--min",
            "1",
            "--max",
            "2",
            "--warm-cmd",
            "echo warm > /warm",
            "-e",
            "A=1",
        ],
    )?;
    let ready = becomes(node, |pool| pool.ready == 1 && pool.starting == 0)?;
    let name = ready.members[0].machine.clone().context("it has a name")?;
    let machine = node.inspect(&name)?;
    assert_eq!(machine.state.status, MachineStatus::Paused);
    assert_eq!(machine.owner, Some(Owner::Pool("p".into())));
    let first = acquire(node, &["--lease", "10m"])?;
    assert_eq!(first.machine, name);
    let told = node.exec([&name, "sh", "-c", "cat /warm; echo $A"]).ok()?;
    assert_eq!(told, "warm\n1");
    // Another one comes up behind it; then nobody gets a third.
    becomes(node, |pool| pool.ready == 1 && pool.leased == 1)?;
    let second = acquire(node, &[])?;
    node.hearth(["pool", "acquire", "p"])
        .run()?
        .expect_code(1)?
        .complains("2 of 2 are leased")?;
    let extended = node
        .hearth(["pool", "extend", &name, "--lease", "1h", "--json"])
        .ok()?;
    let extended: Lease = serde_json::from_str(&extended)?;
    assert!(extended.id == first.id && extended.expires_at > first.expires_at);
    node.hearth(["pool", "rm", "p"])
        .run()?
        .expect_code(1)?
        .complains("leased")?;
    node.hearth(["pool", "release", &second.machine]).ok()?;
    let twice = node.hearth(["pool", "release", &second.machine]).run()?;
    twice.expect_code(1)?.complains("it was released")?;
    // Given back is gone: who comes next gets a machine that nobody had.
    let third = acquire(node, &[])?;
    assert!(third.machine != second.machine && third.machine != first.machine);
    let ran = node
        .hearth(["execute", "--pool", "p", "--wait", "0.001s", "--cmd", "true"])
        .run()?;
    ran.expect_code(125)?.complains("2 of 2 are leased")?;
    node.hearth(["pool", "rm", "--force", "p"])
        .deadline(SETTLING)
        .ok()?;
    assert_eq!(node.machines()?, []);
    Ok(())
}

pub(crate) fn code_runs_in_a_machine_of_a_pool(node: &TestNode) -> Result<()> {
    create(node, &["--min", "1", "--max", "1"])?;
    let run = |script: &str| -> Result<ExecuteResult> {
        let flags = [
            "execute", "--pool", "p", "--wait", "120s", "--json", "--cmd", "sh", "-c", script,
        ];
        Ok(serde_json::from_str(
            &node.hearth(flags).deadline(seconds(180)).ok()?,
        )?)
    };
    let first = run("echo one; echo x > /trace")?;
    let second = run("echo two; ls /trace 2>/dev/null; true")?;
    assert_eq!(
        (first.stdout.as_str(), second.stdout.as_str()),
        ("one\n", "two\n")
    );
    assert_ne!(first.machine, second.machine);
    node.hearth(["pool", "rm", "p"]).deadline(SETTLING).ok()?;
    Ok(())
}

/// The processor time that a process has had.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name in it")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // User and system time, in ticks of 10 ms.
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// What part of a processor a process has for a second.
fn load(pid: u32) -> Result<f64> {
    let (begun, before) = (Instant::now(), processor_time(pid)?);
    std::thread::sleep(seconds(1));
    let had = processor_time(pid)?.saturating_sub(before);
    Ok(had.as_secs_f64() / begun.elapsed().as_secs_f64())
}

pub(crate) fn code_ends_with_its_time_also_when_its_node_has_died(node: &TestNode) -> Result<()> {
    create(node, &["--min", "1", "--max", "1"])?;
    becomes(node, |pool| pool.ready == 1)?;
    // The second of them leaves the first one's process group and session.
    let script = "setsid sh -c 'while :; do :; done' & echo begun; while :; do :; done";
    let flags = [
        "execute",
        "--pool",
        "p",
        "--timeout",
        "5s",
        "--cmd",
        "sh",
        "-c",
        script,
    ];
    let client = node.hearth(flags).spawn()?;
    client.stdout.wait_for("begun", e2e::DEADLINE)?;
    let begun = Instant::now();
    let members = pool(node)?.members;
    let machine = members.iter().find_map(|member| member.machine.clone());
    let machine = machine.context("no machine of the pool runs it")?;
    let monitor = node.inspect(&machine)?.state.pid.context("it has no monitor")?;
    kill(node)?;
    // Nobody starts another node meanwhile.
    assert_ne!(client.finish(e2e::DEADLINE)?.code, 0);
    let busy = load(monitor)?;
    ensure!(
        busy > 0.1 || begun.elapsed() > seconds(5),
        "code that should run has {busy:.2} of a processor"
    );
    let idle = loop {
        let load = load(monitor)?;
        if load < busy / 4.0 || begun.elapsed() > seconds(60) {
            break load;
        }
    };
    println!(
        "code has {busy:.2} of a processor, and {idle:.2} {:.1} s after its start, with a limit of 5 s and no node",
        begun.elapsed().as_secs_f64()
    );
    ensure!(idle < busy / 4.0, "it runs on: {idle:.2} of a processor");
    // The next node has no use for the machine.
    becomes(node, |pool| pool.ready == 1 && pool.leased == 0)?;
    node.hearth(["pool", "rm", "p"]).deadline(SETTLING).ok()?;
    Ok(())
}

pub(crate) fn a_lease_ends_with_its_time_and_its_machine(node: &TestNode) -> Result<()> {
    create(node, &["--min", "0", "--max", "1", "--ttl", "1h"])?;
    assert_eq!(pool(node)?.members.len(), 0);
    let lease = acquire(node, &["--lease", "1s"])?;
    becomes(node, |pool| pool.members.is_empty())?;
    let late = node.hearth(["pool", "release", &lease.id]).run()?;
    late.expect_code(1)?.complains("its time was over")?;
    let lease = acquire(node, &["--lease", "10m"])?;
    node.hearth(["rm", "--force", &lease.machine]).ok()?;
    becomes(node, |pool| pool.members.is_empty())?;
    let late = node.hearth(["pool", "extend", &lease.machine]).run()?;
    late.expect_code(1)?.complains("its machine has ended")?;
    node.hearth(["pool", "rm", "p"]).deadline(SETTLING).ok()?;
    Ok(())
}

pub(crate) fn pools_and_leases_outlive_the_node(node: &TestNode) -> Result<()> {
    create(node, &["--min", "1", "--max", "2"])?;
    let lease = acquire(node, &["--lease", "10m"])?;
    node.exec([&lease.machine, "sh", "-c", "echo mine > /mine"])
        .ok()?;
    let before = becomes(node, |pool| {
        pool.ready == 1 && pool.leased == 1 && pool.starting == 0
    })?;
    kill(node)?;
    let after = becomes(node, |pool| {
        pool.ready == 1 && pool.leased == 1 && pool.starting == 0
    })?;
    let names = |pool: &Pool| {
        pool.members
            .iter()
            .filter_map(|it| it.machine.clone())
            .collect::<Vec<_>>()
    };
    let sorted = |mut names: Vec<String>| {
        names.sort_unstable();
        names
    };
    assert_eq!(sorted(names(&before)), sorted(names(&after)));
    assert_eq!(node.exec([&lease.machine, "cat", "/mine"]).ok()?, "mine");
    let other = acquire(node, &[])?;
    assert_eq!(node.exec([&other.machine, "echo", "here"]).ok()?, "here");
    node.hearth(["pool", "release", &lease.id, &other.id]).ok()?;
    node.hearth(["pool", "rm", "p"]).deadline(SETTLING).ok()?;
    assert_eq!(node.machines()?, []);
    Ok(())
}

pub(crate) fn pools_that_cannot_be_are_refused(node: &TestNode) -> Result<()> {
    let refused = [
        (&["--min", "3", "--max", "2"][..], "cannot be kept ready"),
        (&["--min", "0", "--max", "0"], "a pool of 0 machines"),
        (
            &["--min", "1000", "--max", "1000"],
            "that pools may take on this host",
        ),
        (&["-m", "1m"], "64 MiB at least"),
    ];
    for (flags, why) in refused {
        let head = ["pool", "create", "p", "--image", "busybox"];
        let outcome = node.hearth(head.iter().chain(flags)).run()?;
        outcome.expect_code(1)?.complains(why)?;
    }
    let named = ["pool", "create", "../p", "--image", "busybox"];
    node.hearth(named)
        .run()?
        .expect_code(1)?
        .complains("not a pool's name")?;
    for verb in [
        &["inspect", "q"][..],
        &["rm", "q"],
        &["acquire", "q"],
        &["resize", "q", "--min", "1"],
    ] {
        let outcome = node.hearth(["pool"].iter().chain(verb)).run()?;
        outcome.expect_code(1)?.complains("no pool")?;
    }
    // A warm-up that fails is told to who waits.
    create(
        node,
        &["--min", "0", "--max", "1", "--warm-cmd", "echo broken; exit 3"],
    )?;
    let failed = node
        .hearth(["pool", "acquire", "p", "--wait", "120s"])
        .deadline(seconds(180))
        .run()?;
    failed.expect_code(1)?.complains("broken")?;
    assert!(
        pool(node)?
            .last_error
            .is_some_and(|error| error.contains("ended with 3"))
    );
    let taken = node.hearth(["pool", "create", "p", "--image", "busybox"]).run()?;
    taken.expect_code(1)?.complains("belongs to a pool already")?;
    node.hearth(["pool", "rm", "p"]).deadline(SETTLING).ok()?;
    assert_eq!(node.hearth(["pool", "ls", "--json"]).ok()?, "[]");
    Ok(())
}
