//! Attach and exec: an upgraded connection that carries a process's streams.

use std::future::Future;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use hearth_api::stream::{self as frames, Kind};
use hearth_api::v1;
use http_body_util::{BodyExt as _, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::Service;
use super::convert;
use super::error::{ApiError, invalid};
use crate::guest::{Input, SessionEvent, Stream};
use crate::machines::{Attached, Exec, ExecSpec, Machine};

type Io = TokioIo<hyper::upgrade::Upgraded>;

/// The longest request for an exec, in bytes: more than the guest takes, each byte escaped in JSON.
const EXEC_REQUEST_MAX: usize = 32 << 20;
/// What is gathered before it is written to the client, in bytes.
const WRITE_BUFFER: usize = 64 << 10;

#[derive(Debug, Deserialize)]
pub(super) struct AttachQuery {
    #[serde(default)]
    start: bool,
    #[serde(default)]
    stdin: bool,
    rows: Option<u16>,
    columns: Option<u16>,
}

/// Answers 101 and hands the connection to `talk`, in a task that ends with the client or the process.
fn upgraded<F>(
    tasks: &TaskTracker,
    mut request: Request,
    talk: impl FnOnce(Io) -> F + Send + 'static,
) -> Result<Response, ApiError>
where
    F: Future<Output = std::io::Result<()>> + Send,
{
    let asked = request
        .headers()
        .get(UPGRADE)
        .is_some_and(|value| value == frames::UPGRADE);
    if !asked {
        return Err(invalid(format!(
            "this path needs the header `Upgrade: {}`",
            frames::UPGRADE
        )));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    tasks.spawn(async move {
        let outcome = match upgrade.await {
            Ok(connection) => talk(TokioIo::new(connection)).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "a client's stream broke");
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(frames::UPGRADE));
    Ok(response)
}

pub(super) async fn attach(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<AttachQuery>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let machine = service.machines.find(&machine)?;
    if !query.start {
        machine.view().guest()?;
    }
    let attached = machine.attach().await?;
    upgraded(&service.tasks, request, move |io| {
        talk_to_workload(io, machine, attached.output, query)
    })
}

async fn talk_to_workload(
    io: Io,
    machine: Machine,
    output: Attached,
    query: AttachQuery,
) -> std::io::Result<()> {
    let (reader, writer) = tokio::io::split(io);
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER, writer);
    let terminal = query.rows.zip(query.columns);
    if query.start
        && let Err(error) = machine.start(terminal).await
    {
        wait_for_removal(&machine).await;
        return finish(&mut writer, Err(*ApiError::from(error).0)).await;
    }
    frames::write(&mut writer, Kind::Started, &[]).await?;
    writer.flush().await?;
    let input = machine.input();
    if let (Some(input), Some(size), false) = (&input, terminal, query.start) {
        input.resize(crate::machines::terminal_size(size)).await;
    }
    let (leave, left) = oneshot::channel();
    tokio::select! {
        // A client that goes away leaves the workload running.
        read = take_input(reader, input, query.stdin, leave) => read.map_err(std::io::Error::other)?,
        written = show_workload(&mut writer, &machine, output, left) => written?,
    }
    Ok(())
}

async fn show_workload(
    writer: &mut BufWriter<WriteHalf<Io>>,
    machine: &Machine,
    mut output: Attached,
    mut left: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let mut leaves = false;
    let view = loop {
        loop {
            let next = tokio::select! {
                next = output.recv() => next,
                Ok(()) = &mut left, if !leaves => {
                    // What was on its way is still shown; the next who attaches sees what comes from here on.
                    leaves = true;
                    output.close();
                    continue;
                }
            };
            let Some((stream, bytes)) = next else { break };
            write_output(writer, stream, &bytes).await?;
            if output.is_empty() {
                writer.flush().await?;
            }
        }
        if leaves {
            return finish(writer, Ok(goes_on())).await;
        }
        let view = machine.rested().await;
        if !view.state.is_active() {
            break view;
        }
        // Its restart policy starts it again: whoever stays sees what it prints then, too.
        match machine.attach().await {
            Ok(attached) => output = attached.output,
            Err(_) => break machine.ended().await,
        }
    };
    wait_for_removal(machine).await;
    finish(writer, convert::exit_status(&view)).await
}

/// With `--rm`, the end is told when the machine is gone: then its name is free, and `ps` does not show it.
async fn wait_for_removal(machine: &Machine) {
    if machine.view().record.spec.auto_remove {
        machine.removed().await;
    }
}

async fn write_output(
    writer: &mut (impl AsyncWrite + Unpin),
    stream: Stream,
    bytes: &Bytes,
) -> std::io::Result<()> {
    let kind = if stream == Stream::Stdout {
        Kind::Stdout
    } else {
        Kind::Stderr
    };
    frames::write(writer, kind, bytes).await
}

async fn finish(
    writer: &mut BufWriter<WriteHalf<Io>>,
    end: Result<v1::ExitStatus, v1::ErrorBody>,
) -> std::io::Result<()> {
    let (kind, payload) = match end {
        Ok(status) => (Kind::Exit, serde_json::to_vec(&status)?),
        Err(error) => (Kind::Error, serde_json::to_vec(&error)?),
    };
    frames::write(writer, kind, &payload[..payload.len().min(frames::MAX_PAYLOAD)]).await?;
    writer.shutdown().await
}

/// What a client is told whose process goes on without it.
fn goes_on() -> v1::ExitStatus {
    v1::ExitStatus {
        exit_code: 0,
        reason: None,
    }
}

/// Carries what a client sends until it goes away; `leave` is told when it leaves in form, and then this does not return.
async fn take_input(
    mut reader: ReadHalf<Io>,
    input: Option<Input>,
    stdin: bool,
    leave: oneshot::Sender<()>,
) -> Result<(), frames::StreamError> {
    let mut payload = Vec::new();
    while let Some(kind) = read_frame(&mut reader, &mut payload).await? {
        if kind == Kind::Detach {
            // Fails only when the other direction is over, which ends both.
            let _ = leave.send(());
            return std::future::pending().await;
        }
        let Some(input) = &input else { continue };
        match kind {
            Kind::Stdin if stdin => drop(input.send(&payload).await),
            Kind::StdinEnd if stdin => input.end().await,
            Kind::Resize => {
                if let Some(size) = frames::parse_resize(&payload) {
                    input.resize(crate::machines::terminal_size(size)).await;
                }
            }
            Kind::Signal => {
                if let [number @ 1..=64] = payload[..] {
                    input.signal(number).await;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    payload: &mut Vec<u8>,
) -> Result<Option<Kind>, frames::StreamError> {
    frames::read(reader, payload).await
}

pub(super) async fn exec(
    State(service): State<Service>,
    Path(machine): Path<String>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let machine = service.machines.find(&machine)?;
    let body = std::mem::replace(request.body_mut(), Body::empty());
    let body = Limited::new(body, EXEC_REQUEST_MAX).collect().await;
    let body = body.map_err(|error| invalid(error.to_string()))?.to_bytes();
    let asked: v1::ExecRequest = serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
    let (stdin, detach) = (asked.stdin && !asked.detach, asked.detach);
    let spec = ExecSpec {
        command: asked.command,
        environment: asked.environment,
        working_directory: asked.working_directory,
        user: asked.user,
        terminal: asked.terminal,
        stdin,
        time_limit: None,
    };
    let session = machine.exec(&spec).await?;
    upgraded(&service.tasks, request, async move |io| {
        if detach {
            leave_exec(io, session).await
        } else {
            talk_to_exec(io, session, stdin).await
        }
    })
}

async fn talk_to_exec(io: Io, session: Exec, stdin: bool) -> std::io::Result<()> {
    let (reader, writer) = tokio::io::split(io);
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER, writer);
    let input = session.input();
    let (leave, left) = oneshot::channel();
    tokio::select! {
        // A client that goes away takes its process with it: the session is dropped.
        read = take_input(reader, Some(input), stdin, leave) => read.map_err(std::io::Error::other),
        written = show_exec(&mut writer, session, left) => written,
    }
}

/// Waits until the process runs, and leaves it to itself.
async fn leave_exec(io: Io, mut session: Exec) -> std::io::Result<()> {
    let (_reader, writer) = tokio::io::split(io);
    let mut writer = BufWriter::with_capacity(WRITE_BUFFER, writer);
    let end = match session.next().await {
        SessionEvent::Failed(failure) => Err(ApiError::from(failure)),
        SessionEvent::ChannelLost => Err(ApiError::from(crate::guest::RequestError::ChannelLost)),
        _ => session.let_go().map_err(ApiError::from),
    };
    if end.is_ok() {
        frames::write(&mut writer, Kind::Started, &[]).await?;
    }
    finish(&mut writer, end.map(|()| goes_on()).map_err(|error| *error.0)).await
}

async fn show_exec(
    writer: &mut BufWriter<WriteHalf<Io>>,
    mut session: Exec,
    mut left: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    loop {
        let event = tokio::select! {
            biased;
            Ok(()) = &mut left => {
                let end = session.let_go().map_err(|error| *ApiError::from(error).0);
                return finish(writer, end.map(|()| goes_on())).await;
            }
            event = session.next() => event,
            // Nothing more at hand: what was gathered goes out while we wait.
            flushed = writer.flush(), if !writer.buffer().is_empty() => {
                flushed?;
                continue;
            }
        };
        let end = match event {
            SessionEvent::Started { .. } => {
                frames::write(writer, Kind::Started, &[]).await?;
                continue;
            }
            SessionEvent::OutputEnded(_) => continue,
            SessionEvent::Output(stream, bytes) => {
                write_output(writer, stream, &bytes).await?;
                continue;
            }
            SessionEvent::Ended(outcome) => Ok(v1::ExitStatus {
                exit_code: outcome.exit_code(),
                reason: None,
            }),
            SessionEvent::Failed(failure) => Err(*ApiError::from(failure).0),
            SessionEvent::ChannelLost => Err(*ApiError::from(crate::guest::RequestError::ChannelLost).0),
        };
        return finish(writer, end).await;
    }
}
