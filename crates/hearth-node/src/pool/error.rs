//! Why something could not be done with a pool.

use std::time::Duration;

use hearth_machine::ByteSize;
use hearth_machine::pool::BoundsError;

use crate::guest::RequestError;
use crate::images::ImageError;
use crate::machines::{CreateError, MachineError};
use crate::network::NetworkError;
use crate::records::RecordError;
use crate::records::spec::InvalidSpec;

/// Says why something could not be done with a pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A machine cannot be made of the pool's snapshot.
    #[error(transparent)]
    Snapshot(#[from] crate::machines::SnapshotError),
    /// There is no such pool.
    #[error("there is no pool {0:?}")]
    NotFound(String),
    /// The name belongs to another pool.
    #[error("the name {0:?} belongs to a pool already")]
    NameTaken(String),
    /// The name is none.
    #[error("{0:?} is not a pool's name: 1 to 63 of [a-zA-Z0-9_.-], the first a letter or a digit")]
    Name(String),
    /// It cannot be so large or so old.
    #[error(transparent)]
    Bounds(#[from] BoundsError),
    /// Its machines cannot be so.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// A network that its machines are to be on, or one that is to go.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A network that is to go is a pool's.
    #[error("the network {network} is that of the machines of {}", pools.join(", "))]
    Named {
        /// The network.
        network: String,
        /// The names of the pools.
        pools: Vec<String>,
    },
    /// Its image is not there.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A lease that cannot be.
    #[error("a lease of {} s cannot be: 1 s to a day can", .0.as_secs())]
    LeaseTime(Duration),
    /// Somebody has machines of it.
    #[error("{leased} of the machines of {pool:?} are leased")]
    InUse {
        /// The pool.
        pool: String,
        /// How many.
        leased: u32,
    },
    /// It is being removed.
    #[error("the pool {0:?} is being removed")]
    Closing(String),
    /// No machine in time.
    #[error("no machine of {pool:?} was free within {} ms: {leased} of {max} are leased, {ahead} waited before", waited.as_millis())]
    NoneFree {
        /// The pool.
        pool: String,
        /// How long was waited.
        waited: Duration,
        /// Machines that somebody has.
        leased: u32,
        /// Machines that there may be.
        max: u32,
        /// Who came before and waits still.
        ahead: u32,
    },
    /// The start of a machine failed while somebody waited for it.
    #[error("no machine of {pool:?} comes up: {reason}")]
    NoStart {
        /// The pool.
        pool: String,
        /// Why.
        reason: String,
    },
    /// No memory in time.
    #[error("there was no room for {memory} of memory within {} ms: machines may take {room} together on this host", waited.as_millis())]
    NoRoom {
        /// What was asked for.
        memory: ByteSize,
        /// How long was waited.
        waited: Duration,
        /// What machines may take.
        room: ByteSize,
    },
    /// There is no such lease now.
    #[error("there is no lease {lease:?}{}", why.as_deref().map(|why| format!(": {why}")).unwrap_or_default())]
    NoLease {
        /// Its id, or the machine.
        lease: String,
        /// How it ended, if that is known.
        why: Option<String>,
    },
    /// What warms a machine up ended badly.
    #[error("the warm-up command ended with {exit_code}: {words}")]
    Warm {
        /// Its exit code.
        exit_code: u8,
        /// The end of what it printed.
        words: String,
    },
    /// It did not end.
    #[error("the warm-up command did not end within {} s", .0.as_secs())]
    WarmTimeout(Duration),
    /// It cannot be run.
    #[error("the warm-up command cannot be run: {0}")]
    WarmRefused(String),
    /// A machine was not made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A machine does not do what it should.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A guest does not answer.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// It could not be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] crate::configuration::ConfigurationError),
    /// The kernel gave no random bytes for a lease.
    #[error("no random bytes for a lease")]
    Random,
    /// The node is ending.
    #[error("the node is ending")]
    Ending,
}
