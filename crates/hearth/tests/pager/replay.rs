//! What the first machine touches, the next ones have before they miss it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::host::{Host, Vmm, skip_without_firecracker};
use crate::process::{Pager, saved, wrong_words};

/// Restores a machine and works with it; returns the faults that it took and the pages that it had before.
async fn used(host: &Host, source: &Vmm, pager: &Pager) -> Result<(u64, u64)> {
    let clone = pager.restore(host, source.directory.path()).await?;
    assert_eq!(wrong_words(&mut clone.greet().await?).await?, 0);
    let pid = clone.child.id().context("it runs")?;
    clone.end().await?;
    let counts = pager.counts(pid).await?;
    Ok((counts["faults"], counts["ahead"]))
}

fn option(path: &Path) -> [&str; 4] {
    let path = path.to_str().unwrap_or_default();
    ["--working-set", path, "--record", "600000"]
}

#[tokio::test]
async fn the_second_machine_takes_fewer_faults_and_so_does_one_of_the_next_pager() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("working-set");
    let pager = Pager::start(source.directory.path(), &option(&file)).await?;
    let (first, none) = used(&host, &source, &pager).await?;
    ensure!(first >= 1024 && none == 0, "{first} faults, {none} pages ahead");
    let (second, ahead) = used(&host, &source, &pager).await?;
    ensure!(
        second < first / 2 && ahead >= first / 2,
        "{first} faults, then {second} and {ahead} ahead"
    );
    pager.says("the working set is kept").await?;
    drop(pager);

    let pager = Pager::start(source.directory.path(), &option(&file)).await?;
    let (third, ahead) = used(&host, &source, &pager).await?;
    ensure!(
        third < first / 2 && ahead >= first / 2,
        "{first} faults, then {third} and {ahead} ahead"
    );
    println!("faults: {first} recorded, {second} and {third} replayed");
    assert_eq!(std::fs::read_dir(directory.path())?.count(), 1);
    source.end().await
}

#[tokio::test]
async fn a_working_set_that_is_broken_is_passed_over_with_a_warning_and_made_anew() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("working-set");
    std::fs::write(&file, b"HRTHWS\0\x01 and nothing that follows from it")?;
    let pager = Pager::start(source.directory.path(), &option(&file)).await?;
    let warning = pager.says("the working set is not used").await?;
    ensure!(
        warning.contains("WARN") && warning.contains("checksum"),
        "{warning}"
    );
    let (first, none) = used(&host, &source, &pager).await?;
    ensure!(first >= 1024 && none == 0, "{first} faults, {none} pages ahead");
    pager.says("the working set is kept").await?;
    let (second, _) = used(&host, &source, &pager).await?;
    ensure!(second < first / 2, "{first} faults, then {second}");
    source.end().await
}
