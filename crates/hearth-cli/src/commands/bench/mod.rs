//! `bench`: what machines cost on this host, each figure beside a baseline taken in the same run.
//!
//! ```text
//! run      `hearth run --no-template IMAGE true`, against bare QEMU up to the guest's first line; where the time goes
//! clone    `hearth run IMAGE true` of a template, against a bare QEMU clone of it up to the agent's first reply
//! fork     `hearth fork`, `snapshot create`, `restore`, `rollback`, against a bare QEMU clone; twenty forks at once and their memory
//! idle     the memory of twenty idle clones, against twenty bare ones, at once and after `--idle-for`
//! exec     `hearth exec MACHINE true`, against the guest making a process by itself
//! busy     the same with twenty machines that are busy, against none
//! pool     acquire and release of a pool's machine, against a cold start
//! execute  code that runs once, with a machine of its own and with a pool's, against `run`
//! channel  bytes through `hearth exec`, both ways, against a pipe inside the guest
//! ports    round trips, connections and bytes through published ports, against a plain TCP relay
//! net      starts of machines with a network, against none; bytes through one, against a TAP with nothing behind it
//! logs     bytes that a workload prints, to who is attached and into the log, against an exec's
//! copy     `hearth cp` of a large file, both ways, against `cp` inside the guest
//! memory   what the node holds for itself and for each machine
//! vmm      Firecracker itself, the node's machines beside it, and memory from a pager against memory from the file; only when it is named
//! ```
//! Verbs are measured as a user has them: as processes of their own, from their start to their end. Machines carry a
//! label and are removed whichever way it ends.

mod bare_clone;
mod baseline;
mod figures;
mod forks;
mod idle;
mod machines;
mod net;
mod output;
mod pools;
mod ports;
mod subjects;
mod vmm;

use std::process::ExitCode;

use crate::arguments::{Bench, Subject};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Screen};

use figures::Report;
use machines::Machines;
use subjects::Bencher;

/// Says what kept a measurement from being made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A program cannot be started, or its streams broke.
    #[error("cannot run `{line}`")]
    Program {
        /// Its command line.
        line: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A verb failed.
    #[error("`{line}` failed ({status}): {words}")]
    Verb {
        /// Its command line.
        line: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        words: String,
    },
    /// Less came through than was sent.
    #[error("`{line}` moved {moved} of {expected} bytes")]
    Short {
        /// Its command line.
        line: String,
        /// Bytes that came.
        moved: u64,
        /// Bytes that were sent.
        expected: u64,
    },
    /// The monitor of a machine cannot be looked at, so there is nothing to compare with.
    #[error("cannot read the command line of the virtual machine monitor {pid}")]
    Monitor {
        /// Its process.
        pid: u32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bare guest ended before it said anything.
    #[error("bare QEMU ended before its guest's first line")]
    NoFirstLine,
    /// The driver takes no snapshots, or the disk is full.
    #[error("the second machine is no clone: the node's log says why")]
    NoTemplate,
    /// A file of the bench's own.
    #[error("cannot write {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A connection to a published port, or to the relay beside it.
    #[error("a connection to a port broke")]
    Port(#[source] std::io::Error),
    /// Firecracker.
    #[error(transparent)]
    Vmm(#[from] vmm::VmmError),
    /// The code that is to be executed.
    #[error("cannot read {path}")]
    Code {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A pool has no machine ready.
    #[error("the pool has no machine ready: {0}")]
    NotReady(String),
    /// There are no networks to measure.
    #[error("this node gives machines no network: 'hearth doctor' and the node's log say why")]
    NoNetwork,
    /// The user asked to end.
    #[error("interrupted")]
    Interrupted,
}

/// Measures, prints, cleans up.
pub(super) async fn bench(node: &Node, arguments: &Bench) -> Result<ExitCode, CliError> {
    let machines = Machines::new(node)?;
    // Verbs below name this node's socket, and so start none.
    node.call(async |client| client.node_status().await).await?;
    let measured = tokio::select! {
        measured = measure(node, &machines, arguments) => measured,
        _ = tokio::signal::ctrl_c() => Err(BenchError::Interrupted.into()),
    };
    let removed = machines.remove_all().await;
    let report = measured?;
    removed?;
    if arguments.json {
        print::json(&report)?;
    } else {
        print::out(&report.render(Screen::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(node: &Node, machines: &Machines<'_>, arguments: &Bench) -> Result<Report, CliError> {
    let bencher = Bencher {
        node,
        machines,
        image: &arguments.image,
        memory: arguments.memory.bytes(),
        runs: arguments.runs,
        size: arguments.size.bytes(),
        beside: arguments.beside.as_deref(),
        code: arguments.code.as_deref(),
    };
    let mut report = Report::new(env!("CARGO_PKG_VERSION"), &arguments.image);
    let wanted = |subject| arguments.subjects.is_empty() || arguments.subjects.contains(&subject);
    if arguments.subjects.contains(&Subject::Vmm) {
        vmm::vmm(arguments, &bencher, &mut report).await?;
    }
    // First: later measurements leave machines' traces in the node's memory.
    if wanted(Subject::Memory) {
        bencher.memory(&mut report).await?;
    }
    if wanted(Subject::Run) {
        bencher.run(&mut report).await?;
    }
    if wanted(Subject::Clone) {
        bencher.clones(&mut report).await?;
    }
    if wanted(Subject::Fork) {
        bencher.forks(&mut report).await?;
    }
    if wanted(Subject::Idle) {
        let while_idle = std::time::Duration::from_secs(arguments.idle_for);
        bencher.idle_clones(&mut report, while_idle).await?;
    }
    if wanted(Subject::Exec) {
        bencher.exec(&mut report).await?;
    }
    if wanted(Subject::Busy) {
        bencher.busy(&mut report).await?;
    }
    if wanted(Subject::Pool) {
        bencher.pool(&mut report).await?;
    }
    if wanted(Subject::Execute) {
        bencher.execute(&mut report).await?;
    }
    if wanted(Subject::Ports) {
        bencher.ports(&mut report).await?;
    }
    if wanted(Subject::Net) {
        let has_network = bencher.has_network().await?;
        if has_network {
            bencher.net(&mut report).await?;
        } else if arguments.subjects.contains(&Subject::Net) {
            return Err(BenchError::NoNetwork.into());
        }
    }
    if wanted(Subject::Logs) {
        bencher.logs(&mut report).await?;
    }
    if wanted(Subject::Channel) {
        bencher.channel(&mut report).await?;
    }
    if wanted(Subject::Copy) {
        bencher.copy(&mut report).await?;
    }
    Ok(report)
}
