//! One machine's record, and the directory of them.

use std::io;
use std::path::Path;

use hearth_api::v1::{
    Border, Health, HealthCheck, MachineSpec, Origin, Owner, PortMapping, Stage, strict_spec,
};
use hearth_machine::{History, MachineId, Process, Signal};
use serde::{Deserialize, Serialize};

use crate::host::files;
use crate::layout::Layout;
use crate::ledger::RecordError;

const FILE: &str = "record.json";

/// The format that this code writes; it reads no other.
const FORMAT: u32 = 1;

/// What the node knows of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The record's format.
    pub format: u32,
    /// Counts changes; never goes back.
    pub generation: u64,
    /// Id.
    pub id: String,
    /// Name.
    pub name: String,
    /// The spec as it was accepted.
    #[serde(deserialize_with = "strict_spec")]
    pub spec: MachineSpec,
    /// Names of secrets; their values are in memory only.
    pub secrets: Vec<String>,
    /// Who made it, where that was not a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The image it was made from.
    pub image: ImageFact,
    /// What runs in it; its secrets are not here.
    pub process: ProcessFact,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; the last start.
    pub started_at: Option<String>,
    /// RFC 3339; the last end.
    pub finished_at: Option<String>,
    /// How it stands.
    pub state: RecordedState,
    /// The driver that runs it.
    pub driver: String,
    /// Why it is that one; absent in records of older nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_reason: Option<String>,
    /// Why it has the network that it has, when it asked for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_reason: Option<String>,
    /// What lies between it and the host.
    pub border: Border,
    /// The process of its virtual machine monitor, while there is one.
    pub vmm: Option<VmmFact>,
    /// Where the time of its last start went.
    pub stages: Vec<Stage>,
    /// The template that it is a clone of, since its last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What it booted with, or what the template or snapshot did that it was made of; since its last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootFact>,
    /// The snapshot that it was made of, by name and id, or the machine that it is a fork of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// It is being made of a snapshot, and nobody's until that is done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// The ports that are published, as long as it runs.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Its virtual processors stand still.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// It was told to end: if its monitor is gone, that is why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// The boot of the host in which it was started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_boot: Option<String>,
    /// What its restart policy asks for.
    #[serde(default, skip_serializing_if = "RestartFact::is_default")]
    pub restart: RestartFact,
    /// How it is found out whether it works: image and spec put together once, when it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// What is known of that since its last start, as of the last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// What decides, beside the machine's own shape, whether a monitor can go on with what another one has left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootFact {
    /// The digest of the kernel.
    pub kernel: String,
    /// The digest of the initramfs.
    pub initramfs: String,
    /// The monitor's version.
    pub version: String,
    /// What else of the monitor and of the host's processor goes into the state.
    pub fingerprint: String,
}

/// The history of a machine, as far as restart policies ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartFact {
    /// Somebody stopped it, and nobody has started it since.
    pub stopped_by_hand: bool,
    /// Restarts by the policy since the last start by hand.
    pub restarts: u32,
    /// Those of them since the last good run.
    pub in_a_row: u32,
}

impl RestartFact {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<History> for RestartFact {
    fn from(history: History) -> Self {
        Self {
            stopped_by_hand: history.stopped_by_hand,
            restarts: history.restarts,
            in_a_row: history.in_a_row,
        }
    }
}

impl From<RestartFact> for History {
    fn from(fact: RestartFact) -> Self {
        Self {
            stopped_by_hand: fact.stopped_by_hand,
            restarts: fact.restarts,
            in_a_row: fact.in_a_row,
        }
    }
}

/// What runs in a machine: image and spec put together once, when it was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFact {
    /// Entrypoint and command.
    pub arguments: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// Absolute path.
    pub working_directory: String,
    /// `name|uid[:group|gid]`.
    pub user: String,
    /// As `SIGTERM`.
    pub stop_signal: String,
}

impl From<&Process> for ProcessFact {
    fn from(process: &Process) -> Self {
        Self {
            arguments: process.arguments.clone(),
            environment: process.environment.clone(),
            working_directory: process.working_directory.clone(),
            user: process.user.clone(),
            stop_signal: process.stop_signal.to_string(),
        }
    }
}

impl From<&ProcessFact> for Process {
    fn from(fact: &ProcessFact) -> Self {
        Self {
            arguments: fact.arguments.clone(),
            environment: fact.environment.clone(),
            working_directory: fact.working_directory.clone(),
            user: fact.user.clone(),
            // Written by this code from a signal; a record that somebody edited gets the default.
            stop_signal: fact.stop_signal.parse().unwrap_or(Signal::TERM),
        }
    }
}

/// The image of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFact {
    /// Reference in full.
    pub reference: String,
    /// Manifest digest.
    pub digest: String,
}

/// The state as it is written down: what a new node needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedState {
    /// Never started.
    Created,
    /// A virtual machine belongs to it.
    Alive,
    /// Its workload has ended, and its restart policy is to start it again.
    Restarting {
        /// Exit code.
        exit_code: u8,
        /// Why, if not by itself.
        reason: Option<String>,
    },
    /// Its workload has ended.
    Exited {
        /// Exit code.
        exit_code: u8,
        /// Why, if not by itself.
        reason: Option<String>,
    },
    /// It did not come up, or died.
    Failed {
        /// What happened.
        reason: String,
    },
    /// Its removal has begun, and is to be finished.
    Removing,
}

/// Identifies a process beyond the reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmFact {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, proc_pid_stat(5).
    pub start_time: u64,
}

/// All records of a node.
#[derive(Debug, Clone)]
pub struct Records {
    layout: Layout,
}

