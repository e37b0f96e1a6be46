//! Numbers: many boots, many machines.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::{TestNode, is_soak};

use crate::lifecycle::nothing_of_machines;

pub(crate) fn boots_one_after_the_other(node: &TestNode) -> Result<()> {
    let count = if is_soak() { 100 } else { 10 };
    let mut times = Vec::with_capacity(count);
    for number in 1..=count {
        let text = format!("boot {number}");
        let outcome = node
            .run(["--rm", "--no-template", "busybox", "echo", &text])
            .run()?
            .success()?;
        times.push(outcome.took);
        assert_eq!(outcome.text()?, text);
    }
    report("run --rm --no-template busybox echo", &mut times);
    nothing_of_machines(node)
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what}: {} times, p50 {:.0?}, p99 {:.0?}",
        times.len(),
        at(50),
        at(99)
    );
}

pub(crate) fn fifty_machines_leave_nothing(node: &TestNode) -> Result<()> {
    const TOTAL: usize = 50;
    const TOGETHER: usize = 5;
    let begun = Instant::now();
    let before = open_files(node)?;
    for round in 0..TOTAL / TOGETHER {
        let mut names = Vec::new();
        for number in 0..TOGETHER {
            let name = format!("m{round}-{number}");
            node.start(["-m", "96m", "--name", &name, "busybox", "sleep", "3600"])?;
            names.push(name);
        }
        let removal = ["rm", "--force"]
            .into_iter()
            .chain(names.iter().map(String::as_str));
        node.hearth(removal).ok()?;
    }
    println!("{TOTAL} machines in {:.1?}", begun.elapsed());
    nothing_of_machines(node)?;
    let after = open_files(node)?;
    assert!(
        after <= before + 4,
        "the node has {after} open files, and had {before}"
    );
    Ok(())
}

fn open_files(node: &TestNode) -> Result<usize> {
    node.run(["--rm", "busybox", "true"]).ok()?;
    let pid = node.status()?.pid;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
