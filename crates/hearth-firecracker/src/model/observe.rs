//! Where Firecracker tells what it does.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The log. What is left out stays as it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logger {
    /// What is worth a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// A file or named pipe, which must be there; standard output otherwise.
    #[serde(rename = "log_path", default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether a line tells its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether it tells file and line of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Lines of this module only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// What is worth a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are as everywhere")]
pub enum LogLevel {
    Off,
    Trace,
    Debug,
    Info,
    #[serde(alias = "Warn")]
    Warning,
    Error,
}

/// Where metrics go: see [`crate::metrics`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsTarget {
    /// A file or named pipe, which must be there.
    #[serde(rename = "metrics_path")]
    pub path: PathBuf,
}
