//! Templates: later machines begin where the first one had booted to, and are machines of their own all the same.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, Outcome, TestNode, files_that_contain, is_soak};
use hearth_api::v1::{PrunedTemplates, Template};

use crate::support::until;

/// A shape for which the ready homes have no template.
const SHAPE: [&str; 2] = ["-m", "72m"];

fn templates(node: &TestNode) -> Result<Vec<Template>> {
    let text = node.hearth(["template", "ls", "--json"]).ok()?;
    Ok(serde_json::from_str(&text)?)
}

/// Returns those of [`SHAPE`].
fn own(node: &TestNode) -> Result<Vec<Template>> {
    let mut own = templates(node)?;
    own.retain(|template| template.guest.memory_mib == 72);
    Ok(own)
}

fn run(node: &TestNode, name: &str, more: &[&str]) -> Result<Option<String>> {
    let head = SHAPE.into_iter().chain(["--name", name]);
    let tail = ["busybox", "echo", name];
    let said = node.run(head.chain(more.iter().copied()).chain(tail)).ok()?;
    ensure!(said == name, "{said:?}");
    Ok(node.inspect(name)?.template)
}

/// Waits until the first start's template is whole: it is described behind the start.
fn made(node: &TestNode) -> Result<Template> {
    // A start of that key waits for it.
    let of = run(node, "waits", &[])?.context("the second machine booted")?;
    let own = own(node)?;
    ensure!(own.len() == 1 && own[0].id == of, "{own:?}, and it is of {of}");
    own.into_iter().next().context("there is one")
}

fn directory(node: &TestNode, template: &Template) -> PathBuf {
    node.location().data.join("templates").join(&template.id)
}

pub(crate) fn the_second_machine_is_a_clone_unless_it_is_told_to_boot(node: &TestNode) -> Result<()> {
    ensure!(run(node, "first", &[])?.is_none(), "a clone of nothing");
    let template = made(node)?;
    let stages = node.inspect("waits")?.stages;
    let names = stages.iter().map(|stage| stage.name.as_str());
    let names: Vec<_> = names.filter(|name| *name != "network").collect();
    ensure!(
        names == ["template", "disk", "restore", "hello", "renew", "start"],
        "{names:?}"
    );
    ensure!(run(node, "boots", &["--no-template"])?.is_none());
    // A clone that was stopped has its files: its second start makes a template that goes with any disk, the third is a clone of that.
    node.run(SHAPE.into_iter().chain([
        "--name",
        "keeps",
        "busybox",
        "sh",
        "-c",
        "n=$(cat /n 2>/dev/null); echo $((n + 1)) > /n; cat /n",
    ]))
    .ok()?;
    ensure!(node.inspect("keeps")?.template == Some(template.id.clone()));
    disk_is_sound(node, "keeps")?;
    node.hearth(["start", "-a", "keeps"]).ok()?;
    ensure!(
        node.inspect("keeps")?.template.is_none(),
        "a clone with another's disk"
    );
    let again = node.hearth(["start", "-a", "keeps"]).ok()?;
    ensure!(again == "3", "{again:?}");
    let other = node
        .inspect("keeps")?
        .template
        .context("the third start booted")?;
    ensure!(other != template.id, "a clone with another's disk");
    disk_is_sound(node, "keeps")?;

    node.hearth(["template", "rm", &other]).ok()?;
    node.hearth(["template", "rm", &template.id]).ok()?;
    node.hearth(["template", "rm", &template.id])
        .run()?
        .expect_code(1)?
        .complains(&template.id)?;
    node.hearth(["template", "rm", "../images"])
        .run()?
        .expect_code(1)?;
    ensure!(own(node)?.is_empty());
    ensure!(
        run(node, "anew", &[])?.is_none(),
        "of a template that was removed"
    );
    Ok(())
}

