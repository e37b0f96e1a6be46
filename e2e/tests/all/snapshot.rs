//! Snapshots, restores, rollbacks and forks: what went on goes on, where it was and as what it is to be.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode, is_soak};
use hearth_api::v1::{CreatedSnapshot, Extent, Forked, MachineStatus, Origin, Snapshot};

use crate::support::until;

const SMALL: [&str; 2] = ["-m", "80m"];

/// Counts in memory, ten times a second, and tells where it is when it is asked by a file.
const COUNTER: &str = "i=0; while true; do i=$((i+1)); echo $i > /dev/shm/now; usleep 100000; done";

fn start(node: &TestNode, name: &str, script: &str) -> Result<()> {
    let head = SMALL.into_iter().chain(["--name", name]);
    node.start(head.chain(["busybox", "sh", "-c", script])).map(drop)
}

fn sh(node: &TestNode, machine: &str, script: &str) -> Result<String> {
    node.exec([machine, "sh", "-c", script]).ok()
}

fn count(node: &TestNode, machine: &str) -> Result<u64> {
    // It may be about to be written.
    let text = sh(
        node,
        machine,
        "while [ ! -s /dev/shm/now ]; do usleep 1000; done; cat /dev/shm/now",
    )?;
    text.trim().parse().with_context(|| format!("{text:?}"))
}

fn take(node: &TestNode, machine: &str, name: &str, more: &[&str]) -> Result<CreatedSnapshot> {
    let head = ["snapshot", "create", machine, "-n", name, "--json"];
    let text = node.hearth(head.iter().chain(more)).ok()?;
    Ok(serde_json::from_str(&text)?)
}

fn listed(node: &TestNode) -> Result<Vec<Snapshot>> {
    Ok(serde_json::from_str(
        &node.hearth(["snapshot", "ls", "--json"]).ok()?,
    )?)
}

fn clock_difference(node: &TestNode, machine: &str) -> Result<f64> {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|it| it.as_secs_f64())
    };
    let before = now()?;
    let inside: f64 = sh(node, machine, "date +%s")?.trim().parse()?;
    let after = now()?;
    // The guest's seconds are whole.
    Ok((before.floor() - inside).max(inside - after.floor()).max(0.0))
}

