//! One pool's record.

use hearth_api::v1::PoolSpec;
use serde::{Deserialize, Serialize};

use crate::ledger::NamedRecord;

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

impl NamedRecord for PoolRecord {
    const FORMAT: u32 = FORMAT;

    fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{NamedRecords, RecordError};

    #[test]
    fn records_of_pools_survive_and_foreign_ones_are_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let records = NamedRecords::new(root.path().join("pools"));
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
        std::fs::write(root.path().join("pools/later.json"), r#"{"format": 99}"#).unwrap();
        let (loaded, unreadable) = records.load().unwrap();
        assert_eq!(loaded, [record]);
        assert!(matches!(unreadable[..], [RecordError::Format { found: 99, .. }]));
        records.remove("a.b").unwrap();
        assert!(records.load().unwrap().0.is_empty());
    }
}
