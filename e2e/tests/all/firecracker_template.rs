//! The cases of the driver suite about machines that are made of others: clones of templates, memory from a pager.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::TestNode;
use hearth_api::v1::{MachineStatus, Template};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::firecracker::{Case, Guest, NotHere, Often, exec_in, through, with};
use crate::node::kill;
use crate::support::until;

/// A shape that no other case has.
const MEMORY: &str = "80m";
pub(crate) const PAGER: [&str; 2] = ["--memory-backend", "pager"];

/// The cases.
pub(crate) const CASES: [Case; 6] = [
    ("template clone", clone, Often::Always),
    ("ten clones at once", ten_clones, Often::Always),
    ("restore of bad files refused", bad_files, Often::Always),
    ("clones with a pager", with_pager, Often::Always),
    ("pager death", pager_killed, Often::Always),
    ("node death, pager alive", node_killed, Often::Always),
];

fn start(node: &TestNode, name: &str, guest: &Guest, flags: &[&str]) -> Result<()> {
    let head = with(&["-m", MEMORY, "--name", name], flags);
    node.start(with(&head, &with(&["busybox"], guest.wait)))?;
    Ok(())
}

fn template_of(node: &TestNode, name: &str) -> Result<Option<String>> {
    Ok(node.inspect(name)?.template)
}

/// Makes sure that there is a template, and returns its name.
fn template(node: &TestNode, guest: &Guest) -> Result<String> {
    start(node, "first", guest, &[])?;
    start(node, "second", guest, &[])?;
    let id = template_of(node, "second")?.context("the second machine booted")?;
    node.hearth(["rm", "-f", "first", "second"]).ok()?;
    Ok(id)
}

fn directory(node: &TestNode, template: &str) -> PathBuf {
    node.location().data.join("templates").join(template)
}

/// Looks whether a machine is who it is to be: its name, random numbers of its own, a disk of its own.
fn is_itself(node: &TestNode, name: &str, guest: &Guest, others: &mut BTreeSet<String>) -> Result<()> {
    let said = exec_in(node, name, &["identity"])?;
    let id = node.inspect(name)?.id;
    ensure!(
        said.contains(&format!("hostname={id}")),
        "{name} is {said}, not {id}"
    );
    let entropy = said.lines().find(|line| line.starts_with("entropy="));
    let entropy = entropy.with_context(|| format!("no entropy: {said}"))?;
    ensure!(entropy.len() > 60, "{entropy}");
    ensure!(
        others.insert(entropy.to_owned()),
        "two machines have the same random numbers"
    );
    let kept = || exec_in(node, name, guest.kept.0);
    ensure!(
        kept().map_or(true, |said| said != guest.kept.1),
        "its disk is another's"
    );
    exec_in(node, name, guest.keep)?;
    assert_eq!(kept()?, guest.kept.1);
    through(node, name, guest, name.as_bytes())
}

fn clone(node: &TestNode, guest: &Guest) -> Result<()> {
    let id = template(node, guest)?;
    let mut seen = BTreeSet::new();
    start(node, "booted", guest, &["--no-template"])?;
    ensure!(template_of(node, "booted")?.is_none());
    for name in ["a", "b"] {
        start(node, name, guest, &[])?;
        ensure!(
            template_of(node, name)?.as_ref() == Some(&id),
            "{name} is no clone"
        );
    }
    for name in ["booted", "a", "b"] {
        is_itself(node, name, guest, &mut seen)?;
    }
    // Its files are its own also when it is started again.
    for _ in 0..2 {
        // The first time leaves a template that goes with any disk, where the one that there is does not.
        node.hearth(["restart", "-t", "5", "a"]).ok()?;
    }
    ensure!(template_of(node, "a")?.is_some());
    assert_eq!(exec_in(node, "a", guest.kept.0)?, guest.kept.1);
    let list: Vec<Template> = serde_json::from_str(&node.hearth(["template", "ls", "--json"]).ok()?)?;
    let listed = list
        .iter()
        .find(|template| template.id == id)
        .context("it is not listed")?;
    assert_eq!(
        (&*listed.guest.driver, listed.guest.memory_mib),
        ("firecracker", 80)
    );
    Ok(())
}

