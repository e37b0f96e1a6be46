//! Code that runs once, in a machine of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ErrorBody;
use super::{DriverChoice, NetworkMode, NetworkPolicy};

/// Asks for code to be run once. It runs in `/workspace`, finds what was given along in `/workspace/input`, and what it leaves in
/// `/workspace/output` comes back. Bytes are base64.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecuteRequest {
    /// The image of the machine that is made for it; this or `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The pool that gives the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The code; this or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What its file is called: the extension (`.py`, `.sh`, `.js`) tells the interpreter, unless its first line does (`#!`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_name: Option<String>,
    /// The program that runs the code, and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interpreter: Vec<String>,
    /// Program and arguments to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// `NAME=value`, added to the image's ENV. Kept in no record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// How long it may take, in milliseconds; 300000 when absent, a day at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Memory of the machine in bytes; not with `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its thousandths of a processor; not with `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
    /// Which virtual machine monitor runs it; not with `pool`.
    #[serde(default)]
    pub driver: DriverChoice,
    /// What network it sees; as that of any machine when absent; not with `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// What it may reach there; not with `pool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
    /// Names of the networks of machines that it is on; not with `pool`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Certificates (PEM) of authorities that its image's programs trust beside those that they trust; not with `pool`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates: Vec<String>,
    /// A tar archive of what is to lie in `/workspace/input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_archive: Option<String>,
    /// Whether what lies in `/workspace/output` comes back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output: bool,
    /// What is kept of each of stdout and stderr for the result, in bytes; 1 MiB when absent, 16 MiB at most. What is printed
    /// beyond that is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_max_bytes: Option<u64>,
    /// How long it may wait for memory or for a machine of the pool, in milliseconds; not at all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Whether output is told as it comes, and the output's archive in pieces; otherwise the answer is one line: the result.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

/// A line of the answer; the last one is a result or an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecuteLine {
    /// It runs, in this machine.
    Started(String),
    /// Bytes of its standard output.
    Stdout(String),
    /// Bytes of its standard error.
    Stderr(String),
    /// Bytes of the archive of `/workspace/output`.
    OutputArchive(String),
    /// It is over.
    Result(Box<ExecuteResult>),
    /// It could not be carried on.
    Error(ErrorBody),
}

/// How code ran.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ExecuteResult {
    /// It ended by itself, with 0.
    pub success: bool,
    /// Its exit code: its own, 128 plus the number of the signal that ended it, or 124 when its time was over.
    pub exit_code: u8,
    /// Its time was over.
    pub timed_out: bool,
    /// What it printed, as text: what is no UTF-8 is replaced. Empty when the output was told as it came.
    pub stdout: String,
    /// The same of its standard error.
    pub stderr: String,
    /// More was printed than was kept.
    #[serde(default)]
    pub stdout_cut: bool,
    /// More was printed than was kept.
    #[serde(default)]
    pub stderr_cut: bool,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// How long it took until it ran, in milliseconds: the machine, and what was given along.
    pub prepared_ms: u64,
    /// What it left in `/workspace/output`.
    pub output_files: Vec<OutputFile>,
    /// Why its output did not come back, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_missing: Option<String>,
    /// Its output as a tar archive whose top is `output`, where it was not told in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_archive: Option<String>,
    /// The machine it ran in, which is gone by now.
    pub machine: String,
}

/// A file that code left in `/workspace/output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputFile {
    /// Its path below that directory.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}
