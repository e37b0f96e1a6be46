//! How a start comes by its virtual machine: as a clone of a template, or by a boot of which a template is taken.
//!
//! ```text
//!          template of its key ---> its disk, restore, resume, hello ------------------.
//! driver -<                                                                             >--> renew --> (start: boot.rs)
//!          none ---> disk, boot, hello, configure as nobody's, template, resume -------'
//! ```
//! A template is the guest behind its configuration and before it is told who it is: its disks are mounted, the workload's process is
//! made and waits. Nothing in it tells machines apart, and no environment, secret or random number of a machine is in it. A clone
//! that does not come up is booted instead, and its template thrown away.
//!
//! Mounted disks are part of such a template. A machine that has a disk already, since it starts again, is a clone of another template:
//! of the guest behind its greeting and before it is configured ([`Moment::Greeted`]). So is one whose kernel is its own agent.

use std::path::PathBuf;

use hearth_machine::{DriverChoice, MachineId, NetworkMode};

use super::boot::Stages;
use super::capture;
use super::error::StartError;
use super::life::{GUEST_DEADLINE, Plan, chain, host_user};
use super::pagers::{self, PagersError};
use super::recovery::kill_at_once;
use super::registry::Machines;
use super::silence::Silence;
use crate::guest::Guest;
use crate::host::{failpoint, files};
use crate::network;
use crate::setup::{Artefacts, BootSet, Digest};
use crate::snapshots::{Building, Moment, Ready, Template, TemplateError, TemplateId, TemplateKey, Turn};
use crate::vmm::{
    BootError, BootRequest, Driver, Machine as _, ProcessId, RestoreError, RestoreRequest, SnapshotKind, Vm,
    Vmm as _,
};

/// What a clone was made of.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) id: TemplateId,
    pub(super) moment: Moment,
}

/// What a virtual machine began with.
pub(super) enum Beginning {
    /// It is a clone.
    Template(Model),
    /// It is one that stood by, whose guest is known.
    Standby(Model, Guest),
    /// It goes on where another one was captured.
    Snapshot,
    /// It was booted, and a template is to be taken of it.
    BootForTemplate(Box<Building>),
    /// It was booted.
    Boot,
}

impl Beginning {
    /// Tells whether it was ready before its machine was there.
    pub(super) fn stood_by(&self) -> bool {
        matches!(self, Self::Standby(..))
    }

    /// Tells whether its workload's process was made ahead: then it is one of many.
    pub(super) fn is_configured_clone(&self) -> bool {
        self.template()
            .is_some_and(|model| model.moment == Moment::Configured)
    }

    /// Returns the template that it is a clone of.
    pub(super) fn template(&self) -> Option<Model> {
        match self {
            Self::Template(model) | Self::Standby(model, _) => Some(model.clone()),
            Self::Snapshot | Self::BootForTemplate(_) | Self::Boot => None,
        }
    }
}

/// Whether a start may use a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// It uses the one that there is, or makes it.
    Template,
    /// It boots.
    Boot,
}

/// Finds out what a start begins with, and waits for another one that is making the template.
pub(super) async fn turn(plan: &Plan, driver: &Driver, boot_set: Option<&BootSet>) -> Turn {
    if plan.choice != Choice::Template || !driver.capabilities().snapshots {
        return Turn::Without;
    }
    // A template has none of what the monitor itself gives to one machine: limits, and what the metadata service says.
    let spec = &plan.spec;
    let is_limited = spec.net_rate.is_some() && !network::leads_out(spec.network);
    if is_limited || spec.disk_rate.is_some() || spec.metadata.is_some() {
        return Turn::Without;
    }
    let is_new = !plan.parts.layout.machine_disk(plan.id).exists();
    let moment = match boot_set {
        Some(_) if is_new => Moment::Configured,
        _ => Moment::Greeted,
    };
    match key(plan, driver, boot_set, moment) {
        Ok(key) => plan.parts.templates.turn(&key).await,
        Err(error) => {
            tracing::warn!(machine = %plan.id, %error, "its root file system cannot be looked at; it boots");
            Turn::Without
        }
    }
}

/// Returns the key of the template that a machine is a clone of.
pub(super) fn key(
    plan: &Plan,
    driver: &Driver,
    boot_set: Option<&BootSet>,
    moment: Moment,
) -> std::io::Result<TemplateKey> {
    let (kernel, initramfs) = guest_digests(&plan.parts.artefacts, boot_set)?;
    let capabilities = driver.capabilities();
    let shape = plan.spec.shape();
    Ok(TemplateKey {
        driver: capabilities.driver.to_owned(),
        version: capabilities.version.clone(),
        fingerprint: capabilities.fingerprint.clone(),
        border: capabilities.border.to_string(),
        vcpus: shape.vcpus,
        memory_mib: shape.memory_mib,
        image: plan.image.clone(),
        rootfs_bytes: std::fs::metadata(plan.parts.layout.machine_rootfs(plan.id))?.len(),
        disk_bytes: plan.spec.disk.bytes(),
        interface: plan.spec.network != NetworkMode::None,
        kernel,
        initramfs,
        moment,
    })
}

