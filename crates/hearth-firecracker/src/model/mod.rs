//! What the requests and replies of the API say, as `src/firecracker/swagger/firecracker.yaml` of v1.12.1 has it.
//!
//! A request says only what the caller set; a reply may say more than is known here. Sizes and times have their units in
//! their names. Paths are Firecracker's to resolve: relative ones from its working directory, which is what lets clones
//! of one snapshot have files of their own.

mod balloon;
mod cpu;
mod drive;
mod id;
mod instance;
mod limit;
mod machine;
mod metadata;
mod network;
mod observe;
mod snapshot;
mod vsock;

pub use balloon::{Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
pub use cpu::{
    Bitmap, CpuConfiguration, CpuidModifier, CpuidRegister, CpuidRegisterModifier, InvalidBitmap, MsrModifier,
};
pub use drive::{Access, CacheType, Drive, DriveBackend, DriveUpdate, IoEngine};
pub use id::{DeviceId, InvalidId};
pub use instance::{Action, InstanceInfo, InstanceState, VmConfiguration, VmState};
pub(crate) use instance::{ActionRequest, VersionReply, VmUpdate};
pub use limit::{RateLimiter, TokenBucket};
pub use machine::{BootSource, CpuTemplate, HugePages, MachineConfiguration, MachineConfigurationUpdate};
pub use metadata::{MmdsConfiguration, MmdsVersion};
pub use network::{NetworkInterface, NetworkInterfaceUpdate};
pub use observe::{LogLevel, Logger, MetricsTarget};
pub use snapshot::{LoadSnapshot, MemoryBackend, NetworkOverride, Snapshot, SnapshotKind};
pub use vsock::{Entropy, Vsock};

#[cfg(test)]
mod tests;
