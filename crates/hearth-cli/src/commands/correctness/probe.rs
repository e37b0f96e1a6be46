//! The agent's probe beside a workload, as this end of it: what it is told, and what it says.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_api::client::Upgraded;
use hearth_api::stream::{self, Kind};
use hearth_api::v1::{ErrorBody, ExecRequest, ExitStatus};
use hearth_api::{ClientError, stream::StreamError};
use hearth_guest_protocol::PROBE;
use tokio::io::AsyncWriteExt as _;

use super::CorrectnessError;
use crate::error::CliError;
use crate::node::Node;

/// How often the time is asked for; the quickest answer counts.
const CLOCK_ASKS: usize = 20;
/// How long a witness may take to tell something new.
const WITNESS_DEADLINE: Duration = Duration::from_secs(30);

/// What a machine says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// How far its clock is before this host's.
    pub(super) clock_ahead_ms: f64,
    /// How exact that is: half of the way there and back.
    pub(super) clock_exact_ms: f64,
    /// Everything else, by name.
    pub(super) said: BTreeMap<String, String>,
}

impl Report {
    /// Returns what it said of something; empty where it said nothing.
    pub(super) fn of(&self, name: &str) -> &str {
        self.said.get(name).map_or("", String::as_str)
    }

    /// Returns how far the witness has counted.
    pub(super) fn count(&self) -> u64 {
        self.of("witness_count").parse().unwrap_or(0)
    }
}

fn request(words: &[&str]) -> ExecRequest {
    let words = [PROBE].into_iter().chain(words.iter().copied());
    ExecRequest {
        command: words.map(str::to_owned).collect(),
        environment: Vec::new(),
        working_directory: Some("/".to_owned()),
        user: Some("0".to_owned()),
        terminal: None,
        stdin: false,
        detach: false,
    }
}

async fn begin(node: &Node, machine: &str, request: &ExecRequest) -> Result<Upgraded, CliError> {
    node.call(async |client| client.exec(machine, request).await)
        .await
}

/// One frame of a process: what it printed on standard output, or that it has ended well.
enum Heard {
    Printed,
    Ended,
}

/// Hears the process of a connection.
struct Ear<'m> {
    machine: &'m str,
    connection: Upgraded,
    payload: Vec<u8>,
    words: Vec<u8>,
}

impl<'m> Ear<'m> {
    fn new(machine: &'m str, connection: Upgraded) -> Self {
        Self {
            machine,
            connection,
            payload: Vec::new(),
            words: Vec::new(),
        }
    }

    async fn hear(&mut self) -> Result<Heard, CliError> {
        loop {
            match stream::read(&mut self.connection, &mut self.payload).await? {
                Some(Kind::Stdout) => return Ok(Heard::Printed),
                Some(Kind::Stderr) => self.words.extend_from_slice(&self.payload),
                Some(Kind::Exit) => {
                    let status: ExitStatus =
                        serde_json::from_slice(&self.payload).map_err(ClientError::Malformed)?;
                    return match status.exit_code {
                        0 => Ok(Heard::Ended),
                        code => Err(CorrectnessError::Probe {
                            machine: self.machine.to_owned(),
                            code,
                            words: String::from_utf8_lossy(&self.words).trim().to_owned(),
                        }
                        .into()),
                    };
                }
                Some(Kind::Error) => {
                    let body: ErrorBody =
                        serde_json::from_slice(&self.payload).map_err(ClientError::Malformed)?;
                    return Err(ClientError::Refused(Box::new(body)).into());
                }
                Some(_) => {}
                None => return Err(ClientError::Gone.into()),
            }
        }
    }

    async fn tell(&mut self, kind: Kind, payload: &[u8]) -> Result<(), CliError> {
        stream::write(&mut self.connection, kind, payload)
            .await
            .map_err(StreamError::Io)?;
        Ok(self.connection.flush().await.map_err(StreamError::Io)?)
    }
}

/// Runs the probe to its end.
pub(super) async fn run(node: &Node, machine: &str, words: &[&str]) -> Result<(), CliError> {
    let mut ear = Ear::new(machine, begin(node, machine, &request(words)).await?);
    while let Heard::Printed = ear.hear().await? {}
    Ok(())
}

/// Lets a witness go on in a machine without an audience.
pub(super) async fn begin_witness(node: &Node, machine: &str, token: &str) -> Result<(), CliError> {
    let request = ExecRequest {
        detach: true,
        ..request(&["witness", token])
    };
    let mut ear = Ear::new(machine, begin(node, machine, &request).await?);
    while let Heard::Printed = ear.hear().await? {}
    Ok(())
}

/// A process in a machine whose end somebody waits for, until this is dropped.
pub(super) struct Waiting {
    _connection: Upgraded,
}

impl Waiting {
    /// Starts it.
    pub(super) async fn begin(node: &Node, machine: &str) -> Result<Self, CliError> {
        let mut connection = begin(node, machine, &request(&["wait"])).await?;
        match stream::read(&mut connection, &mut Vec::new()).await? {
            Some(Kind::Started) => Ok(Self {
                _connection: connection,
            }),
            _ => Err(missing(machine, "a process that waits")),
        }
    }
}

fn missing(machine: &str, what: &str) -> CliError {
    CorrectnessError::Report {
        machine: machine.to_owned(),
        what: what.to_owned(),
    }
    .into()
}

/// Waits until the witness has told something, and returns the report of that.
pub(super) async fn witnessed(node: &Node, machine: &str) -> Result<Report, CliError> {
    let told = async {
        loop {
            let report = report(node, machine).await?;
            if report.count() > 0 {
                return Ok(report);
            }
        }
    };
    match tokio::time::timeout(WITNESS_DEADLINE, told).await {
        Ok(told) => told,
        Err(_) => Err(missing(machine, "a witness that counts")),
    }
}

fn now_ns() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(now.as_nanos()).unwrap_or(i128::MAX)
}

/// Asks a machine for everything.
pub(super) async fn report(node: &Node, machine: &str) -> Result<Report, CliError> {
    let request = ExecRequest {
        stdin: true,
        ..request(&["report"])
    };
    let mut ear = Ear::new(machine, begin(node, machine, &request).await?);
    let mut best: Option<(i128, i128)> = None;
    for _ in 0..CLOCK_ASKS {
        let before = now_ns();
        ear.tell(Kind::Stdin, b"t").await?;
        let Heard::Printed = ear.hear().await? else {
            return Err(missing(machine, "the time"));
        };
        let after = now_ns();
        let told: Option<i128> = String::from_utf8_lossy(&ear.payload).trim().parse().ok();
        let told = told.ok_or_else(|| missing(machine, "the time"))?;
        let (way, ahead) = (after - before, told - (before + after) / 2);
        if best.is_none_or(|(quickest, _)| way < quickest) {
            best = Some((way, ahead));
        }
    }
    ear.tell(Kind::StdinEnd, &[]).await?;
    let mut text = Vec::new();
    while let Heard::Printed = ear.hear().await? {
        text.extend_from_slice(&ear.payload);
    }
    let (way, ahead) = best.ok_or_else(|| missing(machine, "the time"))?;
    let lines = String::from_utf8_lossy(&text).into_owned();
    let said = lines.lines().filter_map(|line| line.split_once('='));
    Ok(Report {
        clock_ahead_ms: ahead as f64 / 1e6,
        clock_exact_ms: way as f64 / 2e6,
        said: said
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    })
}
