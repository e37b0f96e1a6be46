//! What a person sees when something fails: what, why, and what to do, in up to three lines.
//!
//! ```text
//! hearth: the machine "web" does not exist
//!   cause: ...
//!   try: hearth ps -a
//! ```

use std::io;

use hearth_api::ClientError;
use hearth_api::v1::PortProtocol;

use crate::commands::{BenchError, CorrectnessError, WarmError};
use crate::credentials::CredentialsError;
use crate::node::StartError;
use crate::print::plain;
use crate::resolve::{CopyRefused, ResolveError};

/// Says why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// An argument makes no sense.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The caller's login to a registry cannot be had.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A measurement could not be made.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// A machine could not be checked.
    #[error(transparent)]
    Correctness(#[from] CorrectnessError),
    /// No template was made of a workload.
    #[error("no template was made")]
    Warm(#[from] WarmError),
    /// No place for a node.
    #[error(transparent)]
    Location(#[from] hearth_api::LocationError),
    /// The node cannot be started.
    #[error("the node did not start")]
    Start(#[from] StartError),
    /// The node refused or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The stream of a process broke.
    #[error("the connection to the process broke")]
    Stream(#[from] hearth_api::stream::StreamError),
    /// `-it` without a terminal.
    #[error("the input device is not a TTY")]
    NoTerminal,
    /// The terminal cannot be switched to raw mode.
    #[error("the terminal cannot be set up")]
    Terminal(#[source] io::Error),
    /// Signals cannot be caught.
    #[error("signals cannot be received")]
    Signals(#[source] io::Error),
    /// The runtime cannot be built.
    #[error("the event loop cannot be set up")]
    Runtime(#[source] io::Error),
    /// Standard input cannot be read.
    #[error("standard input cannot be read")]
    Input(#[source] io::Error),
    /// Standard output or error cannot be written; a closed pipe is no message's cause, only an exit code's.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
    /// JSON cannot be made.
    #[error("the answer cannot be printed as JSON")]
    Json(#[from] serde_json::Error),
    /// No node runs, where one is not started.
    #[error("no node is running on {0}")]
    NoNode(String),
    /// `hearth --socket PATH node`: the flag names a node that is there, and this would be a new one.
    #[error("'hearth node' in the foreground takes no flags")]
    NodeWithFlags(String),
    /// A port that is not published.
    #[error("port {guest}/{protocol} of {machine} is not published")]
    NotPublished {
        /// The machine.
        machine: String,
        /// Its port.
        guest: u16,
        /// What it carries.
        protocol: PortProtocol,
    },
    /// The node did not end.
    #[error("the node (process {pid}) has not ended within {seconds} seconds")]
    NodeStays {
        /// Its process.
        pid: u32,
        /// How long was waited.
        seconds: u64,
    },
    /// The node's process cannot be watched.
    #[error("the node's process {pid} cannot be watched")]
    Watch {
        /// Its process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something is to be deleted, and nobody can be asked.
    #[error("this would delete {0}, and there is no terminal to ask on")]
    Unconfirmed(String),
    /// An archive for a person to look at.
    #[error("an archive is not written to a terminal")]
    ArchiveToTerminal,
    /// The input of an execution is too large.
    #[error("{0} is more than {1} MiB")]
    InputTooLarge(String, usize),
    /// Bytes of an answer are no base64.
    #[error("the node's answer is not of this API's version")]
    Base64(#[source] base64::DecodeError),
    /// cp is not possible so.
    #[error(transparent)]
    Copy(#[from] CopyRefused),
    /// A file of a copy.
    #[error("{path} cannot be {action}")]
    CopyFile {
        /// The file.
        path: String,
        /// What was tried, as a participle.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An archive's member that does not stay below its directory.
    #[error("the archive's member {0:?} would leave the destination")]
    CopyEscape(String),
}

/// What happens after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// The verb's exit code is a workload's, so failures are 125, 126 or 127.
    Workload,
    /// Failures are 1.
    Own,
}

/// 128 plus SIGPIPE: how a program ends when nobody reads what it prints.
pub(crate) const BROKEN_PIPE: u8 = 141;

impl CliError {
    /// Whether nobody reads any more, which needs no message.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Returns the exit code.
    pub(crate) fn exit_code(&self, voice: Voice) -> u8 {
        match (self, voice) {
            _ if self.is_broken_pipe() => BROKEN_PIPE,
            (_, Voice::Own) => 1,
            (Self::Client(ClientError::Refused(body)), Voice::Workload) => body.code.exit_code(),
            (_, Voice::Workload) => 125,
        }
    }

    /// Returns the message: what failed, why, what to do.
    pub(crate) fn message(&self) -> String {
        let mut lines = format!("hearth: {}", indented(&self.to_string()));
        for (label, text) in [("cause", self.cause()), ("try", self.remedy())] {
            if let Some(text) = text {
                lines.push_str(&format!("\n  {label}: {}", indented(&text)));
            }
        }
        lines
    }

    fn cause(&self) -> Option<String> {
        if let Self::Client(ClientError::Refused(body)) = self {
            return body.cause.clone();
        }
        let first = std::error::Error::source(self);
        let chain = std::iter::successors(first, |error| error.source());
        let texts: Vec<_> = chain.map(ToString::to_string).collect();
        Some(texts.join(": ")).filter(|text| !text.is_empty())
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Client(ClientError::Refused(body)) => return body.remediation.clone(),
            Self::Client(ClientError::NoNode { source, .. }) => {
                if source.kind() == io::ErrorKind::PermissionDenied {
                    "the node belongs to another user: become that user, or unset HEARTH_SOCKET and HEARTH_HOME"
                } else {
                    "start it where it should run with 'hearth node', or leave out --socket and HEARTH_SOCKET: \
                     then hearth starts one itself"
                }
            }
            Self::Client(ClientError::Malformed(_) | ClientError::Stream(_)) => {
                "'hearth version' shows both versions; 'hearth node stop' ends an old node (--stop-machines: and its \
                 machines), and the next verb starts a new one"
            }
            Self::Client(ClientError::Gone | ClientError::Connection(_)) | Self::Stream(_) => {
                "'hearth ps -a' shows what became of the machine; node.log beside the node's socket says why it ended"
            }
            Self::Credentials(error) => return Some(error.remedy()),
            Self::Start(error) => return Some(error.remedy()),
            Self::Unconfirmed(_) => "say --force",
            Self::ArchiveToTerminal => "name a file with --output, or send it through a pipe",
            Self::InputTooLarge(..) => {
                "copy it into a machine that stays: hearth run -d --hold, hearth cp, hearth exec"
            }
            Self::Resolve(ResolveError::CodeNotText(_)) => {
                "put a program into the input of --workspace, and run it with --cmd input/PROGRAM"
            }
            Self::NoTerminal => "leave out -t, or run it in a terminal",
            Self::Resolve(ResolveError::CopyLocal) => "name a machine: hearth cp FILE MACHINE:PATH",
            Self::NoNode(_) => "any verb that needs a node starts one, as 'hearth ps' does",
            Self::NodeWithFlags(socket) => {
                return Some(format!("HEARTH_SOCKET={socket} hearth node"));
            }
            Self::NodeStays { pid, .. } => {
                return Some(format!(
                    "look into node.log beside the node's socket; 'kill -9 {pid}' ends it, and the next node ends the \
                     machines that it leaves running"
                ));
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// Indents what follows a text's first line, so that a message stays one block.
fn indented(text: &str) -> String {
    plain(text).trim_end().replace('\n', "\n    ")
}

#[cfg(test)]
mod tests {
    use hearth_api::v1::{ErrorBody, ErrorCode};

    use super::*;

    fn refused(code: ErrorCode) -> CliError {
        CliError::Client(ClientError::Refused(Box::new(ErrorBody {
            code,
            message: "the command \"nope\" does not exist".into(),
            cause: Some("not in PATH:\n/bin".into()),
            remediation: Some("look into the image".into()),
        })))
    }

    #[test]
    fn a_refusal_is_told_in_three_lines() {
        let expected = "hearth: the command \"nope\" does not exist\n  cause: not in PATH:\n    /bin\n  try: look into \
                        the image";
        assert_eq!(refused(ErrorCode::CommandNotFound).message(), expected);
    }

    #[test]
    fn the_chain_of_causes_is_told_once() {
        let error = CliError::Client(ClientError::NoNode {
            socket: "/run/hearth/node.sock".into(),
            source: io::Error::from_raw_os_error(13),
        });
        let message = error.message();
        assert!(message.starts_with(
            "hearth: no node answers on /run/hearth/node.sock\n  cause: Permission denied (os error 13)\n  try: "
        ));
    }

    #[test]
    fn exit_codes_are_dockers() {
        for (code, expected) in [
            (ErrorCode::CommandNotFound, 127),
            (ErrorCode::CommandNotExecutable, 126),
            (ErrorCode::NameTaken, 125),
        ] {
            assert_eq!(refused(code).exit_code(Voice::Workload), expected);
            assert_eq!(refused(code).exit_code(Voice::Own), 1);
        }
        let closed = CliError::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(closed.exit_code(Voice::Own), 141);
        assert_eq!(closed.exit_code(Voice::Workload), 141);
    }
}