/// Returns the digests of kernel and initramfs; the latter is empty where the kernel is its own agent.
fn guest_digests(artefacts: &Artefacts, boot_set: Option<&BootSet>) -> std::io::Result<(String, String)> {
    if let Some(set) = boot_set {
        return Ok((set.kernel_digest.to_string(), set.initramfs_digest.to_string()));
    }
    let guest = artefacts
        .bare_guest()
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    Ok((Digest::of_file(guest)?.to_string(), String::new()))
}

/// Makes a machine of a template, and its disk. A template that cannot be used is thrown away.
///
/// # Errors
/// Only when there is no disk.
pub(super) async fn clone(
    plan: &Plan,
    driver: &Driver,
    request: &BootRequest,
    ready: Ready,
    stages: &mut Stages,
) -> Result<Option<(Vm, Model)>, StartError> {
    make_disk(plan, ready.disk()).await?;
    stages.end("disk");
    let model = Model {
        id: ready.id().clone(),
        moment: ready.moment(),
    };
    let error = match restore(plan, driver, request, &ready).await {
        Ok(vm) => {
            stages.end("restore");
            return Ok(Some((vm, model)));
        }
        Err(error) => error,
    };
    tracing::warn!(machine = %plan.id, template = %model.id, error = %chain(&error), "it cannot be a clone; it boots");
    drop(ready);
    match error.is_of_template() {
        true => discard(plan, &model).await,
        false => leave(plan, &model),
    }
    Ok(None)
}

/// Throws a template away of which no machine comes up.
pub(super) async fn discard(plan: &Plan, model: &Model) {
    leave(plan, model);
    plan.parts.standbys.clear();
    if let Err(error) = plan.parts.templates.remove(&model.id).await {
        tracing::warn!(template = %model.id, error = %chain(&error), "a bad template stays");
    }
}

/// Gives back what a machine has of a template that it is no clone of in the end. Nothing of its own is on the disk yet.
fn leave(plan: &Plan, model: &Model) {
    plan.parts.pagers.release(plan.id);
    let disk = plan.parts.layout.machine_disk(plan.id);
    if model.moment == Moment::Configured
        && let Err(error) = files::remove_file(&disk)
    {
        tracing::warn!(machine = %plan.id, %error, "it boots with the disk of a template");
    }
}

/// Makes the machine's disk unless it is there: as a copy of this one, or empty.
///
/// # Errors
/// Returns the disk's, or the file system's.
pub(super) async fn make_disk(plan: &Plan, of: Option<PathBuf>) -> Result<(), StartError> {
    let (parts, user) = (&plan.parts, host_user(plan.id));
    let disk = parts.layout.machine_disk(plan.id);
    match of {
        Some(of) => parts.disks.copy(of, &disk, user).await?,
        None => parts.disks.prepare(plan.spec.disk, &disk, user).await?,
    }
    failpoint::reach("start-disk-made").map_err(|source| StartError::Write {
        path: parts.layout.machine_data(plan.id),
        source,
    })
}

