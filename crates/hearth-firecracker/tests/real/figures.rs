//! Many boots and restores: none fails, none leaves anything, and how long they take.

use std::time::{Duration, Instant};

use anyhow::Result;
use hearth_firecracker::model::SnapshotKind;

use crate::host::{MEMORY, STATE, skip_without_firecracker};

/// Rounds, and rounds with `HEARTH_E2E_SOAK=1`.
const ROUNDS: usize = 20;
const SOAK: usize = 200;

fn rounds() -> usize {
    match std::env::var_os("HEARTH_E2E_SOAK").is_some_and(|value| value == "1") {
        true => SOAK,
        false => ROUNDS,
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{what}: {} times, p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
        times.len(),
        at(50),
        at(99),
        at(100)
    );
}

#[tokio::test]
async fn boots_and_restores_one_after_the_other_leave_nothing() -> Result<()> {
    let host = skip_without_firecracker!();
    let mut times = Vec::new();
    for _ in 0..rounds() {
        let begin = Instant::now();
        let vmm = host.boot().await?;
        vmm.greet().await?;
        times.push(begin.elapsed());
        vmm.end().await?;
    }
    report("spawn to first reply", times);

    let source = host.boot().await?;
    source.settle().await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let mut times = Vec::new();
    for _ in 0..rounds() {
        let begin = Instant::now();
        let vmm = host.restore(source.directory.path()).await?;
        vmm.greet().await?;
        times.push(begin.elapsed());
        vmm.end().await?;
    }
    report("restore to first reply", times);
    source.end().await
}
