//! The node itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The node that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeStatus {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Path of its socket.
    pub socket: String,
    /// Where its data lies.
    pub data: String,
    /// RFC 3339.
    pub started_at: String,
    /// Machines it knows.
    pub machines: u32,
    /// Of which run.
    pub running: u32,
    /// Clones that are ready before somebody asks for one.
    #[serde(default)]
    pub standing_by: u32,
    /// Resident memory of the node's process, in bytes.
    pub rss_bytes: u64,
}

/// Asks the node to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopNode {
    /// Stops running machines first; otherwise a node with running machines refuses.
    #[serde(default)]
    pub stop_machines: bool,
}
