//! What a machine finds in its memory when its pages come from a pager.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use hearth_firecracker::model::{BalloonUpdate, HugePages, SnapshotKind};

use crate::guest::Guest;
use crate::host::{Host, LONG, MEMORY, STATE, Vmm, skip_without_firecracker};
use crate::process::{CHECK, FILL, Pager, saved, wrong_words};

#[tokio::test]
async fn memory_is_what_was_saved_and_what_was_never_written_is_zero() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let sum = source_sum(&host, &source).await?;
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let clone = pager.restore(&host, source.directory.path()).await?;
    let mut guest = clone.greet().await?;
    let checked = guest.run(&CHECK).await?;
    assert_eq!(checked.number("wrong_words")?, 0);
    assert_eq!(checked.value("checksum")?, sum);
    // Twice as much: what is behind it nobody has written.
    let behind = guest.run(&["check", "8388608", "11", "4096"]).await?;
    assert_eq!(behind.number("wrong_words")?, 1024);
    let pid = clone.child.id().context("it runs")?;
    clone.end().await?;
    let counts = pager.counts(pid).await?;
    ensure!(counts["copied"] >= 1024 && counts["zeroed"] >= 1024, "{counts:?}");
    source.end().await
}

/// Returns the checksum that a machine whose memory comes from the file finds.
async fn source_sum(host: &Host, source: &Vmm) -> Result<String> {
    let clone = host.restore(source.directory.path()).await?;
    let sum = clone.greet().await?.run(&CHECK).await?.value("checksum")?;
    clone.end().await?;
    Ok(sum)
}

/// Waits until the guest has given back so many pages.
async fn balloon_of(guest: &mut Guest, pages: u64) -> Result<()> {
    let begin = Instant::now();
    while guest.run(&["status"]).await?.number("balloon_pages")? != pages {
        ensure!(begin.elapsed() < LONG, "the balloon never has {pages} pages");
    }
    Ok(())
}

#[tokio::test]
async fn pages_that_a_balloon_took_come_back_as_zeros_and_can_be_used() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    let mut guest = source.settle().await?;
    let all = (guest.run(&["status"]).await?.number("pages_free")? * 4096).to_string();
    guest.run(&["fill", &all, "11", "4096"]).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;

    let pager = Pager::start(source.directory.path(), &[]).await?;
    let clone = pager.restore(&host, source.directory.path()).await?;
    let mut guest = clone.greet().await?;
    for round in 0..2 {
        let target = BalloonUpdate { amount_mib: 8 };
        clone.client.update_balloon(&target).await?;
        balloon_of(&mut guest, 2048).await?;
        clone
            .client
            .update_balloon(&BalloonUpdate { amount_mib: 0 })
            .await?;
        balloon_of(&mut guest, 0).await?;
        let wrong = guest
            .run(&["check", &all, "11", "4096"])
            .await?
            .number("wrong_words")?;
        assert_eq!(
            wrong, 2048,
            "round {round}: the pages that were given back, and no others"
        );
    }
    guest.run(&["fill", &all, "12", "4096"]).await?;
    assert_eq!(
        guest
            .run(&["check", &all, "12", "4096"])
            .await?
            .number("wrong_words")?,
        0
    );
    let pid = clone.child.id().context("it runs")?;
    clone.end().await?;
    let counts = pager.counts(pid).await?;
    assert_eq!(counts["removed"], 16 << 20);
    source.end().await
}

#[tokio::test]
async fn ten_clones_at_once_have_memory_of_their_own() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = saved(&host).await?;
    let pager = Pager::start(source.directory.path(), &[]).await?;
    let restored = (0..10).map(|_| pager.restore(&host, source.directory.path()));
    let clones = futures_util::future::try_join_all(restored).await?;
    let used = clones.iter().enumerate().map(async |(index, clone)| {
        let mut guest = clone.greet().await?;
        assert_eq!(wrong_words(&mut guest).await?, 0);
        guest
            .run(&["fill", "1048576", &index.to_string(), "4096"])
            .await?;
        anyhow::Ok(guest)
    });
    let guests = futures_util::future::try_join_all(used).await?;
    for (index, mut guest) in guests.into_iter().enumerate() {
        let own = guest
            .run(&["check", "1048576", &index.to_string(), "4096"])
            .await?;
        assert_eq!(own.number("wrong_words")?, 0, "clone {index}");
    }
    for clone in clones {
        clone.end().await?;
    }
    source.end().await
}

#[tokio::test]
async fn huge_pages_are_served_whole() -> Result<()> {
    let host = skip_without_firecracker!();
    let free: u64 = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .map_or(0, |text| text.trim().parse().unwrap_or(0));
    if free < 64 {
        let reason = "64 huge pages of 2 MiB are not free (vm.nr_hugepages)";
        println!(
            "SKIPPED {}: {reason}",
            std::thread::current().name().unwrap_or("?")
        );
        return Ok(());
    }
    let source = host.start().await?;
    source.configure_with(&host.guest, HugePages::TwoMib).await?;
    source
        .client
        .act(hearth_firecracker::model::Action::InstanceStart)
        .await?;
    source.settle().await?.run(&FILL).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let options = ["--record", "100"];
    let pager = Pager::start(source.directory.path(), &options).await?;
    let clone = pager.restore(&host, source.directory.path()).await?;
    assert_eq!(wrong_words(&mut clone.greet().await?).await?, 0);
    let pid = clone.child.id().context("it runs")?;
    clone.end().await?;
    let counts = pager.counts(pid).await?;
    ensure!(counts["faults"] <= 32, "64 MiB are 32 huge pages: {counts:?}");
    pager.says("page_size=2097152").await?;
    source.end().await
}
