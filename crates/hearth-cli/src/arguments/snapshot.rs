//! `snapshot` and what is below it, `restore`, `rollback`, `fork`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::MemoryBackend;
use super::kept::{ListFlags, PruneFlags};

/// Keep machines as they are at one moment.
///
/// A snapshot has the disk, the memory and the processors of a running machine, all of one point in time. The machine goes on;
/// `hearth restore` makes others that go on from there, `hearth rollback` takes it back there.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  hearth snapshot create web -n before-upgrade
  hearth rollback web before-upgrade
  hearth restore before-upgrade --name web-copy"
)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

/// The verbs about snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(SnapshotCreate),
    Ls(SnapshotList),
    Inspect(SnapshotInspect),
    Rm(SnapshotRemove),
    Prune(SnapshotPrune),
    Export(SnapshotExport),
    Import(SnapshotImport),
}

/// Take a snapshot of a machine, which goes on.
///
/// Its processes stand still for a moment. Prints the snapshot's name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot create web
  hearth snapshot create web -n before-upgrade
  hearth snapshot create web --diff
  hearth snapshot create web --disk-only")]
pub(crate) struct SnapshotCreate {
    /// Machine, by name or id
    pub(crate) machine: String,
    /// Name of the snapshot [default: the machine's, with a number]
    #[arg(short, long)]
    pub(crate) name: Option<String>,
    /// Only the disk: machines that are made of it boot. Works for machines that are paused or do not run, too
    #[arg(long)]
    pub(crate) disk_only: bool,
    /// End the machine at that moment, instead of letting it go on
    #[arg(long, conflicts_with = "disk_only")]
    pub(crate) stop: bool,
    /// Keep of the memory only what differs from the template or snapshot that the machine came from; all of it where that is no gain
    #[arg(long, conflicts_with = "disk_only")]
    pub(crate) diff: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// List snapshots, oldest first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot ls
  hearth snapshot ls -q")]
pub(crate) struct SnapshotList {
    #[command(flatten)]
    pub(crate) flags: ListFlags,
}

/// Print everything about snapshots, as JSON.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot inspect before-upgrade")]
pub(crate) struct SnapshotInspect {
    /// Snapshots, by name or id
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub(crate) snapshots: Vec<String>,
}

/// Remove snapshots. Machines that were made of them go on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot rm before-upgrade
  hearth snapshot rm $(hearth snapshot ls -q)")]
pub(crate) struct SnapshotRemove {
    /// Snapshots, by name or id
    #[arg(required = true, value_name = "SNAPSHOT")]
    pub(crate) snapshots: Vec<String>,
}

/// Remove snapshots that no machine could be made of any more.
///
/// The monitor, the kernel or the agent is another since then.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot prune
  hearth snapshot prune --all")]
pub(crate) struct SnapshotPrune {
    #[command(flatten)]
    pub(crate) flags: PruneFlags,
}

/// Write a snapshot into one file, for another host of this kind.
///
/// The other host needs the same monitor, kernel and agent, and a processor like this one. The file has all that was in the
/// machine's memory.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot export before-upgrade web.snapshot
  hearth snapshot export before-upgrade | ssh elsewhere hearth snapshot import")]
pub(crate) struct SnapshotExport {
    /// Snapshot, by name or id
    pub(crate) snapshot: String,
    /// File to write; standard output when absent
    pub(crate) file: Option<PathBuf>,
    /// The same, as `hearth image save` has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub(crate) output: Option<PathBuf>,
}

/// Take the snapshot of a file that another host has exported.
///
/// What is in it runs in this host's monitor: import what you trust.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth snapshot import web.snapshot
  hearth snapshot import web.snapshot -n web-from-elsewhere")]
pub(crate) struct SnapshotImport {
    /// File to read; standard input when absent, or -
    pub(crate) file: Option<PathBuf>,
    /// The same, as `hearth image load` has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    pub(crate) input: Option<PathBuf>,
    /// Name of the snapshot here [default: the one that it has]
    #[arg(short, long)]
    pub(crate) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a machine that goes on where a snapshot was taken.
///
/// It has a name, random numbers and a clock of its own; what ran in the machine goes on. Prints the new machine's name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth restore before-upgrade
  hearth restore before-upgrade --name web-copy
  hearth restore before-upgrade --keep-secrets")]
pub(crate) struct Restore {
    /// Snapshot, by name or id
    pub(crate) snapshot: String,
    /// Name of the machine [default: made up]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Let it have the secrets that are in the snapshot's memory
    #[arg(long)]
    pub(crate) keep_secrets: bool,
    /// Secret for later starts: NAME=VALUE, NAME=@FILE, or NAME of a variable here
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// Where its memory comes from: the snapshot's file, or a pager, a process that serves page faults (Firecracker)
    /// [default: as with the machine of the snapshot]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) memory_backend: Option<MemoryBackend>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make a machine again what it was when a snapshot of it was taken.
///
/// What happened in it since then is lost. It keeps its name and id.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth rollback web before-upgrade")]
pub(crate) struct RollBack {
    /// Machine, by name or id
    pub(crate) machine: String,
    /// Snapshot of this machine, by name or id
    pub(crate) snapshot: String,
}

/// Make machines that go on where a running one is.
///
/// That one stands still for a moment and goes on. Each fork has a name, random numbers and a clock of its own, a copy of the disk,
/// and published ports of the host that are free. All of them come up, or none. Prints their names.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth fork web
  hearth fork web -n 10 --name worker
  hearth fork web --json")]
pub(crate) struct Fork {
    /// Machine, by name or id
    pub(crate) machine: String,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1)]
    pub(crate) count: u32,
    /// What their names begin with; a number follows [default: the machine's name and `fork`]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) name: Option<String>,
    /// Let them have the secrets that are in the machine's memory
    #[arg(long)]
    pub(crate) keep_secrets: bool,
    /// Where their memory comes from: the snapshot's file, or a pager, a process that serves page faults (Firecracker)
    /// [default: as with the machine]
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub(crate) memory_backend: Option<MemoryBackend>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