pub(crate) fn what_a_snapshot_kept_goes_on_in_another_machine(node: &TestNode) -> Result<()> {
    start(node, "source", COUNTER)?;
    sh(node, "source", "echo before > /kept; echo 0123 > /etc/machine-id")?;
    let created = take(node, "source", "one", &[])?;
    let at = count(node, "source")?;
    ensure!(created.snapshot.extent == Extent::Full && created.snapshot.unusable.is_none());
    ensure!(created.pause_us > 0 && created.pause_us < 20_000_000);
    // The file system stood still with the processes: nothing of it is to be repaired.
    let kept = node.location().data.join("snapshots").join(&created.snapshot.id);
    node.call(
        "e2fsck",
        ["-f".as_ref(), "-n".as_ref(), kept.join("disk").as_os_str()],
    )
    .run()?
    .success()?;
    sh(node, "source", "echo after > /kept")?;
    // So far behind would be a clock that nobody sets: more than is let pass below.
    std::thread::sleep(Duration::from_secs(3));

    ensure!(node.hearth(["restore", "one", "--name", "copy"]).ok()? == "copy");
    let copy = node.inspect("copy")?;
    ensure!(
        copy.state.status == MachineStatus::Running
            && copy.origin == Some(Origin::Snapshot(created.snapshot.id.clone()))
    );
    let stages = copy.stages.iter().map(|stage| stage.name.as_str());
    let stages: Vec<_> = stages.filter(|name| *name != "network").collect();
    ensure!(
        stages == ["disk", "restore", "hello", "renew", "thaw"],
        "{stages:?}"
    );
    // The same program, with what it had, from where it was.
    ensure!(sh(node, "copy", "cat /kept")? == "before");
    let first = count(node, "copy")?;
    ensure!(
        first + 30 > at && first < at + 60,
        "it counted {at}, and the copy {first}"
    );
    until("the copy counts on", || Ok(count(node, "copy")? > first))?;
    // It is a machine of its own.
    let name = sh(node, "copy", "hostname")?;
    ensure!(copy.id.starts_with(&name) || name == "copy", "{name:?}");
    ensure!(sh(node, "copy", "cat /etc/hostname")? == name);
    ensure!(
        sh(node, "copy", "cat /etc/machine-id")? != "0123",
        "the machine-id is the source's"
    );
    let off = clock_difference(node, "copy")?;
    ensure!(off <= 1.0, "its clock is {off} s off");
    // The second copy shares memory with whoever comes after the first; it and the source are undisturbed.
    node.hearth(["restore", "one", "--name", "second"]).ok()?;
    let random: BTreeSet<_> = ["source", "copy", "second"]
        .into_iter()
        .map(|machine| sh(node, machine, "head -c 1000 /dev/urandom | md5sum"))
        .collect::<Result<_>>()?;
    ensure!(random.len() == 3, "random numbers come again: {random:?}");
    ensure!(sh(node, "source", "cat /kept")? == "after");
    ensure!(sh(node, "second", "cat /kept")? == "before");
    // It ends, and starts again, as any machine.
    node.hearth(["stop", "-t", "1", "copy"]).ok()?;
    node.hearth(["start", "copy"]).ok()?;
    ensure!(sh(node, "copy", "cat /kept")? == "before");
    // A snapshot outlives its machine, and a copy its snapshot.
    node.hearth(["rm", "-f", "source"]).ok()?;
    ensure!(listed(node)?.len() == 1);
    node.hearth(["restore", "one", "--name", "third"]).ok()?;
    node.hearth(["snapshot", "rm", "one"]).ok()?;
    ensure!(listed(node)?.is_empty() && sh(node, "third", "cat /kept")? == "before");
    Ok(())
}

/// Each generation keeps what differs from the one memory that all began with; files of 4 MB of noise tell whether it is all there.
pub(crate) fn diffs_keep_what_has_changed_and_make_whole_machines(node: &TestNode) -> Result<()> {
    let memory = ["-m", "128m"];
    node.run(memory.iter().chain(&["--rm", "busybox", "true"])).ok()?;
    node.start(
        memory
            .iter()
            .chain(&["--name", "first", "busybox", "sleep", "1000"]),
    )?;
    ensure!(node.inspect("first")?.template.is_some(), "it was booted");
    let grown = "cat /dev/shm/noise* | md5sum";
    let mut machine = "first".to_owned();
    let mut sums = Vec::new();
    for generation in 1..=3 {
        // Pages that a base has become zeros, too.
        let noise = format!(
            "cd /dev/shm; head -c 2000000 /dev/zero | dd of=noise{} conv=notrunc; head -c 4000000 /dev/urandom > noise{generation}",
            generation - 1
        );
        sh(node, &machine, &noise)?;
        sums.push(sh(node, &machine, grown)?);
        let name = format!("diff{generation}");
        let diff = take(node, &machine, &name, &["--diff"])?.snapshot;
        let (took, whole) = (diff.size_bytes, 20_000_000);
        ensure!(diff.diff && took < whole, "generation {generation}: {diff:?}");
        let kept = node.location().data.join("snapshots").join(&diff.id);
        ensure!(kept.join("vm/changes").exists() && !kept.join("vm/memory").exists());
        sh(node, &machine, "rm /dev/shm/noise*")?;
        machine = format!("copy{generation}");
        node.hearth(["restore", &name, "--name", &machine]).ok()?;
        ensure!(
            sh(node, &machine, grown)? == sums[generation - 1],
            "generation {generation}"
        );
    }
    // Templates and older generations may go: each has a link to what it needs.
    node.hearth(["rm", "-f", "first", "copy1", "copy2", "copy3"])
        .ok()?;
    node.hearth(["snapshot", "rm", "diff1"]).ok()?;
    node.hearth(["template", "prune", "--all"]).ok()?;
    let archive = node.home().join("diff3.snapshot");
    let path = archive.to_string_lossy().into_owned();
    node.hearth(["snapshot", "export", "diff3", "-o", &path]).ok()?;
    node.hearth(["snapshot", "rm", "diff3"]).ok()?;
    node.hearth(["snapshot", "import", "-i", &path, "-n", "back"])
        .ok()?;
    for (name, sum) in [("diff2", &sums[1]), ("back", &sums[2])] {
        node.hearth(["restore", name, "--name", "again"]).ok()?;
        ensure!(&sh(node, "again", grown)? == sum, "{name}");
        let forked: Forked =
            serde_json::from_str(&node.hearth(["fork", "again", "-n", "2", "--json"]).ok()?)?;
        for fork in &forked.machines {
            ensure!(&sh(node, &fork.name, grown)? == sum, "a fork of {name}");
            node.hearth(["rm", "-f", &fork.name]).ok()?;
        }
        // What has changed by more than half of the base is whole again.
        sh(node, "again", "head -c 34000000 /dev/urandom > /dev/shm/much")?;
        let much = take(node, "again", "much", &["--diff"])?.snapshot;
        ensure!(!much.diff, "{much:?}");
        node.hearth(["rollback", "again", "much"]).ok()?;
        ensure!(sh(node, "again", "rm /dev/shm/much; cat /dev/shm/noise* | md5sum")? == *sum);
        node.hearth(["rm", "-f", "again"]).ok()?;
        node.hearth(["snapshot", "rm", "much"]).ok()?;
    }
    Ok(())
}

