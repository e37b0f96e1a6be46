//! The task that owns all pools: what it is asked, and the loop. What follows of it is in [`super::steps`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hearth_api::v1::{self, PoolSpec};
use hearth_machine::ByteSize;
use hearth_machine::pool::{Bounds, Key, Phase, Queue};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Permit, Permits, room};
use super::error::PoolError;
use super::kept::{Kept, Reply, Waiting, bounds};
use crate::host::failpoint;
use crate::machines::{Machine, Machines, Reader};
use crate::network::NetworkError;
use crate::records::{NamedRecords, PoolRecord};

/// Leases whose end is remembered, so that a late release is told why.
const ENDED_MAX: usize = 1024;
/// What waits to be told to the keeper; who tells waits then.
const DONE: usize = 64;
/// Events that are passed over at once.
const BATCH: usize = 256;
/// The longest the keeper sleeps.
const LONG: Duration = Duration::from_secs(60);

/// What the keeper can be asked.
pub(super) enum Ask {
    Create {
        record: Box<PoolRecord>,
        reply: Reply<v1::Pool>,
    },
    List {
        reply: oneshot::Sender<Vec<v1::Pool>>,
    },
    Inspect {
        pool: String,
        reply: Reply<v1::Pool>,
    },
    Resize {
        pool: String,
        change: v1::ResizePool,
        reply: Reply<v1::Pool>,
    },
    Remove {
        pool: String,
        force: bool,
        reply: Reply<()>,
    },
    Acquire {
        pool: String,
        wait: Duration,
        waiting: Waiting,
    },
    Extend {
        lease: String,
        time: Duration,
        reply: Reply<v1::Lease>,
    },
    Release {
        lease: String,
        reply: Reply<()>,
    },
    Admit {
        wait: Duration,
        admission: Admission,
    },
    /// A network of machines is to go, unless a pool names it: a pool that is made meanwhile comes before or behind.
    ForgetNetwork {
        network: String,
        reply: Reply<u16>,
    },
    /// Nothing is to be started any more: the node ends with its machines.
    Rest {
        reply: oneshot::Sender<()>,
    },
}

/// Who waits for memory.
pub(super) struct Admission {
    pub(super) memory: ByteSize,
    pub(super) since: Instant,
    pub(super) reply: Reply<Permit>,
}

/// What tasks beside the keeper tell it: of a machine of the pool with this number.
pub(super) struct Done {
    pub(super) serial: u64,
    pub(super) key: Key,
    pub(super) what: What,
}

pub(super) enum What {
    /// It is ready, or could not be made.
    Up(Result<Machine, PoolError>),
    /// One that an earlier node has left is as it was, or is not.
    Found(Result<(), PoolError>),
    /// It was handed out, or could not be.
    HandedOut(Result<(), PoolError>, Box<Waiting>, Duration),
    /// It has ended by itself.
    Died(String),
    /// Nothing of it is left.
    Gone,
}

/// The owner of all pools.
pub(super) struct Keeper {
    pub(super) machines: Machines,
    pub(super) records: NamedRecords<PoolRecord>,
    pub(super) pools: BTreeMap<String, Kept>,
    pub(super) serials: u64,
    pub(super) admissions: Queue<Admission>,
    pub(super) permits: Arc<Permits>,
    /// Machines that are being handed out, and when the last one was.
    pub(super) handing: u32,
    pub(super) handed: Option<Instant>,
    /// Nothing is started any more.
    pub(super) resting: bool,
    /// Leases that are over: id, machine, why.
    pub(super) ended: VecDeque<(String, String, String)>,
    pub(super) done: mpsc::Sender<Done>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    events: Reader,
    dones: Option<mpsc::Receiver<Done>>,
}

/// Returns the time since 1970.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Makes sure that there are the networks that a pool's machines are to be on.
pub(super) fn check_networks(machines: &Machines, spec: &PoolSpec) -> Result<(), PoolError> {
    let users = machines.parts().networks.users();
    for network in &spec.networks {
        users.find(network).map_err(NetworkError::from)?;
    }
    Ok(())
}

fn answer<T>(reply: Reply<T>, result: Result<T, PoolError>) {
    // Who asked has gone away.
    let _ = reply.send(result);
}

impl Keeper {
    pub(super) fn new(machines: Machines, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        let (done, dones) = mpsc::channel(DONE);
        Self {
            records: NamedRecords::new(machines.parts().layout.pools()),
            events: machines.parts().events.reader(None),
            machines,
            pools: BTreeMap::new(),
            serials: 0,
            admissions: Queue::default(),
            permits: Arc::default(),
            handing: 0,
            handed: None,
            resting: false,
            ended: VecDeque::new(),
            done,
            tasks,
            shutdown,
            dones: Some(dones),
        }
    }

