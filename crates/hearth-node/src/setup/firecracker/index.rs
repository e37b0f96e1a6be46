//! Which Firecracker is in use: one small JSON file beside the index of the other artefacts, which may not be there yet.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::index::{Stored, index_bytes, read_index};

/// The file's name in the directory of artefacts.
pub(super) const INDEX_NAME: &str = "firecracker.json";

/// The version of the file's format that is written, and the only one that is read.
const FORMAT: u32 = 1;

/// What is in use, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    /// An address, or the file that was named.
    origin: String,
    #[serde(flatten)]
    pub(super) installed: Installed,
}

/// The programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Installed {
    /// What both say.
    pub(super) version: String,
    pub(super) firecracker: Stored,
    pub(super) jailer: Option<Stored>,
}

impl Index {
    pub(super) fn new(installed: Installed, origin: String) -> Self {
        Self {
            format: FORMAT,
            origin,
            installed,
        }
    }

    /// Reads the index of a directory; `None` when there is none.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        read_index(&directory.join(INDEX_NAME), FORMAT)
    }

    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        index_bytes(self)
    }
}
