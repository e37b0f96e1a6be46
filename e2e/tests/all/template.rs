//! Templates: later machines begin where the first one had booted to, and are machines of their own all the same.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode, files_that_contain, is_soak};
use hearth_api::v1::{PrunedTemplates, Template};

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
    let names: Vec<_> = stages.iter().map(|stage| stage.name.as_str()).collect();
    ensure!(
        names == ["disk", "template", "restore", "hello", "configure", "start"],
        "{names:?}"
    );
    ensure!(run(node, "boots", &["--no-template"])?.is_none());
    // A clone that was stopped is a clone again, and has its files.
    node.run(SHAPE.into_iter().chain([
        "--name",
        "keeps",
        "busybox",
        "sh",
        "-c",
        "n=$(cat /n 2>/dev/null); echo $((n + 1)) > /n; cat /n",
    ]))
    .ok()?;
    node.hearth(["start", "-a", "keeps"]).ok()?;
    let again = node.hearth(["start", "-a", "keeps"]).ok()?;
    ensure!(again == "3", "{again:?}");
    ensure!(node.inspect("keeps")?.template == Some(template.id.clone()));

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
    let cases: [(&str, Change<'_>); 4] = [
        ("state", &shorter),
        ("memory", &changed),
        ("state", &changed),
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
