//! Pools that an earlier node has kept. The machines are brought back by then (`machines::recovery`).
//!
//! ```text
//! machine                                            what becomes of it
//! ready by the pool's record                         found standing still, or made to; otherwise removed and replaced
//! leased by the pool's record                        stays with whom has it, until the lease's end
//! leased to somebody who was connected to that node  removed
//! of a pool by its own record only                   removed: it was being brought up, handed back or retired
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_api::v1::Owner;
use hearth_machine::pool::Phase;

use super::keeper::{Keeper, What};
use super::kept::{Held, Kept};
use super::member;
use crate::machines::{Machine, chain};
use crate::records::{MemberFact, PoolRecord, RecordError};

impl Keeper {
    /// Brings back what is written down, and removes what belongs to no pool any more.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the records cannot be read at all.
    pub(super) fn recover(&mut self) -> Result<(), RecordError> {
        let (records, unreadable) = self.records.load()?;
        for error in &unreadable {
            tracing::error!(error = %chain(error), "a pool's record is left alone");
        }
        for record in records {
            self.bring_back(record);
        }
        let known: BTreeSet<_> = self.pools.values().flat_map(Kept::ids).collect();
        for machine in self.machines.list() {
            let Some(Owner::Pool(name)) = machine.view().record.owner.clone() else {
                continue;
            };
            if !known.contains(&machine.id()) {
                self.remove_stray(&name, machine);
            }
        }
        Ok(())
    }

    fn bring_back(&mut self, mut record: PoolRecord) {
        let facts = std::mem::take(&mut record.members);
        let (name, removing) = (record.name.clone(), record.removing);
        self.pools.insert(name.clone(), Kept::new(self.serials, record));
        self.serials += 1;
        for fact in facts {
            let machine = self.machines.find(&fact.machine).ok();
            let machine = machine.filter(|machine| machine.view().state.is_alive());
            match machine {
                Some(machine) => self.take_in(&name, fact, machine),
                None => {
                    if let Some(lease) = fact.lease {
                        self.remember(
                            lease.id,
                            fact.machine,
                            "its machine ended while there was no node",
                        );
                    }
                }
            }
        }
        if let Some(kept) = self.pools.get_mut(&name) {
            if removing {
                kept.pool.close();
            }
            kept.note(&self.records);
        }
    }

    fn take_in(&mut self, name: &str, fact: MemberFact, machine: Machine) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let phase = match &fact.lease {
            Some(lease) if lease.ends_with_node => Phase::Leaving,
            Some(lease) => Phase::Leased {
                until: Duration::from_millis(lease.until_ms),
            },
            None => Phase::Starting,
        };
        let (serial, key) = (kept.serial, kept.pool.adopt(phase));
        let is_leased = fact.lease.is_some();
        let held = Held {
            machine: machine.clone(),
            ready_ms: fact.ready_ms,
            lease: fact.lease,
        };
        kept.machines.insert(key, held);
        if phase == Phase::Leaving {
            return self.spawn_removal(serial, key, machine);
        }
        self.spawn(serial, key, async move {
            What::Found(member::find(&machine, is_leased).await)
        });
    }

    fn remove_stray(&mut self, name: &str, machine: Machine) {
        tracing::info!(pool = name, machine = %machine.id(), "a machine that was half brought up is removed");
        let Some(kept) = self.pools.get_mut(name) else {
            return self.spawn_removal(u64::MAX, 0, machine);
        };
        let (serial, key) = (kept.serial, kept.pool.adopt(Phase::Leaving));
        let held = Held {
            machine: machine.clone(),
            ready_ms: 0,
            lease: None,
        };
        kept.machines.insert(key, held);
        self.spawn_removal(serial, key, machine);
    }
}
