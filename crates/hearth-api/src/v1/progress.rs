//! Long work, told line by line (`application/x-ndjson`): progress, then one result or error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ErrorBody;

/// One line of a long work's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgressLine<T> {
    /// How far a step is.
    Progress(Progress),
    /// The work is done; the last line.
    Result(T),
    /// The work failed; the last line.
    Error(ErrorBody),
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Names the step, the same in all its lines; several may be under way.
    pub step: String,
    /// How much is done.
    pub done: u64,
    /// How much of it was done before this work began; no measure of speed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub already: u64,
    /// How much there is to do, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted.
    pub unit: Unit,
    /// The step is over.
    pub finished: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Items,
}
