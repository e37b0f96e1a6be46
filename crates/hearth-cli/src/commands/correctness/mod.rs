//! `test fork-correctness`: forks of a machine, and what each of them says of itself.
//!
//! ```text
//! machine (or one of the image) -> witness, and a process that somebody waits for -> two forks -> a report of each -> duties
//! ```
//! What runs inside is the agent's probe, so that an image without programs is checked as any other.

mod duties;
mod probe;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hearth_api::ClientError;
use hearth_api::v1::{CreateMachine, ErrorCode, ForkMachine, Machine, MachineSpec};

use self::duties::{Duty, Reports, Verdict, judge};
use self::probe::{Report, Waiting};
use super::image::fetch;
use crate::arguments::{ForkCorrectness, TestCommand};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, FAILURE, GOOD, Screen, Table, WARNING, note};

/// How many forks are compared.
const FORKS: u32 = 2;

/// Says why nothing could be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CorrectnessError {
    /// The probe did not do what it is for.
    #[error("the probe in {machine} ended with exit code {code}: {words}")]
    Probe {
        /// The machine.
        machine: String,
        /// How it ended.
        code: u8,
        /// What it printed on standard error.
        words: String,
    },
    /// What it said makes no sense.
    #[error("the probe in {machine} does not say what it is asked for: {what}")]
    Report {
        /// The machine.
        machine: String,
        /// What is missing.
        what: String,
    },
}

/// Checks something.
pub(super) async fn test(node: &Node, command: TestCommand) -> Result<ExitCode, CliError> {
    match command {
        TestCommand::ForkCorrectness(arguments) => fork_correctness(node, arguments).await,
    }
}

async fn fork_correctness(node: &Node, arguments: ForkCorrectness) -> Result<ExitCode, CliError> {
    let (machine, is_own) = subject(node, &arguments.subject).await?;
    let judged = judged(node, &machine.name).await;
    if is_own {
        remove(node, &machine.name).await;
    }
    let duties = judged?;
    match arguments.json {
        true => print::json(&duties)?,
        false => print::out(&table(&duties).render(Screen::stdout()))?,
    }
    let failed = duties.iter().any(|duty| duty.verdict == Verdict::Failed);
    Ok(ExitCode::from(u8::from(failed)))
}

/// Finds the machine, or makes one of the image in which nothing runs; tells whether it did.
async fn subject(node: &Node, name: &str) -> Result<(Machine, bool), CliError> {
    match node.call(async |client| client.inspect(name).await).await {
        Ok(machine) => return Ok((machine, false)),
        Err(CliError::Client(ClientError::Refused(body))) if body.code == ErrorCode::MachineNotFound => {}
        Err(error) => return Err(error),
    }
    let request = CreateMachine {
        name: Some(format!("fork-test-{}", std::process::id())),
        spec: MachineSpec {
            image: name.to_owned(),
            hold: true,
            ..MachineSpec::default()
        },
        secrets: [].into(),
    };
    let create = async || node.call(async |client| client.create(&request).await).await;
    let created = match create().await {
        Err(CliError::Client(ClientError::Refused(body))) if body.code == ErrorCode::ImageNotFound => {
            fetch(node, name.to_owned()).await?;
            create().await?
        }
        created => created?,
    };
    match node.call(async |client| client.start(&created.name).await).await {
        Ok(machine) => Ok((machine, true)),
        Err(error) => {
            remove(node, &created.name).await;
            Err(error)
        }
    }
}

async fn remove(node: &Node, machine: &str) {
    if let Err(error) = node.call(async |client| client.remove(machine, true).await).await {
        note(&format!("the machine {machine} is left behind: {error}"));
    }
}

/// Forks a machine and judges the forks; whatever comes of it, the machine is as it was, and the forks are gone.
async fn judged(node: &Node, machine: &str) -> Result<Vec<Duty>, CliError> {
    let token = format!(
        "{:x}-{}",
        std::process::id(),
        jiff::Timestamp::now().as_nanosecond()
    );
    probe::begin_witness(node, machine, &token).await?;
    let reports = reports(node, machine).await;
    if let Err(error) = probe::run(node, machine, &["end"]).await {
        note(&format!("the witness in {machine} is left behind: {error}"));
    }
    Ok(judge(&token, &reports?))
}

async fn reports(node: &Node, machine: &str) -> Result<Reports, CliError> {
    let before = probe::witnessed(node, machine).await?;
    let waiting = Waiting::begin(node, machine).await?;
    let request = ForkMachine {
        count: FORKS,
        name_prefix: None,
        keep_secrets: true,
        memory_backend: None,
    };
    let forked = node
        .call(async |client| client.fork(machine, &request).await)
        .await?;
    let reported = async {
        let mut forks = Vec::new();
        for fork in &forked.machines {
            forks.push(twice(node, &fork.name).await?);
        }
        Ok(Reports {
            before,
            source: twice(node, machine).await?,
            forks,
            pause_us: forked.pause_us,
        })
    };
    let reported = reported.await;
    drop(waiting);
    for fork in &forked.machines {
        remove(node, &fork.name).await;
    }
    reported
}

/// How long what goes on may take to be further: a busy host lets its guests wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks now and again later: what goes on is further then.
async fn twice(node: &Node, machine: &str) -> Result<[Report; 2], CliError> {
    let first = probe::report(node, machine).await?;
    let end = Instant::now() + PATIENCE;
    loop {
        let second = probe::report(node, machine).await?;
        if second.count() > first.count() || Instant::now() >= end {
            return Ok([first, second]);
        }
    }
}

fn table(duties: &[Duty]) -> Table {
    let mut table = Table::new(&[("DUTY", None), ("VERDICT", None), ("WHAT WAS SEEN", None)]);
    for duty in duties {
        let verdict = match duty.verdict {
            Verdict::Passed => Cell::from("pass").styled(GOOD),
            Verdict::Failed => Cell::from("FAIL").styled(FAILURE),
            Verdict::Skipped => Cell::from("skipped").styled(WARNING),
        };
        table.push([Cell::from(duty.name), verdict, Cell::from(&duty.seen)]);
    }
    table
}