/// Has the file system of a machine that rests checked, every block of it.
fn disk_is_sound(node: &TestNode, machine: &str) -> Result<()> {
    let id = node.inspect(machine)?.id;
    let disk = node.location().data.join("machines").join(id).join("disk.img");
    let checked = Command::new("e2fsck").args(["-f", "-n"]).arg(&disk).output()?;
    ensure!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );
    Ok(())
}

/// What a workload is made ahead for is not known: each setting of its own counts in a clone all the same.
pub(crate) fn a_clone_has_every_setting_of_its_own(node: &TestNode) -> Result<()> {
    run(node, "first", &[])?;
    let template = made(node)?;
    let long = "x".repeat(100_000);
    let variable = format!("LONG={long}");
    let cases: [(&[&str], &str, &str); 11] = [
        (&[], "echo $$", "1"),
        (
            &["--hostname", "lighthouse"],
            "hostname; cat /etc/hostname",
            "lighthouse\nlighthouse",
        ),
        (&["--hostname", "lighthouse"], "echo $HOSTNAME", "lighthouse"),
        (&["--add-host", "db:10.1.2.3"], "grep -c 10.1.2.3 /etc/hosts", "1"),
        (&["-u", "65534:65533"], "id -u; id -g", "65534\n65533"),
        (&["-w", "/made/for/it"], "pwd", "/made/for/it"),
        (
            &["--read-only"],
            "touch /x 2>/dev/null || echo refused",
            "refused",
        ),
        (
            &["--tmpfs", "/scratch"],
            "grep -c ' /scratch tmpfs ' /proc/mounts",
            "1",
        ),
        (
            &["--init"],
            "echo $$ > /n; [ $(cat /n) != 1 ] && echo child",
            "child",
        ),
        (&["-e", &variable], "echo ${#LONG}", "100000"),
        (&["--ulimit", "nofile=77:99"], "ulimit -n", "77"),
    ];
    for (number, (flags, script, expected)) in cases.into_iter().enumerate() {
        let name = format!("case{number}");
        let head = SHAPE.into_iter().chain(["--name", &name]);
        let tail = ["busybox", "sh", "-c", script];
        let said = node.run(head.chain(flags.iter().copied()).chain(tail)).ok()?;
        ensure!(said == expected, "{flags:?}: {said:?} instead of {expected:?}");
        ensure!(
            node.inspect(&name)?.template.as_ref() == Some(&template.id),
            "{flags:?}: no clone"
        );
        disk_is_sound(node, &name)?;
    }
    let head = SHAPE.into_iter().chain(["--name", "none", "busybox"]);
    node.run(head.chain(["/no/such/program"]))
        .run()?
        .expect_code(127)?
        .complains("/no/such/program")?;
    // Input reaches it, and its end does.
    let head = SHAPE
        .into_iter()
        .chain(["-i", "--name", "reads", "busybox", "md5sum"]);
    let sum = node.run(head).stdin(long.as_bytes()).ok()?;
    ensure!(sum.contains("  -"), "{sum}");
    ensure!(node.inspect("reads")?.template == Some(template.id));
    Ok(())
}

pub(crate) fn templates_of_no_use_are_pruned(node: &TestNode) -> Result<()> {
    let before = templates(node)?.len();
    run(node, "first", &[])?;
    made(node)?;
    let prune = |more: &[&str]| -> Result<PrunedTemplates> {
        let arguments = ["template", "prune", "--json"]
            .into_iter()
            .chain(more.iter().copied());
        Ok(serde_json::from_str(&node.hearth(arguments).ok()?)?)
    };
    ensure!(prune(&[])?.templates.is_empty(), "one of use was pruned");
    node.hearth(["rm", "-f", "first", "waits"]).ok()?;
    node.hearth(["image", "rm", "busybox"]).ok()?;
    let pruned = prune(&[])?;
    ensure!(
        pruned.templates.len() == before + 1 && pruned.freed_bytes > 1 << 20,
        "{pruned:?}"
    );
    ensure!(templates(node)?.is_empty() && prune(&["--all"])?.templates.is_empty());
    Ok(())
}

