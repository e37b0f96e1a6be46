//! What a machine may reach, what it was refused, and whom it talked to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a machine may reach over its network. What is denied is denied, whatever allows it; then counts what is allowed, and then the
/// preset.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicy {
    /// What holds where no rule does; that of the network's mode when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<PolicyPreset>,
    /// What is allowed beside it: `HOST[:PORT]`, `*.domain[:PORT]`, `CIDR[:PORT]`, `*:PORT`; 256 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// What is denied; names without a port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

/// What holds where no rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyPreset {
    /// Nothing is reached, and no name is known.
    Locked,
    /// The internet is: names, web, ssh and git; no private networks. It is that of the mode `filtered`.
    Balanced,
    /// Everything is that the host reaches, but for the host itself, other machines and metadata services. It is that of the mode `open`.
    Open,
}

/// Something that a machine was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Denial {
    /// One more than that of the machine's denial before.
    pub sequence: u64,
    /// RFC 3339.
    pub time: String,
    /// The machine's id.
    pub machine: String,
    /// What it tried to reach.
    #[serde(flatten)]
    pub target: PolicyTarget,
    /// Which rule decided.
    pub reason: String,
    /// What would allow it, where something does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Somebody whom a machine talked to, or tried to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Contact {
    /// Who.
    #[serde(flatten)]
    pub target: PolicyTarget,
    /// It was let out; the last time, where it was not always.
    pub allowed: bool,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContactList {
    /// 1024 at most.
    pub contacts: Vec<Contact>,
}

/// Where a connection, or a question for a name, was to go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PolicyTarget {
    /// The name that was asked for, or by which the address was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// IP address; absent where a name was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `tcp`, `udp`, `icmp` or `protocol NUMBER`; `dns` where a name was asked for.
    pub protocol: String,
    /// Port, where the protocol has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}
