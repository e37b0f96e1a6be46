//! What a node does with what an earlier one has left: machines that run are found again, what was half done is finished or
//! undone, and what has no owner is swept.
//!
//! ```text
//! record                                                    what becomes of it
//! none, Removing, or of an execution of code                ended and swept
//! being made of a snapshot, or by a fork                    ended and swept
//! Alive, of an earlier boot of the host                     Failed: the host was restarted
//! Alive, with its monitor's process                         found again (life), or Failed if that is gone
//! Alive and told to end, and its monitor is gone            Exited: the stop was half done
//! Alive, without a monitor: its start was half done         ended, Failed
//! Exited or Failed, of a machine that goes when it ends     swept
//! rests, and its restart policy says otherwise              Restarting: after a reboot, or after what was found out above
//! Created, and its name is another's                        swept: its creation was refused
//! Created, and a clone stood by for it                      that is ended
//! any other                                                 as it says
//! of another format, or not to be understood                left alone
//! ```
//! Runs before the node serves, while it holds the lock: nobody else changes anything.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_api::v1::Owner;
use hearth_machine::{ByteSize, Ended, HostLimits, MachineId, Process, State};

use super::actor;
use super::drivers;
use super::error::CreateError;
use super::handle::Machine;
use super::life;
use super::registry::{Known, Machines};
use super::snapshots::ROLLBACK_DISK;
use super::standby;
use crate::host::process::{Process as HostProcess, ProcessId};
use crate::host::{failpoint, files};
use crate::records::{MachineRecord, RecordError, RecordedState, RestartFact, spec};
use crate::vmm;

/// The exit code of a workload that was killed: 128 and the number of SIGKILL.
const KILLED: u8 = 137;
/// How long a killed process may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long the node waits for guests of an earlier one before it serves; they go on answering after that.
const ADOPTION_DEADLINE: Duration = Duration::from_secs(20);

/// What a machine of any host may have had: records are checked against this, so that none is lost on a smaller host.
pub(super) const ANY_HOST: HostLimits = HostLimits {
    memory: ByteSize::from_bytes(u64::MAX),
    guest_memory: ByteSize::from_bytes(u64::MAX),
    processors: u32::MAX,
};

impl Machines {
    /// Brings back what an earlier node has written down, finds the virtual machines that it left running, and sweeps what
    /// it left half done.
    ///
    /// # Errors
    /// Returns [`RecordError`] when the records cannot be read at all.
    pub async fn recover(&self) -> Result<(), RecordError> {
        let begun = Instant::now();
        let mut loaded = self.records.load()?;
        // Of two of one name, the first one is the one that has it.
        loaded
            .records
            .sort_by(|(_, a), (_, b)| a.created_at.cmp(&b.created_at));
        failpoint::pass("adopt-read");
        for error in &loaded.unreadable {
            tracing::error!(error = %life::chain(error), "a machine's record is left alone");
        }
        self.settle_networks(&loaded.records);
        for id in loaded.orphans {
            self.sweep(id, None).await;
        }
        self.sweep_strays().await;
        let mut found = Vec::new();
        for (id, record) in loaded.records {
            found.extend(self.bring_back(id, record).await);
        }
        let started = found.iter().map(Machine::started);
        let all = tokio::time::timeout(ADOPTION_DEADLINE, futures_util::future::join_all(started));
        if all.await.is_err() {
            tracing::warn!("not every machine of the earlier node has answered yet");
        }
        if !found.is_empty() {
            let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(
                machines = found.len(),
                took_ms,
                "found the machines of an earlier node"
            );
        }
        Ok(())
    }

    /// Gives machines the places on networks that their records say, and nobody else.
    fn settle_networks(&self, records: &[(MachineId, MachineRecord)]) {
        let of = |(id, record): &(MachineId, MachineRecord)| {
            let names = record.spec.networks.iter();
            let networks = names.filter_map(|name| name.parse().ok()).collect();
            (*id, record.name.clone(), networks)
        };
        let all: Vec<_> = records.iter().map(of).collect();
        let exists = |id| self.parts.layout.machine_data(id).exists();
        self.parts.networks.users().settle(&all, exists);
    }

