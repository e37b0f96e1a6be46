//! Code that runs once: one request, and lines of JSON that end with the result.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_api::v1::{self, ExecuteLine, ExecuteResult};
use hearth_machine::execute::runner;
use tokio::sync::mpsc;

use super::Service;
use super::error::{ApiError, body, invalid};
use super::progress::received;
use crate::execute::{ExecuteError, Executed, Execution, Place, Told, Work, execute};
use crate::guest::Stream;

/// The longest request, in bytes: an input of 64 MiB as base64, and the code.
pub(super) const REQUEST_MAX: usize = 96 << 20;
/// How long code may take, unless it is said.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(300);
/// How long code may take at most.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What is kept of each output, in bytes, unless it is said, and at most.
const OUTPUT_DEFAULT: u64 = 1 << 20;
const OUTPUT_MAX: u64 = 16 << 20;
/// What is told and not sent yet; behind that the code waits.
const QUEUE: usize = 16;
/// Bytes of an archive in one line.
const PIECE: usize = 192 << 10;

/// A request, checked, but for where it runs.
struct Asked {
    execution: Execution,
    keep: usize,
    stream: bool,
}

pub(super) async fn run(
    State(service): State<Service>,
    request: Result<Json<v1::ExecuteRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = request?;
    let Asked {
        execution,
        keep,
        stream,
    } = checked(request)?;
    let (told, mut hear) = mpsc::channel(QUEUE);
    let (machines, pools) = (service.machines.clone(), service.pools.clone());
    let shutdown = service.shutdown.clone();
    let work = service
        .tasks
        .spawn(async move { execute(&machines, &pools, execution, told).await });
    // Until it runs, what goes wrong is an error of the request.
    let Some(Told::Started(machine)) = hear.recv().await else {
        return Err(joined(work.await).err().unwrap_or_else(unheard));
    };
    let (lines, receiver) = mpsc::channel(QUEUE);
    let heard = lines.clone();
    let send = async move {
        let mut kept = Kept::new(keep);
        let mut sender = Sender(lines);
        if stream {
            sender.line(&ExecuteLine::Started(machine)).await?;
        }
        while let Some(told) = hear.recv().await {
            match told {
                Told::Output(stream_of, bytes) if stream => sender.output(stream_of, &bytes).await?,
                Told::Output(stream_of, bytes) => kept.keep(stream_of, &bytes),
                Told::Started(_) => {}
            }
        }
        match joined(work.await) {
            Ok(executed) => sender.result(executed, kept, stream).await,
            Err(ApiError(error)) => sender.line(&ExecuteLine::Error(*error)).await,
        }
    };
    // Dropped when the client goes away or the node ends: then nobody hears, and the execution ends.
    let send = async move {
        tokio::select! {
            _ = send => {}
            () = heard.closed() => {}
        }
    };
    service.tasks.spawn(shutdown.run_until_cancelled_owned(send));
    let body = Body::from_stream(received(receiver));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn joined(
    result: Result<Result<Executed, ExecuteError>, tokio::task::JoinError>,
) -> Result<Executed, ApiError> {
    match result {
        Ok(done) => done.map_err(ApiError::from),
        Err(error) => Err(super::error::internal(&error)),
    }
}

fn unheard() -> ApiError {
    ExecuteError::Unheard.into()
}

/// Checks a request and brings it into the form in which it is carried out.
fn checked(request: v1::ExecuteRequest) -> Result<Asked, ApiError> {
    let place = match (request.image, request.pool) {
        (Some(image), None) => Place::Own(Box::new(v1::MachineSpec {
            image,
            hold: true,
            memory_bytes: request.memory_bytes,
            cpu_milli: request.cpu_milli,
            driver: request.driver,
            network: request.network,
            policy: request.policy,
            networks: request.networks,
            ca_certificates: request.ca_certificates,
            auto_remove: true,
            ..v1::MachineSpec::default()
        })),
        (None, Some(_))
            if request.memory_bytes.is_some()
                || request.cpu_milli.is_some()
                || request.network.is_some()
                || request.policy.is_some()
                || !request.networks.is_empty()
                || !request.ca_certificates.is_empty() =>
        {
            return Err(invalid(
                "the machines of a pool are as they are: memory, processors, network and certificates are the pool's",
            ));
        }
        (None, Some(pool)) => Place::Pool(pool),
        _ => return Err(invalid("an image or a pool is needed, and not both")),
    };
    let timeout = request.timeout_ms.map_or(TIMEOUT_DEFAULT, Duration::from_millis);
    if timeout.is_zero() || timeout > TIMEOUT_MAX {
        return Err(invalid("the time limit must be from 1 ms to a day"));
    }
    let keep = request.output_max_bytes.unwrap_or(OUTPUT_DEFAULT);
    if keep > OUTPUT_MAX {
        return Err(invalid(format!(
            "{keep} bytes of output are too many to keep: {OUTPUT_MAX} at most, and a stream has no such bound"
        )));
    }
    let work = match (request.code, request.command.is_empty()) {
        (Some(code), true) => {
            let interpreter = Some(&request.interpreter[..]).filter(|words| !words.is_empty());
            let runner = runner(&code, request.code_name.as_deref(), interpreter);
            let runner = runner.map_err(|error| {
                let remedy = "call it .py, .sh or .js, begin it with a line like #!/usr/bin/env python3, or name its \
                              interpreter";
                body(v1::ErrorCode::InvalidRequest, &error, Some(remedy))
            })?;
            Work::Code { runner, code }
        }
        (None, false) => Work::Command(request.command),
        _ => return Err(invalid("code or a command is needed, and not both")),
    };
    let input = request
        .input_archive
        .map(|text| STANDARD.decode(text))
        .transpose();
    let input = input.map_err(|error| invalid(format!("input_archive is not base64: {error}")))?;
    let execution = Execution {
        place,
        wait: Duration::from_millis(request.wait_ms.unwrap_or_default()),
        work,
        environment: request.environment,
        timeout,
        input,
        output: request.output,
    };
    Ok(Asked {
        execution,
        keep: usize::try_from(keep).unwrap_or(usize::MAX),
        stream: request.stream,
    })
}

/// What is kept of both outputs.
struct Kept {
    limit: usize,
    stdout: (Vec<u8>, bool),
    stderr: (Vec<u8>, bool),
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            stdout: (Vec::new(), false),
            stderr: (Vec::new(), false),
        }
    }

    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        let (kept, cut) = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let room = self.limit.saturating_sub(kept.len()).min(bytes.len());
        kept.extend_from_slice(&bytes[..room]);
        *cut |= room < bytes.len();
    }
}

