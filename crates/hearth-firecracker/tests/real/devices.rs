//! Drives, balloon and entropy, and what can be changed of them while the machine runs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hearth_firecracker::model::{
    BalloonStatisticsUpdate, BalloonUpdate, DriveUpdate, RateLimiter, TokenBucket,
};

use crate::guest::Guest;
use crate::host::{DISK, DRIVE, LONG, Vmm, skip_without_firecracker};

#[tokio::test]
async fn what_a_guest_writes_to_its_drive_is_in_the_file() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let info = guest.run(&["block", "0", "info"]).await?;
    assert_eq!(info.number("sectors")?, DISK / 512);
    guest.run(&["block", "0", "write", "16", "40", "5"]).await?;
    guest.run(&["block", "0", "flush"]).await?;
    let read = guest.run(&["block", "0", "read", "16", "40"]).await?.output;
    let file = fs::read(vmm.path(DRIVE))?;
    ensure!(
        read == file[16 * 512..56 * 512],
        "the file and what was read differ"
    );
    ensure!(
        read.iter().any(|byte| *byte != 0) && file[..16 * 512].iter().all(|byte| *byte == 0),
        "not what was written, or elsewhere"
    );
    for (seed, wrong) in [("5", false), ("6", true)] {
        let check = guest.run(&["block", "0", "check", "16", "40", seed]).await?;
        assert_eq!(check.number("wrong_bytes")? > 0, wrong, "{seed}");
    }
    vmm.end().await
}

#[tokio::test]
async fn metrics_count_what_the_guest_did() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    vmm.metrics().await?;
    guest.run(&["block", "0", "write", "0", "64", "1"]).await?;
    guest.run(&["block", "0", "read", "0", "16"]).await?;
    guest.run(&["entropy", "100"]).await?;

    // Counters of both times, summed.
    let total = vmm.metrics().await?;
    assert_eq!(
        (total.block.write_bytes, total.block.read_bytes),
        (64 * 512, 16 * 512)
    );
    assert_eq!(total.blocks["disk"].write_bytes, 64 * 512);
    ensure!(total.entropy.entropy_bytes >= 100, "{:?}", total.entropy);
    ensure!(
        total.vsock.conns_added == 1 && total.vsock.tx_bytes_count > 0 && total.vcpu.exit_mmio_write > 0,
        "{total:?}"
    );
    assert_eq!((total.seccomp.num_faults, total.vmm.panic_count), (0, 0));
    vmm.end().await
}

#[tokio::test]
async fn a_drive_can_be_another_file_while_the_machine_runs() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    fs::write(vmm.path("other.img"), vec![0xa5; DISK as usize])?;
    ensure!(
        guest.run(&["block", "0", "read", "0", "1"]).await?.output == [0; 512],
        "the first file is not empty"
    );
    let update = DriveUpdate {
        id: "disk".parse()?,
        path_on_host: Some("other.img".into()),
        rate_limiter: None,
    };
    vmm.client.update_drive(&update).await?;
    ensure!(
        guest.run(&["block", "0", "read", "0", "1"]).await?.output == [0xa5; 512],
        "the guest does not see the other file"
    );
    vmm.end().await
}

async fn limit(vmm: &Vmm, bandwidth: TokenBucket) -> Result<()> {
    let update = DriveUpdate {
        id: "disk".parse()?,
        path_on_host: None,
        rate_limiter: Some(RateLimiter {
            bandwidth: Some(bandwidth),
            ops: None,
        }),
    };
    Ok(vmm.client.update_drive(&update).await?)
}

/// Writes 256 KiB, in four requests; returns how long that took.
async fn write(guest: &mut Guest) -> Result<Duration> {
    let begin = Instant::now();
    guest.run(&["block", "0", "write", "0", "512", "1"]).await?;
    Ok(begin.elapsed())
}

