//! What a machine's actor can be asked, and what it shows.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::v1::{MachineSpec, NetworkMode, NetworkPolicy, PolicyPreset};
use hearth_machine::{Health, MachineName, NetworkName, State};
use tokio::sync::oneshot;

use super::capture::Capture;
use super::error::MachineError;
use super::life::Running;
use super::output::Attached;
use super::restore::Restoration;
use crate::guest::{Guest, Input};
use crate::records::MachineRecord;

/// What everybody may see of a machine.
#[derive(Debug, Clone)]
pub struct View {
    /// How it stands.
    pub state: State,
    /// The state in which its last start ended; it stays when the machine is removed.
    pub end: Option<State>,
    /// Its record.
    pub record: Arc<MachineRecord>,
    /// Whether its workload works.
    pub health: Option<Health>,
    /// The guest, while its workload runs.
    pub(super) running: Option<Arc<Running>>,
}

/// A client's connection to a workload.
#[derive(Debug)]
pub struct AttachedMachine {
    /// What it prints from here on.
    pub output: Attached,
    /// Its input, once it runs.
    pub input: Option<Input>,
}

/// What is to be different; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Labels to set.
    pub labels: BTreeMap<String, String>,
    /// Names of labels to remove.
    pub remove_labels: Vec<String>,
    /// Restart policy, as the wire has it.
    pub restart: Option<String>,
    /// Life time from the start on; zero for none.
    pub timeout: Option<Duration>,
    /// How long it may do nothing; zero for ever.
    pub idle_timeout: Option<Duration>,
    /// What it may reach over its network, as the wire has it.
    pub policy: Option<NetworkPolicy>,
}

/// A network that a machine is to be on, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkChange {
    /// Put it on this one.
    Connect(NetworkName),
    /// Take it off this one.
    Disconnect(NetworkName),
}

impl Change {
    pub(super) fn apply(self, spec: &mut MachineSpec) {
        spec.labels.retain(|name, _| !self.remove_labels.contains(name));
        spec.labels.extend(self.labels);
        spec.restart = self.restart.or(spec.restart.take());
        if let Some(policy) = self.policy {
            // The mode follows the preset, which a machine that has a network may change.
            spec.network = match policy.preset {
                Some(PolicyPreset::Open) => Some(NetworkMode::Open),
                Some(PolicyPreset::Locked | PolicyPreset::Balanced) => Some(NetworkMode::Filtered),
                None => spec.network,
            };
            spec.policy = Some(policy);
        }
        let changed = |new: Option<Duration>, old| match new {
            Some(limit) => Some(limit.as_secs()).filter(|&seconds| seconds > 0),
            None => old,
        };
        spec.timeout_seconds = changed(self.timeout, spec.timeout_seconds);
        spec.idle_timeout_seconds = changed(self.idle_timeout, spec.idle_timeout_seconds);
    }
}

/// What a machine's actor can be asked.
#[derive(Debug)]
pub(super) enum Command {
    Start {
        terminal: Option<(u16, u16)>,
        reply: Reply<()>,
    },
    Stop {
        grace: Duration,
        reply: Reply<()>,
    },
    Kill {
        reply: Reply<()>,
    },
    Restart {
        grace: Duration,
        reply: Reply<()>,
    },
    /// What comes is somebody's wish: the restart policy has no say.
    EndByHand {
        reply: Reply<()>,
    },
    Rename {
        name: MachineName,
        reply: Reply<()>,
    },
    Update {
        change: Change,
        reply: Reply<()>,
    },
    Network {
        change: NetworkChange,
        reply: Reply<()>,
    },
    Pause {
        reply: Reply<()>,
    },
    Resume {
        reply: Reply<()>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    Attach {
        reply: Reply<Attached>,
    },
    Capture(Box<Capture>),
    /// Start where another machine was captured.
    Restore {
        source: Arc<Restoration>,
        reply: Reply<()>,
    },
    /// What is being made of a snapshot is done: it is somebody's from here on.
    Finish {
        reply: Reply<()>,
    },
    Rollback(Box<Rollback>),
}

/// What a machine is to be again.
#[derive(Debug)]
pub(super) struct Rollback {
    /// A copy of its disk as it was, on the same file system.
    pub(super) disk: PathBuf,
    /// Where it is to go on; absent when it is to boot.
    pub(super) source: Option<Arc<Restoration>>,
    pub(super) reply: Reply<()>,
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, MachineError>>;

/// Commands that wait for the actor.
pub(super) const MAILBOX: usize = 32;

impl View {
    /// Returns the guest of a running machine.
    ///
    /// # Errors
    /// Returns [`MachineError::NotRunning`] or [`MachineError::Paused`].
    pub fn guest(&self) -> Result<&Guest, MachineError> {
        self.running().map(|running| &running.guest)
    }

    pub(super) fn running(&self) -> Result<&Arc<Running>, MachineError> {
        let not_running = || MachineError::NotRunning {
            name: self.record.name.clone(),
            state: self.state.name(),
        };
        if self.state == State::Paused {
            return Err(MachineError::Paused {
                name: self.record.name.clone(),
            });
        }
        self.running.as_ref().ok_or_else(not_running)
    }
}
