//! Pools: machines that hold, brought up and standing still before somebody wants one.
//!
//! ```text
//! Pools (handle) --Ask--> keeper: every pool, who waits, the memory of all       one task, alone writes records of pools
//!                           | spawns           ^ Done
//!                           v                  |
//!                         member: bring up, hand out, find again, remove         one task for each step
//! ```
//! The rules are [`hearth_machine::pool`]'s. A machine's own record says to which pool it belongs, so one that was half brought up when a
//! node died is found and removed by the next.

mod admission;
mod error;
mod keeper;
mod kept;
mod member;
mod recovery;
mod steps;

pub use admission::Permit;
pub use error::PoolError;

use std::time::{Duration, Instant};

use hearth_api::v1;
use hearth_machine::pool::LEASE_MAX;
use hearth_machine::{ByteSize, MachineName};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::machines::Machines;
use crate::records::{PoolRecord, RecordError};
use keeper::{Admission, Ask, Keeper};
use kept::{Reply, Waiting};

/// Asks that wait for the keeper.
const ASKS: usize = 64;
/// The longest that somebody may wait for a machine or for memory.
pub const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// Who wants a machine, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// How long it is to be one's own.
    pub lease: Duration,
    /// How long one waits for it.
    pub wait: Duration,
    /// Who has it is connected to this node: with that it is given back.
    pub ends_with_node: bool,
}

/// The handle to all pools; cloned freely.
#[derive(Debug, Clone)]
pub struct Pools {
    machines: Machines,
    asks: mpsc::Sender<Ask>,
}

impl Pools {
    /// Brings back the pools of an earlier node, and begins to keep them.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the records cannot be read at all.
    pub fn open(
        machines: Machines,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, RecordError> {
        let mut keeper = Keeper::new(machines.clone(), tasks.clone(), shutdown.clone());
        keeper.recover()?;
        let (asks, receive) = mpsc::channel(ASKS);
        tasks.spawn(shutdown.run_until_cancelled_owned(keeper.run(receive)));
        Ok(Self { machines, asks })
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, PoolError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.asks.send(ask(reply)).await;
        sent.map_err(|_| PoolError::Ending)?;
        answer.await.map_err(|_| PoolError::Ending)?
    }

    /// Creates a pool; its machines come up behind this.
    ///
    /// # Errors
    /// Returns [`PoolError`] when it cannot be so.
    pub async fn create(&self, name: String, spec: v1::PoolSpec) -> Result<v1::Pool, PoolError> {
        let checked: Result<MachineName, _> = name.parse();
        checked.map_err(|_| PoolError::Name(name.clone()))?;
        let machine = member::machine_spec(&spec);
        self.machines.check(&machine)?;
        keeper::check_networks(&self.machines, &spec)?;
        self.machines.parts().images.resolve(&machine.image).await?;
        let record = Box::new(PoolRecord::new(name, spec, jiff::Timestamp::now().to_string()));
        self.ask(|reply| Ask::Create { record, reply }).await
    }

    /// Returns every pool.
    ///
    /// # Errors
    /// Returns [`PoolError::Ending`].
    pub async fn list(&self) -> Result<Vec<v1::Pool>, PoolError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.asks.send(Ask::List { reply }).await;
        sent.map_err(|_| PoolError::Ending)?;
        answer.await.map_err(|_| PoolError::Ending)
    }

    /// Returns a pool as it is.
    ///
    /// # Errors
    /// Returns [`PoolError::NotFound`].
    pub async fn inspect(&self, pool: String) -> Result<v1::Pool, PoolError> {
        self.ask(|reply| Ask::Inspect { pool, reply }).await
    }

    /// Changes a pool's size.
    ///
    /// # Errors
    /// Returns [`PoolError`] when it cannot be so; then it is as it was.
    pub async fn resize(&self, pool: String, change: v1::ResizePool) -> Result<v1::Pool, PoolError> {
        self.ask(|reply| Ask::Resize { pool, change, reply }).await
    }

    /// Removes a pool and its machines; returns when they are gone. `force` ends leases, too.
    ///
    /// # Errors
    /// Returns [`PoolError::InUse`] when somebody has machines of it.
    pub async fn remove(&self, pool: String, force: bool) -> Result<(), PoolError> {
        self.ask(|reply| Ask::Remove { pool, force, reply }).await
    }

    /// Hands out a machine of a pool; when this returns, it answers.
    ///
    /// # Errors
    /// Returns [`PoolError::NoneFree`] when there is none in time.
    pub async fn acquire(&self, pool: String, wish: Wish) -> Result<v1::Lease, PoolError> {
        check_lease(wish.lease)?;
        let wait = wish.wait.min(WAIT_MAX);
        self.ask(|reply| Ask::Acquire {
            pool,
            wait,
            waiting: Waiting {
                lease: wish.lease,
                ends_with_node: wish.ends_with_node,
                since: Instant::now(),
                reply,
            },
        })
        .await
    }

    /// Lets a lease last so long from now on. A machine's name or id stands for its lease.
    ///
    /// # Errors
    /// Returns [`PoolError::NoLease`].
    pub async fn extend(&self, lease: String, time: Duration) -> Result<v1::Lease, PoolError> {
        check_lease(time)?;
        self.ask(|reply| Ask::Extend { lease, time, reply }).await
    }

    /// Takes a machine back before its time.
    ///
    /// # Errors
    /// Returns [`PoolError::NoLease`], with how it ended if that is known.
    pub async fn release(&self, lease: String) -> Result<(), PoolError> {
        self.ask(|reply| Ask::Release { lease, reply }).await
    }

    /// Removes a network of machines that no pool names and no machine is on.
    ///
    /// # Errors
    /// Returns [`PoolError::Network`], or [`PoolError::Named`].
    pub async fn remove_network(&self, network: String) -> Result<(), PoolError> {
        let number = self.ask(|reply| Ask::ForgetNetwork { network, reply }).await?;
        Ok(self.machines.parts().networks.remove_bridge(number).await?)
    }

    /// Waits until there is memory for one more machine, behind all who came before.
    ///
    /// # Errors
    /// Returns [`PoolError::NoRoom`] when there is none in time.
    pub async fn admit(&self, memory: ByteSize, wait: Duration) -> Result<Permit, PoolError> {
        let wait = wait.min(WAIT_MAX);
        self.ask(|reply| Ask::Admit {
            wait,
            admission: Admission {
                memory,
                since: Instant::now(),
                reply,
            },
        })
        .await
    }

    /// Starts nothing any more: the machines are about to be stopped with the node.
    pub async fn rest(&self) {
        let (reply, answer) = oneshot::channel();
        if self.asks.send(Ask::Rest { reply }).await.is_ok() {
            // An error says that the keeper has ended, which is as good.
            let _ = answer.await;
        }
    }
}

fn check_lease(time: Duration) -> Result<(), PoolError> {
    if time.is_zero() || time > LEASE_MAX {
        return Err(PoolError::LeaseTime(time));
    }
    Ok(())
}