    /// Ends what runs of a machine, and removes all that it has.
    async fn sweep(&self, id: MachineId, record: Option<&MachineRecord>) {
        self.end_vmm(id, record).await;
        tracing::info!(machine = %id, "swept what an earlier node left of it");
        if let Err(error) = actor::remove_all(&self.parts, id) {
            tracing::error!(machine = %id, error = %life::chain(&error), "left behind");
        }
        failpoint::pass("adopt-swept");
    }

    /// Sweeps sockets and memory of machines that have no directory.
    async fn sweep_strays(&self) {
        let layout = &self.parts.layout;
        for directory in [layout.machines_run(), layout.memory().to_owned()] {
            for id in ids_in(&directory) {
                if !layout.machine_data(id).exists() {
                    self.sweep(id, None).await;
                }
            }
        }
    }

    /// Makes the actor of a recorded machine, unless it is to go. Returns the machine when its virtual machine may still run.
    async fn bring_back(&self, id: MachineId, mut record: MachineRecord) -> Option<Machine> {
        let was_alive = record.state == RecordedState::Alive;
        let is_here = was_alive && record.vmm.is_some() && !self.is_of_earlier_boot(&record);
        let runs = is_here && !(record.stopping && monitor_is_gone(&record));
        if was_alive && !runs {
            let state = self.settle(id, &record, is_here).await;
            self.correct(id, &mut record, state);
        }
        self.ask_policy(id, &mut record, was_alive && !runs);
        let is_over = matches!(
            record.state,
            RecordedState::Exited { .. } | RecordedState::Failed { .. }
        );
        // Who waited for it, was connected to the earlier node.
        let is_left = record.owner == Some(Owner::Execute);
        if record.state == RecordedState::Removing
            || record.unfinished
            || is_left
            || (is_over && record.spec.auto_remove)
        {
            self.sweep(id, Some(&record)).await;
            return None;
        }
        self.forget_rollback(id);
        let never_ran = record.state == RecordedState::Created;
        if never_ran {
            self.end_standby(id).await;
        }
        match known(id, record).and_then(|known| self.adopt(known)) {
            Ok(machine) => Some(machine).filter(|_| runs),
            // Its creation was refused, by a node that wrote first and looked then, and did not come to take it back.
            Err(CreateError::NameTaken { .. }) if never_ran => {
                self.sweep(id, None).await;
                None
            }
            Err(error) => {
                tracing::error!(machine = %id, error = %life::chain(&error), "not brought back");
                None
            }
        }
    }

    /// Ends the clone that stood by for a machine which was created and not started: the node that could have let it go on is gone.
    async fn end_standby(&self, id: MachineId) {
        if !self.parts.layout.machine_run(id).exists() {
            return;
        }
        self.end_vmm(id, None).await;
        if let Err(error) = standby::without_start(&self.parts, id) {
            tracing::error!(machine = %id, %error, "left behind");
        }
    }

    /// Removes the disk of a rollback that did not come so far as to put it in place: whoever asked for it asks again.
    fn forget_rollback(&self, id: MachineId) {
        let disk = self.parts.layout.machine_data(id).join(ROLLBACK_DISK);
        if let Err(error) = files::remove_file(&disk) {
            tracing::warn!(machine = %id, %error, "the disk of a rollback is left behind");
        }
    }

    /// Tells whether a machine was started before the host was: then a process of that number is another's, even one that
    /// started at the same tick. Records of older nodes do not tell.
    fn is_of_earlier_boot(&self, record: &MachineRecord) -> bool {
        let boot = record.host_boot.as_ref();
        boot.is_some_and(|boot| *boot != self.parts.host_boot)
    }

    /// Takes back what was done for a machine that is recorded as alive and is not, and returns how it stands.
    async fn settle(&self, id: MachineId, record: &MachineRecord, was_stopped: bool) -> RecordedState {
        let failed = |reason: &str| RecordedState::Failed {
            reason: reason.to_owned(),
        };
        let state = if was_stopped {
            RecordedState::Exited {
                exit_code: KILLED,
                reason: Some("the node ended while the machine was stopping".to_owned()),
            }
        } else if self.is_of_earlier_boot(record) {
            failed("the host was restarted")
        } else {
            self.end_vmm(id, None).await;
            failed("the node ended while the machine was starting")
        };
        life::release(&self.parts, id);
        state
    }

