//! What a template or snapshot is of, and what its files hold: one small JSON file beside them, written last.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::host::memory_image;

/// The file's name. A directory without it is neither.
pub(super) const MANIFEST: &str = "manifest.json";

/// What a manifest tells of, in the one format of it that is written and read.
pub(super) trait Subject {
    /// The format.
    const FORMAT: u32;
}

/// Version 1 knew no moments, and was all of [`Moment::Greeted`].
impl Subject for TemplateKey {
    const FORMAT: u32 = 2;
}

impl<F> Subject for Description<F> {
    const FORMAT: u32 = 1;
}

/// A description of which only the files count.
impl Subject for serde_json::Value {
    const FORMAT: u32 = 1;
}

/// How far the start of the machine had come of which a template was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Its agent had greeted. Such a template goes with any disk.
    #[default]
    Greeted,
    /// It was configured: disks were mounted, and the workload's process waited for its launch. Such a template has a disk.
    Configured,
}

/// Everything that decides whether a machine may be a clone of a template. Machines of one key could be each other until they
/// are given their names and launch their workloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateKey {
    /// The monitor's driver.
    pub driver: String,
    /// Its version.
    pub version: String,
    /// What else of the monitor and of the host's processor goes into the state.
    pub fingerprint: String,
    /// What lies between guest and host.
    pub border: String,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The image's manifest digest: the guest has looked at the disk when it booted.
    pub image: String,
    /// The size of its root file system in bytes.
    pub rootfs_bytes: u64,
    /// The size of the writable disk in bytes.
    pub disk_bytes: u64,
    /// Whether it has a network interface.
    #[serde(default)]
    pub interface: bool,
    /// The digest of the kernel.
    pub kernel: String,
    /// The digest of the initramfs, and so of the agent.
    pub initramfs: String,
    /// How far its start had come; of no account in a snapshot.
    #[serde(default)]
    pub moment: Moment,
}

impl TemplateKey {
    /// Returns sixteen hexadecimal digits that stand for the key.
    pub(super) fn id(&self) -> String {
        // Never fails: plain strings and numbers.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(text))[..16].to_owned()
    }
}

/// How much of its machine a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Disk, memory and processors.
    Full,
    /// The disk.
    Disk,
}

/// What a snapshot says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description<F> {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub extent: Extent,
    /// What a monitor must be to go on with it.
    pub key: TemplateKey,
    /// How much of the workload's output had been taken from the guest.
    pub received: u64,
    /// What is known of the machine.
    pub facts: F,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest<K> {
    pub(super) format: u32,
    /// What it is of.
    pub(super) key: K,
    /// RFC 3339.
    pub(super) created_at: String,
    pub(super) files: Vec<FileFact>,
}

/// A file as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileFact {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl FileFact {
    /// Describes a file, which takes reading it.
    pub(super) fn of(directory: &Path, name: &str) -> io::Result<Self> {
        let path = directory.join(name);
        Ok(Self {
            name: name.to_owned(),
            bytes: std::fs::metadata(&path)?.len(),
            sha256: digest(&path)?,
        })
    }
}

/// Says what is wrong with the files of a template or snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// A file cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// Which one.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is none.
    #[error("{MANIFEST} makes no sense")]
    Manifest(#[source] serde_json::Error),
    /// The manifest is of another version.
    #[error("it has the format {found}, and {read} is read")]
    Format {
        /// What it has.
        found: u32,
        /// What is read.
        read: u32,
    },
    /// A file was cut off, or grew.
    #[error("{name} has {found} bytes instead of {expected}")]
    Size {
        /// Which one.
        name: String,
        /// What it has.
        found: u64,
        /// What it had.
        expected: u64,
    },
    /// A file was changed.
    #[error("the bytes of {0} are not those that were written")]
    Digest(String),
    /// It is something else's.
    #[error("it is of another key")]
    Key,
}

impl<K: Subject + Serialize + DeserializeOwned> Manifest<K> {
    /// Describes the files of this name in a directory, which takes reading them.
    pub(super) fn of(directory: &Path, key: K, names: &[&str]) -> io::Result<Self> {
        Ok(Self {
            format: K::FORMAT,
            key,
            created_at: jiff::Timestamp::now().to_string(),
            files: names
                .iter()
                .map(|name| FileFact::of(directory, name))
                .collect::<io::Result<_>>()?,
        })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Never fails: plain strings and numbers.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Reads the manifest of a directory, and looks at nothing else.
    pub(super) fn parse(directory: &Path) -> Result<Self, Flaw> {
        Self::from_bytes(&std::fs::read(directory.join(MANIFEST)).map_err(read(MANIFEST))?)
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, Flaw> {
        #[derive(Deserialize)]
        struct Header {
            format: u32,
        }
        // First: what else there is follows from it.
        let Header { format: found } = serde_json::from_slice(bytes).map_err(Flaw::Manifest)?;
        match K::FORMAT {
            read if read == found => serde_json::from_slice(bytes).map_err(Flaw::Manifest),
            read => Err(Flaw::Format { found, read }),
        }
    }

    /// Reads the manifest of a directory, and looks whether the files have their sizes.
    pub(super) fn read(directory: &Path) -> Result<Self, Flaw> {
        let manifest = Self::parse(directory)?;
        for file in &manifest.files {
            let found = std::fs::metadata(directory.join(&file.name)).map_err(read(&file.name))?;
            if found.len() != file.bytes {
                return Err(Flaw::Size {
                    name: file.name.clone(),
                    found: found.len(),
                    expected: file.bytes,
                });
            }
        }
        Ok(manifest)
    }

    /// Reads every byte of the files.
    pub(super) fn verify(&self, directory: &Path) -> Result<(), Flaw> {
        for file in &self.files {
            let found = digest(&directory.join(&file.name)).map_err(read(&file.name))?;
            if found != file.sha256 {
                return Err(Flaw::Digest(file.name.clone()));
            }
        }
        Ok(())
    }
}

fn read(name: &str) -> impl FnOnce(io::Error) -> Flaw {
    let name = name.to_owned();
    move |source| Flaw::Read { name, source }
}

/// Computes the digest of the pages that are not zero, and where they are: a copy with other holes has the same.
fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    memory_image::for_each_page(&File::open(path)?, |at, page| {
        hash.update(at.to_le_bytes());
        hash.update(page);
    })?;
    Ok(hex(&hash.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