fn clones_at_once(node: &TestNode, guest: &Guest, count: usize, flags: &[&str]) -> Result<Vec<String>> {
    let names: Vec<_> = (0..count).map(|number| format!("clone-{number}")).collect();
    std::thread::scope(|scope| {
        let starts: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || start(node, name, guest, flags)))
            .collect();
        starts
            .into_iter()
            .try_for_each(|start| start.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })?;
    Ok(names)
}

fn ten_clones(node: &TestNode, guest: &Guest) -> Result<()> {
    let id = template(node, guest)?;
    let (mut seen, mut monitors) = (BTreeSet::new(), BTreeSet::new());
    for name in clones_at_once(node, guest, 10, &[])? {
        is_itself(node, &name, guest, &mut seen)?;
        let machine = node.inspect(&name)?;
        ensure!(machine.template.as_ref() == Some(&id), "{name} is no clone");
        monitors.insert(machine.state.pid);
    }
    assert_eq!(monitors.len(), 10);
    Ok(())
}

/// What may have become of a template's files, and what the node says of it.
type Damage = (&'static str, fn(&Path) -> Result<()>);

const DAMAGES: [Damage; 6] = [
    ("the bytes of memory are not those", |files| {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(files.join("memory"))?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 3 << 20)?;
        Ok(file.write_all_at(&[byte[0] ^ 1], 3 << 20)?)
    }),
    ("the bytes of state are not those", |files| {
        let mut bytes = fs::read(files.join("state"))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        Ok(fs::write(files.join("state"), bytes)?)
    }),
    ("memory has", |files| {
        let file = fs::OpenOptions::new().write(true).open(files.join("memory"))?;
        Ok(file.set_len(4096)?)
    }),
    ("state has 0 bytes", |files| {
        Ok(fs::write(files.join("state"), "")?)
    }),
    ("it is of another key", |files| {
        change_key(files, "version", |_| "1.99.0".into())
    }),
    ("it is of another key", |files| {
        change_key(files, "fingerprint", |processor| {
            format!("{}, another one", processor.as_str().unwrap_or_default()).into()
        })
    }),
];

fn change_key(
    files: &Path,
    field: &str,
    change: impl FnOnce(&serde_json::Value) -> serde_json::Value,
) -> Result<()> {
    let path = files.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    let value = &mut manifest["key"][field];
    ensure!(value.is_string(), "the key has no {field}");
    *value = change(value);
    Ok(fs::write(path, serde_json::to_vec(&manifest)?)?)
}

fn bad_files(node: &TestNode, guest: &Guest) -> Result<()> {
    for (number, (words, damage)) in DAMAGES.into_iter().enumerate() {
        let id = template(node, guest)?;
        damage(&directory(node, &id)).with_context(|| format!("damage {number}"))?;
        // A node reads each byte before it uses a template for the first time.
        kill(node)?;
        let before = node_log(node)?.len();
        start(node, "m", guest, &[])?;
        ensure!(template_of(node, "m")?.is_none(), "restored, although {words}");
        through(node, "m", guest, b"it booted")?;
        let log = node_log(node)?.split_off(before);
        ensure!(
            log.contains("a template is thrown away") && log.contains(words),
            "the node does not say {words:?}: {log}"
        );
        node.hearth(["rm", "-f", "m"]).ok()?;
    }
    Ok(())
}

fn node_log(node: &TestNode) -> Result<String> {
    let path = node.location().run.join("node.log");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the processes of pagers that serve images of a home: the guard, and the server behind it.
pub(crate) fn pagers(node: &TestNode) -> Result<Vec<Pid>> {
    let home = node.location().data.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && line.contains(" pager --image ")
            && line.contains(&home)
        {
            found.push(pid);
        }
    }
    found.sort_by_key(|pid| pid.as_raw_nonzero());
    Ok(found)
}

/// Firecracker makes its userfaultfd itself, from the device.
pub(crate) fn pagers_run() -> Result<()> {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    device.map_err(|_| NotHere("/dev/userfaultfd does not open for this user"))?;
    Ok(())
}

