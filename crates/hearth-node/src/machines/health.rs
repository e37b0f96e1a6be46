//! Probes: they find out whether a workload works, again and again while it runs. What follows from what they find is
//! `hearth_machine::health`'s matter, and the machine's actor's.
//!
//! ```text
//!  actor: Health, shown <--LifeEvent::Probed-- prober: waits, probes --Launch, Dial--> guest
//!     `-- drops the prober when the workload ends       `-- stands still while the machine is not running
//! ```
//! A probe goes through the guest channel: a program is an exec beside the workload, a connection is made on the guest's
//! loopback. It is ended at its time limit, and with the machine's pause or end: then it has no result.

use std::time::Duration;

use hearth_machine::health::OUTPUT_MAX;
use hearth_machine::{Container, Health, HealthCheck, HealthStatus, Probe, ProbeResult, Process, State};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::command::View;
use super::life::LifeEvent;
use super::output::now_unix_ns;
use super::session::{self, ExecSpec};
use crate::guest::{Guest, RequestError, Session, SessionEvent};
use crate::records::{MachineRecord, health};

/// The most that is read of an HTTP answer until its headers end, in bytes.
const HEAD_MAX: usize = 16 << 10;
/// The most headers of an HTTP answer.
const HEADERS_MAX: usize = 100;
/// The code of a probe that came to no end, and of one that failed without a program's having ended; docker's.
const NO_END: i32 = -1;
const FAILED: i32 = 1;

/// Probes until it is dropped.
#[derive(Debug)]
pub(super) struct Prober {
    _stop: DropGuard,
}

/// What a prober needs of its machine.
pub(super) struct Patient {
    pub(super) process: Process,
    pub(super) container: Container,
    pub(super) guest: Guest,
    pub(super) view: watch::Receiver<View>,
    pub(super) events: mpsc::Sender<LifeEvent>,
}

/// The probing of one machine.
struct Probing {
    patient: Patient,
    check: HealthCheck,
    /// When the workload was started, in nanoseconds since 1970.
    started_unix_ns: u64,
}

impl Prober {
    /// Starts to probe, one interval from now, where there is a health check.
    pub(super) fn begin(patient: Patient, record: &MachineRecord, tasks: &TaskTracker) -> Option<Self> {
        let probing = Probing {
            patient,
            check: health::check(record.health_check.as_ref()?)?,
            started_unix_ns: started_unix_ns(record),
        };
        let stop = CancellationToken::new();
        tasks.spawn(stop.clone().run_until_cancelled_owned(probing.probe_on()));
        Some(Self {
            _stop: stop.drop_guard(),
        })
    }
}

impl Probing {
    async fn probe_on(mut self) {
        loop {
            // Fails when the actor is gone.
            if self
                .patient
                .view
                .wait_for(|view| view.state == State::Running)
                .await
                .is_err()
            {
                return;
            }
            let mut view = self.patient.view.clone();
            let probed = async {
                tokio::time::sleep(self.pause()).await;
                self.probe().await
            };
            let result = tokio::select! {
                result = probed => result,
                _ = view.wait_for(|view| view.state != State::Running) => continue,
            };
            // The guest is lost; the life is about to notice.
            let Some(result) = result else { return };
            // Fails when the actor is gone.
            if self.patient.events.send(LifeEvent::Probed(result)).await.is_err() {
                return;
            }
        }
    }

    fn pause(&self) -> Duration {
        let age = age(now_unix_ns(), self.started_unix_ns);
        let health = self.patient.view.borrow().health.clone();
        health.unwrap_or_default().pause_before_next(&self.check, age)
    }

    /// Probes once; `None` when the guest cannot be talked to any more.
    async fn probe(&self) -> Option<ProbeResult> {
        let began_unix_ns = now_unix_ns();
        let limit = self.check.timeout;
        // What is under way is dropped at the limit, and with it the session: the guest kills the process.
        let finding = match tokio::time::timeout(limit, self.look()).await {
            Ok(finding) => finding?,
            Err(_) => Finding::new(NO_END, format!("the health check took longer than {limit:?}")),
        };
        Some(ProbeResult {
            began_unix_ns,
            ended_unix_ns: now_unix_ns(),
            exit_code: finding.code,
            output: finding.output,
        })
    }

    async fn look(&self) -> Option<Finding> {
        match &self.check.probe {
            Probe::Command(command) => self.run(command).await,
            Probe::Tcp(port) => match self.connect(*port).await? {
                Ok(session) => {
                    session.finish();
                    Some(Finding::new(0, String::new()))
                }
                Err(refused) => Some(refused),
            },
            Probe::Http { port, path } => match self.connect(*port).await? {
                Ok(session) => get(session, path).await,
                Err(refused) => Some(refused),
            },
        }
    }

