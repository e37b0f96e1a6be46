//! Snapshots on the disk: templates, which machines are clones of.
//!
//! Owns their directory, manifests and files, and who may read or write them when. Knows no monitor: what is in the files is up to
//! who writes them. Called by `machines`, and by the API to list and remove them.

mod manifest;
mod template;

pub use manifest::TemplateKey;
pub use template::{Building, InvalidId, Ready, Template, TemplateError, TemplateId, Templates, Turn};
