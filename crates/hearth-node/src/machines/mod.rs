//! Machines: the registry, one actor task per machine, and a machine's life from boot to rest.
//!
//! ```text
//!  Machines (registry) --Command--> actor: state, record, waiters        one task per machine, alone writes its record
//!                                     | spawns            ^ LifeEvent
//!                                     v Order             |
//!                                   life: disk, vmm, guest, workload     one task per start; owns what it acquired
//!                                     `-- pump: output -> log, attached clients
//! ```
//! Everybody else reads a machine through a watch. This is the only place where drivers meet.

mod actor;
mod attend;
mod boot;
mod capture;
mod command;
mod datagrams;
mod drivers;
mod error;
mod events;
mod exec;
mod full_disk;
mod handle;
mod health;
mod idle;
mod life;
mod limits;
mod log;
mod missed;
mod names;
mod output;
mod pace;
mod pagers;
mod paused;
mod ports;
mod prune;
mod recovery;
mod registry;
mod restore;
mod session;
mod silence;
mod snapshots;
mod standby;
mod stats;
mod templates;
mod trust;

pub use capture::CaptureError;
pub use command::{AttachedMachine, Change, NetworkChange, View};
pub use drivers::{Drivers, SelectError};
pub use error::{CreateError, MachineError, StartError};
pub use events::{EVENTS_MAX, EventLog, Reader, Told, time_of};
pub use exec::Exec;
pub use handle::Machine;
pub use life::{Parts, chain};
pub use log::{LogReader, Piece};
pub use output::Attached;
pub use pace::Pace;
pub use pagers::Pagers;
pub use ports::PortError;
pub use registry::{Machines, NewMachine};
pub use session::{ExecSpec, terminal_size};
pub use snapshots::{FORKS_MAX, MachineSnapshot, NewForks, NewRestored, NewSnapshot, SnapshotError};
pub use standby::Standbys;
pub use stats::Usage;

#[cfg(test)]
mod tests;
