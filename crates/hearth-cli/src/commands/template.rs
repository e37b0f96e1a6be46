//! `template ls|rm|prune`.

use std::process::ExitCode;

use hearth_api::v1::{self, PruneTemplates};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::image::short;
use super::kept;
use super::machine::each;
use crate::arguments::{TemplateCommand, TemplateList, TemplatePrune};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{Cell, Table, ago};

/// Runs a verb about templates.
pub(super) async fn template(node: &Node, command: TemplateCommand) -> Result<ExitCode, CliError> {
    match command {
        TemplateCommand::Ls(arguments) => list(node, &arguments).await,
        TemplateCommand::Rm(arguments) => {
            each(&arguments.templates, async |template| {
                node.call(async |client| client.template_remove(template).await)
                    .await?;
                Ok(template.to_owned())
            })
            .await
        }
        TemplateCommand::Prune(arguments) => prune(node, &arguments).await,
    }
}

async fn list(node: &Node, arguments: &TemplateList) -> Result<ExitCode, CliError> {
    let templates = node.call(async |client| client.templates().await).await?;
    kept::list(&arguments.flags, &templates, |template| &template.id, table)
}

fn table(templates: &[v1::Template], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("TEMPLATE", None),
        ("IMAGE", None),
        ("MEMORY", None),
        ("CPUS", None),
        ("DISK", None),
        ("DRIVER", None),
        ("SIZE", None),
        ("USED", None),
    ]);
    for template in templates {
        table.push([
            Cell::from(&template.id),
            Cell::from(short(&template.image_digest)),
            Cell::from(ByteSize::from_mib(template.guest.memory_mib).to_string()),
            Cell::from(template.guest.vcpus.to_string()),
            Cell::from(ByteSize::from_bytes(template.guest.disk_bytes).to_string()),
            Cell::from(format!("{} {}", template.guest.driver, template.guest.version)),
            Cell::from(ByteSize::from_bytes(template.size_bytes).to_string()),
            Cell::from(ago(&template.used_at, now)),
        ]);
    }
    table
}

async fn prune(node: &Node, arguments: &TemplatePrune) -> Result<ExitCode, CliError> {
    let flags = &arguments.flags;
    let request = PruneTemplates { all: flags.all };
    let pruned = node
        .call(async |client| client.template_prune(&request).await)
        .await?;
    kept::pruned(flags, &pruned, &pruned.templates, pruned.freed_bytes)
}
