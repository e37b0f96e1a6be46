//! `run` and `exec`: the verbs that start processes.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hearth_machine::{ByteSize, CpuMilli, Rate};

use super::{ContainerFlags, HealthFlags, KeyFlags, NetworkFlags, StayFlags};

const RUN_EXAMPLES: &str = "\
Examples:
  hearth run --rm busybox echo hello
  hearth run -it --rm debian:12 bash
  hearth run -d --name db -m 1g --cpus 2 -e MODE=test localhost:5000/db:latest
  hearth run -d -p 8080:80 --health-http 80/healthz localhost:5000/web:latest
  hearth run -d --hold --name box debian:12 && hearth exec box id
  hearth run -d --init --read-only --tmpfs /run --ulimit nofile=4096 busybox sleep 1d
  hearth run -d --driver firecracker --metadata role.json --net-rate 100mbit busybox sleep 1d
  hearth run --rm --secret TOKEN=@token.txt --timeout 5m oci:./image sh -c 'deploy'

Exit code: the workload's own; 128 plus the number of the signal that ended it; 127 when the command does not
exist in the image, 126 when it cannot be executed, 125 when hearth itself failed.
With -it, ctrl-p ctrl-q, or the keys of --detach-keys, leave the machine running.";

/// Create a machine of an image and run a command in it.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES, override_usage = "hearth run [OPTIONS] IMAGE [--] [COMMAND [ARGUMENT]...]")]
pub(crate) struct Run {
    /// Image, and the command to run instead of its own: NAME[:TAG][@DIGEST], oci:DIR[:TAG], docker-archive:FILE, dir:DIR
    #[arg(
        required = true,
        trailing_var_arg = true,
        num_args = 1..,
        value_names = ["IMAGE", "COMMAND"]
    )]
    pub(crate) image_and_command: Vec<String>,
    /// Run in the background and print the machine's id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the workload a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    #[command(flatten)]
    pub(crate) stay: StayFlags,
    /// Remove the machine when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Run nothing: the machine waits for 'exec' until it is stopped, whatever is in its image
    #[arg(long)]
    pub(crate) hold: bool,
    /// Name of the machine; one is made up otherwise
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Processors, in thousandths (500m) or whole and parts (2, 1.5) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    pub(crate) cpus: Option<CpuMilli>,
    /// Memory, as in 256m or 2g; 64m at least [default: 256m]
    #[arg(short, long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) memory: Option<ByteSize>,
    /// Size of the writable disk; it takes what is written, not more [default: 2g]
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) disk: Option<ByteSize>,
    /// What its writable disk may carry a second, and once at the beginning, as in 20m or 20m:64m (Firecracker)
    #[arg(long, value_name = "RATE[:BURST]", help_heading = "Resources")]
    pub(crate) disk_rate: Option<Rate>,
    /// What its network interface may carry a second each way, and once at the beginning, as in 10mbit or 2m:8m
    #[arg(long, value_name = "RATE[:BURST]", help_heading = "Resources")]
    pub(crate) net_rate: Option<Rate>,
    #[command(flatten)]
    pub(crate) network: NetworkFlags,
    /// Server that answers for the machine's names, by its address; the host's servers otherwise
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) dns: Vec<String>,
    /// What the metadata service at 169.254.169.254 tells the machine (MMDS, version 2): JSON, or a file of it (Firecracker)
    #[arg(long, value_name = "FILE|JSON", help_heading = "Network")]
    pub(crate) metadata: Option<String>,
    /// Where the memory of a clone comes from: its template's file, or a pager, a process that serves page faults (Firecracker)
    /// [default: file]
    #[arg(long, value_enum, value_name = "BACKEND", help_heading = "Resources")]
    pub(crate) memory_backend: Option<MemoryBackend>,
    /// Stop the machine after so long, as in 30s, 5m or 1h30m
    #[arg(long, value_name = "DURATION", help_heading = "Resources")]
    pub(crate) timeout: Option<String>,
    /// Stop the machine when it has done nothing for so long: no input or output, no bytes on its ports, no 'exec'
    #[arg(long, value_name = "DURATION", help_heading = "Resources")]
    pub(crate) idle_timeout: Option<String>,
    /// Whether the workload is started again when it has ended: no, on-failure[:N], always, unless-stopped [default: no]
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// What of its output is kept at most, as in 10m; 64k at least, older lines go first [default: 64m]
    #[arg(long, value_name = "SIZE", help_heading = "Resources")]
    pub(crate) log_max_size: Option<ByteSize>,
    /// Environment variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Process")]
    pub(crate) env: Vec<String>,
    /// File of environment variables, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Secret environment variable: it is kept in memory and shown nowhere. Of @FILE, the content less one newline at its end
    #[arg(long, value_name = "NAME=VALUE|NAME=@FILE", help_heading = "Process")]
    pub(crate) secret: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", help_heading = "Process")]
    pub(crate) workdir: Option<String>,
    /// User, and group after a colon, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Process")]
    pub(crate) user: Option<String>,
    /// Program to run instead of the image's entrypoint; '' for none
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    pub(crate) entrypoint: Option<String>,
    /// Host name inside; the machine's id otherwise
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    pub(crate) hostname: Option<String>,
    /// Signal that 'stop' sends first
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    pub(crate) stop_signal: Option<String>,
    #[command(flatten)]
    pub(crate) container: ContainerFlags,
    /// Port of the machine that is reachable on this host, or a range of them; without a host's port one that is free ('hearth port' tells)
    #[arg(
        short,
        long,
        value_name = "[[IP:]HOST:]GUEST[/tcp|/udp]",
        help_heading = "Network"
    )]
    pub(crate) publish: Vec<String>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,
    /// Label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// Virtual machine monitor
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub(crate) driver: Driver,
    /// Boot, instead of being a clone of a template
    #[arg(long)]
    pub(crate) no_template: bool,
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t = Pull::Missing)]
    pub(crate) pull: Pull,
}

