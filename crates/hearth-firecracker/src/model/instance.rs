//! The machine as a whole.

use serde::{Deserialize, Serialize};

use super::{
    Balloon, BootSource, CpuConfiguration, Drive, Entropy, Logger, MachineConfiguration, MetricsTarget,
    MmdsConfiguration, NetworkInterface, Vsock,
};

/// What Firecracker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// `Firecracker`.
    pub app_name: String,
    /// The id of its command line.
    pub id: String,
    /// What the machine does.
    pub state: InstanceState,
    /// The version, without a `v`.
    pub vmm_version: String,
}

/// What the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// It is not there yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

/// What to do once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Write metrics now.
    FlushMetrics,
    /// Start the machine.
    InstanceStart,
    /// Ask the guest to end, by its keyboard; Linux does when it has the driver.
    SendCtrlAltDel,
}

#[derive(Debug, Serialize)]
pub(crate) struct ActionRequest {
    pub(crate) action_type: Action,
}

/// What a machine that was started shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// Stand still.
    Paused,
    /// Go on.
    Resumed,
}

#[derive(Debug, Serialize)]
pub(crate) struct VmUpdate {
    pub(crate) state: VmState,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VersionReply {
    pub(crate) firecracker_version: String,
}

/// Everything that was configured. After a restore there is no boot source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct VmConfiguration {
    /// The balloon.
    pub balloon: Option<Balloon>,
    /// The drives.
    pub drives: Vec<Drive>,
    /// Kernel and command line.
    pub boot_source: Option<BootSource>,
    /// Flags of the processor.
    pub cpu_config: Option<CpuConfiguration>,
    /// The log.
    pub logger: Option<Logger>,
    /// Processors and memory.
    pub machine_config: Option<MachineConfiguration>,
    /// Where metrics go.
    pub metrics: Option<MetricsTarget>,
    /// How the guest gets at metadata.
    pub mmds_config: Option<MmdsConfiguration>,
    /// The network interfaces.
    pub network_interfaces: Vec<NetworkInterface>,
    /// The channel.
    pub vsock: Option<Vsock>,
    /// The source of entropy.
    pub entropy: Option<Entropy>,
}