#[tokio::test]
async fn a_drive_is_as_slow_as_its_limit_until_that_is_taken_away() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let throttled = async || anyhow::Ok(vmm.metrics().await?.block.rate_limiter_throttled_events);
    limit(&vmm, TokenBucket::bytes_per_second(64 << 10)).await?;
    let slow = write(&mut guest).await?;
    // The last request is not waited for, and the first one is in the bucket.
    ensure!(
        slow >= Duration::from_millis(2800),
        "256 KiB at 64 KiB/s took {slow:?}"
    );
    ensure!(throttled().await? > 0, "the limit was never hit");
    limit(&vmm, TokenBucket::UNLIMITED).await?;
    // What the old limit holds back still waits for its time.
    write(&mut guest).await?;
    let before = throttled().await?;
    let fast = write(&mut guest).await?;
    println!("256 KiB at 64 KiB/s: {slow:?}; without limit: {fast:?}");
    // The guest may take as long by itself, on a host that is busy; so it is the limit that is asked.
    assert_eq!(throttled().await?, before);
    vmm.end().await
}

/// Waits until the balloon has so many MiB.
async fn balloon_has(vmm: &Vmm, mib: u32) -> Result<()> {
    let begin = Instant::now();
    loop {
        let statistics = vmm.client.balloon_statistics().await?;
        if statistics.actual_mib == mib {
            return Ok(());
        }
        ensure!(begin.elapsed() < LONG, "{statistics:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_balloon_takes_memory_and_gives_it_back() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let before = guest.run(&["status"]).await?.number("pages_free")?;
    vmm.client
        .update_balloon(&BalloonUpdate { amount_mib: 16 })
        .await?;
    balloon_has(&vmm, 16).await?;
    let status = guest.run(&["status"]).await?;
    assert_eq!(status.number("pages_free")?, before - 16 * 256);
    assert_eq!(status.number("balloon_pages")?, 16 * 256);
    vmm.client
        .update_balloon(&BalloonUpdate { amount_mib: 0 })
        .await?;
    balloon_has(&vmm, 0).await?;
    assert_eq!(guest.run(&["status"]).await?.number("pages_free")?, before);
    // What came back can be used.
    let bytes = (before * 4096).to_string();
    guest.run(&["fill", &bytes, "3", "4096"]).await?;
    assert_eq!(
        guest
            .run(&["check", &bytes, "3", "4096"])
            .await?
            .number("wrong_words")?,
        0
    );
    vmm.client
        .update_balloon_statistics(&BalloonStatisticsUpdate {
            statistics_interval_s: 2,
        })
        .await?;
    assert_eq!(vmm.client.balloon().await?.statistics_interval_s, 2);
    vmm.end().await
}

#[tokio::test]
async fn a_guest_tells_of_its_memory_when_the_host_asks() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let free = guest.run(&["status"]).await?.number("pages_free")? * 4096;
    let begin = Instant::now();
    loop {
        let statistics = vmm.client.balloon_statistics().await?;
        if statistics.free_memory == Some(free) {
            assert_eq!(statistics.total_memory, Some(free));
            break;
        }
        ensure!(begin.elapsed() < LONG, "{statistics:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    vmm.end().await
}

#[tokio::test]
async fn entropy_is_of_the_length_that_was_asked_for_and_never_the_same() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let first = guest.run(&["entropy", "64"]).await?.output;
    let second = guest.run(&["entropy", "64"]).await?.output;
    assert_eq!(first.len(), 2 * 64 + 1);
    assert_ne!(first, second);
    vmm.end().await
}

#[tokio::test]
async fn a_guests_clock_goes_on_from_what_the_host_said() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let first = guest.run(&["time"]).await?;
    let second = guest.run(&["time"]).await?;
    let said = 1_700_000_000_000_000_000;
    let (first, later) = (first.number("unix_ns")?, second.number("unix_ns")?);
    ensure!(
        (said..said + LONG.as_nanos() as u64).contains(&first) && later > first,
        "{first} {later}"
    );
    vmm.end().await
}