pub(crate) fn of_first_machines_that_start_at_once_one_boots(node: &TestNode) -> Result<()> {
    let count = if is_soak() { 20 } else { 4 };
    let names: Vec<String> = (0..count).map(|number| format!("m{number}")).collect();
    let calls: Vec<_> = names
        .iter()
        .map(|name| {
            node.run(SHAPE.into_iter().chain(["--name", name, "busybox", "true"]))
                .spawn()
        })
        .collect::<Result<_>>()?;
    for call in calls {
        call.finish(DEADLINE)?.success()?;
    }
    let booted = names
        .iter()
        .map(|name| Ok(node.inspect(name)?.template.is_none()));
    let booted = booted
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|it| *it)
        .count();
    ensure!(booted == 1, "{booted} of {count} have booted");
    ensure!(own(node)?.len() == 1);
    Ok(())
}

pub(crate) fn a_damaged_template_is_thrown_away_and_made_anew(node: &TestNode) -> Result<()> {
    run(node, "first", &[])?;
    let template = made(node)?;
    let directory = directory(node, &template);
    // Bytes that another run's home does not share.
    let replace = |name: &str, change: &dyn Fn(&fs::File) -> Result<()>| -> Result<()> {
        let (path, copy) = (directory.join(name), directory.join("copy"));
        fs::copy(&path, &copy)?;
        change(&fs::OpenOptions::new().write(true).open(&copy)?)?;
        Ok(fs::rename(copy, path)?)
    };
    type Change<'a> = &'a dyn Fn(&fs::File) -> Result<()>;
    let shorter = |file: &fs::File| Ok(file.set_len(1000)?);
    let changed = |file: &fs::File| Ok(file.write_all_at(b"other bytes", 4096)?);
    let cases: [(&str, Change<'_>); 5] = [
        ("state", &shorter),
        ("memory", &changed),
        ("state", &changed),
        ("disk", &changed),
        ("manifest.json", &shorter),
    ];
    for (number, (name, change)) in cases.into_iter().enumerate() {
        // What it has read once, a node trusts.
        node.hearth(["node", "stop"]).ok()?;
        replace(name, change)?;
        let of = run(node, &format!("boots{number}"), &[])?;
        ensure!(of.is_none(), "a clone of a template whose {name} is damaged");
        let of = run(node, &format!("clone{number}"), &[])?;
        ensure!(
            of.as_deref() == Some(&*template.id),
            "it was not made anew: {of:?}"
        );
    }
    // One that only the monitor can find fault with: its machine boots instead.
    replace("state", &|file| Ok(file.write_all_at(&[0xff; 64], 64)?))?;
    ensure!(
        run(node, "boots", &[])?.is_none(),
        "a clone of a state of nonsense"
    );
    ensure!(run(node, "anew", &[])?.is_none() && run(node, "clone", &[])?.is_some());
    Ok(())
}

pub(crate) fn clones_are_machines_of_their_own(node: &TestNode) -> Result<()> {
    run(
        node,
        "first",
        &[
            "-e",
            "TOKEN=plain-3141592653",
            "--secret",
            "KEY=hidden-2718281828",
        ],
    )?;
    let template = made(node)?;
    for word in ["plain-3141592653", "hidden-2718281828"] {
        let found = files_that_contain(&directory(node, &template), word.as_bytes())?;
        ensure!(found.is_empty(), "{word} is in {found:?}");
    }
    let count = if is_soak() { 20 } else { 5 };
    let script = "hostname; cat /etc/hostname; head -c 1000 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid; \
                  cat /proc/sys/kernel/random/boot_id; env | grep -c KEY; true";
    let (mut seen, mut worst) = (BTreeSet::new(), 0.0_f64);
    for number in 0..count {
        let name = format!("clone{number}");
        let head = SHAPE
            .into_iter()
            .chain(["-d", "--name", &name, "busybox", "sleep", "3600"]);
        let id = node.run(head).ok()?;
        ensure!(node.inspect(&name)?.template.as_ref() == Some(&template.id));
        let said = node.exec([name.as_str(), "sh", "-c", script]).ok()?;
        let lines: Vec<_> = said.lines().collect();
        ensure!(
            lines.len() == 6 && lines[0] == id && lines[1] == id && lines[5] == "0",
            "{said}"
        );
        for line in &lines[2..5] {
            ensure!(seen.insert((*line).to_owned()), "{line} twice");
        }
        let host = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map(|time| time.as_secs_f64())
        };
        let before = host()?;
        let guest: f64 = node
            .exec([name.as_str(), "date", "+%s.%N"])
            .ok()?
            .parse()
            .or_else(|_| {
                // Busybox may be built without nanoseconds.
                node.exec([name.as_str(), "date", "+%s"])
                    .ok()?
                    .parse()
                    .map_err(anyhow::Error::from)
            })?;
        let after = host()?;
        let off = (before.floor() - guest).max(guest - after);
        worst = worst.max(off);
        ensure!(off < 0.5, "its clock is {off} s off");
        node.hearth(["rm", "-f", &name]).ok()?;
    }
    println!(
        "{count} clones, no number twice, no clock off the host's by more than {worst:.3} s of what can be seen"
    );
    Ok(())
}