    async fn run(&self, command: &[String]) -> Option<Finding> {
        let asked = ExecSpec {
            command: command.to_vec(),
            ..ExecSpec::default()
        };
        let launch = match session::exec(&self.patient.process, &self.patient.container, &asked) {
            Ok(launch) => launch,
            Err(error) => return Some(Finding::new(FAILED, error.to_string())),
        };
        let mut session = match self.patient.guest.launch(&launch).await {
            Ok(session) => session,
            Err(RequestError::ChannelLost) => return None,
            Err(error) => return Some(Finding::new(FAILED, error.to_string())),
        };
        let mut said = Vec::new();
        loop {
            match session.next().await {
                SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                // All is read, lest the program wait for a reader; the beginning is kept.
                SessionEvent::Output(_, bytes) => {
                    let room = OUTPUT_MAX - said.len();
                    said.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                SessionEvent::Ended(outcome) => {
                    let said = String::from_utf8_lossy(&said).into_owned();
                    return Some(Finding::new(i32::from(outcome.exit_code()), said));
                }
                SessionEvent::Failed(failure) => return Some(Finding::new(FAILED, failure.message)),
                SessionEvent::ChannelLost => return None,
            }
        }
    }

    /// Connects to a port of the guest's loopback.
    async fn connect(&self, port: u16) -> Option<Result<Session, Finding>> {
        let mut session = match self.patient.guest.dial(port).await {
            Ok(session) => session,
            Err(RequestError::ChannelLost) => return None,
            Err(error) => return Some(Err(Finding::new(FAILED, error.to_string()))),
        };
        match session.next().await {
            SessionEvent::Started { .. } => Some(Ok(session)),
            SessionEvent::Failed(failure) => Some(Err(Finding::new(FAILED, failure.message))),
            _ => None,
        }
    }
}

/// What a probe has found.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    code: i32,
    output: String,
}

impl Finding {
    fn new(code: i32, mut output: String) -> Self {
        let end = output.floor_char_boundary(OUTPUT_MAX);
        output.truncate(end);
        Self { code, output }
    }
}

/// Asks for a path, as far as the answer's status (RFC 9112). The path is checked: it ends no line.
async fn get(mut session: Session, path: &str) -> Option<Finding> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: hearth-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let input = session.input();
    if !input.send(request.as_bytes()).await {
        return Some(Finding::new(FAILED, "the connection was closed".to_owned()));
    }
    let mut head = Vec::new();
    loop {
        match session.next().await {
            SessionEvent::Output(_, bytes) => head.extend_from_slice(&bytes),
            SessionEvent::Started { .. } => continue,
            SessionEvent::ChannelLost => return None,
            SessionEvent::OutputEnded(_) | SessionEvent::Ended(_) | SessionEvent::Failed(_) => {
                return Some(Finding::new(
                    FAILED,
                    "the answer ended before its headers did".to_owned(),
                ));
            }
        }
        if let Some(finding) = judge(&head) {
            session.finish();
            return Some(finding);
        }
    }
}

/// Judges the beginning of an HTTP answer; `None` when it is not enough.
fn judge(head: &[u8]) -> Option<Finding> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut headers);
    let parsed = answer.parse(head);
    let passed = |status: u16| (200..400).contains(&status);
    match (parsed, answer.code) {
        (Ok(httparse::Status::Complete(_)), Some(status)) => {
            let words = format!("HTTP status {status} {}", answer.reason.unwrap_or_default());
            let code = if passed(status) { 0 } else { FAILED };
            Some(Finding::new(code, words.trim_end().to_owned()))
        }
        (Err(error), _) => Some(Finding::new(FAILED, format!("the answer is no HTTP: {error}"))),
        _ if head.len() > HEAD_MAX => Some(Finding::new(
            FAILED,
            format!("the answer's headers are longer than {HEAD_MAX} bytes"),
        )),
        _ => None,
    }
}

/// Takes a result in; returns the status if it is another one now. What was found while the machine was about to stand still or to
/// end counts for nothing.
pub(super) fn take(
    known: &mut Option<Health>,
    state: &State,
    record: &MachineRecord,
    result: ProbeResult,
) -> Option<HealthStatus> {
    let check = health::check(record.health_check.as_ref()?)?;
    if *state != State::Running {
        return None;
    }
    let age = age(result.began_unix_ns, started_unix_ns(record));
    known.get_or_insert_default().take(&check, result, age)
}

/// Returns what events tell of a status.
pub(super) fn attribute(status: HealthStatus) -> (&'static str, String) {
    ("health_status", status.name().to_owned())
}

/// Returns the time from a workload's start; none if the clock was set back.
fn age(now_unix_ns: u64, started_unix_ns: u64) -> Duration {
    Duration::from_nanos(now_unix_ns.saturating_sub(started_unix_ns))
}

/// Returns when the workload's process was started, which is a boot later than its machine was.
fn started_unix_ns(record: &MachineRecord) -> u64 {
    let begun = record.started_at.as_ref().and_then(|text| text.parse().ok());
    let begun: jiff::Timestamp = begun.unwrap_or_default();
    let booting: u64 = record.stages.iter().map(|stage| stage.duration_us * 1000).sum();
    u64::try_from(begun.as_nanosecond()).unwrap_or(0) + booting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Option<(i32, String)> {
        judge(head.as_bytes()).map(|finding| (finding.code, finding.output))
    }

    #[test]
    fn an_http_answer_passes_by_its_status_once_its_headers_are_there() {
        assert_eq!(judged("HTTP/1.1 20"), None);
        assert_eq!(judged("HTTP/1.0 200 OK\r\nServer: x\r\n"), None);
        let passed = |text: &str| judged(text).map(|(code, _)| code);
        assert_eq!(passed("HTTP/1.0 200 OK\r\n\r\nbody"), Some(0));
        assert_eq!(passed("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), Some(0));
        assert_eq!(passed("HTTP/1.1 404\r\n\r\n"), Some(1));
        assert_eq!(
            judged("HTTP/1.1 503 Service Unavailable\r\n\r\n"),
            Some((1, "HTTP status 503 Service Unavailable".to_owned()))
        );
    }

    #[test]
    fn what_is_no_http_or_never_ends_fails() {
        assert_eq!(judged("SSH-2.0-OpenSSH\r\n").map(|(code, _)| code), Some(1));
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        assert_eq!(judged(&endless).map(|(code, _)| code), Some(1));
        assert_eq!(judge(b""), None);
    }
}
