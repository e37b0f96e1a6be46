//! Who dies with whom.

use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::host::{Host, Vmm, skip_without_firecracker};
use crate::process::{Pager, saved, wrong_words};

#[tokio::test]
async fn a_machine_that_is_killed_frees_what_it_had_and_the_others_go_on() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let stays = pager.restore(&host, source.directory.path()).await?;
    let mut guest = stays.greet().await?;
    let before = pager.descriptors()?;
    for _ in 0..3 {
        let goes = pager.restore(&host, source.directory.path()).await?;
        ensure!(pager.descriptors()? > before, "a machine takes descriptors");
        let pid = goes.child.id().context("it runs")?;
        goes.end().await?;
        pager.counts(pid).await?;
    }
    assert_eq!(pager.descriptors()?, before);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pager.server()?))?;
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: u64 = own
        .and_then(|text| text.trim().strip_suffix(" kB"))
        .context(status.clone())?
        .parse()?;
    ensure!(kib < 8 << 10, "the server holds {kib} KiB of its own");
    assert_eq!(wrong_words(&mut guest).await?, 0);
    stays.end().await?;
    source.end().await
}

/// Starts a pager and two machines.
async fn two(host: &Host, source: &Vmm) -> Result<(Pager, [Vmm; 2])> {
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let one = pager.restore(host, source.directory.path()).await?;
    let other = pager.restore(host, source.directory.path()).await?;
    Ok((pager, [one, other]))
}

#[tokio::test]
async fn the_death_of_the_pager_kills_its_machines_and_says_so() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let (mut pager, machines) = two(&host, &source).await?;
    let pids: Vec<_> = machines.iter().filter_map(|machine| machine.child.id()).collect();
    Pager::signal(pager.server()?, Signal::KILL)?;
    for mut machine in machines {
        assert_eq!(machine.ended().await?.signal(), Some(9));
    }
    assert_eq!(pager.ended().await?.code(), Some(125));
    let line = pager.says("the page server ended (signal 9)").await?;
    ensure!(pids.iter().all(|pid| line.contains(&pid.to_string())), "{line}");
    source.end().await
}

#[tokio::test]
async fn the_death_of_the_guard_kills_machines_and_pager() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let (mut pager, machines) = two(&host, &source).await?;
    Pager::signal(pager.guard()?, Signal::KILL)?;
    for mut machine in machines {
        assert_eq!(machine.ended().await?.signal(), Some(9));
    }
    pager.says("a machine is killed, since its pager ends").await?;
    assert_eq!(pager.ended().await?.signal(), Some(9));
    source.end().await
}

#[tokio::test]
async fn a_pager_that_is_told_to_end_takes_its_machines_along() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let (mut pager, machines) = two(&host, &source).await?;
    Pager::signal(pager.guard()?, Signal::TERM)?;
    for mut machine in machines {
        assert_eq!(machine.ended().await?.signal(), Some(9));
    }
    assert_eq!(pager.ended().await?.code(), Some(0));
    source.end().await
}

#[tokio::test]
async fn a_pager_that_nobody_wants_any_more_ends_by_itself() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let mut pager = Pager::start(source.directory.path(), &["--idle", "2000"]).await?;
    let clone = pager.restore(&host, source.directory.path()).await?;
    assert_eq!(wrong_words(&mut clone.greet().await?).await?, 0);
    clone.end().await?;
    assert_eq!(pager.ended().await?.code(), Some(0));
    pager.says("no machine wants pages any more").await?;
    source.end().await
}
