//! A machine whose disk has no more room on the host: its monitor stops it instead of telling the guest of an error, and it goes on
//! here once there is room. The guest notices nothing but the time.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use hearth_machine::{ByteSize, MachineId};
use tokio::sync::broadcast::error::RecvError;

use super::life::chain;
use crate::host::facts::Place;
use crate::vmm::{Machine as _, Vm, VmmEvent};

/// What a disk needs before its machine goes on: less would stop it again at once.
const ROOM: ByteSize = ByteSize::from_mib(8);
/// How often the room is looked at while there is none.
const LOOK: Duration = Duration::from_secs(1);

/// Has a machine whose disk lies in `directory` go on after the host's disk was full; as long as it is polled.
pub(super) async fn hold_out(vm: &Vm, id: MachineId, directory: &Path) -> Infallible {
    let mut events = vm.events();
    loop {
        match events.recv().await {
            Ok(VmmEvent::DiskError { reason, .. }) if is_full(&reason) => {}
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            // The monitor is gone, which others notice.
            Err(RecvError::Closed) => std::future::pending().await,
        }
        tracing::error!(machine = %id, "the host's disk is full: the machine stands still until there is room");
        while !Place::of(directory).is_ok_and(|place| place.free >= ROOM) {
            tokio::time::sleep(LOOK).await;
        }
        // Other requests of its guest have failed for the same reason by now.
        events = vm.events();
        match vm.resume().await {
            Ok(()) => tracing::warn!(machine = %id, "there is room again: the machine goes on"),
            Err(error) => {
                tracing::error!(machine = %id, error = %chain(&error), "the machine does not go on")
            }
        }
    }
}

/// Tells a full disk by the words of the C library for ENOSPC; monitors run in the C locale.
fn is_full(reason: &str) -> bool {
    reason.contains("No space left on device")
}
