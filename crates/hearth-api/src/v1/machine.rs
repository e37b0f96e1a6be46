//! Machines: what is asked for, and what is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::health::{Health, HealthCheck, HealthOptions};
use super::policy::NetworkPolicy;

/// Asks for a new machine. It is created, not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateMachine {
    /// Its name; made up when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// What it is.
    #[serde(deserialize_with = "strict_spec")]
    pub spec: MachineSpec,
    /// Secret environment of the workload, by name. Kept in the node's memory only: it is in no record, no answer, no log,
    /// and gone when the node ends.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
}

/// What a machine is; recorded as it came. As part of an answer it may have fields that an older client does not know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MachineSpec {
    /// Image reference, as in `debian:12`, `localhost:5000/app`, `oci:DIR:TAG`, `docker-archive:FILE`, `dir:DIR`.
    pub image: String,
    /// Replaces the image's CMD when not empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Nothing runs in it, neither the image's command nor another: it waits for processes beside, until it is stopped. It needs
    /// nothing of the image.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hold: bool,
    /// Replaces the image's ENTRYPOINT (and drops its CMD); an empty list is no entrypoint.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, added to the image's ENV; later ones win.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Replaces the image's WORKDIR.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// Replaces the image's USER: `name|uid[:group|gid]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Host name inside; the machine's id when absent.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Labels, for people and programs.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Thousandths of a processor; 1000 when absent.
    #[serde(default)]
    pub cpu_milli: Option<u32>,
    /// Memory in bytes; 256 MiB when absent, 64 MiB at least.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Size of the machine's writable disk in bytes; 2 GiB when absent. It takes what is written, not more.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// The workload gets a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// The workload's standard input is kept open for attached clients.
    #[serde(default)]
    pub stdin: bool,
    /// The machine is removed when it ends.
    #[serde(default)]
    pub auto_remove: bool,
    /// The machine is stopped when it has run so long, in seconds.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// The machine is stopped when it has done nothing for so long, in seconds: no input, no output, no connection's bytes, no
    /// process beside the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// Whether its workload is started again: `no`, `on-failure[:N]`, `always`, `unless-stopped`; `no` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// Which virtual machine monitor runs it.
    #[serde(default)]
    pub driver: DriverChoice,
    /// The signal that asks the workload to end, as `SIGTERM` or `15`; replaces the image's STOPSIGNAL.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Ports of the machine's loopback that the host publishes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// An init is PID 1 of the workload: it reaps orphans and passes signals on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub init: bool,
    /// The workload cannot write to its root file system.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// File systems in the guest's memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<TmpfsMount>,
    /// More lines of /etc/hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<ExtraHost>,
    /// Limits of each process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Groups of the user beside its own, by name or number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What of its output is kept at most, in bytes; 64 MiB when absent, 64 KiB at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_max_bytes: Option<u64>,
    /// How to find out whether it works; as the image says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthOptions>,
    /// It boots at every start, instead of being a clone of a template.
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_template: bool,
    /// What network it sees. When absent, `filtered` where the node and the driver can give that; elsewhere `none`, or `isolated` where
    /// something else asks for an interface. A machine's spec says what it got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// What it may reach there; as the network's mode says when absent. Without a mode, the preset chooses one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
    /// Names of the networks of machines that it is on: it reaches their machines, by name. Needs `filtered` or `open`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Where it leads out; by the node's own bridge when absent. Needs `filtered` or `open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
    /// IP addresses of servers that answer for names there, as the machine's gateway asks them; the node's when empty, 3 at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub name_servers: Vec<String>,
    /// Certificates (PEM) of authorities that its image's programs trust beside those that they trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates: Vec<String>,
    /// How much its network interface may carry, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<Rate>,
    /// How much its writable disk may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<Rate>,
    /// What the metadata service tells it, at 169.254.169.254 by the protocol of version 2 (with a token): a JSON object. It is kept
    /// and shown as it is: no place for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
    /// Where its memory comes from when it is restored, as a clone of a template is; the file when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_backend: Option<MemoryBackend>,
}

/// A place on a bridge of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// The bridge's name.
    pub bridge: String,
    /// The machine's addresses there with the prefixes of their networks, one of IPv4 and one of IPv6 at most. When empty, it asks for one
    /// (DHCP), and believes what routers announce of IPv6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Who passes on what is for others, one a family at most; nobody when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
}

/// Where the memory of a restored machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryBackend {
    /// The file, mapped privately: machines share what they do not write.
    File,
    /// A process that serves page faults (userfaultfd), one per file (Firecracker).
    Pager,
}

