//! Snapshots: what they hold, what a restore makes of them, and what is refused.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use hearth_firecracker::ClientError;
use hearth_firecracker::model::{InstanceState, LoadSnapshot, MemoryBackend, SnapshotKind, VmState};
use hearth_guest_protocol::message::Status;

use crate::host::{DRIVE, MEMORY, MEMORY_MIB, STATE, clone_of, skip_without_firecracker};

/// What the guest fills before a snapshot: a word of each page of 4 MiB. All of it would take an emulated guest seconds.
const FILL: [&str; 4] = ["fill", "4194304", "11", "4096"];
const CHECK: [&str; 4] = ["check", "4194304", "11", "4096"];

#[tokio::test]
async fn a_restored_guest_is_the_one_that_was_saved_and_becomes_another() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    let mut guest = source.settle().await?;
    guest.run(&FILL).await?;
    guest.run(&["block", "0", "write", "0", "8", "2"]).await?;
    let touched = guest.run(&["status"]).await?.number("pages_touched")?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    assert_eq!(fs::metadata(source.path(MEMORY))?.len(), MEMORY_MIB << 20);

    let restored = host.restore(source.directory.path()).await?;
    assert_eq!(restored.client.instance().await?.state, InstanceState::Running);
    let mut again = restored.greet().await?;
    assert_eq!(again.status().await?, Status::Ready);
    assert_eq!(again.run(&CHECK).await?.number("wrong_words")?, 0);
    assert_eq!(
        again
            .run(&["block", "0", "check", "0", "8", "2"])
            .await?
            .number("wrong_bytes")?,
        0
    );
    let status = again.run(&["status"]).await?;
    assert_eq!((status.number("resets")?, status.number("generation")?), (1, 1));
    assert_eq!(status.number("pages_touched")?, touched + 1024);

    let clock = "1800000000000000000";
    let adopted = again.run(&["adopt", "second", clock, &"5a".repeat(32)]).await?;
    assert_eq!(adopted.value("hostname")?, "second");
    assert_eq!(adopted.value("entropy")?, "5a".repeat(32));
    assert_eq!(adopted.number("generation")?, 2);
    ensure!(adopted.number("unix_ns")? >= clock.parse()?, "{adopted:?}");
    restored.end().await?;

    // The source has lost its connection, too, and is itself otherwise.
    source.client.set_vm_state(VmState::Resumed).await?;
    let mut guest = source.greet().await?;
    assert_eq!(guest.run(&["identity"]).await?.value("hostname")?, "first");
    assert_eq!(guest.run(&["status"]).await?.number("resets")?, 1);
    source.end().await
}

#[tokio::test]
async fn clones_at_once_have_channels_disks_and_identities_of_their_own() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    source.settle().await?.run(&FILL).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let mut clones = Vec::new();
    for index in 0..4 {
        let clone = host.restore(source.directory.path()).await?;
        clones.push((index.to_string(), clone));
    }
    for (name, clone) in &clones {
        let mut guest = clone.greet().await?;
        guest.run(&["adopt", name, "1", &"00".repeat(32)]).await?;
        guest.run(&["block", "0", "write", "0", "1", name]).await?;
        guest.run(&["fill", "4096", name]).await?;
    }
    for (name, clone) in clones {
        let mut guest = clone.greet().await?;
        assert_eq!(guest.run(&["identity"]).await?.value("hostname")?, name);
        let disk = guest.run(&["block", "0", "check", "0", "1", &name]).await?;
        assert_eq!(disk.number("wrong_bytes")?, 0);
        assert_eq!(
            guest
                .run(&["check", "4096", &name])
                .await?
                .number("wrong_words")?,
            0
        );
        clone.end().await?;
    }
    ensure!(
        fs::read(source.path(DRIVE))?.iter().all(|byte| *byte == 0),
        "a clone wrote to its source's disk"
    );
    source.end().await
}

/// Writes what a diff holds over the memory that it is a diff of.
fn merge(diff: &Path, into: &Path) -> Result<u64> {
    use rustix::fs::{SeekFrom as From, seek};
    let (mut diff, mut base) = (File::open(diff)?, File::options().write(true).open(into)?);
    let (mut at, mut merged) = (0, 0);
    while let Ok(begin) = seek(&diff, From::Data(at)) {
        at = seek(&diff, From::Hole(begin))?;
        let mut bytes = vec![0; usize::try_from(at - begin)?];
        diff.seek(SeekFrom::Start(begin))?;
        diff.read_exact(&mut bytes)?;
        base.seek(SeekFrom::Start(begin))?;
        base.write_all(&bytes)?;
        merged += at - begin;
    }
    Ok(merged)
}