/// Create a machine as 'run' does, and do not start it; print its id.
#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  hearth start -a $(hearth create busybox echo hello)
  hearth create --name db -m 1g --restart always localhost:5000/db:latest && hearth start db",
    override_usage = "hearth create [OPTIONS] IMAGE [--] [COMMAND [ARGUMENT]...]",
    mut_arg("detach", |detach| detach.hide(true))
)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) run: Run,
}

/// A virtual machine monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Driver {
    /// The best one that this host can run
    Auto,
    /// QEMU
    Qemu,
    /// Firecracker, on hosts whose KVM is native; 'hearth setup firecracker' installs it
    Firecracker,
}

/// Where the memory of a restored machine comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MemoryBackend {
    /// The file, which all machines of it share
    File,
    /// A process that serves page faults
    Pager,
}

/// When to fetch an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// Before every run
    Always,
    /// When it is not there
    Missing,
    /// Not at all
    Never,
}

const EXEC_EXAMPLES: &str = "\
Examples:
  hearth exec web ps aux
  hearth exec -it web sh
  tar c . | hearth exec -i -w /srv web tar x
  hearth exec -d web sh -c 'reindex > /var/log/reindex'

Exit code: as 'hearth run'.";

/// Run a command in a running machine, beside its workload.
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES, override_usage = "hearth exec [OPTIONS] MACHINE [--] COMMAND [ARGUMENT]...")]
pub(crate) struct Exec {
    /// Machine, by name, id or start of an id, and the command
    #[arg(
        required = true,
        trailing_var_arg = true,
        num_args = 1..,
        value_names = ["MACHINE", "COMMAND"]
    )]
    pub(crate) machine_and_command: Vec<String>,
    /// Connect standard input
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Return once it runs: it goes on, and what it prints is dropped
    #[arg(short, long)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) keys: KeyFlags,
    /// Environment variable; NAME alone takes its value from here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of environment variables, one NAME=VALUE or NAME a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User, and group after a colon, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
}
