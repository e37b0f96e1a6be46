//! `template ls|rm|prune`.

use std::process::ExitCode;

use hearth_api::v1::{self, PruneTemplates};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::image::short;
use super::report;
use crate::arguments::{TemplateCommand, TemplateList, TemplatePrune, TemplateRemove};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table, ago};

/// Runs a verb about templates.
pub(super) async fn template(node: &Node, command: TemplateCommand) -> Result<ExitCode, CliError> {
    match command {
        TemplateCommand::Ls(arguments) => list(node, &arguments).await,
        TemplateCommand::Rm(arguments) => remove(node, &arguments).await,
        TemplateCommand::Prune(arguments) => prune(node, &arguments).await,
    }
}

async fn list(node: &Node, arguments: &TemplateList) -> Result<ExitCode, CliError> {
    let templates = node.call(async |client| client.templates().await).await?;
    if arguments.json {
        print::json(&templates)?;
    } else if arguments.quiet {
        let ids: String = templates.iter().map(|it| format!("{}\n", it.id)).collect();
        print::out(&ids)?;
    } else {
        print::out(&table(&templates, Timestamp::now()).render(Screen::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
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
            Cell::from(ByteSize::from_mib(template.memory_mib).to_string()),
            Cell::from(template.vcpus.to_string()),
            Cell::from(ByteSize::from_bytes(template.disk_bytes).to_string()),
            Cell::from(format!("{} {}", template.driver, template.version)),
            Cell::from(ByteSize::from_bytes(template.size_bytes).to_string()),
            Cell::from(ago(&template.used_at, now)),
        ]);
    }
    table
}

async fn remove(node: &Node, arguments: &TemplateRemove) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for id in &arguments.templates {
        let removed = node.call(async |client| client.template_remove(id).await).await;
        match report(removed)? {
            Some(()) => print::line(id)?,
            None => code = ExitCode::FAILURE,
        }
    }
    Ok(code)
}

async fn prune(node: &Node, arguments: &TemplatePrune) -> Result<ExitCode, CliError> {
    let request = PruneTemplates { all: arguments.all };
    let pruned = node.call(async |client| client.template_prune(&request).await);
    let pruned = pruned.await?;
    if arguments.json {
        print::json(&pruned)?;
        return Ok(ExitCode::SUCCESS);
    }
    for id in &pruned.templates {
        print::line(id)?;
    }
    print::line(&format!("freed {}", ByteSize::from_bytes(pruned.freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}
