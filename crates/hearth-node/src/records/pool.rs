//! One pool's record, and the directory of them.

use std::io;
use std::path::PathBuf;

use hearth_api::v1::PoolSpec;
use serde::{Deserialize, Serialize};

use super::RecordError;
use crate::host::files;
use crate::layout::Layout;

/// The format that this code writes; it reads no other.
const FORMAT: u32 = 1;

/// What the node knows of a pool. Machines that are being brought up are not in it: their own records say whose they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// The record's format.
    pub format: u32,
    /// Counts changes.
    pub generation: u64,
    /// Name.
    pub name: String,
    /// The spec as it was accepted, and changed since.
    pub spec: PoolSpec,
    /// RFC 3339.
    pub created_at: String,
    /// It is to go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
    /// The machines that are ready, or that somebody has.
    pub members: Vec<MemberFact>,
}

/// A machine of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberFact {
    /// Its id.
    pub machine: String,
    /// Since when it has been ready, in milliseconds since 1970.
    pub ready_ms: u64,
    /// Its lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseFact>,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseFact {
    /// Its id.
    pub id: String,
    /// When it is over, in milliseconds since 1970.
    pub until_ms: u64,
    /// It ends with the node: who has it is connected to that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_with_node: bool,
}

/// All records of pools.
#[derive(Debug, Clone)]
pub struct PoolRecords {
    layout: Layout,
}

impl PoolRecord {
    /// Makes the record of a new pool.
    pub fn new(name: String, spec: PoolSpec, created_at: String) -> Self {
        Self {
            format: FORMAT,
            generation: 0,
            name,
            spec,
            created_at,
            removing: false,
            members: Vec::new(),
        }
    }
}

impl PoolRecords {
    /// Keeps records below the data directory.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// Returns [`RecordError`]; the old record is untouched then.
    pub fn write(&self, record: &PoolRecord) -> Result<(), RecordError> {
        let path = self.path(&record.name);
        let bytes = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Malformed {
            path: path.clone(),
            source,
        })?;
        files::make_directory(&self.layout.pools(), 0o700)
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
    pub fn load(&self) -> Result<(Vec<PoolRecord>, Vec<RecordError>), RecordError> {
        let root = self.layout.pools();
        let at = |source| RecordError::Io {
            path: root.clone(),
            source,
        };
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        let entries = match std::fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((records, unreadable)),
            Err(error) => return Err(at(error)),
        };
        for entry in entries {
            let path = entry.map_err(at)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(path) {
                Ok(record) => records.push(record),
                Err(error) => unreadable.push(error),
            }
        }
        Ok((records, unreadable))
    }

    /// Names are checked as those of machines are: they are file names.
    fn path(&self, name: &str) -> PathBuf {
        self.layout.pools().join(format!("{name}.json"))
    }
}

fn read(path: PathBuf) -> Result<PoolRecord, RecordError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bytes = std::fs::read(&path).map_err(|source| RecordError::Io {
        path: path.clone(),
        source,
    })?;
    let malformed = |source| RecordError::Malformed {
        path: path.clone(),
        source,
    };
    let Format { format: found } = serde_json::from_slice(&bytes).map_err(malformed)?;
    if found != FORMAT {
        return Err(RecordError::Format { path, found });
    }
    serde_json::from_slice(&bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_pools_survive_and_foreign_ones_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path(), root.path().join("run"), root.path().join("memory"));
        let records = PoolRecords::new(layout.clone());
        assert!(records.load().unwrap().0.is_empty());
        let mut record = PoolRecord::new(
            "a.b".to_owned(),
            PoolSpec::default(),
            "2026-01-01T00:00:00Z".to_owned(),
        );
        record.members.push(MemberFact {
            machine: "0123456789ab".to_owned(),
            ready_ms: 1,
            lease: Some(LeaseFact {
                id: "0123456789ac".to_owned(),
                until_ms: 2,
                ends_with_node: true,
            }),
        });
        records.write(&record).unwrap();
        std::fs::write(layout.pools().join("later.json"), r#"{"format": 99}"#).unwrap();
        let (loaded, unreadable) = records.load().unwrap();
        assert_eq!(loaded, [record]);
        assert!(matches!(unreadable[..], [RecordError::Format { found: 99, .. }]));
        records.remove("a.b").unwrap();
        assert!(records.load().unwrap().0.is_empty());
    }
}
