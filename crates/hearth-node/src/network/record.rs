//! What is written down of networks: the record of each network of machines, what a machine was refused, and whom it talked to.

use std::collections::BTreeMap;
use std::net::IpAddr;

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

/// Where a connection, or a question for a name, was to go. What its fields mean is said at [`super::Target`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TargetRecord {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
    /// Its number (IANA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u16>,
}

/// Something that a machine was refused. What its fields mean is said at [`super::Denial`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DenialRecord {
    pub(super) sequence: u64,
    /// RFC 3339.
    pub(super) time: String,
    #[serde(flatten)]
    pub(super) target: TargetRecord,
    pub(super) reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

/// Somebody whom a machine talked to, or tried to. What its fields mean is said at [`super::Contact`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ContactRecord {
    #[serde(flatten)]
    pub(super) target: TargetRecord,
    pub(super) allowed: bool,
}

impl NamedRecord for NetworkRecord {
    const FORMAT: u32 = FORMAT;

    fn name(&self) -> &str {
        &self.name
    }
}
