//! `setup`: kernel, agent, initramfs.

use std::path::Path;
use std::process::ExitCode;

use hearth_api::v1::{ArtefactKind, FirecrackerSetup, SetupReport, SetupRequest};
use hearth_machine::ByteSize;

use super::image::short;
use crate::arguments::{Setup, SetupCommand};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table};
use crate::progress::Steps;
use crate::resolve::{ResolveError, System, absolute};

/// Prepares what machines boot from, or lists it.
pub(super) async fn setup(node: &Node, arguments: Setup) -> Result<ExitCode, CliError> {
    let report = if arguments.list {
        node.call(async |client| client.setup_list().await).await?
    } else {
        let request = request(&arguments)?;
        node.call(async |client| {
            let mut steps = Steps::new();
            client
                .setup(&request, &mut |progress| steps.update(&progress))
                .await
        })
        .await?
    };
    if arguments.json {
        print::json(&report)?;
    } else {
        print::out(&table(&report).render(Screen::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(arguments: &Setup) -> Result<SetupRequest, ResolveError> {
    let full = |path: &Option<std::path::PathBuf>| {
        let path: Option<&Path> = path.as_deref();
        path.map(|path| absolute(path, &System)).transpose()
    };
    let firecracker = match &arguments.command {
        Some(SetupCommand::Firecracker { version, from }) => Some(FirecrackerSetup {
            version: version.clone(),
            from: full(from)?,
        }),
        _ => None,
    };
    Ok(SetupRequest {
        kernel: full(&arguments.kernel)?,
        modules: full(&arguments.modules)?,
        agent: full(&arguments.agent)?,
        distribution: arguments.distribution,
        build_kernel: matches!(arguments.command, Some(SetupCommand::Kernel { build: true })),
        firecracker,
    })
}

fn table(report: &SetupReport) -> Table {
    let mut table = Table::new(&[
        ("KIND", None),
        ("VERSION", Some(12)),
        ("DIGEST", None),
        ("SIZE", None),
        ("PATH", Some(16)),
    ]);
    for artefact in &report.artefacts {
        let kind = match artefact.kind {
            ArtefactKind::Kernel => "kernel",
            ArtefactKind::Modules => "modules",
            ArtefactKind::Agent => "agent",
            ArtefactKind::Initramfs => "initramfs",
            ArtefactKind::Firecracker => "firecracker",
            ArtefactKind::Jailer => "jailer",
        };
        let version = match artefact.outdated {
            true => format!("{} (outdated)", artefact.version),
            false => artefact.version.clone(),
        };
        table.push([
            Cell::from(kind),
            Cell::from(version),
            Cell::from(short(&artefact.digest)),
            Cell::from(ByteSize::from_bytes(artefact.size_bytes).to_string()),
            Cell::from(&artefact.path),
        ]);
    }
    table
}
