//! A machine that goes on where another one was captured: its monitor takes the state over, and its guest is made this machine
//! before any program of it runs.
//!
//! ```text
//! disk (a copy) -> restore -> go on -> hello -> renew (clock, random numbers, names, connections) -> thaw ==Running==>
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use hearth_guest_protocol::message::Renew;
use hearth_machine::{MacAddress, NetworkMode};
use serde_bytes::ByteBuf;

use super::boot::Stages;
use super::error::StartError;
use super::life::{GUEST_DEADLINE, Plan, Running, Workload, greet_again, vm_fact};
use super::limits;
use super::log::{self, LogWriter};
use super::output::now_unix_ns;
use super::pagers;
use super::session;
use super::templates::KillOnDrop;
use crate::guest::Guest;
use crate::host::failpoint;
use crate::records::{BootFact, MachineRecord};
use crate::snapshots::{Draft, Held};
use crate::vmm::{BootRequest, Driver, Machine as _, RestoreRequest, Vm, Vmm as _};

/// What a life begins with that is no boot.
#[derive(Debug)]
pub(super) struct Restoration {
    pub(super) files: Held,
    /// How much of the workload's output had been taken.
    pub(super) received: u64,
    /// What its monitor and kernel are.
    pub(super) boot: BootFact,
    /// Keeps the files of a fork for as long as one is made of them.
    pub(super) _draft: Option<Arc<Draft<MachineRecord>>>,
}

/// Lets a monitor take a captured state over; its processors run when this returns.
pub(super) async fn restore(
    plan: &Plan,
    driver: &Driver,
    boot: &BootRequest,
    source: &Restoration,
) -> Result<Vm, StartError> {
    let snapshot = files(driver, source).await?;
    let request = RestoreRequest {
        boot: boot.clone(),
        memory: pagers::memory(plan, &snapshot)?,
        snapshot,
        at_once: true,
    };
    let vm = driver.restore(&request).await.map_err(StartError::Restore)?;
    let mut unless = KillOnDrop::armed(boot.id, &vm);
    failpoint::pass("restore-loaded");
    vm.resume().await.map_err(StartError::Resume)?;
    failpoint::pass("restore-resumed");
    unless.disarm();
    Ok(vm)
}

/// Returns the directory that the driver can restore from.
async fn files(driver: &Driver, source: &Restoration) -> Result<PathBuf, StartError> {
    if driver.capabilities().memory_changes {
        return Ok(source.files.vm());
    }
    let held = source.files.clone();
    let path = held.vm();
    let whole = tokio::task::spawn_blocking(move || held.whole()).await;
    whole
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(|source| StartError::Write { path, source })
}

/// Makes the guest this machine and lets its programs go on.
pub(super) async fn set_up(
    plan: &mut Plan,
    vm: &Vm,
    source: &Restoration,
    stages: &mut Stages,
) -> Result<Workload, StartError> {
    let (guest, session) = greet_again(plan, vm, source.received).await?;
    stages.end("hello");
    failpoint::pass("restore-greeted");
    let session = session.ok_or(StartError::NoWorkload)?;
    let mut machine_id = [0; 16];
    random(&mut machine_id)?;
    let machine_id = (!plan.same_identity).then_some(machine_id);
    readdress(plan, &guest).await;
    guest.renew(&renewal(plan, machine_id)?, GUEST_DEADLINE).await?;
    stages.end("renew");
    failpoint::pass("restore-renewed");
    limits::impose(plan, vm_fact(vm));
    let directory = plan.parts.layout.machine_data(plan.id);
    let log = LogWriter::begin_behind(&directory, plan.spec.log.bytes(), now_unix_ns(), source.received);
    let log = log.map_err(|source| StartError::Write {
        path: log::path(&directory),
        source,
    })?;
    // Once more: what came first behind a restore was late, as the guest's memory is touched for the first time.
    guest.set_clock(now_unix_ns, GUEST_DEADLINE).await?;
    if !guest.thaw(GUEST_DEADLINE).await? {
        return Err(StartError::WentOn);
    }
    stages.end("thaw");
    failpoint::pass("restore-thawed");
    let running = Running {
        guest,
        input: session.input(),
        stages: stages.take(),
        template: None,
        boot: Some(source.boot.clone()),
        ports: Vec::new(),
    };
    Ok(Workload {
        running,
        session,
        log: Some(log),
    })
}

/// Gives the network interface an address of its own, instead of that of the machine that was captured: programs know that one, and may
/// talk of it. Clones of templates, in which no program ran, keep the template's: each is alone on its link, and setting another takes an
/// emulated guest 9 ms.
async fn readdress(plan: &Plan, guest: &Guest) {
    if plan.spec.network != NetworkMode::None {
        guest.set_hardware_address(MacAddress::of(plan.id).bytes()).await;
    }
}

/// Says who the guest is from now on.
pub(super) fn renewal(plan: &Plan, machine_id: Option<[u8; 16]>) -> Result<Renew, StartError> {
    let mut entropy = [0; 32];
    random(&mut entropy)?;
    let hostname = session::hostname(&plan.spec, plan.id);
    Ok(Renew {
        hosts: ByteBuf::from(session::hosts_file(&hostname, &plan.spec.container.hosts).into_bytes()),
        resolv_conf: ByteBuf::from(session::resolver_file(plan.spec.network).into_bytes()),
        machine_id,
        environment: variables(plan, &hostname),
        hostname,
        entropy,
        clock_unix_ns: now_unix_ns(),
    })
}

fn random(bytes: &mut [u8]) -> Result<(), StartError> {
    getrandom::fill(bytes)
        .map_err(|error| crate::guest::ConnectError::Io(std::io::Error::other(error)).into())
}

/// What processes beside the workload see from now on that is another than before: the host's name, unless it was given as a variable.
fn variables(plan: &Plan, hostname: &str) -> Vec<ByteBuf> {
    let is_given = plan
        .process
        .environment
        .iter()
        .any(|it| it.starts_with("HOSTNAME="));
    let name = (!is_given).then(|| format!("HOSTNAME={hostname}").into_bytes().into());
    name.into_iter().collect()
}
