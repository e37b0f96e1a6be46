//! `snapshot create|ls|inspect|rm|prune|export|import`, `restore`, `rollback`, `fork`.

use std::process::ExitCode;

use hearth_api::client::reader;
use hearth_api::v1::{self, CreateSnapshot, ForkMachine, PruneSnapshots, RestoreSnapshot, RollbackMachine};
use hearth_machine::ByteSize;
use jiff::Timestamp;

use super::kept;
use super::machine::each;
use super::transfer::{self, Upload};
use crate::arguments::{
    Fork, Restore, RollBack, SnapshotCommand, SnapshotCreate, SnapshotExport, SnapshotImport,
    SnapshotInspect, SnapshotList, SnapshotPrune,
};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Table, ago};
use crate::resolve::{System, memory_backend, secrets};

/// Runs a verb about snapshots.
pub(super) async fn snapshot(node: &Node, command: SnapshotCommand) -> Result<ExitCode, CliError> {
    match command {
        SnapshotCommand::Create(arguments) => create(node, arguments).await,
        SnapshotCommand::Ls(arguments) => list(node, &arguments).await,
        SnapshotCommand::Inspect(arguments) => inspect(node, &arguments).await,
        SnapshotCommand::Rm(arguments) => {
            each(&arguments.snapshots, async |snapshot| {
                node.call(async |client| client.snapshot_remove(snapshot).await)
                    .await?;
                Ok(snapshot.to_owned())
            })
            .await
        }
        SnapshotCommand::Prune(arguments) => prune(node, &arguments).await,
        SnapshotCommand::Export(arguments) => export(node, &arguments).await,
        SnapshotCommand::Import(arguments) => import(node, &arguments).await,
    }
}

async fn create(node: &Node, arguments: SnapshotCreate) -> Result<ExitCode, CliError> {
    let request = CreateSnapshot {
        name: arguments.name,
        disk_only: arguments.disk_only,
        stop: arguments.stop,
        diff: arguments.diff,
    };
    let created = node
        .call(async |client| client.snapshot_create(&arguments.machine, &request).await)
        .await?;
    if arguments.json {
        print::json(&created)?;
        return Ok(ExitCode::SUCCESS);
    }
    print::line(&created.snapshot.name)?;
    if !created.snapshot.secrets.is_empty() {
        let names = created.snapshot.secrets.join(", ");
        print::note(&format!(
            "the snapshot's memory has the machine's secrets: {names}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(node: &Node, arguments: &SnapshotList) -> Result<ExitCode, CliError> {
    let snapshots = node.call(async |client| client.snapshots().await).await?;
    kept::list(&arguments.flags, &snapshots, |snapshot| &snapshot.name, table)
}

fn table(snapshots: &[v1::Snapshot], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("SNAPSHOT", None),
        ("MACHINE", None),
        ("IMAGE", None),
        ("HAS", None),
        ("MEMORY", None),
        ("SIZE", None),
        ("CREATED", None),
        ("STATUS", None),
    ]);
    for snapshot in snapshots {
        let has = match (snapshot.extent, snapshot.diff) {
            (v1::Extent::Full, false) => "all",
            (v1::Extent::Full, true) => "diff",
            (v1::Extent::Disk, _) => "disk",
        };
        let status = match (&snapshot.unusable, snapshot.secrets.is_empty()) {
            (Some(_), _) => "unusable here",
            (None, true) => "ok",
            (None, false) => "ok, has secrets",
        };
        table.push([
            Cell::from(&snapshot.name),
            Cell::from(&snapshot.machine),
            Cell::from(&snapshot.image),
            Cell::from(has),
            Cell::from(ByteSize::from_mib(snapshot.guest.memory_mib).to_string()),
            Cell::from(ByteSize::from_bytes(snapshot.size_bytes).to_string()),
            Cell::from(ago(&snapshot.created_at, now)),
            Cell::from(status),
        ]);
    }
    table
}

async fn inspect(node: &Node, arguments: &SnapshotInspect) -> Result<ExitCode, CliError> {
    let mut found = Vec::new();
    for snapshot in &arguments.snapshots {
        found.push(node.call(async |client| client.snapshot(snapshot).await).await?);
    }
    print::json(&found)?;
    Ok(ExitCode::SUCCESS)
}

async fn prune(node: &Node, arguments: &SnapshotPrune) -> Result<ExitCode, CliError> {
    let flags = &arguments.flags;
    let request = PruneSnapshots { all: flags.all };
    let pruned = node
        .call(async |client| client.snapshot_prune(&request).await)
        .await?;
    kept::pruned(flags, &pruned, &pruned.snapshots, pruned.freed_bytes)
}

async fn export(node: &Node, arguments: &SnapshotExport) -> Result<ExitCode, CliError> {
    let file = arguments.file.as_deref().or(arguments.output.as_deref());
    transfer::check_output(file)?;
    let body = node
        .call(async |client| client.snapshot_export(&arguments.snapshot).await)
        .await?;
    transfer::save(file, reader(body)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn import(node: &Node, arguments: &SnapshotImport) -> Result<ExitCode, CliError> {
    let file = arguments.file.as_deref().or(arguments.input.as_deref());
    let (upload, body) = Upload::begin(file)?;
    // A body cannot be sent twice: the node is up before.
    node.call(async |client| client.node_status().await).await?;
    let client = node.client();
    let snapshot = client.snapshot_import(arguments.name.as_deref(), body).await?;
    upload.finish().await?;
    match arguments.json {
        true => print::json(&snapshot)?,
        false => print::line(&snapshot.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `restore`.
pub(super) async fn restore(node: &Node, arguments: Restore) -> Result<ExitCode, CliError> {
    let request = RestoreSnapshot {
        name: arguments.name,
        keep_secrets: arguments.keep_secrets,
        secrets: secrets(&arguments.secret, &System)?,
        memory_backend: arguments.memory_backend.map(memory_backend),
    };
    let machine = node
        .call(async |client| client.restore(&arguments.snapshot, &request).await)
        .await?;
    match arguments.json {
        true => print::json(&machine)?,
        false => print::line(&machine.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `rollback`.
pub(super) async fn rollback(node: &Node, arguments: RollBack) -> Result<ExitCode, CliError> {
    let request = RollbackMachine {
        snapshot: arguments.snapshot,
    };
    let machine = node
        .call(async |client| client.rollback(&arguments.machine, &request).await)
        .await?;
    print::line(&machine.name)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `fork`.
pub(super) async fn fork(node: &Node, arguments: Fork) -> Result<ExitCode, CliError> {
    let request = ForkMachine {
        count: arguments.count,
        name_prefix: arguments.name,
        keep_secrets: arguments.keep_secrets,
        memory_backend: arguments.memory_backend.map(memory_backend),
    };
    let forked = node
        .call(async |client| client.fork(&arguments.machine, &request).await)
        .await?;
    if arguments.json {
        print::json(&forked)?;
        return Ok(ExitCode::SUCCESS);
    }
    for machine in &forked.machines {
        print::line(&machine.name)?;
    }
    Ok(ExitCode::SUCCESS)
}
