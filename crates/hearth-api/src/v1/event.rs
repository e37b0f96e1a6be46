//! What happens to machines.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that has happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its number: one more than that of the event before, over all machines of the node and over its restarts.
    pub sequence: u64,
    /// RFC 3339.
    pub time: String,
    /// What has happened.
    pub action: EventAction,
    /// The machine's id.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Its image, as it was asked for.
    pub image: String,
    /// Its labels; absent where they take more than 1 KiB together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What belongs to the action: `exit_code`, `reason`, `signal`, `old_name`, `command`, `health_status`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// What has happened. Names are docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventAction {
    /// It was made.
    Create,
    /// Its workload runs.
    Start,
    /// Its workload, or its virtual machine, has ended.
    Die,
    /// Somebody asked it to end, and it has.
    Stop,
    /// Somebody sent its workload a signal.
    Kill,
    /// Its virtual processors stand still.
    Pause,
    /// They go on.
    Unpause,
    /// Somebody stopped it and started it again.
    Restart,
    /// It has another name.
    Rename,
    /// Labels, restart policy or time limits have changed.
    Update,
    /// It is gone.
    Destroy,
    /// A process was started beside its workload.
    ExecStart,
    /// Such a process has ended.
    ExecDie,
    /// A health check has another result.
    HealthStatus,
    /// Its workload ran out of memory.
    Oom,
}

/// A line of the stream of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventLine {
    /// An event.
    Event(Event),
    /// So many events before the next one are not kept any more: the reader was too slow, or asked for what is too old.
    Lost(u64),
}

impl EventAction {
    /// Returns the name, as the wire has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Die => "die",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Restart => "restart",
            Self::Rename => "rename",
            Self::Update => "update",
            Self::Destroy => "destroy",
            Self::ExecStart => "exec_start",
            Self::ExecDie => "exec_die",
            Self::HealthStatus => "health_status",
            Self::Oom => "oom",
        }
    }
}
