//! Numbers: many boots, many machines.

use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::{TestNode, is_soak};

use crate::lifecycle::nothing_of_machines;
use crate::support::until;

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
    node.run(["--rm", "busybox", "true"]).ok()?;
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
    // What belonged to the last networks is closed behind them, and the next ones are made.
    until("the node has as many open files as it had", || {
        Ok(open_files(node)? <= before + 4)
    })
}

fn open_files(node: &TestNode) -> Result<usize> {
    let pid = node.status()?.pid;
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}