/// Sends lines; fails when the client is gone.
struct Sender(mpsc::Sender<Bytes>);

/// Nobody reads any more.
struct Gone;

impl Sender {
    async fn line(&mut self, line: &ExecuteLine) -> Result<(), Gone> {
        // Text and numbers always become JSON.
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        self.0.send(bytes.into()).await.map_err(|_| Gone)
    }

    async fn output(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), Gone> {
        let text = STANDARD.encode(bytes);
        let line = match stream {
            Stream::Stdout => ExecuteLine::Stdout(text),
            Stream::Stderr => ExecuteLine::Stderr(text),
        };
        self.line(&line).await
    }

    async fn result(&mut self, executed: Executed, kept: Kept, stream: bool) -> Result<(), Gone> {
        let mut result = ExecuteResult {
            success: executed.exit_code == 0 && !executed.timed_out,
            exit_code: executed.exit_code,
            timed_out: executed.timed_out,
            stdout: String::from_utf8_lossy(&kept.stdout.0).into_owned(),
            stderr: String::from_utf8_lossy(&kept.stderr.0).into_owned(),
            stdout_cut: kept.stdout.1,
            stderr_cut: kept.stderr.1,
            duration_ms: milliseconds(executed.ran),
            prepared_ms: milliseconds(executed.prepared),
            machine: executed.machine,
            ..ExecuteResult::default()
        };
        match executed.output {
            Ok(Some(output)) => {
                let files = output.files.into_iter().map(|member| v1::OutputFile {
                    path: member.path,
                    size: member.size,
                });
                result.output_files = files.collect();
                if stream {
                    for piece in output.archive.chunks(PIECE) {
                        self.line(&ExecuteLine::OutputArchive(STANDARD.encode(piece)))
                            .await?;
                    }
                } else {
                    result.output_archive = Some(STANDARD.encode(output.archive));
                }
            }
            Ok(None) => {}
            Err(reason) => result.output_missing = Some(reason),
        }
        self.line(&ExecuteLine::Result(Box::new(result))).await
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<ExecuteError> for ApiError {
    fn from(error: ExecuteError) -> Self {
        let (code, remediation) = match error {
            ExecuteError::Create(error) => return error.into(),
            ExecuteError::Machine(error) => return error.into(),
            ExecuteError::Pool(error) => return error.into(),
            ExecuteError::Refused(failure) => return failure.into(),
            ExecuteError::Guest(error) => return error.into(),
            ExecuteError::NoStart | ExecuteError::Files(_) => {
                (v1::ErrorCode::Timeout, Some("is the host overloaded?"))
            }
            ExecuteError::FileServer(_) | ExecuteError::Archive(_) | ExecuteError::OutputTooLarge => {
                (v1::ErrorCode::GuestFailed, None)
            }
            ExecuteError::Unheard => (v1::ErrorCode::Internal, Some("run it again: the node was ending")),
        };
        body(code, &error, remediation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut v1::ExecuteRequest)) -> String {
        let mut request = v1::ExecuteRequest {
            image: Some("busybox".into()),
            command: vec!["true".into()],
            ..v1::ExecuteRequest::default()
        };
        change(&mut request);
        match checked(request) {
            Err(error) => error.0.message,
            Ok(_) => panic!("it is taken"),
        }
    }

    #[test]
    fn requests_that_make_no_sense_are_refused_by_name() {
        assert!(refused(|it| it.pool = Some("p".into())).contains("not both"));
        assert!(refused(|it| it.image = None).contains("an image or a pool"));
        assert!(refused(|it| it.code = Some("x".into())).contains("not both"));
        assert!(refused(|it| it.timeout_ms = Some(0)).contains("time limit"));
        assert!(refused(|it| it.output_max_bytes = Some(1 << 30)).contains("too many to keep"));
        assert!(refused(|it| it.input_archive = Some("?".into())).contains("not base64"));
        let unknown = refused(|it| {
            it.command.clear();
            it.code = Some("puts 1".into());
            it.code_name = Some("a.rb".into());
        });
        assert_eq!(unknown, "no interpreter is known for \"a.rb\"");
    }

    #[test]
    fn output_beyond_the_bound_is_cut_and_said_so() {
        let mut kept = Kept::new(4);
        kept.keep(Stream::Stdout, b"abc");
        kept.keep(Stream::Stdout, b"def");
        kept.keep(Stream::Stderr, b"1234");
        assert_eq!(kept.stdout, (b"abcd".to_vec(), true));
        assert_eq!(kept.stderr, (b"1234".to_vec(), false));
    }
}
