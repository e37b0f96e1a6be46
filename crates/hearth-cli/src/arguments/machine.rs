//! Verbs about machines that exist.

use clap::Args;

use super::StayFlags;

/// List machines.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth ps
  hearth ps -a
  hearth rm $(hearth ps -aq)
  hearth ps -f label=team=a -f status=exited
  hearth ps -a --json | jq -r '.[].name'")]
pub(crate) struct List {
    /// Those that do not run, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only those that fit: id, name, label, status, exited, ancestor
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
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
    #[command(flatten)]
    pub(crate) stay: StayFlags,
}

/// Tell where the published ports of a machine are.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth port web                80/tcp -> 0.0.0.0:8080
  curl $(hearth port web 80)
  hearth port dns 53/udp         where datagrams go")]
pub(crate) struct Port {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Only this port of the machine, and nothing but its place
    #[arg(value_name = "GUEST[/tcp|/udp]")]
    pub(crate) guest: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tell what machines use, again and again.
///
/// CPU: time of the host's processors, in percent of one. MEMORY: what the machine takes of the host (proportional set size).
/// DISK: what its writable disk takes of the host. NET: bytes of its network, to it and from it; --json counts packets, and those that
/// were dropped, too. CHANNEL: bytes of its output, its input, files and ports, from it and to it.
/// GUEST: used and whole, as its own kernel says; PROCS: processes in it. Units are binary: 1K is 1024 bytes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth stats
  hearth stats --no-stream web db
  hearth stats --json web | jq .machines[0].monitor.cpu_percent")]
pub(crate) struct Stats {
    /// Machines, by name, id or start of an id; all that run when none is named
    #[arg(value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Only once, after a second
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Print JSON, a line each time
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

/// List the processes of a machine's workload, and those that run beside it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth top web
  hearth top web --json | jq '.processes[].command'

The guest's kernel tells; the image needs no ps.")]
pub(crate) struct Top {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Give a machine another name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth rename web web-old")]
pub(crate) struct Rename {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Change labels, restart policy or time limits of machines, whether they run or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth update --restart always web db
  hearth update -l team=b --remove-label draft web
  hearth update --timeout 2h --idle-timeout none job")]
pub(crate) struct Update {
    /// Machines, by name, id or start of an id
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Label to set
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Label to remove
    #[arg(long, value_name = "NAME")]
    pub(crate) remove_label: Vec<String>,
    /// no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// Stop it so long after its start; 'none' for never
    #[arg(long, value_name = "DURATION")]
    pub(crate) timeout: Option<String>,
    /// Stop it when it has done nothing for so long; 'none' for never
    #[arg(long, value_name = "DURATION")]
    pub(crate) idle_timeout: Option<String>,
}

/// Remove machines that have ended, or were never started.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth prune
  hearth prune -f --filter until=24h --filter label=team=a")]
pub(crate) struct Prune {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only those that fit: label=NAME[=VALUE], label!=NAME[=VALUE], until=TIME (created before)
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tell what happens to machines, as it happens.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth events
  hearth events --since 10m --until 0s
  hearth events -f event=die -f label=team=a --json | jq .attributes.exit_code

The node keeps the newest 4096 events, over its restarts. A reader that is slower than that, or asks for what is older, gets
a line that says how many it has missed.")]
pub(crate) struct Events {
    /// Begin with what has happened since: RFC 3339, seconds since 1970, or a time span back from now
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// End there
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only those that fit: event, machine, label, image
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// Print JSON, a line each
    #[arg(long)]
    pub(crate) json: bool,
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
  hearth attach --no-stdin --sig-proxy=false web

ctrl-p ctrl-q, or the keys of --detach-keys, detach from a machine with a terminal and leave it running. What it printed
while nobody was attached (64 KiB at most) is shown first.")]
pub(crate) struct Attach {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Do not connect standard input
    #[arg(long)]
    pub(crate) no_stdin: bool,
    #[command(flatten)]
    pub(crate) stay: StayFlags,
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
