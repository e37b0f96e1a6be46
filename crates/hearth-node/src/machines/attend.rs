//! Staying with a running workload: its end, the end of its time, and orders, whichever comes first.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::boot::last_words;
use super::capture;
use super::idle;
use super::life::{LifeEvent, Order, Plan, died, drain, end_vm, ended, obey, over};
use super::output::SessionEnd;
use super::paused;
use crate::guest::Guest;
use crate::vmm::{Machine as _, Vm};

/// How long a workload whose time is over has to end.
pub(super) const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// Stays with a running workload until it has ended and its disks are at rest.
pub(super) async fn attend(
    plan: &mut Plan,
    vm: &Vm,
    guest: &Guest,
    mut pump: JoinHandle<SessionEnd>,
    orders: &mut mpsc::Receiver<Order>,
    events: &mpsc::Sender<LifeEvent>,
) -> LifeEvent {
    let mut paused = false;
    let mut first = plan.first_order.take();
    let plan = &*plan;
    let mut over_time = Box::pin(time_over(plan.limits.time));
    let directory = plan.parts.layout.machine_data(plan.id);
    idle::go_on(&directory, guest.activity());
    let mut idle_over = Box::pin(idle::over(&directory, guest.activity(), plan.limits.idle));
    loop {
        let next = async {
            match first.take() {
                Some(order) => Some(order),
                None => orders.recv().await,
            }
        };
        let order = tokio::select! {
            end = &mut pump => return ended(plan, vm, guest, end.unwrap_or(SessionEnd::ChannelLost), None).await,
            exit = vm.wait() => {
                drain(&mut pump).await;
                return over(died(plan.id, &last_words(exit)));
            }
            Some(order) = next => order,
            order = &mut idle_over, if !paused => {
                let _ = events.send(LifeEvent::TimedOut).await;
                order
            }
            order = &mut over_time => {
                // Fails only when the actor is gone; the life goes on and ends by itself.
                let _ = events.send(LifeEvent::TimedOut).await;
                order
            }
        };
        let told = match order {
            Order::Pause => {
                let done = vm.pause().await;
                paused |= done.is_ok();
                LifeEvent::Paused(done)
            }
            Order::Resume => {
                let done = paused::go_on(vm, guest).await;
                paused &= done.is_err();
                LifeEvent::Resumed(done)
            }
            Order::Capture(capture) => {
                let taken = capture::take(plan, vm, guest, paused, &capture).await;
                let stops = capture.stop && taken.is_ok();
                capture::answer(plan, *capture, taken);
                if stops {
                    end_vm(vm, plan.id).await;
                    drain(&mut pump).await;
                    return over(capture::stopped());
                }
                continue;
            }
            Order::Limits(limits) => {
                over_time.set(time_over(limits.time));
                idle_over.set(idle::over(&directory, guest.activity(), limits.idle));
                continue;
            }
            order => {
                if paused && order.asks_the_guest(plan) {
                    paused::go_on_to_end(plan, vm, guest).await;
                }
                return obey(plan, vm, guest, pump, orders, order).await;
            }
        };
        // Fails only when the actor is gone; the life goes on and ends by itself.
        let _ = events.send(told).await;
    }
}

/// Waits until a machine's time is over, and returns what is to be done then.
pub(super) async fn time_over(limit: Option<Duration>) -> Order {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
    Order::Stop {
        grace: TIMEOUT_GRACE,
        reason: Some("it ran into its time limit".to_owned()),
    }
}

impl Order {
    /// Tells whether the guest has a part in it, so that it must not stand still.
    pub(super) fn asks_the_guest(&self, plan: &Plan) -> bool {
        match self {
            Self::Stop { .. } => true,
            Self::Kill { .. } => !plan.ephemeral,
            Self::Discard { .. } | Self::Pause | Self::Resume | Self::Limits(_) | Self::Capture(_) => false,
        }
    }
}
