//! The index of artefacts: one small JSON file that says which kernel, modules, agent and initramfs are in use.
//!
//! It is replaced by an atomic rename, last, after everything that it names is on the disk: whoever reads it sees
//! the old set or the new one, whole. The files it names are called by their digests and never change.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The file's name in the directory of artefacts.
pub(super) const INDEX_NAME: &str = "index.json";

/// What unfinished files and directories are called before the random part of their names.
pub(super) const UNFINISHED: &str = ".unfinished-";

/// The version of the file's format that is written, and the only one that is read.
const FORMAT: u32 = 1;

/// The set of artefacts that machines boot with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    format: u32,
    pub(super) kernel: Kernel,
    /// Absent when the kernel has everything built in.
    pub(super) modules: Option<Modules>,
    pub(super) agent: Agent,
    pub(super) initramfs: Stored,
}

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) version: String,
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
}

/// The kernel, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kernel {
    #[serde(flatten)]
    pub(super) stored: Stored,
    pub(super) origin: Origin,
}

/// Where a kernel came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A package of the distribution.
    Package {
        /// The package's file name, which tells name, version and architecture.
        file: String,
    },
    /// Built here from the distribution's source.
    Built {
        /// The source package's file name.
        source: String,
        /// The digest of the configuration fragment.
        configuration: Digest,
    },
    /// A file that the user gave.
    File {
        /// The file.
        path: PathBuf,
    },
}

/// The modules of a kernel, and what made them these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Modules {
    #[serde(flatten)]
    pub(super) stored: Stored,
    /// The directory that they were taken from, where the user named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tree: Option<PathBuf>,
    /// An index that an earlier Hearth wrote has none, which is no selection of any Hearth.
    #[serde(default)]
    pub(super) selection: Selection,
}

/// What decides, beside the kernel, which modules there are and what they are like.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Selection {
    /// Those that guests cannot start without.
    pub(super) needed: Vec<String>,
    /// Those that are taken where the kernel has them.
    pub(super) useful: Vec<String>,
    /// Whether their signatures are cut off.
    pub(super) unsigned: bool,
    /// The digest of a small archive that is packed in the same way.
    pub(super) packing: Option<Digest>,
}

/// The guest agent, and the file it was copied from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agent {
    #[serde(flatten)]
    pub(super) stored: Stored,
    pub(super) source: FileStamp,
    /// Whether the user named the file; otherwise it is the one beside the executable.
    pub(super) named: bool,
}

/// A file as it was at one moment: enough to see without reading it that it has been replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    pub(super) path: PathBuf,
    /// In bytes.
    pub(super) size: u64,
    /// Seconds and nanoseconds since 1970.
    pub(super) modified: (i64, i64),
}

impl FileStamp {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl Index {
    pub(super) fn new(kernel: Kernel, modules: Option<Modules>, agent: Agent, initramfs: Stored) -> Self {
        Self {
            format: FORMAT,
            kernel,
            modules,
            agent,
            initramfs,
        }
    }

    /// Reads the index of a directory; `None` when there is none.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        read_index(&directory.join(INDEX_NAME), FORMAT)
    }

    /// Replaces the index of a directory.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        put(directory, INDEX_NAME, &index_bytes(self)?)
    }

    /// Lists the files that it names.
    pub(super) fn files(&self) -> impl Iterator<Item = &Stored> {
        [&self.kernel.stored, &self.agent.stored, &self.initramfs]
            .into_iter()
            .chain(self.modules.as_ref().map(|modules| &modules.stored))
    }
}

/// What every index says of itself.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads an index, if there is one; it must be of that format.
pub(super) fn read_index<T: DeserializeOwned>(path: &Path, format: u32) -> io::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // First: one of another format may have other fields.
    let found: Format = serde_json::from_slice(&bytes)?;
    if found.format != format {
        let text = format!("its format is {}, and this Hearth reads {format}", found.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Returns an index as the text of its file.
pub(super) fn index_bytes(index: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(index)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Puts bytes into the store, under the name that their digest gives.
pub(super) fn store(directory: &Path, version: &str, bytes: &[u8]) -> io::Result<Stored> {
    let digest = Digest::of(bytes);
    put(directory, &digest.file_name(), bytes)?;
    Ok(Stored {
        version: version.to_owned(),
        digest,
        size: bytes.len() as u64,
    })
}

/// Writes a file that is there whole or not at all, also after a crash of the host.
///
/// It is readable by all (0644): the virtual machine monitor runs as a user of its own.
pub(super) fn put(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name)).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}
