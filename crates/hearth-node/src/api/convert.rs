//! From the domain to the wire's views.

use std::time::Duration;

use hearth_api::v1;
use hearth_guest_protocol::message::{ProcessInfo, Processes};
use hearth_machine::{CpuMilli, ImageHealthCheck, State};

use crate::doctor;
use crate::images::{Credentials, ImageInfo, LayerInfo, Login};
use crate::machines::{MachineSnapshot, View};
use crate::records::health::health_fact;
use crate::records::spec;
use crate::setup;
use crate::snapshots::{Description, Extent, Moment, Template, TemplateKey};

/// How a machine stands.
fn state(view: &View) -> v1::MachineState {
    let (status, exit_code, reason) = match &view.state {
        State::Created => (v1::MachineStatus::Created, None, None),
        State::Starting => (v1::MachineStatus::Starting, None, None),
        State::Running => (v1::MachineStatus::Running, None, None),
        State::Paused => (v1::MachineStatus::Paused, None, None),
        State::Stopping => (v1::MachineStatus::Stopping, None, None),
        State::Restarting(ended) => (
            v1::MachineStatus::Restarting,
            Some(ended.exit_code),
            ended.reason.clone(),
        ),
        State::Exited(ended) => (
            v1::MachineStatus::Exited,
            Some(ended.exit_code),
            ended.reason.clone(),
        ),
        State::Failed { reason } => (v1::MachineStatus::Failed, None, Some(reason.clone())),
        State::Removing => (v1::MachineStatus::Removing, None, None),
    };
    v1::MachineState {
        status,
        exit_code,
        reason,
        health: view.health.as_ref().map(health_fact),
        pid: view.record.vmm.map(|vmm| vmm.pid),
        started_at: view.record.started_at.clone(),
        finished_at: view.record.finished_at.clone(),
    }
}

fn guest(key: &TemplateKey) -> v1::KeptGuest {
    v1::KeptGuest {
        driver: key.driver.clone(),
        version: key.version.clone(),
        border: key.border.clone(),
        vcpus: key.vcpus,
        memory_mib: key.memory_mib,
        disk_bytes: key.disk_bytes,
    }
}

/// A template as clients see it.
pub(super) fn template(template: Template) -> v1::Template {
    let key = template.key;
    let used_at = jiff::Timestamp::try_from(template.used_at).unwrap_or_default();
    v1::Template {
        id: template.id.to_string(),
        guest: guest(&key),
        image_digest: key.image,
        kernel_digest: key.kernel,
        initramfs_digest: key.initramfs,
        moment: match key.moment {
            Moment::Greeted => v1::TemplateMoment::Greeted,
            Moment::Configured => v1::TemplateMoment::Configured,
        },
        created_at: template.created_at,
        used_at: used_at.to_string(),
        size_bytes: template.bytes,
    }
}

/// A snapshot as clients see it.
pub(super) fn snapshot(snapshot: MachineSnapshot, unusable: Option<String>) -> v1::Snapshot {
    let Description {
        name,
        extent,
        key,
        facts,
        ..
    } = snapshot.description;
    v1::Snapshot {
        id: snapshot.id.to_string(),
        name,
        machine: facts.name,
        machine_id: facts.id,
        extent: match extent {
            Extent::Full => v1::Extent::Full,
            Extent::Disk => v1::Extent::Disk,
        },
        image: facts.image.reference,
        image_digest: facts.image.digest,
        secrets: facts.secrets,
        guest: guest(&key),
        created_at: snapshot.created_at,
        size_bytes: snapshot.bytes,
        diff: snapshot.is_diff,
        unusable,
    }
}

/// A machine as clients see it.
pub(super) fn machine(view: &View) -> v1::Machine {
    let record = &view.record;
    let cpus = record.spec.cpu_milli.and_then(CpuMilli::from_milli);
    let memory = record.spec.memory_bytes.map_or(
        hearth_machine::spec::MEMORY_DEFAULT,
        hearth_machine::ByteSize::from_bytes,
    );
    v1::Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        spec: record.spec.clone(),
        secrets: record.secrets.clone(),
        image_digest: record.image.digest.clone(),
        arguments: record.process.arguments.clone(),
        state: state(view),
        created_at: record.created_at.clone(),
        driver: record.driver.clone(),
        driver_reason: record.driver_reason.clone(),
        network_reason: record.network_reason.clone(),
        given_address: None,
        border: record.border,
        vcpus: cpus.map_or(spec::CPU_DEFAULT / 1000, CpuMilli::vcpus),
        cpu_quota_us: cpus.and_then(CpuMilli::quota_us_per_100ms),
        memory_mib: memory.mib_rounded_up(),
        ports: record.ports.clone(),
        restart_count: record.restart.restarts,
        health_check: record.health_check.clone(),
        owner: record.owner.clone(),
        generation: record.generation,
        origin: record.origin.clone(),
        template: record.template.clone(),
        stages: record.stages.clone(),
    }
}

