//! Flags that snapshots and templates have in common: guests that are kept, listed and pruned.

use clap::Args;

/// How a list is printed.
#[derive(Debug, Args)]
pub(crate) struct ListFlags {
    /// Only what the other verbs take, one a line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub(crate) json: bool,
}

/// What is pruned, and how that is told.
#[derive(Debug, Args)]
pub(crate) struct PruneFlags {
    /// All of them
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
