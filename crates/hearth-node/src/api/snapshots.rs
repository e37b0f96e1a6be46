//! Snapshots, restores, rollbacks and forks.
//!
//! What makes machines goes on beside the request that asked for it: a client that goes away leaves nothing half made.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use hearth_api::v1::{self, ErrorCode};
use hearth_machine::ByteSize;
use serde::Deserialize;

use super::Service;
use super::archive;
use super::convert;
use super::error::{ApiError, body, internal};
use crate::machines::{MachineSnapshot, NewForks, NewRestored, NewSnapshot, SnapshotError};
use crate::records::MachineRecord;
use crate::snapshots::{Extent, Form, StoreError};

/// Carries something out to its end, whatever becomes of who asked for it.
async fn to_its_end<T: Send + 'static>(
    service: &Service,
    work: impl Future<Output = Result<T, SnapshotError>> + Send + 'static,
) -> Result<T, ApiError> {
    let done = service.tasks.spawn(work).await;
    Ok(done.map_err(|error| internal(&error))??)
}

async fn view(service: &Service, snapshot: MachineSnapshot) -> v1::Snapshot {
    let unusable = service.machines.unusable(&snapshot).await;
    convert::snapshot(snapshot, unusable)
}

pub(super) async fn create(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::CreateSnapshot>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::CreatedSnapshot>), ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let new = NewSnapshot {
        name: request.name,
        extent: match request.disk_only {
            true => Extent::Disk,
            false => Extent::Full,
        },
        stop: request.stop,
        form: match request.diff {
            true => Form::Changes,
            false => Form::Whole,
        },
    };
    let machines = service.machines.clone();
    let taking = async move { machines.snapshot(&machine, new).await };
    let (snapshot, pause) = to_its_end(&service, taking).await?;
    let created = v1::CreatedSnapshot {
        snapshot: view(&service, snapshot).await,
        pause_us: micros(pause),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

pub(super) async fn list(State(service): State<Service>) -> Json<Vec<v1::Snapshot>> {
    let mut all = Vec::new();
    for snapshot in service.machines.parts().snapshots.list() {
        all.push(view(&service, snapshot).await);
    }
    Json(all)
}

pub(super) async fn inspect(
    State(service): State<Service>,
    Path(snapshot): Path<String>,
) -> Result<Json<v1::Snapshot>, ApiError> {
    let snapshot = find(&service, &snapshot)?;
    Ok(Json(view(&service, snapshot).await))
}

fn find(service: &Service, text: &str) -> Result<MachineSnapshot, ApiError> {
    let found = service.machines.parts().snapshots.find(text);
    Ok(found.map_err(SnapshotError::from)?)
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(snapshot): Path<String>,
) -> Result<StatusCode, ApiError> {
    let snapshot = find(&service, &snapshot)?;
    let removed = service.machines.parts().snapshots.remove(&snapshot.id).await;
    removed.map_err(SnapshotError::from)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn prune(
    State(service): State<Service>,
    body: Result<Json<v1::PruneSnapshots>, JsonRejection>,
) -> Result<Json<v1::PrunedSnapshots>, ApiError> {
    let Json(request) = body?;
    let pruned = service.machines.prune_snapshots(request.all).await?;
    Ok(Json(v1::PrunedSnapshots {
        freed_bytes: pruned.iter().map(|snapshot| snapshot.bytes).sum(),
        snapshots: pruned
            .into_iter()
            .map(|snapshot| snapshot.description.name)
            .collect(),
    }))
}

pub(super) async fn export(
    State(service): State<Service>,
    Path(snapshot): Path<String>,
) -> Result<Response, ApiError> {
    let snapshot = find(&service, &snapshot)?;
    let held = service.machines.parts().snapshots.hold(&snapshot).await;
    let held = held.map_err(SnapshotError::from)?;
    Ok(archive::answer(&service.tasks, "application/zstd", move |out| {
        held.export::<MachineRecord>(out)
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct ImportQuery {
    name: Option<String>,
}

pub(super) async fn import(
    State(service): State<Service>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    request: Request,
) -> Result<(StatusCode, Json<v1::Snapshot>), ApiError> {
    let Query(query) = query?;
    let archive = archive::sent(request);
    let imported = service.machines.import_snapshot(archive, query.name.as_deref());
    let snapshot = imported.await?;
    Ok((StatusCode::CREATED, Json(view(&service, snapshot).await)))
}

pub(super) async fn restore(
    State(service): State<Service>,
    Path(snapshot): Path<String>,
    body: Result<Json<v1::RestoreSnapshot>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::Machine>), ApiError> {
    let Json(request) = body?;
    let new = NewRestored {
        name: request.name,
        keep_secrets: request.keep_secrets,
        secrets: request.secrets,
        memory_backend: request.memory_backend,
        owner: None,
    };
    let machines = service.machines.clone();
    let restoring = async move { machines.restore(&snapshot, new).await };
    let machine = to_its_end(&service, restoring).await?;
    Ok((StatusCode::CREATED, Json(convert::machine(&machine.view()))))
}

pub(super) async fn rollback(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::RollbackMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let (machines, it) = (service.machines.clone(), machine.clone());
    let going_back = async move { machines.roll_back(&it, &request.snapshot).await };
    to_its_end(&service, going_back).await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn fork(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::ForkMachine>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::Forked>), ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let new = NewForks {
        count: request.count,
        name_prefix: request.name_prefix,
        keep_secrets: request.keep_secrets,
        memory_backend: request.memory_backend,
    };
    new.check()?;
    // Before anything stands still for them: all of them must fit.
    let memory = convert::machine(&machine.view()).memory_mib;
    let all = ByteSize::from_mib(memory.saturating_mul(new.count.into()));
    let permit = service.pools.admit(all, Duration::ZERO).await?;
    let machines = service.machines.clone();
    let forking = async move {
        let forked = machines.fork(&machine, new).await;
        drop(permit);
        forked
    };
    let (forks, pause) = to_its_end(&service, forking).await?;
    let forked = v1::Forked {
        machines: forks.iter().map(|fork| convert::machine(&fork.view())).collect(),
        pause_us: micros(pause),
    };
    Ok((StatusCode::CREATED, Json(forked)))
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        let (code, remediation) = match error {
            SnapshotError::Machine(error) => return error.into(),
            SnapshotError::Create(error) => return error.into(),
            SnapshotError::Store(StoreError::NotFound(_)) => {
                (ErrorCode::NotFound, "`hearth snapshot ls` lists snapshots")
            }
            SnapshotError::Store(StoreError::Ambiguous(_)) => {
                (ErrorCode::InvalidRequest, "give more digits of the id")
            }
            SnapshotError::Store(StoreError::NameTaken { .. }) => (
                ErrorCode::NameTaken,
                "choose another name, or remove that snapshot (`hearth snapshot rm`)",
            ),
            SnapshotError::Store(StoreError::Name(_)) => (ErrorCode::InvalidRequest, "choose another name"),
            SnapshotError::Store(StoreError::Damaged { .. }) => (
                ErrorCode::HostUnfit,
                "remove it (`hearth snapshot rm`); is the disk in order?",
            ),
            SnapshotError::Store(StoreError::Import(_)) => (
                ErrorCode::InvalidRequest,
                "give it a file that `hearth snapshot export` wrote, whole",
            ),
            SnapshotError::Store(StoreError::Export(_) | StoreError::Write { .. })
            | SnapshotError::Write { .. } => (
                ErrorCode::Internal,
                "check the data directory and its disk; `hearth node status` names it",
            ),
            SnapshotError::Capture { .. } => (
                ErrorCode::Internal,
                "the machine goes on; check the disk of the data directory, which `hearth node status` names, and try again",
            ),
            SnapshotError::OlderStart(_) => (
                ErrorCode::WrongState,
                "restart the machine (`hearth restart`), or keep its disk alone (--disk-only)",
            ),
            SnapshotError::Unusable { .. } => (
                ErrorCode::HostUnfit,
                "give the host back what it had, or remove the snapshot (`hearth snapshot rm`)",
            ),
            SnapshotError::Secrets { .. } => (ErrorCode::InvalidRequest, "allow it with --keep-secrets"),
            SnapshotError::OtherMachine { .. } => (
                ErrorCode::InvalidRequest,
                "make a new machine of it: `hearth restore`",
            ),
            SnapshotError::Count(_) => (ErrorCode::InvalidRequest, "ask for fewer (-n)"),
        };
        body(code, &error, Some(remediation))
    }
}
