//! Records by name: one JSON file each, in a directory of their kind. Below the drivers, since networks keep their own.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host::files;

/// Says why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot access the record {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no record of this version.
    #[error("{} is not a record of this version", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another version.
    #[error("{} has format {found}; this version reads {wanted}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What this version reads.
        wanted: u32,
    },
}

/// What is kept by a name, which was checked and can be a file's.
pub trait NamedRecord: Serialize + DeserializeOwned {
    /// The format that this code writes; it reads no other.
    const FORMAT: u32;

    /// Returns its name.
    fn name(&self) -> &str;
}

/// All records of one kind.
#[derive(Debug, Clone)]
pub struct NamedRecords<R> {
    root: PathBuf,
    kind: PhantomData<fn() -> R>,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

impl<R: NamedRecord> NamedRecords<R> {
    /// Keeps records in a directory, which is made for the first one.
    pub fn new(root: PathBuf) -> Self {
        let kind = PhantomData;
        Self { root, kind }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// Returns [`RecordError`]; the old record is untouched then.
    pub fn write(&self, record: &R) -> Result<(), RecordError> {
        let path = self.path(record.name());
        let bytes = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Malformed {
            path: path.clone(),
            source,
        })?;
        files::make_directory(&self.root, 0o700)
            .and_then(|()| files::write_atomic(&path, &bytes, files::PRIVATE))
            .map_err(|source| RecordError::Io { path, source })
    }

    /// Removes a record.
    ///
    /// # Errors
    /// Returns [`RecordError`].
    pub fn remove(&self, name: &str) -> Result<(), RecordError> {
        let path = self.path(name);
        files::remove_file(&path).map_err(|source| RecordError::Io { path, source })
    }

    /// Reads every record. One that cannot be used is left alone, and returned as an error beside the others.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the directory cannot be read.
    pub fn load(&self) -> Result<(Vec<R>, Vec<RecordError>), RecordError> {
        let at = |source| RecordError::Io {
            path: self.root.clone(),
            source,
        };
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((records, unreadable)),
            Err(error) => return Err(at(error)),
        };
        for entry in entries {
            let path = entry.map_err(at)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.push(record),
                Err(error) => unreadable.push(error),
            }
        }
        Ok((records, unreadable))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }
}

fn read<R: NamedRecord>(path: &Path) -> Result<R, RecordError> {
    let path = path.to_owned();
    let bytes = std::fs::read(&path).map_err(|source| RecordError::Io {
        path: path.clone(),
        source,
    })?;
    let malformed = |source| RecordError::Malformed {
        path: path.clone(),
        source,
    };
    let Format { format: found } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if found != R::FORMAT {
        let wanted = R::FORMAT;
        return Err(RecordError::Format { path, found, wanted });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}
