//! The node daemon: every driver, every task, all host IO.
//!
//! ```text
//! node                                               builds each part once; start and stop order
//! api                                                HTTP in, domain out; the only place that knows wire views
//! execute                                            code that runs once
//! pool                                               machines that are ready before somebody wants one
//! machines                                           registry, one actor task per machine; where drivers meet
//! doctor                                             judges this host, and what setup left on it
//! vmm | images | storage | network | guest | records | setup | pager | snapshots   drivers and state; blind to each other
//! ledger                                             records by name
//! host                                               the only caller of the operating system
//! layout | configuration                             every path; what a person has set
//! ```
//! Upper lines use lower ones, never the reverse; `cargo xtask tidy` checks it.

pub mod api;
pub mod configuration;
pub mod doctor;
pub mod execute;
pub mod guest;
pub mod host;
pub mod images;
pub mod layout;
mod ledger;
pub mod machines;
pub mod network;
pub mod node;
pub mod pager;
pub mod pool;
pub mod records;
pub mod setup;
pub mod snapshots;
pub mod storage;
pub mod vmm;

pub use node::{NodeError, run};