pub(crate) fn a_rollback_takes_a_machine_back_to_what_it_was(node: &TestNode) -> Result<()> {
    start(node, "web", COUNTER)?;
    sh(node, "web", "echo good > /state")?;
    let created = take(node, "web", "good", &[])?;
    let was = count(node, "web")?;
    let before = node.inspect("web")?;
    for round in 0..2 {
        sh(
            node,
            "web",
            "rm /state; rm -f /bin/ls; echo later > /dev/shm/later",
        )?;
        ensure!(node.hearth(["rollback", "web", "good"]).ok()? == "web");
        ensure!(
            sh(node, "web", "cat /state; ls /state")?.starts_with("good"),
            "round {round}"
        );
        let now = count(node, "web")?;
        ensure!(
            now + 30 > was && now < was + 60,
            "round {round}: it counted {was}, and counts {now}"
        );
        // Its memory is what it was, too.
        ensure!(
            sh(node, "web", "cat /dev/shm/later 2>/dev/null; true")?.is_empty(),
            "round {round}"
        );
        let after = node.inspect("web")?;
        ensure!(after.id == before.id && after.state.pid != before.state.pid);
    }
    // One that does not run is taken back as well; and to a disk alone it boots.
    node.hearth(["stop", "-t", "1", "web"]).ok()?;
    node.hearth(["rollback", "web", &created.snapshot.id]).ok()?;
    ensure!(sh(node, "web", "cat /state")? == "good");
    sh(node, "web", "echo disk > /state")?;
    let disk = take(node, "web", "disk", &["--disk-only"])?;
    ensure!(disk.snapshot.extent == Extent::Disk);
    sh(node, "web", "echo worse > /state")?;
    node.hearth(["rollback", "web", "disk"]).ok()?;
    ensure!(sh(node, "web", "cat /state")? == "disk");
    node.hearth(["restore", "disk", "--name", "other"]).ok()?;
    ensure!(sh(node, "other", "cat /state")? == "disk");
    // A snapshot that ends its machine.
    take(node, "web", "end", &["--stop"])?;
    let ended = node.inspect("web")?.state;
    ensure!(
        ended.status == MachineStatus::Exited && ended.reason.is_some_and(|why| why.contains("snapshot"))
    );
    node.hearth(["rollback", "web", "end"]).ok()?;
    ensure!(sh(node, "web", "cat /state")? == "disk");
    Ok(())
}

