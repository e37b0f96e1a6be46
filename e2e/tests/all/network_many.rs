//! Networks in numbers: many at once, made and removed again and again, while nodes die. Nobody has an address twice, and nothing is left.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, TestNode, is_soak};

use crate::network::{expected, reached};
use crate::node::kill;
use crate::stage::{ALLOWED, Stage, WEB, inside, on_stage};
use crate::support::until;

/// More namespaces than this are not kept ready.
const READY: usize = 4;

/// What each machine is.
const SMALL: [&str; 4] = ["-m", "80m", "--network", "filtered"];

/// A node is killed in each round of this number.
const DEADLY: usize = 4;

#[test]
fn many_networks_are_all_different_and_leave_nothing() -> Result<()> {
    let (together, rounds) = if is_soak() { (50, 500) } else { (8, 12) };
    on_stage(|node, stage| {
        let begun = Instant::now();
        let names: Vec<String> = (0..together + together / 2)
            .map(|number| format!("m{number}"))
            .collect();
        start(node, &names[..together])?;
        println!("{together} machines at once: {:.1?}", begun.elapsed());
        let before = addresses(node, &names[..together])?;
        kill(node)?;
        start(node, &names[together..])?;
        let after = addresses(node, &names)?;
        ensure!(after.is_superset(&before), "{before:?} became {after:?}");
        for name in [&names[0], &names[names.len() - 1]] {
            assert_eq!(reached(node, name, &[WEB])?, expected(&[WEB], &ALLOWED), "{name}");
        }
        remove_all(node)?;
        only_ready_ones(stage)?;

        let begun = Instant::now();
        for round in 0..rounds {
            let run = node
                .run(["--rm"].into_iter().chain(SMALL).chain(["busybox", "true"]))
                .spawn()?;
            if round % DEADLY == 0 {
                kill(node)?;
                // Whatever came of it: the next node knows.
                run.finish(DEADLINE)?;
            } else {
                run.finish(DEADLINE)?.success()?;
            }
        }
        println!("{rounds} machines one after the other: {:.1?}", begun.elapsed());
        remove_all(node)?;
        only_ready_ones(stage)
    })
}

/// Starts machines that stay, all at once.
fn start(node: &TestNode, names: &[String]) -> Result<()> {
    let run = |name: &String| {
        let name = ["--detach", "--name", name];
        let stay = ["busybox", "sleep", "3600"];
        node.run(name.into_iter().chain(SMALL).chain(stay)).spawn()
    };
    let runs: Vec<_> = names.iter().map(run).collect::<Result<_>>()?;
    for run in runs {
        run.finish(DEADLINE)?.success()?;
    }
    Ok(())
}

/// Returns the addresses that machines have behind the bridge, of which none is another's.
fn addresses(node: &TestNode, names: &[String]) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for name in names {
        let pid = node.inspect(name)?.state.pid.context("it has no monitor")?;
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        let said = inside(&namespace, || {
            let words = ["-o", "address", "show", "dev", "uplink", "scope", "global"];
            Ok(Command::new("ip").args(words).output()?.stdout)
        })?;
        let said = String::from_utf8(said)?;
        let of_one: Vec<_> = said
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3))
            .collect();
        ensure!(of_one.len() == 2, "{name}: {said}");
        for address in of_one {
            ensure!(
                all.insert(address.to_owned()),
                "{address} of {name} is another's, too"
            );
        }
    }
    Ok(all)
}

fn remove_all(node: &TestNode) -> Result<()> {
    let names: Vec<String> = node.machines()?.into_iter().map(|machine| machine.name).collect();
    if names.is_empty() {
        return Ok(());
    }
    let verb = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str));
    node.hearth(verb).ok().map(drop)
}

/// Waits until there are no other links than those of namespaces that are ready for the next machines. The rest of a namespace, its TAP
/// and its rules, goes before its link does.
fn only_ready_ones(stage: &Stage) -> Result<()> {
    until("links of machines have gone", || {
        let links = inside(&stage.host, || {
            Ok(fs::read_to_string("/proc/thread-self/net/dev")?)
        })?;
        let of_machines = links.lines().filter(|line| line.trim_start().starts_with("hv"));
        Ok(of_machines.count() <= READY)
    })
}