impl MachineRecord {
    /// The format to put into a new record.
    pub const FORMAT: u32 = FORMAT;
}

impl Records {
    /// Keeps records in the machines' data directories.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Writes a record; the machine's directory must exist.
    ///
    /// # Errors
    /// Returns [`RecordError`]; the old record is untouched then.
    pub fn write(&self, id: MachineId, record: &MachineRecord) -> Result<(), RecordError> {
        let path = self.layout.machine_data(id).join(FILE);
        let bytes = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Malformed {
            path: path.clone(),
            source,
        })?;
        files::write_atomic(&path, &bytes, files::PRIVATE).map_err(|source| RecordError::Io { path, source })
    }

    /// Reads every record; a directory without one is what a crash left of a creation or a removal, and is returned as
    /// an orphan.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the directory of machines cannot be read.
    pub fn load(&self) -> Result<Loaded, RecordError> {
        let root = self.layout.machines_data();
        let at = |source| RecordError::Io {
            path: root.clone(),
            source,
        };
        let mut loaded = Loaded::default();
        let entries = match std::fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(loaded),
            Err(error) => return Err(at(error)),
        };
        for entry in entries {
            let directory = entry.map_err(at)?.path();
            let id = directory
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.parse().ok());
            let Some(id) = id else { continue };
            match read(&directory.join(FILE)) {
                Ok(record) => loaded.records.push((id, record)),
                Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    loaded.orphans.push(id);
                }
                Err(error) => loaded.unreadable.push(error),
            }
        }
        Ok(loaded)
    }
}

/// What [`Records::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Good records.
    pub records: Vec<(MachineId, MachineRecord)>,
    /// Directories without a record.
    pub orphans: Vec<MachineId>,
    /// Records that cannot be used; they are left alone.
    pub unreadable: Vec<RecordError>,
}

fn read(path: &Path) -> Result<MachineRecord, RecordError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bytes = std::fs::read(path).map_err(|source| RecordError::Io {
        path: path.to_owned(),
        source,
    })?;
    let malformed = |source| RecordError::Malformed {
        path: path.to_owned(),
        source,
    };
    let Format { format: found } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if found != FORMAT {
        return Err(RecordError::Format {
            wanted: FORMAT,
            path: path.to_owned(),
            found,
        });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: &str) -> MachineRecord {
        MachineRecord {
            format: FORMAT,
            generation: 1,
            id: id.to_owned(),
            name: "m".to_owned(),
            spec: MachineSpec {
                image: "busybox".to_owned(),
                ..MachineSpec::default()
            },
            secrets: vec!["TOKEN".to_owned()],
            owner: None,
            image: ImageFact {
                reference: "busybox".to_owned(),
                digest: "sha256:0".to_owned(),
            },
            process: ProcessFact {
                arguments: vec!["sh".to_owned()],
                environment: vec![],
                working_directory: "/".to_owned(),
                user: String::new(),
                stop_signal: "SIGTERM".to_owned(),
            },
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            started_at: None,
            finished_at: None,
            state: RecordedState::Exited {
                exit_code: 3,
                reason: None,
            },
            driver: "qemu".to_owned(),
            driver_reason: None,
            network_reason: None,
            border: Border::Emulated,
            vmm: Some(VmmFact {
                pid: 1,
                start_time: 2,
            }),
            ports: vec![],
            paused: false,
            restart: RestartFact::default(),
            health_check: None,
            health: None,
            template: None,
            boot: None,
            origin: None,
            unfinished: false,
            stages: vec![],
            stopping: false,
            host_boot: None,
        }
    }

    #[test]
    fn records_survive_and_what_is_none_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), root.path().join("run"), root.path().join("memory"));
        let records = Records::new(layout.clone());
        let (good, orphan, foreign) = ("0123456789ab", "0123456789ac", "0123456789ad");
        for id in [good, orphan, foreign, "not-an-id"] {
            std::fs::create_dir_all(root.path().join("machines").join(id)).unwrap();
        }
        records.write(good.parse().unwrap(), &record(good)).unwrap();
        std::fs::write(
            root.path().join("machines").join(foreign).join(FILE),
            r#"{"format":99}"#,
        )
        .unwrap();
        let loaded = records.load().unwrap();
        assert_eq!(loaded.records, [(good.parse().unwrap(), record(good))]);
        assert_eq!(loaded.orphans, [orphan.parse().unwrap()]);
        assert!(matches!(
            loaded.unreadable[..],
            [RecordError::Format { found: 99, .. }]
        ));
    }

    #[test]
    fn a_record_of_the_first_version_still_loads() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("machines/0123456789ab");
        std::fs::create_dir_all(&directory).unwrap();
        let text = r#"{
            "format": 1, "generation": 4, "id": "0123456789ab", "name": "old",
            "spec": {"image": "busybox"}, "secrets": [],
            "image": {"reference": "docker.io/library/busybox:latest", "digest": "sha256:0"},
            "process": {"arguments": ["sh"], "environment": [], "working_directory": "/", "user": "", "stop_signal": "SIGTERM"},
            "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:01Z", "finished_at": null,
            "state": "alive", "driver": "qemu", "border": "kvm", "vmm": {"pid": 7, "start_time": 99}, "stages": []
        }"#;
        std::fs::write(directory.join(FILE), text).unwrap();
        let layout = Layout::new(root.path(), root.path().join("run"), root.path().join("memory"));
        let loaded = Records::new(layout).load().unwrap();
        assert_eq!(loaded.records.len(), 1, "{:?}", loaded.unreadable);
        let record = &loaded.records[0].1;
        assert_eq!(
            (record.state.clone(), record.host_boot.clone()),
            (RecordedState::Alive, None)
        );
    }
}
