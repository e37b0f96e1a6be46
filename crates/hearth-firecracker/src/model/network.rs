//! Network interfaces.

use serde::{Deserialize, Serialize};

use super::{DeviceId, RateLimiter};

/// A network interface: a TAP of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// Its name in later requests.
    #[serde(rename = "iface_id")]
    pub id: DeviceId,
    /// The TAP's name, in Firecracker's network namespace.
    #[serde(rename = "host_dev_name")]
    pub tap: String,
    /// The guest's address, as in `06:00:ac:10:00:02`; Firecracker chooses one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// What the guest may receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// What to change of an interface while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkInterfaceUpdate {
    /// Which interface.
    #[serde(rename = "iface_id")]
    pub id: DeviceId,
    /// What the guest may receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// What the guest may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}
