//! Networks of machines.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_api::v1::{self, ErrorCode};
use hearth_machine::{InvalidNetworkName, NetworkName};

use super::Service;
use super::convert;
use super::error::{ApiError, body, invalid};
use crate::machines::NetworkChange;
use crate::network::{NetworkError, NewNetwork, UserNetwork, UserNetworkError, UserNetworks};

fn networks(service: &Service) -> &UserNetworks {
    service.machines.parts().networks.users()
}

pub(super) async fn list(State(service): State<Service>) -> Json<Vec<v1::Network>> {
    let networks = networks(&service).list();
    Json(networks.iter().map(on_wire).collect())
}

pub(super) async fn create(
    State(service): State<Service>,
    body: Result<Json<v1::CreateNetwork>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::Network>), ApiError> {
    let Json(request) = body?;
    let name = request.name.parse();
    let new = NewNetwork {
        name: name.map_err(|error: InvalidNetworkName| invalid(error.to_string()))?,
        subnets: request.subnets,
        mtu: request.mtu,
        labels: request.labels,
    };
    service.machines.parts().networks.create_network(new).await?;
    let network = find(&service, &request.name)?;
    Ok((StatusCode::CREATED, Json(on_wire(&network))))
}

pub(super) async fn inspect(
    State(service): State<Service>,
    Path(network): Path<String>,
) -> Result<Json<v1::Network>, ApiError> {
    Ok(Json(on_wire(&find(&service, &network)?)))
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(network): Path<String>,
) -> Result<StatusCode, ApiError> {
    service.pools.remove_network(network).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn connect(
    State(service): State<Service>,
    Path(network): Path<String>,
    body: Result<Json<v1::ConnectMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    change(&service, &network, body?.0, NetworkChange::Connect).await
}

pub(super) async fn disconnect(
    State(service): State<Service>,
    Path(network): Path<String>,
    body: Result<Json<v1::ConnectMachine>, JsonRejection>,
) -> Result<Json<v1::Machine>, ApiError> {
    change(&service, &network, body?.0, NetworkChange::Disconnect).await
}

async fn change(
    service: &Service,
    network: &str,
    request: v1::ConnectMachine,
    change: fn(NetworkName) -> NetworkChange,
) -> Result<Json<v1::Machine>, ApiError> {
    let machine = service.machines.find(&request.machine)?;
    // What is no name is the name of no network.
    find(service, network)?;
    let name = network.parse();
    let name = name.map_err(|error: InvalidNetworkName| invalid(error.to_string()))?;
    machine.change_network(change(name)).await?;
    Ok(Json(convert::machine(&machine.view())))
}

fn find(service: &Service, name: &str) -> Result<UserNetwork, ApiError> {
    let found = networks(service).find(name);
    Ok(found.map_err(NetworkError::from)?)
}

fn on_wire(network: &UserNetwork) -> v1::Network {
    let record = &network.record;
    let members = record.members.iter().map(|(id, member)| v1::NetworkMember {
        machine: id.clone(),
        name: member.name.clone(),
        addresses: network
            .addresses(member.place)
            .iter()
            .map(ToString::to_string)
            .collect(),
        running: network.is_present(id),
    });
    let mut machines: Vec<_> = members.collect();
    machines.sort_by(|one, other| one.name.cmp(&other.name));
    v1::Network {
        name: record.name.clone(),
        subnets: vec![record.v4.clone(), record.v6.clone()],
        mtu: record.mtu,
        bridge: network.bridge(),
        labels: record.labels.clone(),
        created_at: record.created_at.clone(),
        machines,
    }
}

/// Says what helps where a machine has no network.
pub(super) fn remedy(error: &NetworkError) -> &'static str {
    match error {
        NetworkError::NoLease { .. } => {
            "is there a server that gives addresses, and does it hear the bridge? --network bridge=NAME,ip=ADDRESS/PREFIX says one"
        }
        _ => "`hearth doctor` says what is missing; --network none needs nothing",
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        let NetworkError::User(of_user) = &error else {
            return body(ErrorCode::HostUnfit, &error, Some(remedy(&error)));
        };
        let (code, remediation) = match of_user {
            UserNetworkError::NotFound(_) => (
                ErrorCode::NetworkNotFound,
                Some("`hearth network ls` lists networks, and `hearth network create` makes one"),
            ),
            UserNetworkError::Taken(_) => (ErrorCode::NameTaken, Some("choose another name")),
            UserNetworkError::InUse { .. } => (
                ErrorCode::InUse,
                Some("take them off it (`hearth network disconnect`), or remove them"),
            ),
            UserNetworkError::OnIt(_) | UserNetworkError::NotOnIt(_) => (
                ErrorCode::WrongState,
                Some("`hearth network inspect` lists the machines that are on it"),
            ),
            UserNetworkError::Overlap { .. } => (
                ErrorCode::InvalidRequest,
                Some("name another range, or none: one that is free is found then"),
            ),
            UserNetworkError::Subnet(_) | UserNetworkError::Mtu(_) => (ErrorCode::InvalidRequest, None),
            UserNetworkError::NoRange => (ErrorCode::HostUnfit, None),
            UserNetworkError::NoPlace { .. } => (
                ErrorCode::HostUnfit,
                Some("remove machines, or make a network with a wider range (--subnet)"),
            ),
            UserNetworkError::Record(_) => (
                ErrorCode::Internal,
                Some("check the data directory and its disk; `hearth node status` names it"),
            ),
        };
        body(code, &error, remediation)
    }
}
