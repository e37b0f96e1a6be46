//! The stream of events.

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hearth_api::v1;
use hearth_machine::Filters;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Service;
use super::error::{ApiError, invalid};
use super::filter;
use super::machines::filters;
use super::progress::received;
use crate::machines::{Reader, Told, time_of};

/// Batches that wait for the client. What it does not take waits in the log, up to the log's bound.
const QUEUE: usize = 4;
/// Events that are sent at once.
const BATCH: usize = 64;

#[derive(Debug, Deserialize)]
pub(super) struct EventsQuery {
    since: Option<String>,
    until: Option<String>,
    filter: Option<String>,
}

pub(super) async fn events(
    State(service): State<Service>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let moment = |text: Option<&str>| text.map(filter::time).transpose().map_err(invalid);
    let (since, until) = (moment(query.since.as_deref())?, moment(query.until.as_deref())?);
    let filters = filters(query.filter.as_deref(), filter::EVENTS)?;
    let reader = service.machines.parts().events.reader(since);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shutdown = service.shutdown.clone();
    service
        .tasks
        .spawn(shutdown.run_until_cancelled_owned(send(reader, filters, until, sender)));
    let body = Body::from_stream(received(receiver));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn send(mut reader: Reader, filters: Filters, until: Option<Timestamp>, sender: mpsc::Sender<Bytes>) {
    let is_late = |event: &v1::Event| until.is_some_and(|until| time_of(event) > Some(until));
    loop {
        let batch = reader.batch(BATCH);
        let is_end = batch.is_empty();
        let mut out = Vec::new();
        for told in batch {
            let line = match told {
                Told::Event(event) if is_late(&event) => return,
                Told::Event(event) if !filter::tells(&filters, &event) => continue,
                Told::Event(event) => v1::EventLine::Event((*event).clone()),
                Told::Lost(count) => v1::EventLine::Lost(count),
            };
            // Maps of text always become JSON.
            out.extend(serde_json::to_vec(&line).unwrap_or_default());
            out.push(b'\n');
        }
        if !out.is_empty() && sender.send(out.into()).await.is_err() {
            return;
        }
        if !is_end {
            continue;
        }
        let over = async {
            match until {
                Some(until) => {
                    let left = until.duration_since(Timestamp::now());
                    tokio::time::sleep(left.try_into().unwrap_or_default()).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = reader.more() => {}
            () = sender.closed() => return,
            () = over => return,
        }
    }
}
