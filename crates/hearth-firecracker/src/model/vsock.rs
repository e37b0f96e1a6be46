//! The channel between host and guest, and the source of entropy.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// The vsock device, behind a Unix socket of the host; see [`crate::vsock`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's number, 3 or more. Machines may share one: each has a socket of its own.
    pub guest_cid: u32,
    /// The socket that Firecracker makes. For ports that the guest connects to, the host listens on `PATH_PORT`.
    #[serde(rename = "uds_path")]
    pub socket: PathBuf,
}

/// The entropy device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {
    /// How much of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
