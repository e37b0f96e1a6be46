//! The domain of Hearth, pure: what a machine is, which states it has, what a request asks for.
//!
//! Nothing here can fail for outside reasons: no tokio, no file, no process, no clock, no randomness, no
//! serde. Those are arguments. `hearth-node` is the caller; `hearth-cli` uses the notations.

#![forbid(unsafe_code)]

pub mod certificate;
pub mod container;
pub mod execute;
pub mod filter;
pub mod health;
pub mod id;
pub mod network;
pub mod policy;
pub mod pool;
pub mod process;
pub mod restart;
pub mod signal;
pub mod size;
pub mod spec;
pub mod state;
pub mod subnet;
pub mod uplink;

pub use container::{Container, ContainerError, ExtraHost, Limit, Tmpfs};
pub use filter::{Filters, InvalidFilter};
pub use health::{Health, HealthCheck, HealthOptions, HealthStatus, Probe, ProbeChoice, ProbeResult};
pub use id::{MachineId, MachineName};
pub use network::{InvalidNetworkName, InvalidRate, MacAddress, NetworkMode, NetworkName, Rate};
pub use policy::{Policy, PolicyError, Preset};
pub use process::{ImageDefaults, ImageHealthCheck, Process};
pub use restart::{History, InvalidRestartPolicy, RestartPolicy};
pub use signal::Signal;
pub use size::{ByteSize, CpuMilli, Shape};
pub use spec::{
    DriverChoice, HostLimits, MemoryBackend, PORTS_MAX, PublishedPort, Spec, SpecError, Transport,
};
pub use state::{Ended, Event, Refused, State};
pub use subnet::{InvalidSubnet, Subnets};
pub use uplink::{InvalidUplink, Uplink};
