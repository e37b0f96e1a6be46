//! Machines: create, start, stop, look at, remove.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use hearth_api::v1;
use hearth_machine::{Filters, Signal};
use serde::Deserialize;

use super::Service;
use super::convert;
use super::error::{ApiError, invalid};
use super::filter;
use crate::machines::{Change, Machine, NewMachine};

/// How long a workload has to end before it is killed, unless asked otherwise; docker's.
const GRACE_DEFAULT: u32 = 10;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    all: bool,
    filter: Option<String>,
}

pub(super) async fn list(
    State(service): State<Service>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<v1::Machine>>, ApiError> {
    let Query(query) = query?;
    let filters = filters(query.filter.as_deref(), filter::MACHINES)?;
    // docker's rule: who asks for a state sees what is in it.
    let all = query.all || filter::asks_for_rest(&filters);
    let views = service.machines.list().into_iter().map(|machine| machine.view());
    let shown = views.filter(|view| all || view.state.is_active());
    let shown = shown.map(|view| convert::machine(&view));
    Ok(Json(
        shown.filter(|machine| filter::shows(&filters, machine)).collect(),
    ))
}

/// Reads the filters of a query: a JSON array, since a query has a name once.
pub(super) fn filters(text: Option<&str>, known: &[&str]) -> Result<Filters, ApiError> {
    let texts: Vec<String> = match text {
        Some(text) => serde_json::from_str(text).map_err(|error| invalid(format!("filter: {error}")))?,
        None => Vec::new(),
    };
    Ok(Filters::parse(texts.iter().map(String::as_str), known)?)
}

pub(super) async fn prune(
    State(service): State<Service>,
    body: Result<Json<v1::PruneMachines>, JsonRejection>,
) -> Result<Json<v1::Pruned>, ApiError> {
    let Json(request) = body?;
    let filters = Filters::parse(request.filters.iter().map(String::as_str), filter::PRUNE)?;
    let until = filters.values("until").iter().map(|text| filter::time(text));
    let until: Vec<_> = until.collect::<Result<_, _>>().map_err(invalid)?;
    let which = |machine: &Machine| filter::is_pruned(&filters, &until, &machine.view().record);
    let (machines, reclaimed_bytes) = service.machines.prune(which).await;
    Ok(Json(v1::Pruned {
        machines: machines.iter().map(ToString::to_string).collect(),
        reclaimed_bytes,
    }))
}

pub(super) async fn update(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::UpdateMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let change = Change {
        labels: request.labels,
        remove_labels: request.remove_labels,
        restart: request.restart,
        timeout: request.timeout_seconds.map(Duration::from_secs),
        idle_timeout: request.idle_timeout_seconds.map(Duration::from_secs),
        policy: request.policy,
    };
    machine.update(change).await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn top(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::ProcessList>, ApiError> {
    let processes = service.machines.find(&machine)?.processes().await?;
    Ok(Json(convert::processes(processes)))
}

pub(super) async fn rename(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::RenameMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    let name = request
        .name
        .parse()
        .map_err(|error| invalid(format!("{error}")))?;
    machine.rename(name).await?;
    Ok(Json(convert::machine(&machine.view())))
}

pub(super) async fn restart(
    State(service): State<Service>,
    Path(machine): Path<String>,
    body: Result<Json<v1::StopMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    let Json(request) = body?;
    let machine = service.machines.find(&machine)?;
    machine.restart(grace(&request)).await?;
    Ok(Json(convert::machine(&machine.view())))
}

fn grace(request: &v1::StopMachine) -> Duration {
    Duration::from_secs(request.grace_seconds.unwrap_or(GRACE_DEFAULT).into())
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
        owner: None,
    };
    let machine = service.machines.create(new).await?;
    Ok((StatusCode::CREATED, Json(convert::machine(&machine.view()))))
}

pub(super) async fn inspect(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::Machine>, ApiError> {
    let machine = service.machines.find(&machine)?;
    let given = service.machines.parts().networks.given_address(machine.id());
    Ok(Json(v1::Machine {
        given_address: given.map(|address| address.to_string()),
        ..convert::machine(&machine.view())
    }))
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
    machine.stop(grace(&request)).await?;
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
