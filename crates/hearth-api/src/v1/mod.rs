//! Version 1 of the wire types. Fields are added, never renamed; what a client does not know it ignores.
//!
//! Requests are strict: a node refuses a field that it does not know. So a field that is added to a request is not written when
//! it says nothing (`skip_serializing_if`), and a new client gets on with an old node until it asks for what is new.

pub mod doctor;
pub mod error;
pub mod event;
pub mod execute;
pub mod health;
pub mod image;
pub mod machine;
pub mod network;
pub mod node;
pub mod policy;
pub mod pool;
pub mod progress;
pub mod setup;
pub mod snapshot;
pub mod stats;
pub mod template;

pub use doctor::{DoctorCheck, DoctorReport, DoctorState};
pub use error::{ErrorBody, ErrorCode};
pub use event::{Event, EventAction, EventLine};
pub use execute::{ExecuteLine, ExecuteRequest, ExecuteResult, OutputFile};
pub use health::{Health, HealthCheck, HealthOptions, HealthProbe, HealthResult, HealthStatus};
pub use image::{
    BuildImage, Image, ImageConfig, ImageHealthCheck, ImageLayer, Login, PruneImages, PrunedImages,
    PullImage, Recipe, RegistryCredentials, SaveImages, TagImage,
};
pub use machine::{
    Border, CreateMachine, DriverChoice, ExecRequest, ExitStatus, ExtraHost, FileKind, FileStat, Machine,
    MachineSpec, MachineState, MachineStatus, MemoryBackend, NetworkMode, Owner, PortMapping, PortProtocol,
    ProcessInfo, ProcessList, PruneMachines, Pruned, Rate, RenameMachine, Stage, StopMachine, TmpfsMount,
    Ulimit, UpdateMachine, Uplink, strict_spec,
};
pub use network::{ConnectMachine, CreateNetwork, Network, NetworkMember};
pub use node::{NodeStatus, StopNode};
pub use policy::{Contact, ContactList, Denial, NetworkPolicy, PolicyPreset, PolicyTarget};
pub use pool::{
    AcquireMachine, AfterRelease, CreatePool, ExtendLease, Lease, Pool, PoolMember, PoolPhase, PoolSpec,
    ReleaseMachine, ResizePool,
};
pub use progress::{Progress, ProgressLine, Unit};
pub use setup::{Artefact, ArtefactKind, FirecrackerSetup, SetupReport, SetupRequest};
pub use snapshot::{
    CreateSnapshot, CreatedSnapshot, Extent, ForkMachine, Forked, Origin, PruneSnapshots, PrunedSnapshots,
    RestoreSnapshot, RollbackMachine, Snapshot,
};
pub use stats::{GuestStats, MachineStats, MonitorStats, NetworkStats, StatsSample};
pub use template::{KeptGuest, PruneTemplates, PrunedTemplates, Template, TemplateMoment};
