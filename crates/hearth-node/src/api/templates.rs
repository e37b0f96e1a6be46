//! Templates: list, remove, prune.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_api::v1;

use super::Service;
use super::convert;
use super::error::ApiError;
use crate::snapshots::{TemplateError, TemplateId};

pub(super) async fn list(State(service): State<Service>) -> Json<Vec<v1::Template>> {
    let templates = service.machines.parts().templates.list();
    Json(templates.into_iter().map(convert::template).collect())
}

pub(super) async fn remove(
    State(service): State<Service>,
    Path(template): Path<String>,
) -> Result<StatusCode, ApiError> {
    let id: TemplateId = template.parse().map_err(TemplateError::from)?;
    let parts = service.machines.parts();
    parts.standbys.clear();
    parts.templates.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn prune(
    State(service): State<Service>,
    body: Result<Json<v1::PruneTemplates>, JsonRejection>,
) -> Result<Json<v1::PrunedTemplates>, ApiError> {
    let Json(request) = body?;
    let pruned = service.machines.prune_templates(request.all).await?;
    Ok(Json(v1::PrunedTemplates {
        freed_bytes: pruned.iter().map(|template| template.bytes).sum(),
        templates: pruned
            .into_iter()
            .map(|template| template.id.to_string())
            .collect(),
    }))
}
