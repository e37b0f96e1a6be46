//! Code that runs once: a machine for it, what goes in, the run under its time limit, what comes out, and the end of the machine.
//!
//! ```text
//! machine of an image (or of a pool) -> /workspace -> code: output as it comes -> /workspace/output -> machine removed (or released)
//! ```
//! The API is the caller, and knows the wire. Whoever goes away meanwhile takes the machine along; the node that follows one that died
//! in between sweeps it (`machines::recovery`).

mod error;
mod files;

pub use error::ExecuteError;

use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_api::v1::{MachineSpec, Owner};
use hearth_guest_protocol::message::Outcome;
use hearth_machine::ByteSize;
use hearth_machine::execute::{OUTPUT, Runner, TIMED_OUT};
use hearth_machine::pool::LEASE_MAX;
use hearth_machine::spec::MEMORY_DEFAULT;
use tokio::sync::mpsc;

use crate::guest::{SessionEvent, Stream};
use crate::host::failpoint;
use crate::machines::{ExecSpec, Machine, Machines, NewMachine, chain};
use crate::pool::{PoolError, Pools, Wish};

pub use files::Member;

/// How long the guest may take to unpack or to pack files.
const FILES_DEADLINE: Duration = Duration::from_secs(120);
/// The most that comes back of an output, in bytes: it is held in memory until it is whole.
pub const OUTPUT_ARCHIVE_MAX: usize = 64 << 20;
/// What a lease lasts beyond the code's own time: files go in and come out.
const LEASE_MARGIN: Duration = Duration::from_secs(600);
/// How long the guest may take to say that it has ended code at its limit, before that is done from here.
const GUEST_GRACE: Duration = Duration::from_secs(2);
/// How long the code's process may take to start.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What is to be run, and where.
#[derive(Debug)]
pub struct Execution {
    /// Where it runs.
    pub place: Place,
    /// How long it may wait for memory or for a machine of the pool.
    pub wait: Duration,
    /// The code's file in the workspace, where there is code, and what runs.
    pub work: Work,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// A tar archive for the input's directory.
    pub input: Option<Vec<u8>>,
    /// Whether the output's directory is fetched.
    pub output: bool,
}

/// Where code runs.
#[derive(Debug)]
pub enum Place {
    /// In a machine that is made for it.
    Own(Box<MachineSpec>),
    /// In a machine of this pool.
    Pool(String),
}

/// What runs.
#[derive(Debug)]
pub enum Work {
    /// Code, by its interpreter.
    Code {
        /// Where it lies, and what runs it.
        runner: Runner,
        /// The code.
        code: String,
    },
    /// A program of the machine.
    Command(Vec<String>),
}

/// What is told while it goes on.
#[derive(Debug)]
pub enum Told {
    /// It runs, in a machine of this name.
    Started(String),
    /// It printed something.
    Output(Stream, Bytes),
}

/// How it went.
#[derive(Debug)]
pub struct Executed {
    /// The machine's name.
    pub machine: String,
    /// The exit code.
    pub exit_code: u8,
    /// Its time was over.
    pub timed_out: bool,
    /// How long it took until the code ran.
    pub prepared: Duration,
    /// How long the code ran.
    pub ran: Duration,
    /// What it left, where that was asked for and could be fetched; otherwise why not.
    pub output: Result<Option<Output>, String>,
}

/// What code left in the output's directory.
#[derive(Debug)]
pub struct Output {
    /// A tar archive.
    pub archive: Vec<u8>,
    /// The files in it.
    pub files: Vec<Member>,
}

/// Runs code in a machine that nobody else has before or after, whichever way it went. Ends when nobody receives what is told.
///
/// # Errors
/// Returns [`ExecuteError`] when the code did not run, or its machine was lost.
pub async fn execute(
    machines: &Machines,
    pools: &Pools,
    execution: Execution,
    told: mpsc::Sender<Told>,
) -> Result<Executed, ExecuteError> {
    match &execution.place {
        Place::Own(spec) => in_own(machines, pools, spec, &execution, &told).await,
        Place::Pool(pool) => in_pool(machines, pools, pool, &execution, &told).await,
    }
}

async fn in_own(
    machines: &Machines,
    pools: &Pools,
    spec: &MachineSpec,
    execution: &Execution,
    told: &mpsc::Sender<Told>,
) -> Result<Executed, ExecuteError> {
    let begun = Instant::now();
    let memory = spec.memory_bytes.map_or(MEMORY_DEFAULT, ByteSize::from_bytes);
    machines.check(spec).map_err(PoolError::from)?;
    let _permit = unless_unheard(told, async { Ok(pools.admit(memory, execution.wait).await?) }).await?;
    let machine = machines
        .create(NewMachine {
            name: None,
            spec: spec.clone(),
            secrets: [].into(),
            owner: Some(Owner::Execute),
        })
        .await?;
    failpoint::pass("execute-created");
    let done = unless_unheard(told, async {
        machine.start(None).await?;
        run(&machine, execution, begun, told).await
    })
    .await;
    failpoint::pass("execute-done");
    if let Err(error) = machine.remove(true).await {
        tracing::error!(machine = %machine.id(), %error, "the machine of an execution is left behind");
    }
    done
}

