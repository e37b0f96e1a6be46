//! The node itself, its set-up and its host.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::Response;
use hearth_api::v1;

use super::Service;
use super::convert;
use super::error::{ApiError, invalid};
use super::progress::lines;
use crate::doctor;
use crate::host::own;
use crate::setup::{self, FirecrackerRequest, KernelSource, SetupRequest};

/// How long machines have to end when the node is asked to end with them.
const GRACE: Duration = Duration::from_secs(10);

pub(super) async fn openapi() -> Json<serde_json::Value> {
    Json(hearth_api::openapi::document())
}

pub(super) async fn status(State(service): State<Service>) -> Json<v1::NodeStatus> {
    let machines = service.machines.list();
    let running = machines
        .iter()
        .filter(|machine| machine.view().state.is_alive())
        .count();
    let layout = &service.machines.parts().layout;
    Json(v1::NodeStatus {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        socket: service.identity.socket.display().to_string(),
        data: layout.data().display().to_string(),
        started_at: service.identity.started_at.clone(),
        machines: u32::try_from(machines.len()).unwrap_or(u32::MAX),
        running: u32::try_from(running).unwrap_or(u32::MAX),
        standing_by: u32::try_from(service.machines.parts().standbys.count()).unwrap_or(u32::MAX),
        rss_bytes: own::rss_bytes().unwrap_or_default(),
    })
}

pub(super) async fn stop(
    State(service): State<Service>,
    body: Result<Json<v1::StopNode>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(request) = body?;
    if request.stop_machines {
        service.pools.rest().await;
        service.machines.stop_all(GRACE).await;
    }
    service.shutdown.cancel();
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn doctor(State(service): State<Service>) -> Json<v1::DoctorReport> {
    Json(convert::doctor(
        doctor::examine(&service.machines.parts().layout).await,
    ))
}

pub(super) async fn setup_list(State(service): State<Service>) -> Result<Json<v1::SetupReport>, ApiError> {
    match service.machines.parts().artefacts.list() {
        Ok(artefacts) => Ok(Json(convert::artefacts(artefacts))),
        Err(setup::NotSetUp::Never) => Ok(Json(v1::SetupReport {
            artefacts: Vec::new(),
        })),
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn setup(
    State(service): State<Service>,
    body: Result<Json<v1::SetupRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let artefacts = service.machines.parts().artefacts.clone();
    if let Some(firecracker) = &request.firecracker {
        let firecracker = firecracker_request(&request, firecracker)?;
        return Ok(lines(&service.tasks, move |teller| async move {
            let report = artefacts
                .install_firecracker(firecracker, move |progress| teller.tell(wire(progress)))
                .await?;
            Ok(convert::artefacts(report.artefacts))
        }));
    }
    let request = SetupRequest {
        kernel: kernel_source(&request)?,
        agent: request.agent.map(Into::into),
    };
    Ok(lines(&service.tasks, move |teller| async move {
        let report = artefacts
            .run(request, move |progress| teller.tell(wire(progress)))
            .await?;
        Ok(convert::artefacts(report.artefacts))
    }))
}

fn firecracker_request(
    request: &v1::SetupRequest,
    firecracker: &v1::FirecrackerSetup,
) -> Result<FirecrackerRequest, ApiError> {
    let alone = v1::SetupRequest {
        firecracker: Some(firecracker.clone()),
        ..v1::SetupRequest::default()
    };
    if *request != alone {
        return Err(invalid(
            "Firecracker is set up alone: ask for the rest in another request",
        ));
    }
    let version = firecracker.version.as_deref().map(str::parse).transpose();
    Ok(FirecrackerRequest {
        version: version
            .map_err(|error: hearth_firecracker::version::InvalidVersion| invalid(error.to_string()))?,
        from: firecracker.from.as_ref().map(Into::into),
    })
}

fn kernel_source(request: &v1::SetupRequest) -> Result<KernelSource, ApiError> {
    match (&request.kernel, request.build_kernel, request.distribution) {
        (None, _, _) if request.modules.is_some() => Err(invalid("modules without a kernel: give both")),
        (None, false, false) => Ok(KernelSource::Keep),
        (None, false, true) => Ok(KernelSource::Distribution),
        (None, true, false) => Ok(KernelSource::Build),
        (Some(kernel), false, false) => Ok(KernelSource::File {
            kernel: kernel.into(),
            modules: request.modules.as_ref().map(Into::into),
        }),
        _ => Err(invalid(
            "a kernel of one's own, a kernel to build, the distribution's kernel: choose one",
        )),
    }
}

fn wire(progress: setup::Progress) -> v1::Progress {
    match progress {
        setup::Progress::Running {
            step,
            done,
            total,
            unit,
        } => {
            let unit = if unit == setup::Unit::Bytes {
                v1::Unit::Bytes
            } else {
                v1::Unit::Items
            };
            v1::Progress {
                step: step.to_string(),
                done,
                already: 0,
                total,
                unit,
                finished: false,
            }
        }
        setup::Progress::Finished { step, .. } => v1::Progress {
            step: step.to_string(),
            done: 1,
            already: 0,
            total: Some(1),
            unit: v1::Unit::Items,
            finished: true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_comes_from_one_place() {
        let request = |json: &str| serde_json::from_str::<v1::SetupRequest>(json).unwrap();
        let source = |json: &str| kernel_source(&request(json)).ok();
        assert_eq!(source("{}"), Some(KernelSource::Keep));
        assert_eq!(
            source(r#"{"distribution":true}"#),
            Some(KernelSource::Distribution)
        );
        assert_eq!(source(r#"{"build_kernel":true}"#), Some(KernelSource::Build));
        for refused in [
            r#"{"distribution":true,"build_kernel":true}"#,
            r#"{"distribution":true,"kernel":"/k"}"#,
            r#"{"modules":"/m","distribution":true}"#,
        ] {
            assert_eq!(source(refused), None, "{refused}");
        }
    }
}
