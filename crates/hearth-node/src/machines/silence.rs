//! A machine whose snapshot is being taken, and with which nobody talks meanwhile.
//!
//! Where a driver's snapshots end the guest's stream ([`Capabilities::snapshots_end_stream`]), the node hangs up before, and calls the
//! guest again once it goes on: sessions of the workload live on, others are cut with the reason. Where they do not, nothing happens.
//!
//! [`Capabilities::snapshots_end_stream`]: crate::vmm::Capabilities

use std::time::Duration;

use super::error::StartError;
use super::life::{FIRST_CALL, GUEST_DEADLINE, Plan};
use crate::guest::{ConnectError, Guest, HungUp, RequestError};
use crate::vmm::{Machine as _, Vm, Vmm as _};

/// How long a monitor that refuses a stream is left alone.
const AGAIN: Duration = Duration::from_millis(20);

/// The time of a snapshot. Dropped before its end, the guest counts as lost.
#[derive(Debug)]
#[must_use = "the guest is lost when the silence has no end"]
pub(super) struct Silence(Option<HungUp>);

impl Silence {
    /// Begins it: what is asked of the guest from now on waits. Comes before the snapshot.
    ///
    /// # Errors
    /// Returns [`StartError`] when the machine's driver is gone.
    pub(super) async fn begin(plan: &Plan, guest: &Guest) -> Result<Self, StartError> {
        let driver = plan.parts.drivers.select(plan.spec.driver).await?.driver;
        if !driver.capabilities().snapshots_end_stream {
            return Ok(Self(None));
        }
        Ok(Self(Some(guest.hang_up().await)))
    }

    /// Ends it, once the machine goes on, whatever became of the snapshot.
    ///
    /// # Errors
    /// Returns [`StartError`] when the guest does not answer any more; it is lost then.
    pub(super) async fn end(self, plan: &Plan, vm: &Vm) -> Result<(), StartError> {
        let Some(mut hung_up) = self.0 else { return Ok(()) };
        let calling = async {
            let mut patience = FIRST_CALL;
            loop {
                let call = async {
                    let (reader, writer) = vm.connect_guest().await.map_err(ConnectError::Io)?.into_split();
                    hung_up
                        .call(reader, writer, &plan.parts.tasks, GUEST_DEADLINE)
                        .await
                };
                match tokio::time::timeout(patience, call).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error @ ConnectError::Generation(_))) => return Err(error),
                    // The monitor may have let go of the stream only now.
                    Ok(Err(error)) => {
                        tracing::debug!(machine = %plan.id, %error, "the guest is called once more");
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(_) => {
                        tracing::warn!(machine = %plan.id, ?patience, "the guest does not answer, and is called anew")
                    }
                }
                patience *= 2;
            }
        };
        tokio::select! {
            called = tokio::time::timeout(GUEST_DEADLINE, calling) => {
                Ok(called.map_err(|_| RequestError::Timeout(GUEST_DEADLINE))??)
            }
            _ = vm.wait() => Err(RequestError::ChannelLost.into()),
        }
    }
}
