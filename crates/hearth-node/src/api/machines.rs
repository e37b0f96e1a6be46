//! Machines: create, start, stop, look at, remove.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use hearth_api::v1;
use hearth_machine::Signal;
use serde::Deserialize;

use super::Service;
use super::convert;
use super::error::{ApiError, invalid};
use crate::machines::NewMachine;

/// How long a workload has to end before it is killed, unless asked otherwise; docker's.
const GRACE_DEFAULT: u32 = 10;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    all: bool,
}

pub(super) async fn list(
    State(service): State<Service>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<v1::Machine>>, ApiError> {
    let Query(query) = query?;
    let views = service.machines.list().into_iter().map(|machine| machine.view());
    let shown = views.filter(|view| query.all || view.state.is_active());
    Ok(Json(shown.map(|view| convert::machine(&view)).collect()))
}

pub(super) async fn create(
    State(service): State<Service>,
    body: Result<Json<v1::CreateMachine>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::Machine>), ApiError> {
    let Json(request) = body?;
    let new = NewMachine {
        name: request.name,
        spec: request.spec,
        secrets: request.secrets,
    };
    let machine = service.machines.create(new).await?;
    Ok((StatusCode::CREATED, Json(convert::machine(&machine.view()))))
}

pub(super) async fn inspect(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::Machine>, ApiError> {
    Ok(Json(convert::machine(&service.machines.find(&machine)?.view())))
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query?;
    service.machines.find(&machine)?.remove(query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn start(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::Machine>, ApiError> {
    let machine = service.machines.find(&machine)?;
    machine.start(None).await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn stop(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::StopMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let grace = Duration::from_secs(request.grace_seconds.unwrap_or(GRACE_DEFAULT).into());
    machine.stop(grace).await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn pause(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::Machine>, ApiError> {
    let machine = service.machines.find(&machine)?;
    machine.pause().await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn resume(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::Machine>, ApiError> {
    let machine = service.machines.find(&machine)?;
    machine.resume().await?;
    Ok(Json(convert::machine(&machine.view())))
}

#[derive(Debug, Deserialize)]
pub(super) struct KillQuery {
    signal: Option<String>,
}

pub(super) async fn kill(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<KillQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query?;
    let signal: Signal = match query.signal {
        Some(text) => text.parse().map_err(|error| invalid(format!("{error}")))?,
        None => Signal::KILL,
    };
    service.machines.find(&machine)?.kill(signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn wait(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::ExitStatus>, ApiError> {
    let view = service.machines.find(&machine)?.ended().await;
    convert::exit_status(&view)
        .map(Json)
        .map_err(|error| ApiError(Box::new(error)))
}
