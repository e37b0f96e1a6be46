//! The record of one network of machines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::NamedRecord;

/// The format that this code writes; it reads no other.
const FORMAT: u32 = 1;

/// What the node knows of a network, and which places in it are taken: nobody else gives them away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// The record's format.
    pub format: u32,
    /// Name.
    pub name: String,
    /// Its number among the networks of this node, 1 at least: names of its interfaces are made of that.
    pub number: u16,
    /// Range of IPv4 addresses, with its prefix.
    pub v4: String,
    /// Range of IPv6 addresses, with its prefix.
    pub v6: String,
    /// The longest packet, in bytes.
    pub mtu: u32,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    /// The machines on it, by id.
    pub members: BTreeMap<String, MemberPlace>,
}

/// A machine's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPlace {
    /// The machine's name.
    pub name: String,
    /// Counts from 0; the addresses are made of it.
    pub place: u32,
}

impl NetworkRecord {
    /// The format to put into a new record.
    pub const FORMAT: u32 = FORMAT;
}

impl NamedRecord for NetworkRecord {
    const FORMAT: u32 = FORMAT;

    fn name(&self) -> &str {
        &self.name
    }
}
