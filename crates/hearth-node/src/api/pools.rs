//! Pools and leases.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use hearth_api::v1::{self, ErrorCode};
use serde::Deserialize;

use super::Service;
use super::error::{ApiError, body};
use crate::pool::{PoolError, Wish};

/// How long a machine is one's own unless it is said.
const LEASE_DEFAULT: Duration = Duration::from_secs(300);

pub(super) async fn list(State(service): State<Service>) -> Result<Json<Vec<v1::Pool>>, ApiError> {
    Ok(Json(service.pools.list().await?))
}

pub(super) async fn create(
    State(service): State<Service>,
    body: Result<Json<v1::CreatePool>, JsonRejection>,
) -> Result<(StatusCode, Json<v1::Pool>), ApiError> {
    let Json(request) = body?;
    let pool = service.pools.create(request.name, request.spec).await?;
    Ok((StatusCode::CREATED, Json(pool)))
}

pub(super) async fn inspect(
    State(service): State<Service>,
    Path(pool): Path<String>,
) -> Result<Json<v1::Pool>, ApiError> {
    Ok(Json(service.pools.inspect(pool).await?))
}

pub(super) async fn resize(
    State(service): State<Service>,
    Path(pool): Path<String>,
    body: Result<Json<v1::ResizePool>, JsonRejection>,
) -> Result<Json<v1::Pool>, ApiError> {
    let Json(change) = body?;
    Ok(Json(service.pools.resize(pool, change).await?))
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(pool): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query?;
    service.pools.remove(pool, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn lease(seconds: Option<u64>) -> Duration {
    seconds.map_or(LEASE_DEFAULT, Duration::from_secs)
}

pub(super) async fn acquire(
    State(service): State<Service>,
    Path(pool): Path<String>,
    body: Result<Json<v1::AcquireMachine>, JsonRejection>,
) -> Result<Json<v1::Lease>, ApiError> {
    let Json(request) = body?;
    let wish = Wish {
        lease: lease(request.lease_seconds),
        wait: Duration::from_millis(request.wait_ms.unwrap_or_default()),
        ends_with_node: false,
    };
    Ok(Json(service.pools.acquire(pool, wish).await?))
}

pub(super) async fn extend(
    State(service): State<Service>,
    Path(id): Path<String>,
    body: Result<Json<v1::ExtendLease>, JsonRejection>,
) -> Result<Json<v1::Lease>, ApiError> {
    let Json(request) = body?;
    Ok(Json(
        service.pools.extend(id, lease(request.lease_seconds)).await?,
    ))
}

pub(super) async fn release(
    State(service): State<Service>,
    Path(id): Path<String>,
    body: Result<Json<v1::ReleaseMachine>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    // Both ways are the same as yet: the machine goes, and the pool starts another when it has too few.
    let Json(v1::ReleaseMachine { then: _ }) = body?;
    service.pools.release(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<PoolError> for ApiError {
    fn from(error: PoolError) -> Self {
        let (code, remediation) = match error {
            PoolError::Image(error) => return error.into(),
            PoolError::Network(error) => return error.into(),
            PoolError::Snapshot(error) => return error.into(),
            PoolError::Create(error) => return error.into(),
            PoolError::Machine(error) => return error.into(),
            PoolError::Guest(error) => return error.into(),
            PoolError::NotFound(_) => (ErrorCode::PoolNotFound, Some("`hearth pool ls` lists pools")),
            PoolError::NameTaken(_) => (
                ErrorCode::NameTaken,
                Some("choose another name, or remove that pool (`hearth pool rm`)"),
            ),
            PoolError::Bounds(hearth_machine::pool::BoundsError::TooLarge { .. }) => (
                ErrorCode::InvalidRequest,
                Some(
                    "ask for fewer (--max) or smaller (-m) machines, or let pools take more: memory-percent in hearth.toml",
                ),
            ),
            PoolError::Name(_) | PoolError::Bounds(_) | PoolError::Spec(_) | PoolError::LeaseTime(_) => {
                (ErrorCode::InvalidRequest, None)
            }
            PoolError::InUse { .. } => (
                ErrorCode::InUse,
                Some("release them first, or force it: whoever has them loses them"),
            ),
            PoolError::Named { .. } => (ErrorCode::InUse, Some("remove the pool first (`hearth pool rm`)")),
            PoolError::Closing(_) => (ErrorCode::WrongState, Some("wait until it is gone")),
            PoolError::NoneFree { .. } => (
                ErrorCode::Timeout,
                Some(
                    "wait longer (--wait), release what is not needed, or make the pool larger (`hearth pool resize --max`)",
                ),
            ),
            PoolError::NoRoom { .. } => (
                ErrorCode::Timeout,
                Some(
                    "wait longer (--wait), remove machines, or let them take more: memory-percent in hearth.toml",
                ),
            ),
            PoolError::NoStart { .. } => (
                ErrorCode::BootFailed,
                Some("mend the cause; `hearth pool inspect` shows the last error"),
            ),
            PoolError::NoLease { .. } => (
                ErrorCode::LeaseNotFound,
                Some("acquire a machine anew; `hearth pool inspect` shows the leases there are"),
            ),
            PoolError::Warm { .. } | PoolError::WarmTimeout(_) | PoolError::WarmRefused(_) => {
                (ErrorCode::GuestFailed, Some("mend the pool's warm-up command"))
            }
            PoolError::Settings(_) => (ErrorCode::HostUnfit, Some("mend hearth.toml")),
            PoolError::Record(_) | PoolError::Random => (
                ErrorCode::Internal,
                Some("check the data directory and its disk; `hearth node status` names it"),
            ),
            PoolError::Ending => (ErrorCode::Internal, Some("try again: the node was ending")),
        };
        body(code, &error, remediation)
    }
}
