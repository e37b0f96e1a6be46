//! OCI references, registry, store, and layers to one read-only root file system image.
//!
//! What is parsed here was written by strangers: archives, manifests, configurations. Every parser is bounded by
//! [`Limits`], and nothing of an image becomes a path of the host. `hearth-node` is the caller.
//!
//! ```text
//! Reference --> registry | source --> store (blobs, index) --> rootfs (tar, tree) --> erofs
//! ```

mod config;
mod digest;
mod erofs;
#[cfg(fuzzing)]
pub mod fuzzing;
mod limits;
mod manifest;
mod progress;
mod reference;
mod registry;
mod rootfs;
mod source;
mod step;
mod store;

pub use config::{ConfigError, HealthTest, Healthcheck, ImageConfig};
pub use digest::{Digest, InvalidDigest};
pub use limits::Limits;
pub use manifest::ManifestError;
pub use progress::{Phase, Progress, ProgressSink, no_progress};
pub use reference::{InvalidReference, Reference, ReferenceFault, RegistryReference};
pub use registry::{
    Access, Credentials, InvalidMirror, Mirror, Registries, RegistryError, RegistrySettings, TokenError,
};
pub use rootfs::{ArchiveError, EntryError, MergeError, PathError, PaxError, RootfsError};
pub use source::{ArchiveFault, LayerError, SourceError};
pub use step::{StepWatch, watch_steps};
pub use store::{
    BlobError, Image, ImageDetails, ImportError, LayerDetails, PullError, Saving, Store, StoreError,
};
