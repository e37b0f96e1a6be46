//! Health checks: what is asked for, what is done, and what was found.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to find out whether a workload works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HealthProbe {
    /// Not at all, whatever the image says.
    None,
    /// By a program in the machine; it passes when it exits with 0.
    Command(Vec<String>),
    /// By a line for `/bin/sh -c`.
    Shell(String),
    /// By a connection to a TCP port of the machine's loopback.
    Tcp(u16),
    /// By a GET request to a port of the machine's loopback; it passes with a status from 200 to 399.
    Http {
        /// The port.
        port: u16,
        /// Path and query, beginning with a slash.
        path: String,
    },
}

/// What is asked for of a health check. What is absent is as the image's HEALTHCHECK says, or docker's default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthOptions {
    /// How to find out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<HealthProbe>,
    /// Milliseconds from a probe's end to the next one; 30 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Milliseconds that a probe may take; 30 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Milliseconds from the start in which failures do not count; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// The interval in the start period, in milliseconds, until a probe has passed; 5 s by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval_ms: Option<u64>,
    /// Failures in a row until the workload counts as unhealthy; 3 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// The health check of a machine: image and request put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthCheck {
    /// How it is found out.
    pub probe: HealthProbe,
    /// Milliseconds from a probe's end to the next one.
    pub interval_ms: u64,
    /// Milliseconds that a probe may take.
    pub timeout_ms: u64,
    /// Milliseconds from the start in which failures do not count.
    pub start_period_ms: u64,
    /// The interval in the start period, in milliseconds.
    pub start_interval_ms: u64,
    /// Failures in a row until the workload counts as unhealthy.
    pub retries: u32,
}

/// How a workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// No probe has passed yet.
    Starting,
    /// The last probe that counts has passed.
    Healthy,
    /// Too many probes in a row have failed.
    Unhealthy,
}

/// What is known of a workload's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// How it does.
    pub status: HealthStatus,
    /// Failures in a row that count.
    pub failing_streak: u32,
    /// The last five results, oldest first.
    pub log: Vec<HealthResult>,
}

/// What one probe has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthResult {
    /// RFC 3339.
    pub started_at: String,
    /// RFC 3339.
    pub ended_at: String,
    /// 0 when it has passed; the program's exit code, 1 without a program; -1 when it did not end in time.
    pub exit_code: i32,
    /// The first 4 KiB of what it said.
    pub output: String,
}
