//! Another connection to the same guest, beneath handles and sessions that live on.
//!
//! Firecracker ends every vsock connection when a snapshot is taken, also those of the machine that goes on. Whoever takes one hangs
//! up first and calls again afterwards: what is to be sent meanwhile waits, the workload's session goes on where it was, as it does
//! when a node follows another, and all others are ended with the reason.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hearth_guest_protocol::message::{self, Failure, FailureCode};
use hearth_guest_protocol::{CONTROL, Decoder, GENERATION_RESUME, Kind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedRwLockWriteGuard, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::channel::{ConnectError, Guest, Shared, WORKLOAD, WRITE_QUEUE, greet};
use super::inbox::End;

/// What sessions beside the workload hear when the connection is renewed.
const CUT: &str = "a snapshot of the machine was taken, which ends connections to it: what ran beside the workload was ended";

/// A guest with which nobody talks at present. Dropped before it was called again, the guest counts as lost.
#[derive(Debug)]
pub struct HungUp {
    guest: Guest,
    outgoing: OwnedRwLockWriteGuard<mpsc::Sender<Vec<u8>>>,
    is_lost: bool,
}

impl Guest {
    /// Ends the connection and keeps everything above it: what is asked of the guest from now on waits until it is called again.
    /// Sessions beside the workload's are ended.
    pub async fn hang_up(&self) -> HungUp {
        let shared = &self.shared;
        let outgoing = Arc::clone(&shared.outgoing).write_owned().await;
        shared.stop_carrying().await;
        let mut table = shared.table();
        let mut cut = std::mem::take(&mut table.sessions);
        table.sessions.extend(cut.remove_entry(&WORKLOAD));
        drop(table);
        for inbox in cut.values() {
            inbox.end(End::Failure(Failure {
                code: FailureCode::System,
                message: CUT.to_owned(),
            }));
        }
        HungUp {
            guest: self.clone(),
            outgoing,
            is_lost: true,
        }
    }
}

impl Shared {
    /// Ends the tasks of the present connection. Nobody answers what was asked over it any more.
    async fn stop_carrying(&self) {
        let carriers = self
            .carriers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(carriers) = carriers {
            carriers.stop.cancel();
            for task in carriers.tasks {
                // A task that panicked carries nothing, either.
                let _ = task.await;
            }
        }
        self.table().waiting.clear();
    }

    /// Lets the workload's session, if there is one, begin anew behind what its owner has of the output; returns how much that is.
    fn begin_anew(&self) -> Option<u64> {
        let table = self.table();
        table.sessions.get(&WORKLOAD).map(|inbox| inbox.begin_anew())
    }
}

impl HungUp {
    /// Greets the guest over another byte stream; from then on everything goes there. The caller sets the deadline of the greeting.
    ///
    /// # Errors
    /// Returns [`ConnectError`] when there is no talking to it; it may be called again.
    pub async fn call<R, W>(
        &mut self,
        mut reader: R,
        mut writer: W,
        tasks: &TaskTracker,
        deadline: Duration,
    ) -> Result<(), ConnectError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut decoder = Decoder::new();
        let info = greet(&mut reader, &mut writer, &mut decoder).await?;
        let shared = &self.guest.shared;
        // Of a call that came to nothing.
        shared.stop_carrying().await;
        let received = shared.begin_anew();
        let (outgoing, queue) = mpsc::channel(WRITE_QUEUE);
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        *shared.urgent.lock().unwrap_or_else(PoisonError::into_inner) = urgent;
        shared.carry((reader, decoder), (writer, queue, urgent_queue), tasks);
        let mut frames = Vec::new();
        if let Some(received) = received.filter(|_| info.generation >= GENERATION_RESUME) {
            let resume = message::Resume { received };
            message::encode(Kind::Resume, WORKLOAD, &resume, &mut frames)
                .map_err(|_| ConnectError::Malformed)?;
        }
        message::encode(Kind::Ping, CONTROL, &(), &mut frames).map_err(|_| ConnectError::Malformed)?;
        let (sender, receiver) = oneshot::channel();
        shared.table().waiting.push_back((Kind::Ping, sender));
        outgoing.send(frames).await.map_err(|_| ConnectError::Closed)?;
        // What the guest tells a new connection stands before its answer, and must not be taken for that to a question that waits.
        match tokio::time::timeout(deadline, receiver).await {
            Ok(Ok(_)) => {
                *self.outgoing = outgoing;
                self.is_lost = false;
                Ok(())
            }
            Ok(Err(_)) | Err(_) => Err(ConnectError::Closed),
        }
    }
}

impl Drop for HungUp {
    fn drop(&mut self) {
        if self.is_lost {
            self.guest.shared.lose();
        }
    }
}