pub(crate) fn forks_go_on_where_the_machine_is_which_does_not_notice(node: &TestNode) -> Result<()> {
    let script = "echo begun > /kept; mkfifo /dev/shm/f; i=0; while true; do i=$((i+1)); echo line $i; echo $i > /dev/shm/now; usleep 20000; done";
    start(node, "mother", script)?;
    // Somebody is connected meanwhile.
    let session = node
        .exec([
            "mother",
            "sh",
            "-c",
            "i=0; while [ $i -lt 250 ]; do i=$((i+1)); echo $i; usleep 20000; done",
        ])
        .spawn()?;
    count(node, "mother")?;
    let text = node.hearth(["fork", "mother", "-n", "3", "--json"]).ok()?;
    let forked: Forked = serde_json::from_str(&text)?;
    let names: Vec<_> = forked
        .machines
        .iter()
        .map(|machine| machine.name.as_str())
        .collect();
    ensure!(
        names == ["mother-fork-1", "mother-fork-2", "mother-fork-3"],
        "{names:?}"
    );
    let mother = node.inspect("mother")?;
    for machine in &forked.machines {
        ensure!(machine.origin == Some(Origin::Fork(mother.id.clone())));
        ensure!(machine.state.status == MachineStatus::Running);
    }
    node.hearth(["fork", "mother", "--name", "child"]).ok()?;
    let family: Vec<&str> = names.iter().copied().chain(["mother", "child-1"]).collect();
    let mut seen: [BTreeSet<String>; 2] = Default::default();
    for name in &family {
        ensure!(sh(node, name, "cat /kept")? == "begun");
        sh(node, name, &format!("echo {name} > /kept"))?;
        let first = count(node, name)?;
        until(&format!("{name} counts on"), || Ok(count(node, name)? > first))?;
        seen[0].insert(sh(node, name, "hostname")?);
        seen[1].insert(sh(node, name, "head -c 1000 /dev/urandom | md5sum")?);
    }
    for set in &seen {
        ensure!(set.len() == family.len(), "one is another: {set:?}");
    }
    for name in &family {
        ensure!(sh(node, name, "cat /kept")? == *name, "disks are shared");
        // What each printed goes on from where it was forked, without a gap.
        let logs = node.hearth(["logs", name]).ok()?;
        let lines: Vec<u64> = logs
            .lines()
            .map(|line| {
                line.trim_start_matches("line ")
                    .parse()
                    .with_context(|| format!("{line:?}"))
            })
            .collect::<Result<_>>()?;
        let gap = lines.windows(2).find(|pair| pair[1] != pair[0] + 1);
        ensure!(
            lines.len() > 1 && gap.is_none(),
            "{name}: {gap:?} of {} lines",
            lines.len()
        );
    }
    let said = session.finish(DEADLINE)?.success()?.text()?;
    let expected: String = (1..=250).map(|number| format!("{number}\n")).collect();
    ensure!(
        said.trim() == expected.trim(),
        "a session beside it lost something"
    );
    // A node that follows another finds them, and their output goes on.
    node.hearth(["node", "stop"]).ok()?;
    for name in &family {
        ensure!(sh(node, name, "cat /kept")? == *name);
    }
    Ok(())
}

