//! `template` and what is below it.

use clap::{Args, Subcommand};

use super::kept::{ListFlags, PruneFlags};
use super::run::Run;

/// List, make and remove templates: guests that machines are clones of.
///
/// The first machine of an image, memory size and number of processors boots; the node keeps a copy of the guest as it is before
/// it becomes that machine, and later ones begin there. One whose workload has begun is made on request, and is a snapshot:
/// 'hearth restore' makes machines of it.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  hearth template ls
  hearth template create --name web --after-health localhost:5000/web:latest && hearth restore web
  hearth template prune --all"
)]
pub(crate) struct Template {
    #[command(subcommand)]
    pub(crate) command: TemplateCommand,
}

/// The verbs about templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    Create(Box<TemplateCreate>),
    Ls(TemplateList),
    Rm(TemplateRemove),
    Prune(TemplatePrune),
}

/// Make a template of a workload that has begun: a snapshot, taken when it is healthy or a command has warmed it up.
///
/// A machine is run for it, and is gone afterwards. Prints the snapshot's name; 'hearth restore' makes machines of it, each with a name,
/// random numbers and a clock of its own. Its environment is that of the workload, so it takes no secrets.
#[derive(Debug, Args)]
#[command(
    after_help = "\
Examples:
  hearth template create --name web --after-health localhost:5000/web:latest
  hearth template create --name py -m 512m --warm-cmd 'python3 -c \"import json\"' python:3.13-slim sleep infinity
  hearth restore web --name web-1",
    override_usage = "hearth template create [OPTIONS] --name <NAME> IMAGE [--] [COMMAND [ARGUMENT]...]",
    mut_arg("detach", |detach| detach.hide(true)),
    mut_arg("secret", |secret| secret.hide(true))
)]
pub(crate) struct TemplateCreate {
    /// Take it when the workload's health check has passed
    #[arg(long)]
    pub(crate) after_health: bool,
    /// Command for the machine's shell to run before it is taken; it must end with 0
    #[arg(long, value_name = "COMMAND")]
    pub(crate) warm_cmd: Option<String>,
    #[command(flatten)]
    pub(crate) run: Run,
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