/// What network a machine sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its loopback.
    None,
    /// An interface whose other end, the TAP `tap0` in a network namespace of the machine's own, leads nowhere.
    Isolated,
    /// An interface that leads to the internet: names, web, ssh and git. Private networks, the host, other machines and metadata
    /// services are out of reach.
    Filtered,
    /// An interface that leads wherever the host gets, but to the host itself, other machines and metadata services.
    Open,
}

/// How many bytes may pass in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// In the long run.
    pub bytes_per_second: u64,
    /// So many beyond that, once, at the beginning.
    #[serde(default)]
    pub burst_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

/// A file system in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TmpfsMount {
    /// Absolute path.
    pub path: String,
    /// As docker has them: `rw`, `ro`, `exec`, `noexec`, `suid`, `nosuid`, `dev`, `nodev`, `size=64m`, `mode=1777`, `uid=`,
    /// `gid=`, with commas between; `noexec,nosuid,nodev` holds unless said otherwise.
    #[serde(default)]
    pub options: String,
}

/// A name and its address in /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// IP address.
    pub address: String,
}

/// A limit of a process, as in setrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// As in `nofile`.
    pub name: String,
    /// The limit in force; -1 for none.
    pub soft: i64,
    /// What it can be raised to; -1 for anything.
    pub hard: i64,
}

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl PortProtocol {
    /// Tells whether it is what a port carries about which nothing is said.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for PortProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of a machine's loopback, reachable on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// IP address of the host; all of them (`0.0.0.0`) when absent.
    #[serde(default)]
    pub address: Option<String>,
    /// Port of the host; 0 for one that is free.
    #[serde(default)]
    pub host: u16,
    /// Port of the machine.
    pub guest: u16,
    /// What it carries; `tcp` when absent.
    #[serde(default, skip_serializing_if = "PortProtocol::is_default")]
    pub protocol: PortProtocol,
}

/// Reads a spec that is to be carried out, and refuses a field that it does not know: what somebody asked for and would not get
/// must not pass in silence. For requests and records; `deserialize_with` of serde.
///
/// # Errors
/// The unknown field's name, or what else is wrong.
pub fn strict_spec<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MachineSpec, D::Error> {
    let fields = serde_json::Map::deserialize(deserializer)?;
    // The schema knows every field, the ones too that are not written when they say nothing.
    static SCHEMA: LazyLock<schemars::Schema> = LazyLock::new(|| schemars::schema_for!(MachineSpec));
    let known = SCHEMA
        .get("properties")
        .and_then(|properties| properties.as_object());
    let is_known = |name: &str| known.is_some_and(|known| known.contains_key(name));
    if let Some(unknown) = fields.keys().find(|name| !is_known(name)) {
        return Err(D::Error::custom(format!("unknown field `{unknown}` in the spec")));
    }
    serde_json::from_value(serde_json::Value::Object(fields)).map_err(D::Error::custom)
}

/// Which virtual machine monitor runs a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriverChoice {
    /// The best one this host can run.
    #[default]
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker.
    Firecracker,
}

/// What lies between the workload and the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Border {
    /// Hardware virtualization.
    Kvm,
    /// An emulated processor: correct, slower, and a weaker border than hardware.
    Emulated,
}

/// A machine as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// Twelve hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What was asked for.
    pub spec: MachineSpec,
    /// Names of its secrets; never their values.
    pub secrets: Vec<String>,
    /// Manifest digest of its image.
    pub image_digest: String,
    /// Entrypoint and command as they run.
    pub arguments: Vec<String>,
    /// How it stands.
    pub state: MachineState,
    /// RFC 3339.
    pub created_at: String,
    /// The virtual machine monitor, as in `qemu`.
    pub driver: String,
    /// Why it is that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_reason: Option<String>,
    /// Why it has the network that its spec says, when none was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_reason: Option<String>,
    /// The address of IPv4 that it was given on its bridge of the host's (DHCP), while it has one. In answers about one machine alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_address: Option<String>,
    /// What lies between it and the host.
    pub border: Border,
    /// Virtual processors.
    pub vcpus: u32,
    /// Processor quota in microseconds for each 100 ms, where less than its virtual processors was asked for.
    pub cpu_quota_us: Option<u64>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The ports that are published now.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    /// Restarts by its policy since the last start by hand.
    #[serde(default)]
    pub restart_count: u32,
    /// How it is found out whether it works, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Who made it, where that was not a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Counts changes of this machine's record.
    pub generation: u64,
    /// What it was made of, where that was not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<super::Origin>,
    /// The template that it is a clone of, since its last start; absent when it booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Where the time of its last start went, in order.
    pub stages: Vec<Stage>,
}

/// Who made a machine, where that was not a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// One execution of code; it goes with that.
    Execute,
    /// The pool of that name.
    Pool(String),
}

