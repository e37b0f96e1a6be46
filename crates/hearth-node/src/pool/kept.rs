//! One pool as the keeper has it: the policy, the machines, the record, and who waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hearth_api::v1::{self, PoolSpec};
use hearth_machine::pool::{Bounds, Key, Phase, Pool, Queue};
use hearth_machine::spec::MEMORY_DEFAULT;
use hearth_machine::{ByteSize, MachineId};
use tokio::sync::oneshot;

use super::error::PoolError;
use crate::machines::{Machine, chain};
use crate::records::{LeaseFact, MemberFact, NamedRecords, PoolRecord};

/// Machines that are kept ready unless it is said.
const MIN_DEFAULT: u32 = 1;

pub(super) type Reply<T> = oneshot::Sender<Result<T, PoolError>>;

/// A pool.
pub(super) struct Kept {
    /// Tells it from an earlier one of its name.
    pub(super) serial: u64,
    pub(super) pool: Pool,
    pub(super) record: PoolRecord,
    pub(super) machines: BTreeMap<Key, Held>,
    pub(super) queue: Queue<Waiting>,
    pub(super) last_error: Option<String>,
    /// Who waits for its end.
    pub(super) removers: Vec<Reply<()>>,
}

/// A machine that is there.
pub(super) struct Held {
    pub(super) machine: Machine,
    pub(super) ready_ms: u64,
    pub(super) lease: Option<LeaseFact>,
}

/// Who waits for a machine.
pub(super) struct Waiting {
    pub(super) lease: Duration,
    pub(super) ends_with_node: bool,
    pub(super) since: Instant,
    pub(super) reply: Reply<v1::Lease>,
}

/// Reads how large a pool is to be.
pub(super) fn bounds(spec: &PoolSpec) -> Bounds {
    let min = spec.min.unwrap_or(MIN_DEFAULT);
    Bounds {
        min,
        max: spec.max.unwrap_or_else(|| min.saturating_mul(2).max(1)),
        ttl: spec.ttl_seconds.map(Duration::from_secs),
        memory: spec.memory_bytes.map_or(MEMORY_DEFAULT, ByteSize::from_bytes),
    }
}

impl Kept {
    pub(super) fn new(serial: u64, record: PoolRecord) -> Self {
        Self {
            serial,
            pool: Pool::new(bounds(&record.spec)),
            record,
            machines: BTreeMap::new(),
            queue: Queue::default(),
            last_error: None,
            removers: Vec::new(),
        }
    }

    /// Writes down what must not be forgotten.
    pub(super) fn write(&mut self, records: &NamedRecords<PoolRecord>) -> Result<(), PoolError> {
        let stays = |key: &Key| self.pool.phase(*key) != Some(Phase::Leaving);
        let members = self.machines.iter().filter(|(key, _)| stays(key));
        self.record.members = members
            .map(|(_, held)| MemberFact {
                machine: held.machine.id().to_string(),
                ready_ms: held.ready_ms,
                lease: held.lease.clone(),
            })
            .collect();
        self.record.removing = self.pool.is_closing();
        self.record.generation += 1;
        Ok(records.write(&self.record)?)
    }

    /// Writes down a change that has taken place, and that the next write tells, too, where this one fails.
    pub(super) fn note(&mut self, records: &NamedRecords<PoolRecord>) {
        if let Err(error) = self.write(records) {
            tracing::error!(pool = self.record.name, error = %chain(&error), "record not written");
        }
    }

    /// Finds a lease by its id, or by its machine's name or id.
    pub(super) fn leased(&self, text: &str) -> Option<Key> {
        let is_meant = |held: &Held| {
            let lease = held.lease.as_ref();
            lease.is_some_and(|lease| {
                lease.id == text
                    || held.machine.view().record.name == text
                    || held.machine.id().to_string() == text
            })
        };
        let found = self.machines.iter().find(|(_, held)| is_meant(held));
        found
            .map(|(&key, _)| key)
            .filter(|&key| matches!(self.pool.phase(key), Some(Phase::Leased { .. })))
    }

    /// Returns a lease as clients see it.
    pub(super) fn lease(&self, key: Key) -> Option<v1::Lease> {
        let held = self.machines.get(&key)?;
        let lease = held.lease.as_ref()?;
        let until = jiff::Timestamp::from_millisecond(i64::try_from(lease.until_ms).ok()?).ok()?;
        Some(v1::Lease {
            id: lease.id.clone(),
            pool: self.record.name.clone(),
            machine: held.machine.view().record.name.clone(),
            expires_at: until.to_string(),
        })
    }

    /// Returns the pool as clients see it.
    pub(super) fn view(&self) -> v1::Pool {
        let count = |is: fn(&Phase) -> bool| self.pool.count(is);
        let member = |(key, phase): (Key, Phase)| v1::PoolMember {
            machine: self
                .machines
                .get(&key)
                .map(|held| held.machine.view().record.name.clone()),
            phase: match phase {
                Phase::Starting => v1::PoolPhase::Starting,
                Phase::Ready { .. } => v1::PoolPhase::Ready,
                Phase::Leased { .. } => v1::PoolPhase::Leased,
                Phase::Leaving => v1::PoolPhase::Leaving,
            },
            lease: self.lease(key).filter(|_| matches!(phase, Phase::Leased { .. })),
        };
        let bounds = self.pool.bounds();
        v1::Pool {
            name: self.record.name.clone(),
            spec: self.record.spec.clone(),
            min: bounds.min,
            max: bounds.max,
            created_at: self.record.created_at.clone(),
            ready: count(|phase| matches!(phase, Phase::Ready { .. })),
            starting: count(|phase| matches!(phase, Phase::Starting)),
            leased: count(|phase| matches!(phase, Phase::Leased { .. })),
            waiting: self.queue.len(),
            last_error: self.last_error.clone(),
            members: self.pool.members().map(member).collect(),
        }
    }

    /// Returns the ids of its machines.
    pub(super) fn ids(&self) -> impl Iterator<Item = MachineId> {
        self.machines.values().map(|held| held.machine.id())
    }
}
