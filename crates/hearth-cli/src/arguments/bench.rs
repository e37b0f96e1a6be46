//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hearth_machine::ByteSize;

/// Measure what machines cost on this host, beside a baseline taken in the same run.
///
/// Verbs are timed from their start to their end, as processes. Let nothing else run meanwhile.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth image build busybox -t busybox && hearth bench
  hearth bench run clone --runs 100
  hearth bench clone --beside debian:12
  hearth bench idle --idle-for 600
  hearth bench busy -n 20          100 execs, with and without twenty busy machines
  hearth bench channel copy --json
  hearth bench net --size 64m
  hearth bench vmm --firecracker /usr/bin/firecracker --guest bare-guest")]
pub(crate) struct Bench {
    /// What to measure; everything when none is named
    #[arg(value_enum, value_name = "SUBJECT")]
    pub(crate) subjects: Vec<Subject>,
    /// Image with sh, true, dd, cat, cp, nc and sleep
    #[arg(long, default_value = "busybox")]
    pub(crate) image: String,
    /// Another image, for `clone`: starts of both in turn, and by how much its own are slower
    #[arg(long, value_name = "IMAGE")]
    pub(crate) beside: Option<String>,
    /// Code for `execute`, as `hearth execute` takes it [default: the command true]
    #[arg(long, value_name = "FILE")]
    pub(crate) code: Option<PathBuf>,
    /// Seconds that machines do nothing, for `idle`, before their memory is looked at once more
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) idle_for: u64,
    /// Cold starts, and a fifth of the execs
    #[arg(short = 'n', long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,
    /// Memory of machines
    #[arg(short, long, value_name = "BYTES", default_value = "256m")]
    pub(crate) memory: ByteSize,
    /// Bytes that are moved at a time
    #[arg(long, value_name = "BYTES", default_value = "256m")]
    pub(crate) size: ByteSize,
    /// Firecracker, for `vmm`
    #[arg(long, value_name = "FILE")]
    pub(crate) firecracker: Option<PathBuf>,
    /// A guest that speaks Hearth's protocol over vsock, for `vmm`; where HEARTH_BARE_GUEST names it, too, machines of the node are measured
    /// beside
    #[arg(long, value_name = "FILE")]
    pub(crate) guest: Option<PathBuf>,
    /// Another page server, for `vmm`, called with a socket and an image, as the examples in Firecracker's tree are
    #[arg(long, value_name = "FILE")]
    pub(crate) handler: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A group of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Cold starts and where their time goes
    Run,
    /// Clones of a template and where their time goes
    Clone,
    /// Snapshots, restores, rollbacks and forks of a running machine
    Fork,
    /// Memory of idle clones
    Idle,
    /// Processes beside a workload
    Exec,
    /// The same while twenty machines are busy
    Busy,
    /// Machines of pools
    Pool,
    /// Code that runs once
    Execute,
    /// Connections to published ports
    Ports,
    /// Starts of machines with a network, and bytes through one; for root
    Net,
    /// What workloads print
    Logs,
    /// Bytes through the guest channel
    Channel,
    /// A large file, both ways
    Copy,
    /// The node's own memory
    Memory,
    /// Firecracker alone, with memory from the file and from a pager; not part of everything
    Vmm,
}
