//! Machines that stand still: their virtual processors are stopped, everything else of them is kept.
//!
//! A guest that stands still answers nobody. So a machine that an earlier node has paused is watched without a word to its guest,
//! until somebody wants it to go on or to end; `life` goes on with it then.

use std::time::Instant;

use hearth_machine::Event;
use tokio::sync::mpsc;

use super::attend::time_over;
use super::boot::last_words;
use super::capture;
use super::life::{LifeEvent, Order, Plan, chain, died, over};
use super::output::now_unix_ns;
use crate::guest::Guest;
use crate::vmm::{ControlError, Machine as _, Vm};

/// Brings a machine that an earlier node has left into the state that its record tells, and keeps it there while it is to stand
/// still. What ended the standing still is the plan's first order.
///
/// # Errors
/// Returns the last event when the machine has ended, or is to end without its guest's having a part in it.
pub(super) async fn adopt(
    plan: &mut Plan,
    vm: &Vm,
    orders: &mut mpsc::Receiver<Order>,
    events: &mpsc::Sender<LifeEvent>,
) -> Result<(), LifeEvent> {
    let lost = |error: ControlError| {
        over(Event::VmmDied {
            reason: chain(&error),
        })
    };
    if plan.paused {
        // It does already, unless the node ended in the middle of an order: what is written down counts.
        vm.pause().await.map_err(lost)?;
        // Fails only when the actor is gone; the life goes on and ends by itself.
        let _ = events.send(LifeEvent::FoundPaused).await;
        let mut began = Instant::now();
        let mut over_time = Box::pin(time_over(plan.limits.time));
        let order = loop {
            tokio::select! {
                Some(order) = orders.recv() => match order {
                    Order::Capture(capture) => {
                        let taken = capture::of_still(plan, &capture).await;
                        capture::answer(plan, *capture, taken);
                    }
                    Order::Limits(limits) => {
                        (plan.limits, began) = (limits, Instant::now());
                        over_time.set(time_over(limits.time));
                    }
                    order => break order,
                },
                order = &mut over_time => {
                    let _ = events.send(LifeEvent::TimedOut).await;
                    break order;
                }
                exit = vm.wait() => return Err(over(died(plan.id, &last_words(exit)))),
            }
        };
        if !order.asks_the_guest(plan) && !matches!(order, Order::Resume) {
            let reason = "it was ended while it was paused".to_owned();
            return Err(over(Event::VmmDied { reason }));
        }
        plan.limits.time = plan
            .limits
            .time
            .map(|limit| limit.saturating_sub(began.elapsed()));
        plan.first_order = Some(order);
    }
    vm.resume().await.map_err(lost)
}

/// Lets a machine go on, with its clock stepped to the host's and its idle time begun anew.
pub(super) async fn go_on(vm: &Vm, guest: &Guest) -> Result<(), ControlError> {
    vm.resume().await?;
    guest.activity().touch();
    guest.step_clock(now_unix_ns()).await;
    Ok(())
}

/// Lets a machine go on, so that its guest can end it. One that cannot go on is killed after the guest's deadline.
pub(super) async fn go_on_to_end(plan: &Plan, vm: &Vm, guest: &Guest) {
    if let Err(error) = go_on(vm, guest).await {
        tracing::warn!(machine = %plan.id, error = %chain(&error), "a paused machine does not go on to be stopped");
    }
}