#[tokio::test]
async fn a_chain_of_diffs_holds_what_changed_and_merges_into_the_whole() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    let mut guest = source.settle().await?;
    guest.run(&FILL).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    for (round, seed) in ["21", "22", "23"].into_iter().enumerate() {
        source.client.set_vm_state(VmState::Resumed).await?;
        let mut guest = source.greet().await?;
        guest.run(&["fill", "1048576", seed, "4096"]).await?;
        let diff = format!("diff-{round}");
        source.snapshot(SnapshotKind::Diff, STATE, &diff).await?;
        let held = fs::metadata(source.path(&diff))?.blocks() * 512;
        // What was filled, and what the guest's own work touches.
        ensure!(
            (1 << 20..4 << 20).contains(&held),
            "the diff of 1 MiB holds {held} bytes"
        );
        let merged = merge(&source.path(&diff), &source.path(MEMORY))?;
        ensure!(merged >= 1 << 20, "{merged}");
    }
    let restored = host.restore(source.directory.path()).await?;
    let mut guest = restored.greet().await?;
    assert_eq!(
        guest
            .run(&["check", "1048576", "23", "4096"])
            .await?
            .number("wrong_words")?,
        0
    );
    // Behind it is the base still: one MiB of the four was written over, so 256 of its words are others.
    let rest = guest.run(&CHECK).await?.number("wrong_words")?;
    assert_eq!(rest, 256);
    restored.end().await?;
    source.end().await
}

#[tokio::test]
async fn a_snapshot_of_a_running_machine_is_refused_and_harms_nothing() -> Result<()> {
    let host = skip_without_firecracker!();
    let vmm = host.boot().await?;
    let mut guest = vmm.settle().await?;
    let snapshot = hearth_firecracker::model::Snapshot {
        kind: SnapshotKind::Full,
        state: STATE.into(),
        memory: MEMORY.into(),
    };
    let error = vmm.client.create_snapshot(&snapshot).await.unwrap_err();
    ensure!(error.fault_message().is_some(), "{error}");
    assert_eq!(guest.run_with(&["echo"], b"on").await?.output, b"on");
    vmm.client.set_vm_state(VmState::Paused).await?;
    let nowhere = hearth_firecracker::model::Snapshot {
        memory: "nowhere/memory".into(),
        ..snapshot
    };
    let error = vmm.client.create_snapshot(&nowhere).await.unwrap_err();
    ensure!(error.fault_message().is_some(), "{error}");
    vmm.client.set_vm_state(VmState::Resumed).await?;
    vmm.end().await
}

/// Breaks a file of a clone's directory.
fn replace(path: &Path, bytes: Option<Vec<u8>>) -> Result<()> {
    fs::remove_file(path)?;
    if let Some(bytes) = bytes {
        fs::write(path, bytes)?;
    }
    Ok(())
}

#[tokio::test]
async fn files_that_are_no_snapshot_are_refused_with_a_reason_and_firecracker_ends() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    source.settle().await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let state = fs::read(source.path(STATE))?;
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    let short = vec![0; (MEMORY_MIB << 20) as usize - 4096];
    let cases = [
        ("state missing", STATE, None),
        ("state empty", STATE, Some(Vec::new())),
        ("state cut", STATE, Some(state[..state.len() / 2].to_vec())),
        (
            "state of another kind",
            STATE,
            Some(b"\x7fELF and so on".repeat(100)),
        ),
        ("state with a flipped bit", STATE, Some(flipped)),
        ("memory missing", MEMORY, None),
        ("memory cut", MEMORY, Some(short)),
        ("drive missing", DRIVE, None),
    ];
    for (what, name, bytes) in cases {
        let directory = clone_of(source.directory.path())?;
        replace(&directory.path().join(name), bytes)?;
        let vmm = host.start_in(directory).await?;
        let load = LoadSnapshot::of_files(STATE, MEMORY);
        let error = vmm.client.load_snapshot(&load).await.expect_err(what);
        ensure!(
            matches!(error, ClientError::Refused { status: 400, .. }),
            "{what}: {error}"
        );
        println!("{what}: {}", error.fault_message().unwrap_or_default());
        vmm.end().await?;
    }
    source.end().await
}

#[tokio::test]
async fn a_page_server_that_is_not_there_is_refused() -> Result<()> {
    let host = skip_without_firecracker!();
    let source = host.boot().await?;
    source.settle().await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let vmm = host.start_in(clone_of(source.directory.path())?).await?;
    let mut load = LoadSnapshot::of_files(STATE, MEMORY);
    load.memory = MemoryBackend::Uffd("nobody.sock".into());
    let error = vmm.client.load_snapshot(&load).await.unwrap_err();
    ensure!(matches!(error, ClientError::Refused { .. }), "{error}");
    vmm.end().await?;
    source.end().await
}
