//! What is done with one machine of a pool: brought up, handed out, found again, removed.

use std::time::Duration;

use hearth_api::v1::{MachineSpec, Owner, PoolSpec};
use hearth_machine::State;
use sha2::{Digest as _, Sha256};

use super::error::PoolError;
use crate::guest::SessionEvent;
use crate::host::failpoint;
use crate::machines::{
    ExecSpec, Machine, Machines, NewMachine, NewRestored, NewSnapshot, SnapshotError, chain,
};
use crate::snapshots::{Extent, Form, SnapshotId, StoreError};

/// How long a guest may take to show that it works.
const CHECK_DEADLINE: Duration = Duration::from_secs(20);
/// How long what warms a machine up may take.
const WARM_DEADLINE: Duration = Duration::from_secs(300);
/// What of the last words of a warm-up command is told, in bytes.
const WORDS: usize = 1024;

/// Returns what a pool's machines are.
pub(super) fn machine_spec(spec: &PoolSpec) -> MachineSpec {
    MachineSpec {
        image: spec.image.clone(),
        hold: true,
        environment: spec.environment.clone(),
        memory_bytes: spec.memory_bytes,
        cpu_milli: spec.cpu_milli,
        driver: spec.driver,
        network: spec.network,
        policy: spec.policy.clone(),
        networks: spec.networks.clone(),
        ca_certificates: spec.ca_certificates.clone(),
        auto_remove: true,
        ..MachineSpec::default()
    }
}

/// Makes a machine, lets it warm up, sees that it works, and lets it stand still. Nothing is left of one that fails.
///
/// The first one that was warmed up is kept as a snapshot; later ones go on there.
pub(super) async fn bring_up(machines: &Machines, pool: &str, spec: &PoolSpec) -> Result<Machine, PoolError> {
    if let Some(machine) = restore_golden(machines, pool, spec).await {
        return Ok(machine);
    }
    let new = NewMachine {
        name: None,
        spec: machine_spec(spec),
        secrets: [].into(),
        owner: Some(Owner::Pool(pool.to_owned())),
    };
    let machine = machines.create(new).await?;
    failpoint::pass("pool-created");
    let up = async {
        machine.start(None).await?;
        warm(&machine, &spec.warm_command).await?;
        check(&machine).await?;
        failpoint::pass("pool-warm");
        keep_golden(machines, &machine, pool, spec).await;
        stand_ready(&machine).await?;
        failpoint::pass("pool-paused");
        Ok(())
    };
    match up.await {
        Ok(()) => Ok(machine),
        Err(error) => {
            remove(&machine).await;
            Err(error)
        }
    }
}

/// Returns the name of the snapshot that the machines of a pool are made of; none where starting one takes no warming up, so that a
/// template does as well.
pub(super) fn golden(pool: &str, spec: &PoolSpec) -> Option<String> {
    if spec.warm_command.is_empty() {
        return None;
    }
    // Never fails: plain strings and numbers.
    let what = serde_json::to_vec(&(machine_spec(spec), &spec.warm_command)).unwrap_or_default();
    let digest = Sha256::digest(what);
    let short: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Some(format!("pool.{pool}.{short}"))
}

/// Makes a machine of the pool's snapshot. One of which none can be made is thrown away.
async fn restore_golden(machines: &Machines, pool: &str, spec: &PoolSpec) -> Option<Machine> {
    let name = golden(pool, spec)?;
    let snapshot = machines.parts().snapshots.find(&name).ok()?;
    let new = NewRestored {
        owner: Some(Owner::Pool(pool.to_owned())),
        keep_secrets: true,
        ..NewRestored::default()
    };
    let up = async {
        let machine = machines.restore(&name, new).await?;
        failpoint::pass("pool-restored");
        let ready = async {
            stand_ready(&machine).await?;
            failpoint::pass("pool-paused");
            Ok(())
        };
        match ready.await {
            Ok(()) => Ok(machine),
            Err(error) => {
                remove(&machine).await;
                Err(error)
            }
        }
    };
    let error: PoolError = match up.await {
        Ok(machine) => return Some(machine),
        Err(error) => error,
    };
    tracing::warn!(pool, snapshot = name, error = %chain(&error), "no machine can be made of it; one is warmed up anew");
    drop_golden(machines, &snapshot.id).await;
    None
}

