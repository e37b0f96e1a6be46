//! Networks of machines, which reach each other by name there.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for a new network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Its name: `[a-z0-9][a-z0-9-]*`, 63 bytes at most.
    pub name: String,
    /// Private networks with their prefixes, one of IPv4 and one of IPv6 at most; what is absent is chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    /// The longest packet, in bytes: 1280 to 9000; 1500 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A network as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its ranges of addresses, with their prefixes.
    pub subnets: Vec<String>,
    /// The longest packet, in bytes.
    pub mtu: u32,
    /// The bridge that carries it on the host, while machines on it run; empty where the node is not root's, and a process does.
    pub bridge: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    /// The machines on it, by name.
    pub machines: Vec<NetworkMember>,
}

/// A machine on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkMember {
    /// Its id.
    pub machine: String,
    /// Its name, by which the others find it.
    pub name: String,
    /// Its addresses there; it keeps them as long as it is on the network.
    pub addresses: Vec<String>,
    /// Whether it is there now.
    pub running: bool,
}

/// Puts a machine on a network, or takes it off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectMachine {
    /// Machine, by name, id or start of an id.
    pub machine: String,
}
