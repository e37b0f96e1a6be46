//! Layers to one read-only root file system image, by streaming: content goes from the decompressed archive straight
//! into the image; nothing of a layer is ever unpacked as files onto the host. `crate::store` calls it.
//!
//! ```text
//! blob --(thread: read, decompress, hash)--> tar --> tree (what there is) --> erofs writer --> image
//! ```

mod build;
mod path;
mod pax;
mod sparse;
mod stream;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

pub use build::{EntryError, RootfsError};
pub(crate) use build::{Job, LayerBlob, build};
pub use path::PathError;
pub use pax::PaxError;
pub(crate) use stream::{CountHandle, decompressed, starts_compressed};
pub use tar::ArchiveError;
pub(crate) use tar::{Budget, Kind, TarReader};
pub use tree::MergeError;
