//! The metadata service.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::DeviceId;

/// How the guest gets at the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmdsConfiguration {
    /// The protocol.
    #[serde(default)]
    pub version: MmdsVersion,
    /// The interfaces on which it answers.
    pub network_interfaces: Vec<DeviceId>,
    /// Its address, link-local; 169.254.169.254 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
}

/// The protocol of the metadata service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// Requests without a token; deprecated, and Firecracker's default.
    #[default]
    V1,
    /// Requests carry the token of a session, so that a program that is made to fetch a URL gets nothing.
    V2,
}
