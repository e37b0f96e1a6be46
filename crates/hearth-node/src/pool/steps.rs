//! What the keeper does when something has changed: takes back, hands out, admits, starts, forgets; and what it learns of machines.

use std::time::{Duration, Instant};

use hearth_machine::pool::{Key, Outside, Phase};
use hearth_machine::{ByteSize, State};

use super::admission::{Permit, left, room};
use super::error::PoolError;
use super::keeper::{Done, Keeper, What, milliseconds, now};
use super::kept::{Held, Kept, Waiting};
use super::member;
use crate::host::failpoint;
use crate::machines::{Machine, chain};
use crate::records::LeaseFact;

/// How long nobody must have been handed a machine before one is started that nobody waits for, of a pool that has most of its machines.
const QUIET: Duration = Duration::from_millis(250);
/// Machines that are brought up at once, at most: each needs a processor.
const STARTS_AT_ONCE: u32 = 2;

impl Keeper {
    /// Does what is to be done now.
    pub(super) fn settle(&mut self) {
        let now = now();
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in &names {
            self.take_back(name, now);
            self.serve(name, now);
        }
        self.admit(now);
        while let Some(name) = self.next_start(now) {
            self.start(&name);
        }
        for name in &names {
            self.forget(name);
        }
    }

    /// Returns when something is to be done without anybody's asking.
    pub(super) fn next_moment(&self) -> Duration {
        let now = now();
        let pools = self.pools.values();
        let own = pools.flat_map(|kept| [kept.pool.next_moment(now), kept.queue.next_deadline()]);
        let quiet = self
            .handed
            .map(|handed| now + QUIET.saturating_sub(handed.elapsed()));
        let quiet = quiet.filter(|&moment| moment > now);
        let all = own.chain([self.admissions.next_deadline(), quiet]);
        all.flatten().min().unwrap_or(Duration::MAX)
    }

    /// Takes back what is leased too long, and retires what is too old or too much.
    fn take_back(&mut self, name: &str, now: Duration) {
        let Some(kept) = self.pools.get(name) else { return };
        let superfluous = kept.pool.superfluous(now);
        for key in kept.pool.expired(now) {
            self.end_lease(name, key, "its time was over, and nobody had extended it");
        }
        for key in superfluous {
            self.retire(name, key);
        }
    }