async fn in_pool(
    machines: &Machines,
    pools: &Pools,
    pool: &str,
    execution: &Execution,
    told: &mpsc::Sender<Told>,
) -> Result<Executed, ExecuteError> {
    let begun = Instant::now();
    let wish = Wish {
        lease: (execution.timeout + LEASE_MARGIN).min(LEASE_MAX),
        wait: execution.wait,
        ends_with_node: true,
    };
    let lease = unless_unheard(told, async { Ok(pools.acquire(pool.to_owned(), wish).await?) }).await?;
    let done = unless_unheard(told, async {
        run(&machines.find(&lease.machine)?, execution, begun, told).await
    })
    .await;
    match pools.release(lease.id).await {
        // Its machine was lost, which is told already.
        Ok(()) | Err(PoolError::NoLease { .. } | PoolError::Ending) => {}
        Err(error) => {
            tracing::error!(error = %chain(&error), "the machine of an execution is not given back")
        }
    }
    done
}

/// Does something, unless nobody hears of it any more.
async fn unless_unheard<T>(
    told: &mpsc::Sender<Told>,
    work: impl Future<Output = Result<T, ExecuteError>>,
) -> Result<T, ExecuteError> {
    tokio::select! {
        done = work => done,
        () = told.closed() => Err(ExecuteError::Unheard),
    }
}

/// Runs code in a machine that is there.
async fn run(
    machine: &Machine,
    execution: &Execution,
    begun: Instant,
    told: &mpsc::Sender<Told>,
) -> Result<Executed, ExecuteError> {
    let (code, command) = match &execution.work {
        Work::Code { runner, code } => (Some((runner.file.as_str(), code.as_bytes())), &runner.command),
        Work::Command(command) => (None, command),
    };
    files::put(machine, "/", files::workspace(code)?).await?;
    if let Some(input) = &execution.input {
        files::put(machine, hearth_machine::execute::INPUT, input.clone()).await?;
    }
    let ended = process(machine, command, execution, begun, told).await?;
    let output = match execution.output {
        true => fetch(machine).await.map(Some).map_err(|error| chain(&error)),
        false => Ok(None),
    };
    Ok(Executed { output, ..ended })
}

async fn process(
    machine: &Machine,
    command: &[String],
    execution: &Execution,
    begun: Instant,
    told: &mpsc::Sender<Told>,
) -> Result<Executed, ExecuteError> {
    let asked = ExecSpec {
        command: command.to_vec(),
        environment: execution.environment.clone(),
        working_directory: Some(hearth_machine::execute::WORKSPACE.to_owned()),
        time_limit: Some(execution.timeout),
        ..ExecSpec::default()
    };
    let mut session = machine.exec(&asked).await?;
    let started = tokio::time::timeout(START_DEADLINE, session.next()).await;
    match started.map_err(|_| ExecuteError::NoStart)? {
        SessionEvent::Started { .. } => {}
        event => return Err(ExecuteError::unexpected(event)),
    }
    let (prepared, since) = (begun.elapsed(), Instant::now());
    let name = machine.view().record.name.clone();
    // Fails only when nobody listens any more, which ends all of it.
    let _ = told.send(Told::Started(name.clone())).await;
    // The guest ends it in time, with all that it has made, also when this node has died. What a guest does not do, this does.
    let patience = if session.is_limited() {
        GUEST_GRACE
    } else {
        Duration::ZERO
    };
    let over = tokio::time::sleep(execution.timeout + patience);
    tokio::pin!(over);
    let (exit_code, timed_out) = loop {
        let event = tokio::select! {
            event = session.next() => event,
            () = &mut over => break (TIMED_OUT, true),
        };
        match event {
            SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
            SessionEvent::Output(stream, bytes) => {
                tokio::select! {
                    _ = told.send(Told::Output(stream, bytes)) => {}
                    () = &mut over => break (TIMED_OUT, true),
                }
            }
            SessionEvent::Ended(Outcome::TimedOut) => break (TIMED_OUT, true),
            SessionEvent::Ended(outcome) => break (outcome.exit_code(), false),
            event => return Err(ExecuteError::unexpected(event)),
        }
    };
    // It had all of its time by the guest's clock, which runs a little beside this one.
    let least = if timed_out {
        execution.timeout
    } else {
        Duration::ZERO
    };
    let ran = since.elapsed().max(least);
    // Kills what still runs of it.
    drop(session);
    Ok(Executed {
        machine: name,
        exit_code,
        timed_out,
        prepared,
        ran,
        output: Ok(None),
    })
}

async fn fetch(machine: &Machine) -> Result<Output, ExecuteError> {
    let archive = files::get(machine, OUTPUT, OUTPUT_ARCHIVE_MAX).await?;
    let files = files::members(&archive)?;
    Ok(Output { archive, files })
}
