//! `execute`: code that runs once.

use std::path::PathBuf;

use clap::Args;
use hearth_machine::{ByteSize, CpuMilli};

use super::Pull;

const EXAMPLES: &str = "\
Examples:
  hearth execute --image python:3.13-slim script.py
  echo 'print(1 + 1)' | hearth execute --image python:3.13-slim --interpreter python3 -
  hearth execute --pool agents --workspace ./job --timeout 30s --json analyse.py
  hearth execute --image busybox -e MODE=fast --cmd sh -c 'wc -l input/* > output/lines'

The code runs in /workspace of a machine of its own, which is gone afterwards. DIR/input of --workspace lies in /workspace/input,
and what it leaves in /workspace/output comes back into DIR/output.

Exit code: the code's own; 124 when its time is over; otherwise as 'hearth run'.";

/// Run code once, in a machine of its own, and bring back what it leaves.
#[derive(Debug, Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "hearth execute (--image IMAGE|--pool POOL) [OPTIONS] (FILE|-|--cmd COMMAND [ARGUMENT]...)",
    group = clap::ArgGroup::new("place").required(true).args(["image", "pool"]),
    group = clap::ArgGroup::new("work").required(true).args(["file", "cmd"])
)]
pub(crate) struct Execute {
    /// File with the code, or - for standard input: run by its first line (#!), or as .py, .sh or .js
    pub(crate) file: Option<PathBuf>,
    /// Program of the machine to run instead of code; takes all that follows
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_names = ["COMMAND", "ARGUMENT"])]
    pub(crate) cmd: Vec<String>,
    /// Image of the machine
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Pool that gives the machine
    #[arg(long, value_name = "POOL")]
    pub(crate) pool: Option<String>,
    /// Directory whose 'input' goes in, and into whose 'output' comes what the code leaves
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<PathBuf>,
    /// How long the code may take, as in 30s, 5m or 1h30m [default: 5m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// How long to wait for memory, or for a machine of the pool [default: 1m]
    #[arg(long, value_name = "DURATION")]
    pub(crate) wait: Option<String>,
    /// Program that runs the code, and its arguments after spaces
    #[arg(long, value_name = "PROGRAM", conflicts_with = "cmd")]
    pub(crate) interpreter: Option<String>,
    /// Environment variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of environment variables, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Processors, in thousandths (500m) or whole and parts (2, 1.5) [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "pool")]
    pub(crate) cpus: Option<CpuMilli>,
    /// Memory, as in 256m or 2g; 64m at least [default: 256m]
    #[arg(short, long, value_name = "SIZE", conflicts_with = "pool")]
    pub(crate) memory: Option<ByteSize>,
    /// Virtual machine monitor
    #[arg(long, value_enum, default_value_t = super::Driver::Auto)]
    pub(crate) driver: super::Driver,
    #[command(flatten)]
    pub(crate) network: super::NetworkFlags,
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub(crate) pull: Pull,
    /// Print the result as JSON, output included, instead of the output as it comes
    #[arg(long)]
    pub(crate) json: bool,
}