/// Makes a template of a shell that says that it is well, with more flags.
fn keep(node: &TestNode, more: &[&str]) -> Result<Outcome> {
    let script = "touch /well; n=0; while :; do n=$((n+1)); echo $n > /n; sleep 0.1; done";
    let head = ["template", "create", "-m", "72m", "--health-interval", "1s"];
    let tail = ["busybox", "sh", "-c", script];
    node.hearth(head.iter().chain(more).chain(&tail)).run()
}

pub(crate) fn a_workload_is_kept_when_it_is_well_and_warm(node: &TestNode) -> Result<()> {
    let health = ["--health-cmd", "test -e /well"];
    let flags = [
        "--name",
        "kept",
        "--after-health",
        "--warm-cmd",
        "cat /well > /warm; echo warming",
    ];
    let said = keep(node, &[&flags[..], &health].concat())?.success()?.text()?;
    ensure!(said == "warming\nkept", "{said:?}");
    ensure!(node.machines()?.is_empty(), "its machine is there");
    // Machines of it go on, each as one of its own.
    let mut names = BTreeSet::new();
    for name in ["one", "two"] {
        node.hearth(["restore", "kept", "--name", name]).ok()?;
        node.exec([name, "test", "-e", "/warm"]).ok()?;
        ensure!(names.insert(node.exec([name, "hostname"]).ok()?));
        let count =
            || -> Result<u32> { Ok(node.exec([name, "cat", "/n"]).ok()?.trim().parse().unwrap_or(0)) };
        let first = count()?;
        until("it counts on", || Ok(count()? > first))?;
        node.hearth(["rm", "-f", name]).ok()?;
    }
    let unwell = [
        "--name",
        "x",
        "--after-health",
        "--health-cmd",
        "false",
        "--health-retries",
        "1",
    ];
    let cases: [(&[&str], &str); 5] = [
        (&["--after-health"], "--name NAME"),
        (&["--name", "x", "--after-health"], "--health-cmd"),
        (&unwell, "unhealthy"),
        (&["--name", "x", "--warm-cmd", "exit 3"], "exit code 3"),
        (&["--name", "x", "--secret", "A=b"], "secrets"),
    ];
    for (flags, word) in cases {
        keep(node, flags)?.expect_code(1)?.complains(word)?;
        ensure!(node.machines()?.is_empty(), "a machine is there after {flags:?}");
    }
    let snapshots = node.hearth(["snapshot", "ls", "-q"]).ok()?;
    ensure!(snapshots == "kept", "{snapshots:?}");
    Ok(())
}