pub(crate) fn snapshots_that_cannot_be_are_refused_and_leave_nothing(node: &TestNode) -> Result<()> {
    let begun = SMALL.into_iter().chain([
        "--name",
        "it",
        "--secret",
        "TOKEN=hush",
        "busybox",
        "sleep",
        "3600",
    ]);
    node.start(begun)?;
    start(node, "other", "sleep 3600")?;
    let refused = |arguments: &[&str], needle: &str| -> Result<()> {
        let outcome = node.hearth(arguments).run()?.expect_code(1)?;
        outcome
            .complains(needle)
            .with_context(|| format!("{arguments:?}"))
            .map(drop)
    };
    refused(&["snapshot", "create", "nobody"], "no machine")?;
    refused(
        &["snapshot", "create", "it", "-n", "../x"],
        "cannot be a snapshot's name",
    )?;
    refused(&["restore", "nothing"], "no snapshot")?;
    refused(&["rollback", "it", "nothing"], "no snapshot")?;
    refused(&["fork", "it"], "TOKEN")?;
    refused(&["fork", "other", "-n", "0"], "0 forks")?;
    refused(
        &["fork", "other", "-n", "10000"],
        "10000 forks cannot be made at once: 1 to 100 can",
    )?;
    let noted = node
        .hearth(["snapshot", "create", "it", "-n", "secret"])
        .run()?
        .success()?;
    ensure!(noted.errors().contains("TOKEN"), "{:?}", noted.errors());
    refused(
        &["snapshot", "create", "other", "-n", "secret"],
        "belongs to another snapshot",
    )?;
    refused(&["restore", "secret"], "TOKEN")?;
    refused(&["rollback", "other", "secret"], "not of this machine")?;
    node.hearth(["restore", "secret", "--keep-secrets", "--name", "heir"])
        .ok()?;
    ensure!(sh(node, "heir", "echo $TOKEN")? == "hush");
    refused(&["restore", "secret", "--keep-secrets", "--name", "heir"], "heir")?;
    node.hearth(["fork", "it", "--keep-secrets", "--name", "child"])
        .ok()?;
    ensure!(sh(node, "child-1", "echo $TOKEN")? == "hush");
    node.hearth(["restart", "-t", "1", "child-1"]).ok()?;
    ensure!(sh(node, "child-1", "echo $TOKEN")? == "hush");
    // Who stands still has only a disk to keep.
    node.hearth(["pause", "other"]).ok()?;
    refused(&["snapshot", "create", "other"], "paused")?;
    refused(&["fork", "other"], "paused")?;
    take(node, "other", "disk", &["--disk-only"])?;
    node.hearth(["unpause", "other"]).ok()?;
    node.hearth(["stop", "-t", "1", "other"]).ok()?;
    refused(&["snapshot", "create", "other"], "not running")?;
    take(node, "other", "rest", &["--disk-only"])?;
    // One whose files were changed is not used.
    let id = listed(node)?
        .into_iter()
        .find(|snapshot| snapshot.name == "disk")
        .context("it was listed")?
        .id;
    node.hearth(["node", "stop"]).ok()?;
    let disk = node.location().data.join("snapshots").join(&id).join("disk");
    let changed = std::fs::OpenOptions::new().write(true).open(disk)?;
    std::os::unix::fs::FileExt::write_all_at(&changed, b"changed", 1 << 20)?;
    let machines = node.machines()?.len();
    refused(&["restore", "disk"], "damaged")?;
    ensure!(node.machines()?.len() == machines, "something was left");
    node.hearth(["snapshot", "prune", "--all"]).ok()?;
    ensure!(listed(node)?.is_empty());
    let left = std::fs::read_dir(node.location().data.join("snapshots"))?.count();
    ensure!(left == 0, "{left} snapshots are left");
    Ok(())
}

