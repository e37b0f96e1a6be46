//! Pools: machines that are ready before somebody wants one.

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{DriverChoice, NetworkMode, NetworkPolicy};

/// Asks for a new pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Its name.
    pub name: String,
    /// What it is.
    pub spec: PoolSpec,
}

/// What a pool is; recorded as it came. Its machines hold: nothing runs in them but what is asked for later.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Image of its machines, which must be there.
    pub image: String,
    /// Machines that are kept ready; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Machines in all, those too that somebody has; twice `min` when absent, 1 at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// How old a machine that is ready becomes before it is replaced, in seconds; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Program and arguments that run once in a machine before it is ready, to their end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_command: Vec<String>,
    /// `NAME=value`, added to the image's ENV.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Memory of a machine in bytes; 256 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Its thousandths of a processor; 1000 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
    /// Which virtual machine monitor runs it.
    #[serde(default)]
    pub driver: DriverChoice,
    /// What network it sees; as that of any machine when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// What it may reach there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
    /// Names of the networks of machines that it is on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Certificates (PEM) of authorities that its image's programs trust beside those that they trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates: Vec<String>,
}

/// A pool as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What was asked for, and changed since.
    #[serde(deserialize_with = "told_spec")]
    pub spec: PoolSpec,
    /// Machines that are kept ready.
    pub min: u32,
    /// Machines in all.
    pub max: u32,
    /// RFC 3339.
    pub created_at: String,
    /// Machines that are ready.
    pub ready: u32,
    /// Machines that are brought up.
    pub starting: u32,
    /// Machines that somebody has.
    pub leased: u32,
    /// How many wait for a machine.
    pub waiting: u32,
    /// Why the last start failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Its machines.
    pub members: Vec<PoolMember>,
}

/// As part of an answer a spec may have fields that an older client does not know.
fn told_spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PoolSpec, D::Error> {
    let mut fields = serde_json::Map::deserialize(deserializer)?;
    let schema = schemars::schema_for!(PoolSpec);
    let known = schema
        .get("properties")
        .and_then(|properties| properties.as_object());
    fields.retain(|name, _| known.is_some_and(|known| known.contains_key(name)));
    serde_json::from_value(serde_json::Value::Object(fields)).map_err(D::Error::custom)
}

/// A machine of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolMember {
    /// Its name, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// How it stands.
    pub phase: PoolPhase,
    /// Its lease, while somebody has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
}

/// How a machine of a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolPhase {
    /// It is brought up.
    Starting,
    /// It stands still until somebody wants it.
    Ready,
    /// Somebody has it.
    Leased,
    /// It is being removed.
    Leaving,
}

/// Changes the size of a pool; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizePool {
    /// Machines that are kept ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Machines in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// Asks for a machine of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcquireMachine {
    /// How long the machine is one's own, in seconds; 300 when absent, a day at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// How long one may wait in the queue, in milliseconds; not at all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// A machine that somebody has for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// Twelve hexadecimal digits; who knows them may extend and release it.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// The machine's name.
    pub machine: String,
    /// RFC 3339: the machine is taken back then.
    pub expires_at: String,
}

/// Lets a lease last longer: so long from now on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendLease {
    /// In seconds; 300 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
}

/// Gives a machine back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseMachine {
    /// What becomes of it.
    #[serde(default)]
    pub then: AfterRelease,
}

/// What becomes of a machine that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AfterRelease {
    /// The pool gets a fresh one for it. Now by removing this one and starting another.
    #[default]
    Reset,
    /// It is removed.
    Discard,
}