#[derive(Debug, thiserror::Error)]
enum CloneError {
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Pager(#[from] PagersError),
    #[error("it does not go on")]
    Resume(#[source] crate::vmm::ControlError),
}

impl CloneError {
    /// Whether another machine would fare no better.
    fn is_of_template(&self) -> bool {
        match self {
            Self::Restore(RestoreError::Boot(error)) => {
                matches!(error, BootError::Died { .. } | BootError::Control { .. })
            }
            Self::Restore(RestoreError::Read { .. }) | Self::Resume(_) => true,
            Self::Restore(RestoreError::Unsupported { .. }) | Self::Pager(_) => false,
        }
    }
}

async fn restore(plan: &Plan, driver: &Driver, boot: &BootRequest, ready: &Ready) -> Result<Vm, CloneError> {
    let request = RestoreRequest {
        boot: boot.clone(),
        snapshot: ready.path().to_owned(),
        memory: pagers::memory(plan, ready.path())?,
        at_once: true,
    };
    let vm = driver.restore(&request).await?;
    let mut unless = KillOnDrop::armed(boot.id, &vm);
    vm.resume().await.map_err(CloneError::Resume)?;
    unless.disarm();
    Ok(vm)
}

/// Kills a monitor when its start is given up between two steps; what it leaves is the life's to remove.
#[derive(Debug)]
pub(super) struct KillOnDrop(Option<(MachineId, ProcessId)>);

impl KillOnDrop {
    pub(super) fn armed(id: MachineId, vm: &Vm) -> Self {
        Self(Some((id, vm.process())))
    }

    pub(super) fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some((id, process)) = self.0.take()
            && let Err(error) = kill_at_once(process)
        {
            tracing::error!(machine = %id, %error, "a virtual machine that was given up does not end");
        }
    }
}

/// Takes the template of a machine that has just come to its moment; the machine goes on, whatever comes of it.
///
/// # Errors
/// Only when the machine does not go on.
pub(super) async fn take(
    plan: &Plan,
    vm: &Vm,
    guest: &Guest,
    building: Box<Building>,
) -> Result<(), StartError> {
    if building.moment() == Moment::Configured {
        // What the guest has to write is on the disk then, and its journal is empty: no clone has to do that again when it ends.
        if let Err(error) = guest.freeze(GUEST_DEADLINE, GUEST_DEADLINE).await {
            tracing::debug!(machine = %plan.id, error = %chain(&error), "its clones have more to write");
        }
        guest.thaw(GUEST_DEADLINE).await?;
    }
    // What the agent does behind its greeting is done when it answers.
    guest.ping(GUEST_DEADLINE).await?;
    let id = building.id().clone();
    let failed = |error: &dyn std::error::Error| {
        tracing::warn!(machine = %plan.id, template = %id, error = %chain(error), "no template was taken");
    };
    let directory = match building.directory() {
        Ok(directory) => directory,
        Err(error) => {
            failed(&error);
            building.failed();
            return Ok(());
        }
    };
    let silence = Silence::begin(plan, guest).await?;
    if let Err(error) = vm.snapshot(directory, SnapshotKind::Full).await {
        failed(&error);
        building.failed();
        return silence.end(plan, vm).await;
    }
    capture::keep_origin(plan, directory);
    let disk = copy_disk(plan, &building).await;
    vm.resume().await.map_err(StartError::Resume)?;
    silence.end(plan, vm).await?;
    if let Err(error) = disk {
        failed(&error);
        building.failed();
        return Ok(());
    }
    failpoint::pass("template-taken");
    // Others wait for it; this machine need not.
    let parts = plan.parts.clone();
    plan.parts.tasks.spawn(async move {
        match building.finish().await {
            Ok(()) => parts.templates.trim().await,
            Err(error) => tracing::warn!(template = %id, error = %chain(&error), "no template was taken"),
        }
    });
    Ok(())
}

/// Copies the disk of a machine that stands still, where that belongs to its template.
async fn copy_disk(plan: &Plan, building: &Building) -> std::io::Result<()> {
    let Some(to) = building.disk() else {
        return Ok(());
    };
    let from = plan.parts.layout.machine_disk(plan.id);
    let copied = tokio::task::spawn_blocking(move || files::clone_file(&from, &to)).await;
    copied.map_err(std::io::Error::other).flatten()?;
    failpoint::reach("template-copied")
}

impl Machines {
    /// Removes templates that no machine could be made of any more, since the image, the kernel, the agent or the monitor is
    /// another now; or all. Returns those that it has removed.
    ///
    /// # Errors
    /// Returns [`TemplateError`] when one cannot be removed.
    pub async fn prune_templates(&self, all: bool) -> Result<Vec<Template>, TemplateError> {
        let mut pruned = Vec::new();
        self.parts.standbys.clear();
        for template in self.parts.templates.list() {
            if !all && self.is_of_use(&template.key).await {
                continue;
            }
            match self.parts.templates.remove(&template.id).await {
                Ok(()) => pruned.push(template),
                // Somebody else removed it.
                Err(TemplateError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    async fn is_of_use(&self, key: &TemplateKey) -> bool {
        let parts = &self.parts;
        let set = parts.artefacts.boot_set().ok();
        let set = set.filter(|_| parts.artefacts.bare_guest().is_none());
        let boots = guest_digests(&parts.artefacts, set.as_ref())
            .is_ok_and(|digests| digests == (key.kernel.clone(), key.initramfs.clone()));
        let runs = parts
            .drivers
            .select(DriverChoice::Auto)
            .await
            .is_ok_and(|selected| {
                let capabilities = selected.driver.capabilities();
                capabilities.driver != key.driver || capabilities.fingerprint == key.fingerprint
            });
        let images = parts.images.list().await.unwrap_or_default();
        let named = images.iter().any(|image| image.digest == key.image);
        // A machine keeps its root file system when the image is gone.
        boots && runs && (named || !self.using_image(&key.image).is_empty())
    }
}