    /// Asks the restart policy of a machine that rests: after what has just been found out of it, and after a reboot of the host.
    fn ask_policy(&self, id: MachineId, record: &mut MachineRecord, has_ended: bool) {
        let Ok(Known { spec, state, .. }) = known(id, record.clone()) else {
            return;
        };
        let history = record.restart.into();
        let by_reboot = self.is_of_earlier_boot(record) && spec.restart.starts_after_reboot(&state, history);
        let by_end = has_ended && spec.restart.restart_after(&state, history).is_some();
        if !by_reboot && !by_end {
            return;
        }
        if by_reboot {
            // As a start by hand: what was before the reboot is over.
            record.restart = RestartFact::default();
        }
        let (exit_code, reason) = match &record.state {
            RecordedState::Exited { exit_code, reason } => (*exit_code, reason.clone()),
            RecordedState::Failed { reason } => (KILLED, Some(reason.clone())),
            _ => return,
        };
        record.state = RecordedState::Restarting { exit_code, reason };
        self.write(id, record);
    }

    fn write(&self, id: MachineId, record: &mut MachineRecord) {
        record.generation += 1;
        if let Err(error) = self.records.write(id, record) {
            // The next node comes to the same.
            tracing::error!(machine = %id, error = %life::chain(&error), "record not written");
        }
    }

    fn correct(&self, id: MachineId, record: &mut MachineRecord, state: RecordedState) {
        record.state = state;
        record.finished_at = Some(jiff::Timestamp::now().to_string());
        record.vmm = None;
        (record.stopping, record.paused) = (false, false);
        record.ports.clear();
        self.write(id, record);
    }

    /// Ends a virtual machine that an earlier node left running: the one that the record names, or one of that name, which was
    /// started and not written down any more.
    async fn end_vmm(&self, id: MachineId, record: Option<&MachineRecord>) {
        let processes = match record.and_then(|record| record.vmm) {
            Some(vmm) => vec![life::process_id(vmm)],
            None => vmm::find_strays(id),
        };
        for process in processes {
            if let Err(error) = end_process(process).await {
                tracing::error!(machine = %id, %error, "a virtual machine of an earlier node does not end");
            }
        }
    }
}

/// Tells whether the process that a record names has ended; one that cannot be looked at has not.
fn monitor_is_gone(record: &MachineRecord) -> bool {
    let find = |vmm| HostProcess::find(life::process_id(vmm));
    record.vmm.is_some_and(|vmm| matches!(find(vmm), Ok(None)))
}

/// Returns the machines that names in a directory stand for.
fn ids_in(directory: &Path) -> Vec<MachineId> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn known(id: MachineId, record: MachineRecord) -> Result<Known, CreateError> {
    // The host may have shrunk since; that is said when the machine is started.
    let mut spec = spec::check(&record.spec, ANY_HOST)?;
    spec.driver = drivers::kept(spec.driver, &record.driver);
    let process = Process::from(&record.process);
    let secrets = record.secrets.is_empty().then(Arc::default);
    let state = match &record.state {
        RecordedState::Exited { exit_code, reason } => State::Exited(Ended {
            exit_code: *exit_code,
            reason: reason.clone(),
        }),
        RecordedState::Failed { reason } => State::Failed {
            reason: reason.clone(),
        },
        // Whether it still is will be found out by its actor.
        RecordedState::Alive => State::Starting,
        RecordedState::Restarting { exit_code, reason } => State::Restarting(Ended {
            exit_code: *exit_code,
            reason: reason.clone(),
        }),
        RecordedState::Created | RecordedState::Removing => State::Created,
    };
    Ok(Known {
        id,
        spec,
        process,
        secrets,
        state,
        record,
    })
}

/// Kills a process, and does not wait for its end.
pub(super) fn kill_at_once(id: ProcessId) -> std::io::Result<()> {
    HostProcess::find(id)?.map_or(Ok(()), |process| process.kill())
}

/// Kills a process that an earlier node has started, and waits for its end.
pub(super) async fn end_process(id: ProcessId) -> std::io::Result<()> {
    let Some(process) = HostProcess::find(id)? else {
        return Ok(());
    };
    process.kill()?;
    let gone = tokio::time::timeout(KILL_DEADLINE, process.wait()).await;
    gone.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))?
        .map(drop)
}
