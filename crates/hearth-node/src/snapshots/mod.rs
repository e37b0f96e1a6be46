//! Snapshots on the disk: templates, which machines are clones of, and snapshots that somebody took.
//!
//! Owns their directories, manifests and files, and who may read or write them when. Knows no monitor: but for the guest's memory,
//! what is in the files is up to who writes them. Called by `machines`, and by the API to list and remove them.

mod archive;
mod form;
mod manifest;
mod named;
mod template;

pub use archive::ArchiveError;
pub use form::Form;
pub use manifest::{Description, Extent, Flaw, Moment, TemplateKey};
pub use named::{Draft, Held, Imported, Snapshot, SnapshotId, Snapshots, StoreError};
pub use template::{Building, InvalidId, Ready, Template, TemplateError, TemplateId, Templates, Turn};