fn with_pager(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    let id = template(node, guest)?;
    ensure!(pagers(node)?.is_empty(), "a pager without a machine");
    let mut seen = BTreeSet::new();
    let names = clones_at_once(node, guest, 5, &PAGER)?;
    let both = pagers(node)?;
    ensure!(
        both.len() == 2,
        "one pager of two processes is expected: {both:?}"
    );
    for name in &names {
        ensure!(
            template_of(node, name)?.as_ref() == Some(&id),
            "{name} is no clone"
        );
        is_itself(node, name, guest, &mut seen)?;
    }
    let shown: serde_json::Value = serde_json::from_str(&node.hearth(["inspect", &names[0]]).ok()?)?;
    ensure!(
        shown.to_string().contains("\"memory_backend\":\"pager\""),
        "inspect does not tell: {shown}"
    );
    // One that starts later has the same; the last one that goes takes it along.
    start(node, "later", guest, &PAGER)?;
    assert_eq!(pagers(node)?, both);
    let gone: Vec<_> = names.iter().map(String::as_str).collect();
    node.hearth(with(&["rm", "-f"], &gone)).ok()?;
    assert_eq!(pagers(node)?, both);
    through(node, "later", guest, b"served on")?;
    node.hearth(["rm", "-f", "later"]).ok()?;
    until("the pager ends", || Ok(pagers(node)?.is_empty()))?;
    let learned = directory(node, &id).join("pager/working-set");
    ensure!(learned.exists(), "no working set was kept");
    let places = node.location().run.join("pagers");
    until("its place is removed", || Ok(fs::read_dir(&places)?.count() == 0))
}

fn pager_killed(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    template(node, guest)?;
    start(node, "bystander", guest, &[])?;
    // The server, the guard, both at once: nobody else is left to kill the machines then.
    for (round, victims) in [&[1_usize][..], &[0], &[0, 1]].into_iter().enumerate() {
        start(node, "a", guest, &PAGER)?;
        start(node, "b", guest, &PAGER)?;
        through(node, "a", guest, b"served")?;
        let all = pagers(node)?;
        ensure!(all.len() == 2, "{all:?}");
        for victim in victims {
            kill_process(all[*victim], Signal::KILL)?;
        }
        for name in ["a", "b"] {
            node.hearth(["wait", name])
                .run()?
                .expect_code(1)?
                .complains("the pager that its memory came from has ended")
                .with_context(|| format!("round {round}"))?;
            assert_eq!(node.inspect(name)?.state.status, MachineStatus::Failed);
        }
        until("both processes end", || Ok(pagers(node)?.is_empty()))?;
        through(node, "bystander", guest, b"unharmed")?;
        node.hearth(["start", "a"]).ok()?;
        through(node, "a", guest, b"served anew")?;
        node.hearth(["rm", "-f", "a", "b"]).ok()?;
        until("the pager ends", || Ok(pagers(node)?.is_empty()))?;
    }
    Ok(())
}

fn node_killed(node: &TestNode, guest: &Guest) -> Result<()> {
    pagers_run()?;
    template(node, guest)?;
    start(node, "a", guest, &PAGER)?;
    start(node, "b", guest, &PAGER)?;
    let both = pagers(node)?;
    kill(node)?;
    through(node, "a", guest, b"found again")?;
    assert_eq!(pagers(node)?, both);
    // The next node knows it as its own: a clone joins, and a death is explained.
    start(node, "c", guest, &PAGER)?;
    assert_eq!(pagers(node)?, both);
    node.hearth(["rm", "-f", "a"]).ok()?;
    kill(node)?;
    through(node, "b", guest, b"found once more")?;
    kill_process(both[0], Signal::KILL)?;
    for name in ["b", "c"] {
        node.hearth(["wait", name])
            .run()?
            .expect_code(1)?
            .complains("the pager that its memory came from has ended")?;
    }
    until("both processes end", || {
        Ok(both.iter().all(|pid| test_kill_process(*pid).is_err()))
    })?;
    // A pager whose machines end while no node is there goes with them.
    start(node, "d", guest, &PAGER)?;
    let monitor = node.inspect("d")?.state.pid.context("it has no monitor")?;
    let monitor = Pid::from_raw(i32::try_from(monitor)?).context("a process id")?;
    kill(node)?;
    kill_process(monitor, Signal::KILL)?;
    assert_eq!(node.inspect("d")?.state.status, MachineStatus::Failed);
    until("the pager ends", || Ok(pagers(node)?.is_empty()))
}
