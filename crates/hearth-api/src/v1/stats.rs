//! What machines use.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One look at machines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StatsSample {
    /// RFC 3339.
    pub taken_at: String,
    /// The machines, in the order in which they were named, or oldest first.
    pub machines: Vec<MachineStats>,
}

/// What one machine uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStats {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Bytes that its writable disk takes on the host, whether it runs or not.
    pub disk_bytes: u64,
    /// What its monitor takes of the host, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<MonitorStats>,
    /// What has gone through its network since its monitor's start; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkStats>,
    /// What its guest says of itself; absent while the guest does not run, stands still or is too busy to answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStats>,
}

/// What a virtual machine monitor, with the guest in it, takes of the host, as the host's kernel counts it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MonitorStats {
    /// Processor time since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Processor time since the look before, in percent of one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    /// Its memory (proportional set size) in bytes: what it has to itself, and its part of what it shares.
    pub memory_bytes: u64,
    /// Its threads.
    pub threads: u32,
    /// Bytes of the guest channel from the guest, since this node has known it: all of standard output, files and ports.
    pub channel_received_bytes: u64,
    /// Bytes of the guest channel to the guest.
    pub channel_sent_bytes: u64,
}

/// What has gone through a machine's network, as the host's kernel counts it at the machine's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkStats {
    /// Bytes of frames to the machine.
    pub received_bytes: u64,
    /// Frames to the machine; with offloads one may be as long as many packets.
    pub received_packets: u64,
    /// Packets to the machine that were dropped: its queue was full, or its rate used up.
    pub received_dropped: u64,
    /// Bytes of frames from the machine, those that were refused among them.
    pub sent_bytes: u64,
    /// Frames from the machine.
    pub sent_packets: u64,
    /// Packets from the machine that its policy refused, that were forged, or for which its rate was used up.
    pub sent_dropped: u64,
}

/// What a guest says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestStats {
    /// Processor time of all its processes since its start, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory that cannot be freed, in bytes.
    pub memory_used_bytes: u64,
    /// Memory that its kernel manages, in bytes.
    pub memory_total_bytes: u64,
    /// What is in use of its writable disk's file system, in bytes.
    pub disk_used_bytes: u64,
    /// The size of that file system, in bytes.
    pub disk_total_bytes: u64,
    /// Processes of the workload, and those beside it.
    pub processes: u32,
}
