//! What this host can do, and what is missing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every prerequisite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorReport {
    /// Whether machines can run here.
    pub can_run: bool,
    /// One by one.
    pub checks: Vec<DoctorCheck>,
}

/// One prerequisite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DoctorCheck {
    /// What is looked at.
    pub name: String,
    /// How it stands.
    pub state: DoctorState,
    /// What was found.
    pub detail: String,
    /// Why it is not as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How a prerequisite stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoctorState {
    /// As it should be.
    Ok,
    /// Machines run, but slower, weaker or with less.
    Warning,
    /// Not there, and nothing needs it in this version.
    Absent,
    /// Not there, and machines cannot run without it.
    Missing,
}