async fn keep_golden(machines: &Machines, machine: &Machine, pool: &str, spec: &PoolSpec) {
    let Some(name) = golden(pool, spec) else { return };
    let new = NewSnapshot {
        name: Some(name),
        extent: Extent::Full,
        stop: false,
        form: Form::Whole,
    };
    match machines.snapshot(machine, new).await {
        Ok(_) | Err(SnapshotError::Store(StoreError::NameTaken { .. })) => {}
        Err(error) => {
            tracing::warn!(pool, error = %chain(&error), "later machines are warmed up as this one was");
        }
    }
}

async fn drop_golden(machines: &Machines, id: &SnapshotId) {
    match machines.parts().snapshots.remove(id).await {
        Ok(()) | Err(StoreError::NotFound(_)) => {}
        Err(error) => tracing::warn!(snapshot = %id, error = %chain(&error), "left behind"),
    }
}

/// Removes the snapshot of a pool that is no more.
pub(super) async fn forget_golden(machines: &Machines, pool: &str, spec: &PoolSpec) {
    let found = golden(pool, spec).and_then(|name| machines.parts().snapshots.find(&name).ok());
    if let Some(snapshot) = found {
        drop_golden(machines, &snapshot.id).await;
    }
}

async fn warm(machine: &Machine, command: &[String]) -> Result<(), PoolError> {
    if command.is_empty() {
        return Ok(());
    }
    let asked = ExecSpec {
        command: command.to_vec(),
        ..ExecSpec::default()
    };
    let run = async {
        let mut exec = machine.exec(&asked).await?;
        let mut words = Vec::new();
        loop {
            match exec.next().await {
                SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                SessionEvent::Output(_, bytes) => {
                    words.extend_from_slice(&bytes[bytes.len().saturating_sub(WORDS)..]);
                    words.drain(..words.len().saturating_sub(WORDS));
                }
                SessionEvent::Ended(outcome) if outcome.exit_code() == 0 => return Ok(()),
                SessionEvent::Ended(outcome) => {
                    return Err(PoolError::Warm {
                        exit_code: outcome.exit_code(),
                        words: String::from_utf8_lossy(&words).trim().to_owned(),
                    });
                }
                SessionEvent::Failed(failure) => return Err(PoolError::WarmRefused(failure.message)),
                SessionEvent::ChannelLost => {
                    return Err(PoolError::WarmRefused("the machine is gone".to_owned()));
                }
            }
        }
    };
    let done = tokio::time::timeout(WARM_DEADLINE, run).await;
    done.map_err(|_| PoolError::WarmTimeout(WARM_DEADLINE))?
}

/// Asks the guest for a sign of life.
async fn check(machine: &Machine) -> Result<(), PoolError> {
    let guest = machine.view().guest()?.unseen();
    Ok(guest.ping(CHECK_DEADLINE).await?)
}

/// Sees that a machine goes on once it has stood still, and lets it stand still. The first time takes a guest longer: its pages are not
/// there yet, and an emulator has not translated its code.
async fn stand_ready(machine: &Machine) -> Result<(), PoolError> {
    machine.pause().await?;
    go_on(machine).await?;
    Ok(machine.pause().await?)
}

async fn go_on(machine: &Machine) -> Result<(), PoolError> {
    machine.resume().await?;
    check(machine).await
}

/// Lets a machine go on for whom it is handed to; when this returns, it answers.
pub(super) async fn hand_out(machine: &Machine) -> Result<(), PoolError> {
    go_on(machine).await?;
    failpoint::pass("pool-resumed");
    Ok(())
}

/// Lets a machine that an earlier node has left be as its record says: standing still, or with whom has it.
pub(super) async fn find(machine: &Machine, is_leased: bool) -> Result<(), PoolError> {
    machine.started().await;
    match (machine.view().state, is_leased) {
        (State::Running, false) => {
            check(machine).await?;
            Ok(machine.pause().await?)
        }
        (State::Paused, false) | (State::Running, true) => Ok(()),
        (State::Paused, true) => hand_out(machine).await,
        _ => Err(machine
            .view()
            .guest()
            .err()
            .map_or(PoolError::Ending, PoolError::from)),
    }
}

/// Removes a machine, whatever it does.
pub(super) async fn remove(machine: &Machine) {
    match machine.remove(true).await {
        Ok(()) | Err(crate::machines::MachineError::Gone) => {}
        Err(error) => {
            tracing::error!(machine = %machine.id(), error = %chain(&error), "a pool's machine is left behind")
        }
    }
    // With the last client of its actor it may have gone by itself.
    machine.removed().await;
    failpoint::pass("pool-removed");
}
