//! Why code did not run to its end.

use std::time::Duration;

use hearth_guest_protocol::message::Failure;

use super::OUTPUT_ARCHIVE_MAX;
use crate::guest::{RequestError, SessionEvent};
use crate::machines::{CreateError, MachineError};
use crate::pool::PoolError;

/// Says why code did not run to its end, or what it left did not come back.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// No machine was made for it.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// There is no machine of the pool, or no memory, for it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Its machine did not start, or was lost.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The guest refused: there is no such program, or an archive that cannot be unpacked.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The connection to the guest broke.
    #[error(transparent)]
    Guest(#[from] RequestError),
    /// The process did not start.
    #[error("the guest did not start the process in time")]
    NoStart,
    /// The guest did not read or write files.
    #[error("the guest did not move the files within {} s", .0.as_secs())]
    Files(Duration),
    /// The archive is not taken.
    #[error("the guest's file server ended with {0}")]
    FileServer(u8),
    /// What code left is too much.
    #[error("it is more than {} MiB", OUTPUT_ARCHIVE_MAX >> 20)]
    OutputTooLarge,
    /// What the guest packed is no archive.
    #[error("the archive makes no sense")]
    Archive(#[source] std::io::Error),
    /// Who asked has gone away.
    #[error("nobody waits for the result any more")]
    Unheard,
}

impl ExecuteError {
    /// Says what a session's event means that should not have come.
    pub(super) fn unexpected(event: SessionEvent) -> Self {
        match event {
            SessionEvent::Failed(failure) => Self::Refused(failure),
            SessionEvent::Ended(outcome) => Self::FileServer(outcome.exit_code()),
            _ => Self::Guest(RequestError::ChannelLost),
        }
    }
}
