//! What machines were refused on their networks, and whom they talked to.

use std::sync::{Arc, Weak};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hearth_api::v1;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::Service;
use super::error::ApiError;
use super::progress::received;
use crate::network::{Denial, Journal, Target};

/// Batches that wait for the client. What it does not take waits in the journal, up to the journal's bound.
const QUEUE: usize = 4;

#[derive(Debug, Deserialize)]
pub(super) struct DenialsQuery {
    #[serde(default)]
    follow: bool,
}

pub(super) async fn denials(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<DenialsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let machine = service.machines.find(&machine)?.id();
    let journal = service.machines.parts().networks.journal(machine);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let written = journal.watch();
    // The machine's removal ends the journal once nobody else holds it, and so the answer.
    let journal = Arc::downgrade(&journal);
    let sent = send(journal, written, machine.to_string(), query.follow, sender);
    let shutdown = service.shutdown.clone();
    service.tasks.spawn(shutdown.run_until_cancelled_owned(sent));
    let body = Body::from_stream(received(receiver));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

async fn send(
    journal: Weak<Journal>,
    mut written: watch::Receiver<u64>,
    machine: String,
    follow: bool,
    sender: mpsc::Sender<Bytes>,
) {
    let mut last = 0;
    loop {
        let Some(denials) = journal.upgrade().map(|journal| journal.denials(last)) else {
            return;
        };
        let mut out = Vec::new();
        for denial in denials {
            last = denial.sequence;
            // Maps of text always become JSON.
            out.extend(serde_json::to_vec(&on_wire(denial, &machine)).unwrap_or_default());
            out.push(b'\n');
        }
        if !out.is_empty() && sender.send(out.into()).await.is_err() {
            return;
        }
        if !follow {
            return;
        }
        tokio::select! {
            biased;
            () = sender.closed() => return,
            changed = written.changed() => if changed.is_err() { return },
        }
    }
}

pub(super) async fn contacts(
    State(service): State<Service>,
    Path(machine): Path<String>,
) -> Result<Json<v1::ContactList>, ApiError> {
    let machine = service.machines.find(&machine)?.id();
    let contacts = service.machines.parts().networks.journal(machine).contacts();
    let mut contacts: Vec<_> = contacts
        .into_iter()
        .map(|contact| v1::Contact {
            target: target(contact.target),
            allowed: contact.allowed,
        })
        .collect();
    contacts.sort_by(|one, other| one.target.cmp(&other.target));
    Ok(Json(v1::ContactList { contacts }))
}

fn on_wire(denial: Denial, machine: &str) -> v1::Denial {
    v1::Denial {
        sequence: denial.sequence,
        time: denial.time.to_string(),
        machine: machine.to_owned(),
        target: target(denial.target),
        reason: denial.reason,
        remedy: denial.remedy,
    }
}

fn target(target: Target) -> v1::PolicyTarget {
    v1::PolicyTarget {
        name: target.name.map(|name| name.to_string()),
        address: target.address.map(|address| address.to_string()),
        protocol: target
            .protocol
            .map_or_else(|| "dns".to_owned(), |protocol| protocol.to_string()),
        port: target.port,
    }
}