/// Processes as clients see them.
pub(super) fn processes(list: Processes) -> v1::ProcessList {
    let one = |info: ProcessInfo| v1::ProcessInfo {
        pid: info.pid,
        parent_pid: info.parent,
        uid: info.uid,
        state: char::from(info.state).to_string(),
        cpu_ms: info.cpu_ms,
        memory_bytes: info.memory,
        command: String::from_utf8_lossy(&info.command).into_owned(),
    };
    v1::ProcessList {
        total: list.total,
        processes: list.processes.into_iter().map(one).collect(),
    }
}

/// How a workload ended, or why there is no telling.
pub(super) fn exit_status(view: &View) -> Result<v1::ExitStatus, v1::ErrorBody> {
    match view.end.as_ref().unwrap_or(&view.state) {
        State::Exited(ended) => Ok(v1::ExitStatus {
            exit_code: ended.exit_code,
            reason: ended.reason.clone(),
        }),
        State::Failed { reason } => Err(v1::ErrorBody {
            code: v1::ErrorCode::BootFailed,
            message: format!("machine {} failed", view.record.name),
            cause: Some(reason.clone()),
            remediation: Some(if view.record.spec.auto_remove {
                "`hearth doctor` checks the host; without --rm the machine stays, and `hearth console` shows its guest".to_owned()
            } else {
                format!(
                    "`hearth console {}` shows the guest; `hearth doctor` checks the host",
                    view.record.name
                )
            }),
        }),
        state => Err(v1::ErrorBody {
            code: v1::ErrorCode::WrongState,
            message: format!(
                "machine {} is {} and has no exit code",
                view.record.name,
                state.name()
            ),
            cause: None,
            remediation: None,
        }),
    }
}

/// Whom a registry knows a client as.
pub(super) fn login(given: v1::RegistryCredentials) -> Login {
    Login {
        registry: given.registry,
        credentials: match given.login {
            v1::Login::Password { user, password } => Credentials::Password { user, password },
            v1::Login::IdentityToken(token) => Credentials::IdentityToken(token),
        },
    }
}

/// An image as clients see it.
pub(super) fn image(info: ImageInfo) -> v1::Image {
    v1::Image {
        reference: info.reference,
        digest: info.digest,
        size_bytes: info.size_bytes,
        rootfs_bytes: info.rootfs_bytes,
        created_at: info.created_at,
        layers: info.layers,
        config: v1::ImageConfig {
            entrypoint: info.defaults.entrypoint,
            command: info.defaults.command,
            environment: info.defaults.environment,
            user: info.defaults.user,
            working_directory: info.defaults.working_directory,
            stop_signal: info.defaults.stop_signal,
            labels: info.labels,
            volumes: info.volumes,
            exposed_ports: info.exposed_ports,
            health_check: info.defaults.health_check.as_ref().map(health_check),
        },
        unique_bytes: info.unique_bytes,
        layer_list: info.layer_list.into_iter().map(layer).collect(),
    }
}

fn layer(layer: LayerInfo) -> v1::ImageLayer {
    v1::ImageLayer {
        digest: layer.digest,
        diff_id: layer.diff_id,
        size_bytes: layer.size_bytes,
        media_type: layer.media_type,
        images: layer.images,
    }
}

fn health_check(check: &ImageHealthCheck) -> v1::ImageHealthCheck {
    let nanoseconds =
        |time: Option<Duration>| time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    v1::ImageHealthCheck {
        command: check.command.clone(),
        interval_ns: nanoseconds(check.interval),
        timeout_ns: nanoseconds(check.timeout),
        start_period_ns: nanoseconds(check.start_period),
        start_interval_ns: nanoseconds(check.start_interval),
        retries: check.retries,
    }
}

/// What is set up, as clients see it.
pub(super) fn artefacts(list: Vec<setup::Artefact>) -> v1::SetupReport {
    let one = |artefact: setup::Artefact| v1::Artefact {
        kind: match artefact.kind {
            setup::ArtefactKind::Kernel => v1::ArtefactKind::Kernel,
            setup::ArtefactKind::Modules => v1::ArtefactKind::Modules,
            setup::ArtefactKind::Agent => v1::ArtefactKind::Agent,
            setup::ArtefactKind::Initramfs => v1::ArtefactKind::Initramfs,
            setup::ArtefactKind::Firecracker => v1::ArtefactKind::Firecracker,
            setup::ArtefactKind::Jailer => v1::ArtefactKind::Jailer,
        },
        version: artefact.version,
        path: artefact.path.display().to_string(),
        digest: artefact.digest.to_string(),
        size_bytes: artefact.size,
        outdated: artefact.outdated,
    };
    v1::SetupReport {
        artefacts: list.into_iter().map(one).collect(),
    }
}

/// What the doctor found, as clients see it.
pub(super) fn doctor(report: doctor::Report) -> v1::DoctorReport {
    let one = |check: doctor::Check| v1::DoctorCheck {
        name: check.name.to_string(),
        state: match check.state {
            doctor::State::Ok => v1::DoctorState::Ok,
            doctor::State::Warning => v1::DoctorState::Warning,
            doctor::State::Absent => v1::DoctorState::Absent,
            doctor::State::Missing => v1::DoctorState::Missing,
        },
        detail: check.detail,
        cause: check.cause,
        remedy: check.remedy,
    };
    v1::DoctorReport {
        can_run: report.can_run,
        checks: report.checks.into_iter().map(one).collect(),
    }
}
