//! `pool`: machines that are ready before somebody wants one.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_machine::{ByteSize, CpuMilli};

use super::{Driver, NetworkFlags, Pull};

const EXAMPLES: &str = "\
Examples:
  hearth pool create agents --image python:3.13-slim --min 4 --max 8 --ttl 1h --warm-cmd 'python3 -c \"import json\"'
  machine=$(hearth pool acquire agents --lease 10m --wait 30s)
  hearth exec \"$machine\" python3 -c 'print(1)'
  hearth pool release \"$machine\"
  hearth execute --pool agents script.py";

/// Keep machines ready, and hand them out.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Pool {
    #[command(subcommand)]
    pub(crate) command: PoolCommand,
}

/// What can be done with pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    Create(Box<PoolCreate>),
    Ls(PoolList),
    Inspect(PoolInspect),
    Resize(PoolResize),
    Rm(PoolRemove),
    Acquire(PoolAcquire),
    Extend(PoolExtend),
    Release(PoolRelease),
}

/// Create a pool; its machines come up in the background.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth pool create agents --image busybox --min 2 --max 4 -m 128m")]
pub(crate) struct PoolCreate {
    /// Name
    pub(crate) name: String,
    /// Image of the machines; nothing of it runs until it is asked for
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: String,
    /// Machines that are kept ready [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) min: Option<u32>,
    /// Machines in all, those too that are handed out [default: twice --min]
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u32>,
    /// Replace machines that have been ready for so long, as in 30m or 1d
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttl: Option<String>,
    /// Line for the machine's shell that runs once in each before it is ready
    #[arg(long, value_name = "COMMAND")]
    pub(crate) warm_cmd: Option<String>,
    /// Environment variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of environment variables, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Processors of each, in thousandths (500m) or whole and parts (2, 1.5) [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<CpuMilli>,
    /// Memory of each, as in 256m or 2g; 64m at least [default: 256m]
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Virtual machine monitor
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub(crate) driver: Driver,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub(crate) pull: Pull,
}

/// List pools.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth pool ls --json")]
pub(crate) struct PoolList {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print everything about a pool as JSON.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth pool inspect agents | jq .ready")]
pub(crate) struct PoolInspect {
    /// Pool
    pub(crate) pool: String,
}

/// Change how many machines a pool keeps ready, and has in all.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  hearth pool resize agents --min 8 --max 16",
    group = clap::ArgGroup::new("size").required(true).multiple(true).args(["min", "max"])
)]
pub(crate) struct PoolResize {
    /// Pool
    pub(crate) pool: String,
    /// Machines that are kept ready
    #[arg(long, value_name = "N")]
    pub(crate) min: Option<u32>,
    /// Machines in all
    #[arg(long, value_name = "N")]
    pub(crate) max: Option<u32>,
}

/// Remove pools and their machines.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth pool rm --force agents")]
pub(crate) struct PoolRemove {
    /// Pools
    #[arg(required = true)]
    pub(crate) pools: Vec<String>,
    /// Even while somebody has machines of it
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Take a machine of a pool for a time, and print its name; it answers at once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  machine=$(hearth pool acquire agents --lease 10m --wait 30s)")]
pub(crate) struct PoolAcquire {
    /// Pool
    pub(crate) pool: String,
    /// How long it is one's own; it is taken back then, unless 'extend' says otherwise
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) lease: String,
    /// How long to wait when none is ready; without it, not at all
    #[arg(long, value_name = "DURATION")]
    pub(crate) wait: Option<String>,
    /// Print the lease as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Keep a machine for longer: so long from now on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth pool extend \"$machine\" --lease 10m")]
pub(crate) struct PoolExtend {
    /// Machine, or the lease's id
    pub(crate) machine: String,
    /// How long
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    pub(crate) lease: String,
    /// Print the lease as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Give machines back.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hearth pool release \"$machine\"

Nobody gets the machine as it is left: with either flag it is removed, and the pool starts another when it has too few.")]
pub(crate) struct PoolRelease {
    /// Machines, or ids of leases
    #[arg(required = true)]
    pub(crate) machines: Vec<String>,
    /// The pool gets a fresh machine for it (the default)
    #[arg(long, conflicts_with = "discard")]
    pub(crate) reset: bool,
    /// It is removed
    #[arg(long)]
    pub(crate) discard: bool,
}