    /// Ends a lease; the machine is removed.
    pub(super) fn end_lease(&mut self, name: &str, key: Key, why: &str) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        if let Some(held) = kept.machines.get_mut(&key)
            && let Some(lease) = held.lease.take()
        {
            let machine = held.machine.view().record.name.clone();
            tracing::info!(pool = name, machine, lease = lease.id, why, "a lease is over");
            self.remember(lease.id, machine, why);
        }
        self.retire(name, key);
    }

    /// Lets a machine go.
    fn retire(&mut self, name: &str, key: Key) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        if kept.pool.phase(key) == Some(Phase::Leaving) {
            return;
        }
        kept.pool.leave(key);
        kept.note(&self.records);
        failpoint::pass("pool-released");
        let (serial, machine) = (
            kept.serial,
            kept.machines.get(&key).map(|held| held.machine.clone()),
        );
        if let Some(machine) = machine {
            self.spawn_removal(serial, key, machine);
        } else {
            kept.pool.gone(key);
        }
    }

    pub(super) fn spawn_removal(&self, serial: u64, key: Key, machine: Machine) {
        self.spawn(serial, key, async move {
            member::remove(&machine).await;
            What::Gone
        });
    }

    /// Runs something beside, and hears how it ended.
    pub(super) fn spawn(&self, serial: u64, key: Key, work: impl Future<Output = What> + Send + 'static) {
        let done = self.done.clone();
        let told = async move {
            let what = work.await;
            // Fails only when the keeper has ended with the node.
            let _ = done.send(Done { serial, key, what }).await;
        };
        let cancelled = self.shutdown.clone().run_until_cancelled_owned(told);
        self.tasks.spawn(cancelled);
    }

    /// Hands out what is ready to who waits, in order, and tells those whose time is over.
    fn serve(&mut self, name: &str, now: Duration) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        // Who has gone away is not handed anything.
        drop(
            kept.queue
                .take_over(Duration::ZERO, |waiting| waiting.reply.is_closed()),
        );
        let mut handed = Vec::new();
        while let Some(lease) = kept.queue.first().map(|waiting| waiting.lease) {
            let Some(key) = kept.pool.hand_out(now, lease) else {
                break;
            };
            let Some((waiting, deadline)) = kept.queue.take() else {
                break;
            };
            handed.push((key, waiting, deadline, now + lease));
        }
        for (key, waiting, deadline, until) in handed {
            self.hand_out(name, key, waiting, deadline, until);
        }
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let over = kept.queue.take_over(now, |waiting| waiting.reply.is_closed());
        let leased = kept.pool.count(|phase| matches!(phase, Phase::Leased { .. }));
        for (ahead, waiting) in (0..).zip(over) {
            let error = PoolError::NoneFree {
                pool: name.to_owned(),
                waited: waiting.since.elapsed(),
                leased,
                max: kept.pool.bounds().max,
                ahead,
            };
            // Who asked has gone away.
            let _ = waiting.reply.send(Err(error));
        }
    }

    fn hand_out(&mut self, name: &str, key: Key, waiting: Waiting, deadline: Duration, until: Duration) {
        let mut random = [0; 6];
        let made = getrandom::fill(&mut random).map_err(|_| PoolError::Random);
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let Some(held) = kept.machines.get_mut(&key) else {
            return;
        };
        held.lease = Some(LeaseFact {
            id: random.iter().map(|byte| format!("{byte:02x}")).collect(),
            until_ms: milliseconds(until),
            ends_with_node: waiting.ends_with_node,
        });
        let machine = held.machine.clone();
        // Before anybody has it: the next node must know whose it is.
        if let Err(error) = made.and_then(|()| kept.write(&self.records)) {
            let _ = waiting.reply.send(Err(error));
            return self.end_lease(name, key, "it could not be written down");
        }
        failpoint::pass("pool-leased");
        self.handing += 1;
        let serial = kept.serial;
        self.spawn(serial, key, async move {
            let result = member::hand_out(&machine).await;
            What::HandedOut(result, Box::new(waiting), deadline)
        });
    }

    /// Lets in who waits for memory, in order.
    fn admit(&mut self, now: Duration) {
        drop(
            self.admissions
                .take_over(Duration::ZERO, |waiting| waiting.reply.is_closed()),
        );
        while let Some(first) = self.admissions.first()
            && first.memory <= self.free()
        {
            let Some((waiting, _)) = self.admissions.take() else {
                break;
            };
            let permit = Permit::new(waiting.memory, &self.permits);
            // Who asked has gone away: the permit comes back.
            let _ = waiting.reply.send(Ok(permit));
        }
        for waiting in self.admissions.take_over(now, |_| false) {
            let error = PoolError::NoRoom {
                memory: waiting.memory,
                waited: waiting.since.elapsed(),
                room: room(&self.machines).unwrap_or(ByteSize::from_bytes(0)),
            };
            // Who asked has gone away.
            let _ = waiting.reply.send(Err(error));
        }
    }

    /// Returns the memory that may still be taken; none while the settings make no sense.
    fn free(&self) -> ByteSize {
        let room = room(&self.machines)
            .inspect_err(|error| tracing::error!(error = %chain(error), "no machine is started for pools"))
            .unwrap_or(ByteSize::from_bytes(0));
        let left = left(&self.machines, &self.permits, room).bytes();
        let own = self.pools.values().map(|kept| kept.pool.memory().bytes()).sum();
        ByteSize::from_bytes(left.saturating_sub(own))
    }

    /// Picks the pool that starts a machine next: the one in which somebody has waited longest, or any that is not full.
    fn next_start(&self, now: Duration) -> Option<String> {
        let starting: u32 = self
            .pools
            .values()
            .map(|kept| kept.pool.count(|phase| *phase == Phase::Starting))
            .sum();
        if self.resting || starting >= STARTS_AT_ONCE || self.pools.is_empty() {
            return None;
        }
        let idle = starting == 0 && self.handing == 0 && self.admissions.is_empty();
        let quiet = self.handed.is_none_or(|handed| handed.elapsed() >= QUIET);
        let free = self.free();
        let came_first = self.admissions.first().map(|waiting| waiting.since);
        let since = |kept: &Kept| kept.queue.first().map(|waiting| waiting.since);
        // Who waits for memory and came before is not overtaken.
        let may =
            |kept: &&Kept| came_first.is_none_or(|first| since(kept).is_some_and(|since| since < first));
        let wants = |kept: &&Kept| {
            kept.pool.wants_start(Outside {
                now,
                free,
                waiting: kept.queue.len(),
                idle,
                quiet,
            })
        };
        let pools = self.pools.values().filter(|kept| may(kept) && wants(kept));
        let first = pools.min_by_key(|kept| {
            let since = since(kept);
            (since.is_none(), since)
        });
        first.map(|kept| kept.record.name.clone())
    }

    fn start(&mut self, name: &str) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let key = kept.pool.start();
        let (serial, spec, pool) = (kept.serial, kept.record.spec.clone(), name.to_owned());
        let machines = self.machines.clone();
        self.spawn(serial, key, async move {
            What::Up(member::bring_up(&machines, &pool, &spec).await)
        });
    }

    /// Forgets a pool that was to end and has nothing any more.
    fn forget(&mut self, name: &str) {
        let is_over = |kept: &Kept| kept.pool.is_closing() && kept.pool.members().next().is_none();
        if !self.pools.get(name).is_some_and(is_over) {
            return;
        }
        let Some(kept) = self.pools.remove(name) else {
            return;
        };
        let mut removed = Some(self.records.remove(name).map_err(PoolError::from));
        let (machines, pool, spec) = (self.machines.clone(), name.to_owned(), kept.record.spec.clone());
        self.tasks
            .spawn(async move { member::forget_golden(&machines, &pool, &spec).await });
        for reply in kept.removers {
            // Who asked has gone away.
            let _ = reply.send(removed.take().unwrap_or(Ok(())));
        }
        if let Some(Err(error)) = removed {
            tracing::error!(pool = name, error = %chain(&error), "record left behind");
        }
    }

    /// Takes note of what has become of a machine.
    pub(super) fn note(&mut self, Done { serial, key, what }: Done) {
        if matches!(what, What::HandedOut(..)) {
            self.handing -= 1;
            self.handed = Some(Instant::now());
        }
        let Some(name) = self.named(serial) else { return };
        match what {
            What::Up(Ok(machine)) => self.is_up(&name, key, machine, milliseconds(now())),
            What::Up(Err(error)) => self.is_not_up(&name, key, &error),
            What::Found(Ok(())) => self.is_found(&name, key),
            What::Found(Err(error)) => {
                self.end_lease(&name, key, &format!("it was not found again: {}", chain(&error)));
            }
            What::HandedOut(Ok(()), waiting, _) => self.is_handed_out(&name, key, *waiting),
            What::HandedOut(Err(error), waiting, deadline) => {
                self.is_not_handed_out(&name, key, *waiting, deadline, &error);
            }
            What::Died(reason) => self.end_lease(&name, key, &format!("its machine has ended: {reason}")),
            What::Gone => {
                if let Some(kept) = self.pools.get_mut(&name) {
                    kept.machines.remove(&key);
                    kept.pool.gone(key);
                }
            }
        }
    }

    fn named(&self, serial: u64) -> Option<String> {
        let mut pools = self.pools.iter();
        let found = pools.find(|(_, kept)| kept.serial == serial);
        found.map(|(name, _)| name.clone())
    }

    fn is_up(&mut self, name: &str, key: Key, machine: Machine, ready_ms: u64) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        kept.last_error = None;
        let serial = kept.serial;
        let held = Held {
            machine: machine.clone(),
            ready_ms,
            lease: None,
        };
        kept.machines.insert(key, held);
        kept.pool.started(key, Duration::from_millis(ready_ms));
        kept.note(&self.records);
        failpoint::pass("pool-ready");
        self.watch(serial, key, machine);
    }

    /// Hears when a machine ends by itself.
    pub(super) fn watch(&self, serial: u64, key: Key, machine: Machine) {
        self.spawn(serial, key, async move {
            let reason = match machine.ended().await.state {
                State::Exited(ended) => ended
                    .reason
                    .unwrap_or_else(|| format!("exited with {}", ended.exit_code)),
                State::Failed { reason } => reason,
                _ => "it was removed".to_owned(),
            };
            What::Died(reason)
        });
    }

    fn is_not_up(&mut self, name: &str, key: Key, error: &PoolError) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let reason = chain(error);
        tracing::warn!(pool = name, reason, "a machine does not come up");
        kept.last_error = Some(reason.clone());
        kept.pool.failed(key, now());
        kept.pool.gone(key);
        let others = kept
            .pool
            .count(|phase| matches!(phase, Phase::Starting | Phase::Ready { .. }));
        if others == 0
            && let Some((waiting, _)) = kept.queue.take()
        {
            let pool = name.to_owned();
            // Who asked has gone away.
            let _ = waiting.reply.send(Err(PoolError::NoStart { pool, reason }));
        }
    }

    fn is_found(&mut self, name: &str, key: Key) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let Some(held) = kept.machines.get(&key) else {
            return;
        };
        let (serial, machine) = (kept.serial, held.machine.clone());
        if held.lease.is_none() {
            kept.pool.started(key, Duration::from_millis(held.ready_ms));
        }
        self.watch(serial, key, machine);
    }

    fn is_handed_out(&mut self, name: &str, key: Key, waiting: Waiting) {
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        let has_it = matches!(kept.pool.phase(key), Some(Phase::Leased { .. }));
        let lease = kept.lease(key).filter(|_| has_it);
        let answer = lease.ok_or_else(|| PoolError::NoLease {
            lease: name.to_owned(),
            why: Some("it was over before the machine went on".to_owned()),
        });
        if waiting.reply.send(answer).is_err() {
            self.end_lease(name, key, "who asked for it had gone away");
        }
    }

    fn is_not_handed_out(
        &mut self,
        name: &str,
        key: Key,
        waiting: Waiting,
        deadline: Duration,
        error: &PoolError,
    ) {
        let reason = chain(error);
        tracing::warn!(pool = name, reason, "a machine could not be handed out");
        self.end_lease(name, key, &reason);
        let Some(kept) = self.pools.get_mut(name) else {
            return;
        };
        kept.last_error = Some(reason.clone());
        if deadline > now() {
            return kept.queue.put_back(waiting, deadline);
        }
        let pool = name.to_owned();
        // Who asked has gone away.
        let _ = waiting.reply.send(Err(PoolError::NoStart { pool, reason }));
    }
}
