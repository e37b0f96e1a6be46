//! Records: what the node knows of each machine and pool, on disk, one JSON file each.
//!
//! A record holds the accepted v1 spec as it came, and facts; the checked domain type is made from it anew on load
//! ([`spec`]). Written by atomic rename with a generation that counts changes. One writer: the machine's actor, or
//! the pool's keeper.

pub mod health;
pub(crate) mod machine;
pub(crate) mod pool;
pub mod spec;

pub use crate::ledger::{NamedRecords, RecordError};
pub use machine::{
    BootFact, ImageFact, MachineRecord, ProcessFact, RecordedState, Records, RestartFact, VmmFact,
};
pub use pool::{LeaseFact, MemberFact, PoolRecord};