pub(crate) fn an_exported_snapshot_comes_back_whole(node: &TestNode) -> Result<()> {
    start(node, "source", COUNTER)?;
    sh(node, "source", "echo kept > /state")?;
    take(node, "source", "one", &[])?;
    let at = count(node, "source")?;
    let file = node.home().join("one.snapshot");
    let name = file.to_string_lossy().into_owned();
    node.hearth(["snapshot", "export", "one", &name]).ok()?;
    let import = ["snapshot", "import", &name];
    node.hearth(import)
        .run()?
        .expect_code(1)?
        .complains("belongs to another snapshot")?;
    node.hearth(["rm", "-f", "source"]).ok()?;
    node.hearth(["snapshot", "rm", "one"]).ok()?;
    ensure!(node.hearth(import).ok()? == "one");
    node.hearth(["restore", "one", "--name", "copy"]).ok()?;
    ensure!(sh(node, "copy", "cat /state")? == "kept");
    ensure!(count(node, "copy")? < at + 60);
    // Half a file, and one of another host: nothing of it stays.
    let whole = std::fs::read(&file)?;
    std::fs::write(&file, &whole[..whole.len() / 2])?;
    node.hearth(import.iter().chain(&["-n", "half"]))
        .run()?
        .expect_code(1)?
        .complains("cannot be read")?;
    std::fs::write(&file, b"no snapshot")?;
    node.hearth(import)
        .run()?
        .expect_code(1)?
        .complains("no snapshot")?;
    ensure!(listed(node)?.len() == 1);
    let left = std::fs::read_dir(node.location().data.join("snapshots"))?.count();
    ensure!(left == 1, "{left} directories of snapshots");
    Ok(())
}

/// Tells numbers from a connection, and when each came.
fn numbers(connection: TcpStream, tell: &mpsc::Sender<(u64, Instant)>) -> Result<()> {
    for line in BufReader::new(connection).lines() {
        tell.send((line?.trim().parse()?, Instant::now()))?;
    }
    Ok(())
}

pub(crate) fn a_connection_and_a_timer_do_not_notice_forks(node: &TestNode) -> Result<()> {
    let rounds = if is_soak() { 50 } else { 5 };
    // A number each 10 ms to whoever connects, until there is a file that says that it is enough.
    let serve = "i=0; while [ ! -e /dev/shm/end ]; do i=$((i+1)); echo $i; usleep 10000; done";
    let script = format!("echo '{serve}' > /serve; nc -l -p 7000 -e sh /serve; sleep 3600");
    let head = SMALL.into_iter().chain(["--name", "server", "-p", "7000"]);
    node.start(head.chain(["busybox", "sh", "-c", &script]))?;
    let port = node.inspect("server")?.ports[0].host;
    // Listening takes a moment; nobody is there before.
    let listens = "while ! grep -q ':1B58 0*:0000 0A' /proc/net/tcp*; do usleep 10000; done";
    sh(node, "server", listens)?;
    let connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(DEADLINE))?;
    let (tell, told) = mpsc::channel();
    let reader = std::thread::spawn(move || numbers(connection, &tell));
    // They come before the first fork, and go on after the last one.
    let mut numbers: Vec<_> = told.iter().take(20).collect();
    let mut pauses = Vec::new();
    for _ in 0..rounds {
        let text = node
            .hearth(["fork", "server", "--name", "child", "--json"])
            .ok()?;
        let forked: Forked = serde_json::from_str(&text)?;
        pauses.push(Duration::from_micros(forked.pause_us));
        node.hearth(["rm", "-f", "child-1"]).ok()?;
    }
    sh(node, "server", "touch /dev/shm/end")?;
    numbers.extend(told);
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    for (index, (number, _)) in (1..).zip(&numbers) {
        ensure!(*number == index, "{number} came where {index} should have");
    }
    let gap = |pair: &[(u64, Instant)]| pair[1].1 - pair[0].1;
    let longest = numbers.windows(2).map(gap).max().context("too few numbers")?;
    let pause = pauses.iter().max().copied().unwrap_or_default();
    println!(
        "{rounds} forks, {} numbers, none lost; longest gap {longest:.0?}, longest pause {pause:.0?}",
        numbers.len()
    );
    // On a busy host a number may come late without any fork.
    ensure!(
        longest < pause + Duration::from_secs(2),
        "a gap of {longest:?}, and the longest pause was {pause:?}"
    );
    Ok(())
}
