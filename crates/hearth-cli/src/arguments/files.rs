//! Verbs about a machine's output and files.

use clap::Args;

/// Print what a workload has printed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth logs web
  hearth logs -f --tail 20 web
  hearth logs -t web 2>errors.txt
  hearth logs --since 10m --until 5m web
  hearth logs --since 2026-01-31T12:00:00Z web")]
pub(crate) struct Logs {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Go on until the machine ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only so many of the last lines, or 'all'
    #[arg(short = 'n', long, value_name = "N", default_value = "all")]
    pub(crate) tail: String,
    /// Put the time before each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Only what was printed since a time, or in the last so long: as in 2026-01-31T12:00:00Z, 1769860800 (Unix time) or 10m
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) since: Option<String>,
    /// Only what was printed until then; with --follow, end then
    #[arg(long, value_name = "TIME|DURATION")]
    pub(crate) until: Option<String>,
}

/// Print a machine's serial console: what its kernel said.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth console web
  hearth console -f web")]
pub(crate) struct Console {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Go on until the machine ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Copy files between a running machine and here.
#[derive(Debug, Args)]
#[command(
    override_usage = "hearth cp [OPTIONS] MACHINE:PATH PATH|-\n       hearth cp [OPTIONS] PATH|- MACHINE:PATH",
    after_help = "\
Examples:
  hearth cp app.conf web:/etc/app/            into a directory
  hearth cp app.conf web:/etc/app/main.conf   under another name
  hearth cp web:/var/log ./                   a whole tree
  hearth cp ./site/. web:/srv/site            what is in a directory, not the directory
  hearth cp web:/etc - | tar t                as a tar archive
  tar c . | hearth cp - web:/srv

A path of a machine is taken from its root. A local path with a colon begins with '/' or './'."
)]
pub(crate) struct Copy {
    /// What to copy
    #[arg(value_name = "SOURCE")]
    pub(crate) source: String,
    /// Where to
    #[arg(value_name = "DESTINATION")]
    pub(crate) destination: String,
    /// Keep owners, by number; files belong to root in the machine, and to you here, otherwise
    #[arg(short, long)]
    pub(crate) archive: bool,
}
