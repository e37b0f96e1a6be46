//! Verbs about machines that exist.

use clap::Args;

/// List machines.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth ps
  hearth ps -a
  hearth rm $(hearth ps -aq)
  hearth ps -a --json | jq -r '.[].name'")]
pub(crate) struct List {
    /// Those that do not run, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only ids
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Shorten nothing
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
}

/// Start machines that were created or have ended.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth start web db
  hearth start -a batch          prints what it prints, ends with its exit code
  hearth start -ai shell")]
pub(crate) struct Start {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Print what it prints and end with its exit code; one machine only
    #[arg(short, long)]
    pub(crate) attach: bool,
    /// Connect standard input, too
    #[arg(short, long)]
    pub(crate) interactive: bool,
}

/// Tell where the published ports of a machine are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth port web                80/tcp -> 0.0.0.0:8080
  curl $(hearth port web 80)")]
pub(crate) struct Port {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Only this port of the machine, and nothing but its place
    #[arg(value_name = "GUEST")]
    pub(crate) guest: Option<u16>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Stop machines, and start them again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth restart web
  hearth restart -t 30 web db")]
pub(crate) struct Restart {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Seconds before each is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
}

/// Let machines stand still: their processors stop, and everything else of them is kept.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth pause web
  hearth unpause web

A paused machine answers nobody: 'exec', 'cp' and 'attach' are refused, and connections to its ports wait. 'stop' and
'kill' let it go on first, so that its disk comes to rest.")]
pub(crate) struct Pause {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
}

/// Let paused machines go on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth unpause web
  hearth resume web              the same")]
pub(crate) struct Unpause {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
}

/// Connect to the workload of a running machine.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth attach shell

ctrl-p ctrl-q detaches from a machine with a terminal and leaves it running.")]
pub(crate) struct Attach {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Do not connect standard input
    #[arg(long)]
    pub(crate) no_stdin: bool,
}

/// Ask machines to end, and kill them when they do not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth stop web
  hearth stop -t 60 db
  hearth stop $(hearth ps -q)")]
pub(crate) struct Stop {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Seconds before it is killed [default: 10]
    #[arg(short = 't', long, alias = "timeout", value_name = "SECONDS")]
    pub(crate) time: Option<u32>,
}

/// Send workloads a signal.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth kill web
  hearth kill -s HUP web")]
pub(crate) struct Kill {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub(crate) signal: String,
}

/// Remove machines and their disks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth rm web
  hearth rm -f web               even if it runs")]
pub(crate) struct Remove {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Kill it first if it runs; a machine that does not exist is no error
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Wait until machines end, and print their exit codes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  id=$(hearth run -d busybox sh -c 'exit 3') && hearth wait $id")]
pub(crate) struct Wait {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
}

/// Print everything about machines, as a JSON array.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth inspect web
  hearth inspect web | jq '.[0].stages'")]
pub(crate) struct Inspect {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Print JSON; it always does
    #[arg(long, hide = true)]
    pub(crate) json: bool,
}
