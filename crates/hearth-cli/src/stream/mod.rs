//! The session with a process in a machine: `run`, `exec`, `attach`, `start -a`, and the frames of `logs`.
//!
//! ```text
//! stdin ----> [detach keys] --\                        /--> stdout
//! signals ---------------------> frames <-> node -> frames
//! window size ----------------/                        \--> stderr
//! ```
//! Upstream and downstream are two futures of one task: neither waits for the other, and a reader of our output that is
//! slow stops only what comes from the node.

mod detach;
mod downstream;
mod input;
mod output;
mod signals;
mod upstream;

use std::cell::Cell;

use hearth_api::Client;
use hearth_api::client::Upgraded;
use hearth_api::v1::ExitStatus;

use crate::error::CliError;
use crate::resolve::Attachment;
use crate::terminal::{self, RawMode};

use downstream::print_frames;

pub(crate) use downstream::copy_frames;
pub(crate) use output::{Output, Target};
use signals::{Signals, WindowChanges};

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process did.
    Exited(ExitStatus),
    /// The person left by keys: the process goes on.
    Detached,
    /// A signal ended this program's part; the process goes on.
    Interrupted(u8),
}

/// Where a signal goes when the stream is full of input that the process does not read: the API's own request.
#[derive(Debug, Clone)]
pub(crate) struct Bypass {
    /// The node.
    pub(crate) client: Client,
    /// The machine.
    pub(crate) machine: String,
}

/// A session before its connection: everything on this side is checked and caught, so that nothing is lost from the
/// moment the process starts.
#[derive(Debug)]
pub(crate) struct Session {
    attachment: Attachment,
    signals: Signals,
    windows: WindowChanges,
}

impl Session {
    /// Checks standard input and begins to catch signals.
    ///
    /// # Errors
    /// Returns [`CliError::NoTerminal`] for `-it` without a terminal, or the system's error.
    pub(crate) fn prepare(attachment: Attachment) -> Result<Self, CliError> {
        check_terminal(attachment)?;
        Ok(Self {
            attachment,
            signals: Signals::catch().map_err(CliError::Signals)?,
            windows: WindowChanges::catch(attachment.terminal).map_err(CliError::Signals)?,
        })
    }

    /// Returns the terminal's size for the request: rows and columns.
    pub(crate) fn size(&self) -> Option<(u16, u16)> {
        terminal::size().filter(|_| self.attachment.terminal)
    }

    /// Runs until the process ends, the person detaches, or the connection breaks.
    ///
    /// # Errors
    /// Returns the node's refusal, or what broke.
    pub(crate) async fn run(self, connection: Upgraded, bypass: Option<Bypass>) -> Result<Ended, CliError> {
        let raw = self.attachment.stdin && self.attachment.terminal;
        let _raw = raw.then(RawMode::enter).transpose().map_err(CliError::Terminal)?;
        let (reader, writer) = tokio::io::split(connection);
        let upstream = upstream::Upstream {
            attachment: self.attachment,
            signals: self.signals,
            windows: self.windows,
            bypass,
        };
        // Set once the person leaves: the node ends the stream then, behind everything that was printed before.
        let left = Cell::new(false);
        tokio::select! {
            ended = print_frames(reader) => match left.get() {
                true => Ok(Ended::Detached),
                false => ended.map(Ended::Exited),
            },
            ended = upstream.run(writer, &left) => ended,
        }
    }
}

/// Refuses `-it` when standard input is no terminal, as docker does.
///
/// # Errors
/// Returns [`CliError::NoTerminal`].
pub(crate) fn check_terminal(attachment: Attachment) -> Result<(), CliError> {
    if attachment.stdin && attachment.terminal && !terminal::is_input() {
        return Err(CliError::NoTerminal);
    }
    Ok(())
}