    /// Runs until nobody can ask for anything any more.
    pub(super) async fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let Some(mut dones) = self.dones.take() else {
            return;
        };
        loop {
            self.settle();
            let sleep = self.next_moment().saturating_sub(now()).min(LONG);
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.take(ask),
                    None => return,
                },
                Some(done) = dones.recv() => self.note(done),
                // A machine of somebody's has come or gone: there may be room.
                () = self.events.more() => while !self.events.batch(BATCH).is_empty() {},
                () = self.permits.back.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Create { record, reply } => answer(reply, self.create(*record)),
            Ask::List { reply } => drop(reply.send(self.pools.values().map(Kept::view).collect())),
            Ask::Inspect { pool, reply } => answer(reply, self.found(&pool).map(|kept| kept.view())),
            Ask::Resize { pool, change, reply } => answer(reply, self.resize(&pool, &change)),
            Ask::Remove { pool, force, reply } => self.remove(&pool, force, reply),
            Ask::Acquire { pool, wait, waiting } => self.acquire(&pool, wait, waiting),
            Ask::Extend { lease, time, reply } => answer(reply, self.extend(&lease, time)),
            Ask::Release { lease, reply } => answer(reply, self.release(&lease)),
            Ask::Admit { wait, admission } => self.admissions.push(admission, now() + wait),
            Ask::ForgetNetwork { network, reply } => answer(reply, self.forget_network(network)),
            Ask::Rest { reply } => {
                self.resting = true;
                // Who asked has gone away.
                let _ = reply.send(());
            }
        }
    }

    fn found(&mut self, pool: &str) -> Result<&mut Kept, PoolError> {
        let found = self.pools.get_mut(pool);
        found.ok_or_else(|| PoolError::NotFound(pool.to_owned()))
    }

    fn checked(&self, spec: &PoolSpec) -> Result<Bounds, PoolError> {
        Ok(bounds(spec).check(room(&self.machines)?)?)
    }

    fn create(&mut self, record: PoolRecord) -> Result<v1::Pool, PoolError> {
        if self.pools.contains_key(&record.name) {
            return Err(PoolError::NameTaken(record.name));
        }
        self.checked(&record.spec)?;
        check_networks(&self.machines, &record.spec)?;
        let mut kept = Kept::new(self.serials, record);
        self.serials += 1;
        kept.write(&self.records)?;
        failpoint::pass("pool-recorded");
        let view = kept.view();
        self.pools.insert(kept.record.name.clone(), kept);
        Ok(view)
    }

    fn forget_network(&self, network: String) -> Result<u16, PoolError> {
        let names = |kept: &&Kept| kept.record.spec.networks.contains(&network);
        let pools: Vec<String> = self
            .pools
            .values()
            .filter(names)
            .map(|kept| kept.record.name.clone())
            .collect();
        match pools.is_empty() {
            true => Ok(self.machines.parts().networks.forget_network(&network)?),
            false => Err(PoolError::Named { network, pools }),
        }
    }

    fn resize(&mut self, pool: &str, change: &v1::ResizePool) -> Result<v1::Pool, PoolError> {
        let mut spec = self.found(pool)?.record.spec.clone();
        let bounds = bounds(&spec);
        spec.min = change.min.or(Some(bounds.min));
        spec.max = change.max.or(Some(bounds.max));
        let bounds = self.checked(&spec)?;
        let records = self.records.clone();
        let kept = self.found(pool)?;
        if kept.pool.is_closing() {
            return Err(PoolError::Closing(pool.to_owned()));
        }
        let before = std::mem::replace(&mut kept.record.spec, spec);
        if let Err(error) = kept.write(&records) {
            kept.record.spec = before;
            return Err(error);
        }
        kept.pool.resize(bounds);
        Ok(kept.view())
    }

    fn remove(&mut self, pool: &str, force: bool, reply: Reply<()>) {
        let kept = match self.found(pool) {
            Ok(kept) => kept,
            Err(error) => return answer(reply, Err(error)),
        };
        let leased = kept.pool.count(|phase| matches!(phase, Phase::Leased { .. }));
        if leased > 0 && !force {
            let pool = pool.to_owned();
            return answer(reply, Err(PoolError::InUse { pool, leased }));
        }
        kept.pool.close();
        kept.removers.push(reply);
        let members: Vec<_> = kept.pool.members().collect();
        let records = self.records.clone();
        if let Some(kept) = self.pools.get_mut(pool) {
            kept.note(&records);
        }
        for (key, phase) in members {
            if let Phase::Leased { .. } = phase {
                self.end_lease(pool, key, "its pool was removed");
            }
        }
        if let Some(kept) = self.pools.get_mut(pool) {
            while let Some((waiting, _)) = kept.queue.take() {
                answer(waiting.reply, Err(PoolError::Closing(pool.to_owned())));
            }
        }
    }

    fn acquire(&mut self, pool: &str, wait: Duration, waiting: Waiting) {
        let name = pool.to_owned();
        match self.found(pool) {
            Err(error) => answer(waiting.reply, Err(error)),
            Ok(kept) if kept.pool.is_closing() => answer(waiting.reply, Err(PoolError::Closing(name))),
            Ok(kept) => kept.queue.push(waiting, now() + wait),
        }
    }

    fn leased(&self, lease: &str) -> Result<(String, Key), PoolError> {
        let found = self
            .pools
            .iter()
            .find_map(|(name, kept)| Some((name.clone(), kept.leased(lease)?)));
        found.ok_or_else(|| {
            let ended = self.ended.iter().rev();
            let mut known = ended.filter(|(id, machine, _)| id == lease || machine == lease);
            PoolError::NoLease {
                lease: lease.to_owned(),
                why: known.next().map(|(_, _, why)| why.clone()),
            }
        })
    }

    fn extend(&mut self, lease: &str, time: Duration) -> Result<v1::Lease, PoolError> {
        let (pool, key) = self.leased(lease)?;
        let until = now() + time;
        let records = self.records.clone();
        let kept = self.found(&pool)?;
        kept.pool.extend(key, until);
        if let Some(fact) = kept.machines.get_mut(&key).and_then(|held| held.lease.as_mut()) {
            fact.until_ms = milliseconds(until);
        }
        kept.note(&records);
        kept.lease(key).ok_or(PoolError::Ending)
    }

    fn release(&mut self, lease: &str) -> Result<(), PoolError> {
        let (pool, key) = self.leased(lease)?;
        self.end_lease(&pool, key, "it was released");
        Ok(())
    }

    /// Remembers why a lease is over.
    pub(super) fn remember(&mut self, id: String, machine: String, why: &str) {
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((id, machine, why.to_owned()));
    }
}

/// Returns a time in milliseconds.
pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
