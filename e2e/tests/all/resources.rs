//! What machines take of the host: limits, and the figures of `stats` held against other measurements.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::{GuestStats, MachineStats, MonitorStats, StatsSample};
use std::os::unix::fs::MetadataExt as _;

use crate::support::stay;

const MIB: u64 = 1 << 20;

/// What `stats` tells of the machine `m`.
struct Told {
    machine: MachineStats,
    monitor: MonitorStats,
    guest: GuestStats,
}

fn told(node: &TestNode) -> Result<Told> {
    let text = node.hearth(["stats", "--no-stream", "--json", "m"]).ok()?;
    let sample: StatsSample = serde_json::from_str(&text)?;
    let machine = sample.machines.into_iter().next().context("no machine")?;
    Ok(Told {
        monitor: machine.monitor.clone().context("no monitor")?,
        guest: machine.guest.clone().context("the guest says nothing")?,
        machine,
    })
}

fn is_near(what: &str, told: u64, measured: u64, tolerance: u64) -> Result<()> {
    ensure!(
        told.abs_diff(measured) <= tolerance,
        "{what}: stats tells {told}, and it is {measured}, give or take {tolerance}"
    );
    Ok(())
}

/// Processor time in nanoseconds, as proc_pid_stat(5) has it: user and system, in hundredths of a second.
fn processor_time(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<_> = fields.split_whitespace().collect();
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?) * 10_000_000)
}

/// The sum over every mapping of a process, which the kernel also sums up by itself.
fn proportional_memory(pid: u32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let lines = maps.lines().filter_map(|line| line.strip_prefix("Pss:"));
    let kib = lines.filter_map(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.sum::<u64>() * 1024)
}

pub(crate) fn stats_agree_with_other_measurements(node: &TestNode) -> Result<()> {
    let id = stay(node, "m")?;
    let pid = node.inspect("m")?.state.pid.context("no monitor")?;
    let disk = node.location().data.join("machines").join(&id).join("disk.img");
    let first = told(node)?;
    assert_eq!(
        (first.machine.id.as_str(), first.guest.processes),
        (id.as_str(), 1)
    );

    // 32 MiB on the disk: as the host has it, and as the guest has it.
    let write = "dd if=/dev/zero of=/file bs=65536 count=512 2>/dev/null; sync";
    node.exec(["m", "sh", "-c", write]).ok()?;
    let second = told(node)?;
    is_near(
        "disk",
        second.machine.disk_bytes,
        fs::metadata(&disk)?.blocks() * 512,
        MIB,
    )?;
    let grown = second.guest.disk_used_bytes - first.guest.disk_used_bytes;
    is_near("disk in the guest", grown, 32 * MIB, MIB)?;

    // 8 MiB over the channel.
    let output = node
        .exec(["m", "dd", "if=/dev/zero", "bs=65536", "count=128"])
        .run()?;
    assert_eq!(output.success()?.stdout.len() as u64, 8 * MIB);
    let third = told(node)?;
    let moved = third.monitor.channel_received_bytes - second.monitor.channel_received_bytes;
    is_near("channel", moved, 8 * MIB, MIB / 4)?;

    // 48 MiB of the guest's memory, which become the monitor's.
    let fill = "dd if=/dev/zero of=/dev/shm/fill bs=65536 count=768 2>/dev/null";
    node.exec(["m", "sh", "-c", fill]).ok()?;
    let fourth = told(node)?;
    let grown = fourth
        .guest
        .memory_used_bytes
        .saturating_sub(third.guest.memory_used_bytes);
    is_near("memory in the guest", grown, 48 * MIB, 6 * MIB)?;
    is_near(
        "memory",
        fourth.monitor.memory_bytes,
        proportional_memory(pid)?,
        4 * MIB,
    )?;
    ensure!(
        fourth.monitor.memory_bytes > first.monitor.memory_bytes + 24 * MIB,
        "the monitor's memory has not grown"
    );

    // A processor that is kept busy, and a process more.
    let busy = node
        .exec(["m", "sh", "-c", "echo begun; while :; do :; done"])
        .spawn()?;
    busy.stdout.wait_for("begun", DEADLINE)?;
    let (before, begun) = (processor_time(pid)?, Instant::now());
    let fifth = told(node)?;
    let (after, took) = (processor_time(pid)?, begun.elapsed());
    ensure!(
        (before..=after).contains(&fifth.monitor.cpu_ns),
        "{} is not between {before} and {after}",
        fifth.monitor.cpu_ns
    );
    // The look took about a second, in which most of the time between went by.
    let percent = fifth.monitor.cpu_percent.context("no percent")?;
    let most = (after - before) as f64 / 1e9 * 100.0 + 2.0;
    ensure!(
        percent > 10.0 && percent <= most,
        "{percent} % in a part of {took:?}, with {most} % at most"
    );
    assert_eq!(fifth.guest.processes, 2);
    drop(busy);

    let table = node.hearth(["stats", "--no-stream"]).ok()?;
    assert!(table.starts_with("NAME ") && table.contains("\nm "), "{table}");
    node.hearth(["stop", "-t", "0", "m"]).ok()?;
    let stopped = node.hearth(["stats", "--no-stream", "m"]).ok()?;
    assert!(
        stopped
            .lines()
            .any(|line| line.starts_with("m ") && line.contains(" -- ")),
        "{stopped}"
    );
    node.hearth(["stats", "--no-stream", "none"])
        .run()?
        .expect_code(1)?
        .complains("none")?;
    Ok(())
}

/// Reads the first of these files that is there.
fn first_of(files: &[String]) -> Option<String> {
    files.iter().find_map(|file| fs::read_to_string(file).ok())
}

pub(crate) fn a_monitor_is_confined_by_cgroups(node: &TestNode) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let has = |name: &str| {
        let two = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        root.join(name).is_dir() || two.split_whitespace().any(|known| known == name)
    };
    if !rustix::process::getuid().is_root() || !["memory", "pids"].into_iter().all(has) {
        return e2e::skip!("cgroups are root's, and need the controllers memory and pids");
    }
    let id = node.start([
        "--name", "m", "-m", "128m", "--cpus", "500m", "busybox", "sleep", "3600",
    ])?;
    let limit = |controller: &str, one: &str, two: &str| {
        let one = format!("/sys/fs/cgroup/{controller}/hearth/{id}/{one}");
        let two = format!("/sys/fs/cgroup/hearth/{id}/{two}");
        first_of(&[one, two]).map(|text| text.trim().to_owned())
    };
    let pid = node.inspect("m")?.state.pid.context("no monitor")?;
    let begun = Instant::now();
    // It is done beside the start.
    while !fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(&format!(":memory:/hearth/{id}"))
        && limit("pids", "cgroup.procs", "cgroup.procs").is_none_or(|pids| pids.is_empty())
    {
        if begun.elapsed() > DEADLINE {
            bail!("the monitor is in no group");
        }
    }
    let memory = limit("memory", "memory.limit_in_bytes", "memory.max").context("no limit of memory")?;
    // The guest's, the monitor's own, and translated code.
    assert!(
        [384, 640].map(|mib| (mib * MIB).to_string()).contains(&memory),
        "{memory}"
    );
    let tasks = limit("pids", "pids.max", "pids.max").context("no limit of threads")?;
    assert_eq!(tasks, "129");
    node.exec(["m", "true"]).ok()?;
    node.hearth(["rm", "-f", "m"]).ok()?;
    assert_eq!(limit("memory", "memory.limit_in_bytes", "memory.max"), None);
    Ok(())
}
