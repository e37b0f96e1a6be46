//! `template create|ls|rm|prune`.

use std::process::ExitCode;
use std::time::Duration;

use hearth_api::v1::{
    self, CreateSnapshot, ExecRequest, HealthStatus, Machine, MachineStatus, PruneTemplates,
};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::image::short;
use super::kept;
use super::machine::each;
use super::run;
use crate::arguments::{TemplateCommand, TemplateCreate, TemplateList, TemplatePrune};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Table, ago};
use crate::resolve::{Attachment, Keys, SignalsTo, System};
use crate::stream::{Ended, Session};

/// How often it is asked how a workload does.
const LOOK: Duration = Duration::from_millis(100);

/// Says why no template was made of a workload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WarmError {
    /// It has no name.
    #[error("a template has a name: --name NAME")]
    NoName,
    /// It is to have secrets.
    #[error("machines of a template would all have its secrets: give them to 'hearth restore --secret'")]
    Secrets,
    /// Nobody says what health is.
    #[error("neither image nor flags have a health check: --health-cmd says one")]
    NoHealthCheck,
    /// The workload is not well.
    #[error("the workload is {0}")]
    NotHealthy(String),
    /// The command failed.
    #[error("the warm-up command ended with exit code {0}")]
    Warm(u8),
    /// A signal came first.
    #[error("it was interrupted")]
    Interrupted,
}

/// Runs a verb about templates.
pub(super) async fn template(node: &Node, command: TemplateCommand) -> Result<ExitCode, CliError> {
    match command {
        TemplateCommand::Create(arguments) => create(node, *arguments).await,
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

/// Runs a machine until its workload is as it is to be kept, keeps it, and removes the machine, whatever came of it.
async fn create(node: &Node, arguments: TemplateCreate) -> Result<ExitCode, CliError> {
    let TemplateCreate {
        after_health,
        warm_cmd,
        run,
    } = arguments;
    let mut request = crate::resolve::create(run, &System)?;
    let name = request.create.name.take().ok_or(WarmError::NoName)?;
    if !request.create.secrets.is_empty() {
        return Err(WarmError::Secrets.into());
    }
    let machine = run::create(node, &request).await?;
    let kept = tokio::select! {
        kept = keep(node, &machine, name, after_health, warm_cmd) => kept,
        _ = tokio::signal::ctrl_c() => Err(WarmError::Interrupted.into()),
    };
    let removed = node
        .call(async |client| client.remove(&machine.id, true).await)
        .await;
    print::line(&kept?)?;
    removed?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the name of the snapshot.
async fn keep(
    node: &Node,
    machine: &Machine,
    name: String,
    after_health: bool,
    warm_cmd: Option<String>,
) -> Result<String, CliError> {
    if after_health && machine.health_check.is_none() {
        return Err(WarmError::NoHealthCheck.into());
    }
    node.call(async |client| client.start(&machine.id).await).await?;
    if after_health {
        healthy(node, machine).await?;
    }
    if let Some(command) = warm_cmd {
        warm_up(node, machine, command).await?;
    }
    let request = CreateSnapshot {
        name: Some(name),
        disk_only: false,
        diff: false,
        stop: true,
    };
    let created = node.call(async |client| client.snapshot_create(&machine.id, &request).await);
    Ok(created.await?.snapshot.name)
}

async fn healthy(node: &Node, machine: &Machine) -> Result<(), CliError> {
    loop {
        let now = node
            .call(async |client| client.inspect(&machine.id).await)
            .await?;
        let running = now.state.status == MachineStatus::Running;
        match now.state.health.as_ref().map(|health| health.status) {
            Some(HealthStatus::Healthy) if running => return Ok(()),
            Some(HealthStatus::Unhealthy) => return Err(WarmError::NotHealthy("unhealthy".to_owned()).into()),
            _ if !running => {
                let reason = now.state.reason.unwrap_or_else(|| "its program ended".to_owned());
                return Err(WarmError::NotHealthy(format!("not running: {reason}")).into());
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn warm_up(node: &Node, machine: &Machine, command: String) -> Result<(), CliError> {
    let request = ExecRequest {
        command: vec!["sh".to_owned(), "-c".to_owned(), command],
        ..ExecRequest::default()
    };
    let session = Session::prepare(Attachment {
        stdin: false,
        terminal: false,
        keys: Keys::of(None)?,
        signals: SignalsTo::Process,
    })?;
    let connection = node
        .call(async |client| client.exec(&machine.id, &request).await)
        .await?;
    match session.run(connection, None).await? {
        Ended::Exited(status) if status.exit_code == 0 => Ok(()),
        Ended::Exited(status) => Err(WarmError::Warm(status.exit_code).into()),
        Ended::Detached | Ended::Interrupted(_) => Err(WarmError::Interrupted.into()),
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
        ("FOR", None),
        ("SIZE", None),
        ("USED", None),
    ]);
    for template in templates {
        let starts = match template.moment {
            v1::TemplateMoment::Configured => "first starts",
            v1::TemplateMoment::Greeted => "restarts",
        };
        table.push([
            Cell::from(&template.id),
            Cell::from(short(&template.image_digest)),
            Cell::from(ByteSize::from_mib(template.guest.memory_mib).to_string()),
            Cell::from(template.guest.vcpus.to_string()),
            Cell::from(ByteSize::from_bytes(template.guest.disk_bytes).to_string()),
            Cell::from(format!("{} {}", template.guest.driver, template.guest.version)),
            Cell::from(starts),
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
