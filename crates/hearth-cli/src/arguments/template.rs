//! `template` and what is below it.

use clap::{Args, Subcommand};

use super::kept::{ListFlags, PruneFlags};

/// List and remove templates: booted guests that machines are clones of.
///
/// The first machine of an image, memory size and number of processors boots; the node keeps a copy of the guest as it is before
/// it becomes that machine, and later ones begin there.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  hearth template ls
  hearth template prune --all"
)]
pub(crate) struct Template {
    #[command(subcommand)]
    pub(crate) command: TemplateCommand,
}

/// The verbs about templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    Ls(TemplateList),
    Rm(TemplateRemove),
    Prune(TemplatePrune),
}

/// List templates, the one used last first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth template ls
  hearth template ls --json")]
pub(crate) struct TemplateList {
    #[command(flatten)]
    pub(crate) flags: ListFlags,
}

/// Remove templates. Machines that were made of them go on.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth template rm 0123456789abcdef
  hearth template rm $(hearth template ls -q)")]
pub(crate) struct TemplateRemove {
    /// Templates, by id
    #[arg(required = true, value_name = "TEMPLATE")]
    pub(crate) templates: Vec<String>,
}

/// Remove templates that no machine could be made of any more.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth template prune
  hearth template prune --all --json")]
pub(crate) struct TemplatePrune {
    #[command(flatten)]
    pub(crate) flags: PruneFlags,
}
