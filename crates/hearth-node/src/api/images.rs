//! Images: fetch, build, look at, name, remove, prune, save, load.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use hearth_api::v1;
use serde::Deserialize;

use super::Service;
use super::archive;
use super::convert;
use super::error::{ApiError, in_use, invalid};
use super::progress::{Teller, lines, lines_while_heard};
use crate::images::{ImageError, ImageInfo, Images, Phase, Progress, Recipe};

#[derive(Debug, Deserialize)]
pub(super) struct ImageQuery {
    reference: String,
}

pub(super) async fn list(State(service): State<Service>) -> Result<Json<Vec<v1::Image>>, ApiError> {
    let images = service.machines.parts().images.list().await?;
    Ok(Json(images.into_iter().map(convert::image).collect()))
}

pub(super) async fn inspect(
    State(service): State<Service>,
    query: Result<Query<ImageQuery>, QueryRejection>,
) -> Result<Json<v1::Image>, ApiError> {
    let Query(query) = query?;
    Ok(Json(convert::image(
        service.machines.parts().images.inspect(&query.reference).await?,
    )))
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoveQuery {
    reference: String,
    #[serde(default)]
    force: bool,
}

pub(super) async fn remove(
    State(service): State<Service>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query?;
    let images = &service.machines.parts().images;
    let image = images.inspect(&query.reference).await?;
    let users = service.machines.using_image(&image.digest);
    // Another name keeps the image for them.
    if !query.force && !users.is_empty() && !has_other_name(images, &image).await? {
        let names: Vec<_> = users
            .iter()
            .map(|machine| machine.view().record.name.clone())
            .collect();
        return Err(in_use(&image.reference, &names));
    }
    service.machines.parts().standbys.clear();
    images.remove(&query.reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn has_other_name(images: &Images, image: &ImageInfo) -> Result<bool, ApiError> {
    let others = images.list().await?;
    Ok(others
        .iter()
        .any(|other| other.digest == image.digest && other.reference != image.reference))
}

pub(super) async fn tag(
    State(service): State<Service>,
    body: Result<Json<v1::TagImage>, JsonRejection>,
) -> Result<Json<v1::Image>, ApiError> {
    let Json(request) = body?;
    let images = &service.machines.parts().images;
    Ok(Json(convert::image(
        images.tag(&request.source, &request.target).await?,
    )))
}

pub(super) async fn prune(
    State(service): State<Service>,
    body: Result<Json<v1::PruneImages>, JsonRejection>,
) -> Result<Json<v1::PrunedImages>, ApiError> {
    let Json(request) = body?;
    let images = &service.machines.parts().images;
    service.machines.parts().standbys.clear();
    let mut pruned = Vec::new();
    if request.all {
        for image in images.list().await? {
            // Asked for each anew: machines are created meanwhile.
            if service.machines.using_image(&image.digest).is_empty() {
                match images.remove(&image.reference).await {
                    Ok(()) => pruned.push(image.reference),
                    // Somebody else removed it.
                    Err(ImageError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(Json(v1::PrunedImages {
        images: pruned,
        freed_bytes: images.sweep().await?,
    }))
}

pub(super) async fn save(
    State(service): State<Service>,
    body: Result<Json<v1::SaveImages>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    if request.references.is_empty() {
        return Err(invalid("no image is named"));
    }
    let images = &service.machines.parts().images;
    let saving = images.save(&request.references).await?;
    Ok(archive::answer(&service.tasks, "application/x-tar", move |out| {
        saving.write(out)
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct LoadQuery {
    reference: Option<String>,
}

pub(super) async fn load(
    State(service): State<Service>,
    query: Result<Query<LoadQuery>, QueryRejection>,
    request: Request,
) -> Result<Json<Vec<v1::Image>>, ApiError> {
    let Query(query) = query?;
    let images = service.machines.parts().images.clone();
    let archive = archive::sent(request);
    let loaded = images.load(archive, query.reference.as_deref()).await?;
    Ok(Json(loaded.into_iter().map(convert::image).collect()))
}

/// How often a step's progress is told at most. A client that is told of every piece falls behind, and then loses the
/// lines that count.
const EVERY: Duration = Duration::from_millis(100);

fn sink(teller: Teller) -> Arc<dyn Fn(Progress) + Send + Sync> {
    // Guards when each step was told last, `None` when it was told to be over; downloads tell from several threads.
    let told: Mutex<HashMap<_, Option<Instant>>> = Mutex::default();
    Arc::new(move |progress| {
        let line = wire(&progress);
        let now = Instant::now();
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.entry((progress.blob, progress.phase));
        let due = match &last {
            Entry::Vacant(_) => true,
            Entry::Occupied(last) => last
                .get()
                .is_some_and(|last| line.finished || now.duration_since(last) >= EVERY),
        };
        if due {
            last.insert_entry((!line.finished).then_some(now));
            drop(told);
            teller.tell(line);
        }
    })
}

fn wire(progress: &Progress) -> v1::Progress {
    let blob = progress.blob.to_string();
    let short = blob.get(..19).unwrap_or(&blob);
    let (verb, finished) = match progress.phase {
        Phase::Fetch => ("fetch", false),
        Phase::Stored => ("fetch", true),
        Phase::Unpack => ("unpack", progress.done >= progress.total),
    };
    v1::Progress {
        step: format!("{verb} {}", short.trim_start_matches("sha256:")),
        done: progress.done,
        already: progress.already,
        total: Some(progress.total),
        unit: v1::Unit::Bytes,
        finished,
    }
}

pub(super) async fn pull(
    State(service): State<Service>,
    body: Result<Json<v1::PullImage>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let images = service.machines.parts().images.clone();
    let login = request.credentials.map(convert::login);
    Ok(lines_while_heard(&service.tasks, move |teller| async move {
        let pulled = images.pull(&request.reference, login, sink(teller)).await?;
        Ok(convert::image(pulled))
    }))
}

pub(super) async fn build(
    State(service): State<Service>,
    body: Result<Json<v1::BuildImage>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let images = service.machines.parts().images.clone();
    let recipe = match request.recipe {
        v1::Recipe::Debian => Recipe::Debian,
        v1::Recipe::Busybox => Recipe::Busybox,
    };
    Ok(lines(&service.tasks, move |teller| async move {
        let built = images
            .build(recipe, &request.packages, &request.reference, sink(teller))
            .await?;
        Ok(convert::image(built))
    }))
}
