//! Files in a machine: tar archives out and in.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hearth_api::v1;
use hearth_guest_protocol::message::{self, FileKind, FileRequest, Outcome};
use serde::Deserialize;
use serde_bytes::ByteBuf;

use super::Service;
use super::error::{ApiError, internal, invalid};
use crate::guest::{RequestError, Session, SessionEvent};

#[derive(Debug, Deserialize)]
pub(super) struct FileQuery {
    path: String,
    #[serde(default)]
    keep_owners: bool,
}

fn checked(query: Result<Query<FileQuery>, QueryRejection>) -> Result<FileQuery, ApiError> {
    let Query(query) = query?;
    if query.path.starts_with('/') && !query.path.contains('\0') {
        Ok(query)
    } else {
        Err(invalid(format!("{:?} is not an absolute path", query.path)))
    }
}

async fn open(service: &Service, machine: &str, request: FileRequest) -> Result<Session, ApiError> {
    let machine = service.machines.find(machine)?;
    let view = machine.view();
    let mut session = view.guest()?.file(&request).await?;
    match session.next().await {
        SessionEvent::Started { .. } => Ok(session),
        event => Err(unexpected(event)),
    }
}

/// Waits for the next event but the end of the stream, behind which comes the file server's own end.
async fn next(session: &mut Session) -> SessionEvent {
    match session.next().await {
        SessionEvent::OutputEnded(_) => session.next().await,
        event => event,
    }
}

fn unexpected(event: SessionEvent) -> ApiError {
    match event {
        SessionEvent::Failed(failure) => failure.into(),
        SessionEvent::ChannelLost => RequestError::ChannelLost.into(),
        SessionEvent::Ended(outcome) => internal(&std::io::Error::other(format!(
            "the guest's file server ended with {}",
            outcome.exit_code()
        ))),
        SessionEvent::Started { .. } | SessionEvent::Output(..) | SessionEvent::OutputEnded(_) => {
            internal(&std::io::Error::other("the guest answered out of turn"))
        }
    }
}

pub(super) async fn read(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<FileQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let path = ByteBuf::from(checked(query)?.path.into_bytes());
    let session = open(&service, &machine, FileRequest::Get { path }).await?;
    let pieces = futures_util::stream::unfold(Some(session), |session| async move {
        let mut session = session?;
        match next(&mut session).await {
            SessionEvent::Output(_, bytes) => Some((Ok(bytes), Some(session))),
            SessionEvent::Ended(Outcome::Exited(0)) => None,
            // Cuts the body off, so that the client does not take half a tree for a whole one.
            event => Some((Err(std::io::Error::other(unexpected(event).0.message)), None)),
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(pieces)).into_response())
}

pub(super) async fn write(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<FileQuery>, QueryRejection>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let query = checked(query)?;
    let path = ByteBuf::from(query.path.into_bytes());
    let mut session = open(
        &service,
        &machine,
        FileRequest::Put {
            path,
            keep_owners: query.keep_owners,
        },
    )
    .await?;
    let input = session.input();
    let mut pieces = request.into_body().into_data_stream();
    let send = async {
        while let Some(piece) = pieces.next().await {
            let piece: Bytes = piece.map_err(|error| invalid(format!("the archive broke off: {error}")))?;
            if !input.send(&piece).await {
                break; // The session is over; its last event says why.
            }
        }
        input.end().await;
        Ok::<(), ApiError>(())
    };
    let finish = async {
        loop {
            match session.next().await {
                SessionEvent::Output(..) | SessionEvent::OutputEnded(_) => {}
                SessionEvent::Ended(Outcome::Exited(0)) => return Ok(StatusCode::NO_CONTENT),
                event => return Err(unexpected(event)),
            }
        }
    };
    tokio::pin!(send, finish);
    tokio::select! {
        sent = &mut send => {
            sent?;
            finish.await
        }
        finished = &mut finish => finished,
    }
}

pub(super) async fn stat(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<FileQuery>, QueryRejection>,
) -> Result<Json<v1::FileStat>, ApiError> {
    let path = ByteBuf::from(checked(query)?.path.into_bytes());
    let mut session = open(&service, &machine, FileRequest::Stat { path }).await?;
    let mut answer = Vec::new();
    loop {
        match next(&mut session).await {
            SessionEvent::Output(_, bytes) => answer.extend_from_slice(&bytes),
            SessionEvent::Ended(Outcome::Exited(0)) => break,
            event => return Err(unexpected(event)),
        }
    }
    let stat: message::FileStat = message::decode(&answer).map_err(|error| internal(&error))?;
    let kind = match stat.kind {
        FileKind::File => v1::FileKind::File,
        FileKind::Directory => v1::FileKind::Directory,
        FileKind::Other => v1::FileKind::Other,
    };
    Ok(Json(v1::FileStat {
        kind,
        size: stat.size,
        mode: stat.mode,
    }))
}
