//! A machine as it is at one moment: its disk, its memory and its processors, of one point in time.
//!
//! ```text
//! freeze (guest: processes, then file system) -> pause -> state and memory -> disk -> go on -> thaw
//!                                                  `--------failure---------`-----> go on -> thaw
//! ```
//! What goes on of such a moment begins with processes that stand still, so that the guest can be made another machine before any
//! program of it runs (`restore`). A guest that nobody thaws, because the node died, thaws itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_machine::{Ended, Event};
use tokio::sync::oneshot;

use super::error::StartError;
use super::life::{self, GUEST_DEADLINE, Plan, chain};
use super::silence::Silence;
use crate::guest::{Guest, RequestError};
use crate::host::{failpoint, files};
use crate::snapshots::{Extent, Held};
use crate::vmm::snapshot::MEMORY_FILE;
use crate::vmm::{self, ControlError, Machine as _, SnapshotError, SnapshotKind, Vm};

/// How long the guest stands still at most; time in which its processors do not run is not counted.
const STILL_AT_MOST: Duration = Duration::from_secs(30);

/// The exit code of a workload that was killed: 128 and the number of SIGKILL.
const KILLED: u8 = 137;

/// What is to be captured, and where to.
#[derive(Debug)]
pub(super) struct Capture {
    pub(super) files: Held,
    pub(super) extent: Extent,
    /// The machine does not go on afterwards.
    pub(super) stop: bool,
    pub(super) reply: oneshot::Sender<Result<Captured, CaptureError>>,
}

/// What was captured.
#[derive(Debug, Clone)]
pub(super) struct Captured {
    /// The secrets that its life knows.
    pub(super) secrets: Arc<BTreeMap<String, String>>,
    /// How much of the workload's output the node had taken.
    pub(super) received: u64,
    /// How long the processes stood still.
    pub(super) pause: Duration,
}

/// Says why a machine could not be captured. It goes on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The guest did not do as it was told.
    #[error("the guest does not stand still for it")]
    Guest(#[from] RequestError),
    /// It took too long.
    #[error("the guest went on before everything was written")]
    WentOn,
    /// The monitor could not write its part.
    #[error("the machine's state cannot be written")]
    Snapshot(#[from] SnapshotError),
    /// The disk could not be copied.
    #[error("cannot copy the disk {}", path.display())]
    Disk {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine stands still behind it.
    #[error("the machine does not go on")]
    Resume(#[from] ControlError),
    /// The guest does not answer behind it.
    #[error("the guest is lost behind its snapshot")]
    Silence(#[source] StartError),
}

/// Captures a machine, which goes on unless it is to stop.
pub(super) async fn take(
    plan: &Plan,
    vm: &Vm,
    guest: &Guest,
    paused: bool,
    capture: &Capture,
) -> Result<Captured, CaptureError> {
    let begun = Instant::now();
    if paused {
        return of_still(plan, capture).await;
    }
    if let Err(error) = guest.freeze(STILL_AT_MOST, GUEST_DEADLINE).await {
        // It may be about to: then it is told to leave it, and otherwise nothing happens.
        let _ = guest.thaw(GUEST_DEADLINE).await;
        return Err(error.into());
    }
    failpoint::pass("capture-frozen");
    let taken = match capture.extent {
        Extent::Full => all(plan, vm, guest, capture).await,
        Extent::Disk => copy_disk(plan, capture).await.map(|()| 0),
    };
    if capture.stop && taken.is_ok() {
        let pause = begun.elapsed();
        return taken.map(|received| captured(plan, received, pause));
    }
    let thawed = guest.thaw(GUEST_DEADLINE).await;
    failpoint::pass("capture-thawed");
    let pause = begun.elapsed();
    let received = taken?;
    match thawed? {
        true => Ok(captured(plan, received, pause)),
        false => Err(CaptureError::WentOn),
    }
}

/// Captures the disk of a machine whose processors stand still: nobody can ask its guest anything, and nothing in it changes the disk.
pub(super) async fn of_still(plan: &Plan, capture: &Capture) -> Result<Captured, CaptureError> {
    copy_disk(plan, capture).await?;
    Ok(captured(plan, 0, Duration::ZERO))
}

fn captured(plan: &Plan, received: u64, pause: Duration) -> Captured {
    Captured {
        secrets: Arc::clone(&plan.secrets),
        received,
        pause,
    }
}

/// Captures everything while the processors stand still; returns how much of the output had been taken.
async fn all(plan: &Plan, vm: &Vm, guest: &Guest, capture: &Capture) -> Result<u64, CaptureError> {
    let silence = Silence::begin(plan, guest).await.map_err(CaptureError::Silence)?;
    let written = match vm.snapshot(&capture.files.vm(), SnapshotKind::Full).await {
        Ok(()) => {
            keep_origin(plan, &capture.files.vm());
            written(plan, guest, capture).await
        }
        Err(error) => Err(error.into()),
    };
    if capture.stop && written.is_ok() {
        return written;
    }
    vm.resume().await?;
    failpoint::pass("capture-resumed");
    silence.end(plan, vm).await.map_err(CaptureError::Silence)?;
    written
}

/// What is to be done while the processors stand still, once the monitor has written its part.
async fn written(plan: &Plan, guest: &Guest, capture: &Capture) -> Result<u64, CaptureError> {
    let at_disk = |source| CaptureError::Disk {
        path: plan.parts.layout.machine_disk(plan.id),
        source,
    };
    failpoint::reach("capture-written").map_err(at_disk)?;
    // What the guest has sent beyond that it still has, and sends again to whoever goes on with it.
    let received = guest.taken_of_workload();
    copy_disk(plan, capture).await?;
    failpoint::reach("capture-copied").map_err(at_disk)?;
    Ok(received)
}

/// Lets later snapshots of a machine that was booted tell in what they differ from this one.
pub(super) fn keep_origin(plan: &Plan, directory: &Path) {
    let dirs = life::dirs(&plan.parts.layout, plan.id);
    let is_whole = std::fs::metadata(directory.join(MEMORY_FILE)).is_ok_and(|memory| memory.len() > 0);
    if is_whole
        && !dirs.origin().exists()
        && let Err(error) = vmm::snapshot::keep_origin(directory, &dirs)
    {
        tracing::warn!(machine = %plan.id, %error, "later snapshots of it are whole");
    }
}

async fn copy_disk(plan: &Plan, capture: &Capture) -> Result<(), CaptureError> {
    let (from, to) = (plan.parts.layout.machine_disk(plan.id), capture.files.disk());
    let path = from.clone();
    let copied = tokio::task::spawn_blocking(move || files::clone_file(&from, &to)).await;
    copied
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|source| CaptureError::Disk { path, source })
}

/// How a machine ends that was captured to end.
pub(super) fn stopped() -> Event {
    Event::WorkloadEnded(Ended {
        exit_code: KILLED,
        reason: Some("it was stopped with its snapshot".to_owned()),
    })
}

/// Answers who asked for a capture.
pub(super) fn answer(plan: &Plan, capture: Capture, taken: Result<Captured, CaptureError>) {
    if let Err(error) = &taken {
        tracing::warn!(machine = %plan.id, error = %chain(error), "it could not be captured");
    }
    // Who asked has gone away; its draft is gone with it.
    let _ = capture.reply.send(taken);
}