/// A stretch of a machine's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// How a machine stands, and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineState {
    /// In one word.
    pub status: MachineStatus,
    /// The workload's exit code, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Why it failed or ended otherwise than by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether its workload works, since its last start, where that is found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Process id of the virtual machine monitor, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// RFC 3339; the workload's last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// RFC 3339; the workload's last end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// The state of a machine in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineStatus {
    /// Never started.
    Created,
    /// Its virtual machine boots.
    Starting,
    /// Its workload runs.
    Running,
    /// Its virtual processors stand still.
    Paused,
    /// It was asked to end.
    Stopping,
    /// Its workload has ended, and its restart policy will start it again.
    Restarting,
    /// Its workload has ended.
    Exited,
    /// It did not come up, or its virtual machine died.
    Failed,
    /// It is being removed.
    Removing,
}

/// How a workload or an exec ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExitStatus {
    /// The exit code: its own, or 128 plus the number of the signal that ended it.
    pub exit_code: u8,
    /// Why, when it is not the program's own doing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Asks for a process beside the workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, added to the workload's own environment.
    #[serde(default)]
    pub environment: Vec<String>,
    /// Working directory; the workload's when absent.
    #[serde(default)]
    pub working_directory: Option<String>,
    /// User; the workload's when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// A terminal of this size (rows, columns).
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
    /// Standard input is connected.
    #[serde(default)]
    pub stdin: bool,
    /// The process goes on without this client, and what it prints is dropped: the stream tells that it runs and ends with
    /// exit code 0.
    #[serde(default, skip_serializing_if = "is_false")]
    pub detach: bool,
}

/// Asks a machine to end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopMachine {
    /// Seconds before it is killed; 10 when absent.
    #[serde(default)]
    pub grace_seconds: Option<u32>,
}

/// The processes of a machine's workload, and those beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessList {
    /// How many there are.
    pub total: u32,
    /// The first 256 of them, by number.
    pub processes: Vec<ProcessInfo>,
}

/// One process, as it is counted inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: u32,
    /// Its parent's; 0 for one from outside.
    pub parent_pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// State, as `ps` has it: `R`, `S`, `D`, `Z`, `T`.
    pub state: String,
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in bytes.
    pub memory_bytes: u64,
    /// Arguments with spaces between them, the first 200 bytes.
    pub command: String,
}

/// Gives a machine another name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RenameMachine {
    /// The new name.
    pub name: String,
}

/// Changes a machine, whether it runs or not; what is absent stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateMachine {
    /// Labels to set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names of labels to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove_labels: Vec<String>,
    /// Restart policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// Life time in seconds, counted from the start; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u64>,
    /// How long it may do nothing, in seconds; 0 for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u64>,
    /// What it may reach from now on, instead of what it might.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<NetworkPolicy>,
}

/// Removes machines that have ended, or were never started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneMachines {
    /// Which of them, as `KEY=VALUE`: `label=NAME[=VALUE]`, `label!=NAME[=VALUE]`, `until=TIME` for those that were created before (RFC
    /// 3339, seconds since 1970, or a time span back from now).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Pruned {
    /// Ids of the machines.
    pub machines: Vec<String>,
    /// What their disks and logs took.
    pub reclaimed_bytes: u64,
}

/// What a path in a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileStat {
    /// What it is, symbolic links followed.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// A file's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Something else.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_refused_in_a_request_and_passed_over_in_an_answer() {
        let asked = |spec: &str| serde_json::from_str::<CreateMachine>(&format!(r#"{{"spec":{spec}}}"#));
        assert_eq!(asked(r#"{"image":"a","terminal":true}"#).unwrap().spec.image, "a");
        let refused = asked(r#"{"image":"a","volumes":[]}"#).unwrap_err();
        assert!(
            refused.to_string().starts_with("unknown field `volumes`"),
            "{refused}"
        );
        assert!(serde_json::from_str::<CreateMachine>(r#"{"spec":{"image":"a"},"x":1}"#).is_err());
        assert!(asked(r#"{"terminal":true}"#).is_err(), "a spec has an image");
        let told: MachineSpec = serde_json::from_str(r#"{"image":"a","volumes":[]}"#).unwrap();
        assert_eq!(told.image, "a");
    }

    #[test]
    fn every_field_of_a_spec_is_known_to_a_request() {
        let spec = MachineSpec {
            image: "a".to_owned(),
            ..MachineSpec::default()
        };
        let request = serde_json::json!({ "spec": spec });
        let read: CreateMachine = serde_json::from_value(request).unwrap();
        assert_eq!(read.spec, spec);
    }
}
