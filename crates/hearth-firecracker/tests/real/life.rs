//! A machine's life without snapshots.

use anyhow::{Result, ensure};
use hearth_firecracker::model::{InstanceState, VmState};
use hearth_firecracker::vsock::{self, VsockError};
use hearth_guest_protocol::message::{self, FailureCode, Outcome, Resume, Role, Signal, Stats, Status, Stop};
use hearth_guest_protocol::{CONTROL, Header, Kind};

use crate::guest::Guest;
use crate::host::{LONG, VSOCK, skip_without_firecracker};

/// What `produce` sends: the words of `bare-guest`'s pattern for seed 0.
fn produced(bytes: usize) -> Vec<u8> {
    let words = (0..bytes.div_ceil(8) as u64).map(|index| index ^ index << 32);
    words.flat_map(u64::to_le_bytes).collect()
}

#[tokio::test]
async fn a_guest_boots_greets_and_echoes() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    assert!(guest.hello.version.starts_with("bare-guest "));
    assert_eq!(guest.run_with(&["echo"], b"hello").await?.output, b"hello");

    guest
        .bytes(Header::new(Kind::Ping, CONTROL), b"are you there")
        .await?;
    let pong = guest.receive().await?;
    assert_eq!(
        (pong.header.kind, &*pong.payload),
        (Kind::Pong, &b"are you there"[..])
    );

    guest.bytes(Header::new(Kind::Stats, CONTROL), b"").await?;
    let stats: Stats = message::decode(&guest.receive().await?.payload)?;
    ensure!(stats.memory_total > 16 << 20 && stats.processes == 1, "{stats:?}");
    vmm.end().await
}

#[tokio::test]
async fn more_than_a_window_passes_in_either_direction() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let input = produced(640 << 10);
    ensure!(
        guest.run_with(&["echo"], &input).await?.output == input,
        "the echo differs"
    );
    ensure!(
        guest.run(&["produce", "600000"]).await?.output == produced(600_000),
        "what was produced differs"
    );
    vmm.end().await
}

#[tokio::test]
async fn the_rules_of_the_protocol_are_kept() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.greet().await?;
    assert_eq!(guest.refused(&["status"]).await?, FailureCode::BadRequest);
    guest.configure("first").await?;
    assert_eq!(guest.refused(&["status"]).await?, FailureCode::BadRequest);
    let main = guest.workload(&["wait"]).await?;
    assert_eq!(guest.refused(&["ls", "-l"]).await?, FailureCode::CommandNotFound);
    let failed = guest.run_with(&["block", "9", "info"], b"").await?;
    assert_eq!(
        (failed.outcome, &*failed.error),
        (Outcome::Exited(1), "there are 1 drives\n")
    );

    // A host that comes anew hears of what there is; the one before is gone.
    let mut second = vmm.greet().await?;
    guest.closed().await?;
    assert_eq!(second.status().await?, Status::Ready);
    let started = second.receive().await?;
    assert_eq!(
        (started.header.kind, started.header.session),
        (Kind::Status, main)
    );

    // The workload's session goes on once the host has said from where.
    second.send(Kind::Resume, main, &Resume { received: 0 }).await?;
    second.send(Kind::Signal, main, &Signal { number: 12 }).await?;
    let outcome = loop {
        let frame = second.receive().await?;
        if frame.header.kind == Kind::Result {
            break message::decode::<Outcome>(&frame.payload)?;
        }
    };
    assert_eq!(outcome, Outcome::Signaled(12));
    vmm.end().await
}

/// Stops a guest whose workload is this; returns how that ended.
async fn stop(guest: &mut Guest, workload: &str, request: Stop) -> Result<Outcome> {
    guest.configure("first").await?;
    let main = guest.workload(&[workload]).await?;
    guest.execute(Role::Exec, &["wait"]).await?;
    guest.send(Kind::Stop, CONTROL, &request).await?;
    let mut outcome = None;
    loop {
        let frame = guest.receive().await?;
        match (frame.header.kind, frame.header.session) {
            (Kind::Result, session) if session == main => {
                outcome = Some(message::decode::<Outcome>(&frame.payload)?);
            }
            (Kind::Status, CONTROL) => {
                assert_eq!(message::decode::<Status>(&frame.payload)?, Status::Stopped);
                return outcome.ok_or_else(|| anyhow::anyhow!("stopped before its workload ended"));
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn stop_asks_the_workload_first_and_kills_it_then() -> Result<()> {
    let host = skip_without_firecracker!();
    for (workload, grace_ms, expected) in [("wait", 30_000, 15), ("stubborn", 100, 9)] {
        let vmm = host.boot().await?;
        let mut guest = vmm.greet().await?;
        let outcome = stop(&mut guest, workload, Stop { signal: 15, grace_ms }).await?;
        assert_eq!(outcome, Outcome::Signaled(expected), "{workload}");
        vmm.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_guest_says_nothing_and_then_goes_on() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    vmm.client.set_vm_state(VmState::Paused).await?;
    assert_eq!(vmm.client.instance().await?.state, InstanceState::Paused);
    guest.bytes(Header::new(Kind::Ping, CONTROL), b"1").await?;
    let silence = guest.receive_within(std::time::Duration::from_millis(100)).await;
    ensure!(silence.is_err(), "{silence:?}");
    vmm.client.set_vm_state(VmState::Resumed).await?;
    assert_eq!(guest.receive().await?.header.kind, Kind::Pong);
    assert_eq!(vmm.client.instance().await?.state, InstanceState::Running);
    vmm.end().await
}

#[tokio::test]
async fn a_guest_that_ends_takes_firecracker_with_it() -> Result<()> {
    let host = skip_without_firecracker!();
    for command in ["reset", "panic"] {
        let mut vmm = host.boot().await?;
        let mut guest = vmm.settle().await?;
        guest.execute(Role::Exec, &[command]).await?;
        guest.closed().await?;
        let status = vmm.ended().await?;
        ensure!(status.success(), "{status}: {}", vmm.log());
        ensure!(
            vmm.log().contains("as it was told") == (command == "panic"),
            "{}",
            vmm.log()
        );
        vmm.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_monitor_that_is_killed_closes_the_channel() -> Result<()> {
    let host = skip_without_firecracker!();
    let mut vmm = host.boot().await?;
    let guest = vmm.settle().await?;
    vmm.child.kill().await?;
    guest.closed().await?;
    vmm.end().await
}

#[tokio::test]
async fn a_port_on_which_nobody_listens_is_told_from_one_that_is_silent() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let _guest = vmm.greet().await?;
    let refused = vsock::connect(&vmm.path(VSOCK), 99, LONG).await.unwrap_err();
    ensure!(
        matches!(refused, VsockError::NobodyListens { port: 99 }),
        "{refused}"
    );
    vmm.end().await
}
