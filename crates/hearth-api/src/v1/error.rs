//! Errors as clients see them: what failed, why, and what to do next.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// What failed, in one sentence.
    pub message: String,
    /// Why, as far as it is known: the chain of causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remediation: Option<String>,
}

/// What kind of error it is; each has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense (400).
    InvalidRequest,
    /// No machine of that name or id (404).
    MachineNotFound,
    /// The image is not in the store (404); a pull may help.
    ImageNotFound,
    /// A file or directory does not exist in the machine (404).
    FileNotFound,
    /// No pool of that name (404).
    PoolNotFound,
    /// No network of that name (404).
    NetworkNotFound,
    /// No such lease now: it was released, or its time was over (404).
    LeaseNotFound,
    /// No such path in this API (404).
    NotFound,
    /// The machine's state does not allow it (409).
    WrongState,
    /// The name belongs to another machine (409).
    NameTaken,
    /// The image is in use by a machine (409).
    InUse,
    /// The command does not exist in the image (422); exit code 127.
    CommandNotFound,
    /// The command exists and cannot be run (422); exit code 126.
    CommandNotExecutable,
    /// The user or group does not exist in the image (422).
    UnknownUser,
    /// The image cannot be fetched or read (422).
    ImageFailed,
    /// No kernel or agent has been set up (422).
    NotSetUp,
    /// This host cannot do what was asked: VMM, memory, privileges (422).
    HostUnfit,
    /// The virtual machine did not come up, or died (500).
    BootFailed,
    /// The guest did not do what it was asked (500).
    GuestFailed,
    /// A deadline passed (504).
    Timeout,
    /// Anything else (500).
    Internal,
}

impl ErrorCode {
    /// Returns the HTTP status that goes with it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::MachineNotFound
            | Self::ImageNotFound
            | Self::FileNotFound
            | Self::NotFound
            | Self::PoolNotFound
            | Self::NetworkNotFound
            | Self::LeaseNotFound => 404,
            Self::WrongState | Self::NameTaken | Self::InUse => 409,
            Self::CommandNotFound
            | Self::CommandNotExecutable
            | Self::UnknownUser
            | Self::ImageFailed
            | Self::NotSetUp
            | Self::HostUnfit => 422,
            Self::BootFailed | Self::GuestFailed | Self::Internal => 500,
            Self::Timeout => 504,
        }
    }

    /// Returns the exit code of docker's command line for it: 127, 126, or 125.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::CommandNotFound => 127,
            Self::CommandNotExecutable => 126,
            _ => 125,
        }
    }
}
