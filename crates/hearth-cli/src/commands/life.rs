//! Verbs that change machines: pause and unpause, rename, update, prune.

use std::io::{BufRead as _, Write as _};
use std::process::ExitCode;

use hearth_api::v1::{PruneMachines, RenameMachine};
use hearth_machine::ByteSize;

use super::machine::each;
use crate::arguments::{Pause, Prune, Rename, Top, Unpause, Update};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{Cell, Screen, Table};
use crate::{print, resolve};

/// Lets machines stand still.
pub(super) async fn pause(node: &Node, arguments: &Pause) -> Result<ExitCode, CliError> {
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.pause(machine).await).await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Lets machines go on.
pub(super) async fn unpause(node: &Node, arguments: &Unpause) -> Result<ExitCode, CliError> {
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.resume(machine).await).await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Lists processes.
pub(super) async fn top(node: &Node, arguments: &Top) -> Result<ExitCode, CliError> {
    let list = node
        .call(async |client| client.top(&arguments.machine).await)
        .await?;
    if arguments.json {
        print::json(&list)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&[
        ("PID", None),
        ("PPID", None),
        ("USER", None),
        ("STATE", None),
        ("TIME", None),
        ("MEMORY", None),
        ("COMMAND", Some(20)),
    ]);
    for process in &list.processes {
        table.push([
            Cell::from(process.pid.to_string()),
            Cell::from(process.parent_pid.to_string()),
            Cell::from(user(process.uid)),
            Cell::from(&process.state),
            Cell::from(time(process.cpu_ms)),
            Cell::from(ByteSize::from_bytes(process.memory_bytes).to_string()),
            Cell::from(print::plain(&process.command).replace(['\n', '\t'], " ")),
        ]);
    }
    print::out(&table.render(Screen::stdout()))?;
    let more = usize::try_from(list.total)
        .unwrap_or(usize::MAX)
        .saturating_sub(list.processes.len());
    if more > 0 {
        print::note(&format!("... and {more} more"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Names are in files of the image, which say what they like.
fn user(uid: u32) -> String {
    match uid {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    }
}

/// Processor time as `ps` has it.
fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Gives a machine another name.
pub(super) async fn rename(node: &Node, arguments: Rename) -> Result<ExitCode, CliError> {
    let request = RenameMachine { name: arguments.name };
    node.call(async |client| client.rename(&arguments.machine, &request).await)
        .await?;
    Ok(ExitCode::SUCCESS)
}

/// Changes machines.
pub(super) async fn update(node: &Node, arguments: &Update) -> Result<ExitCode, CliError> {
    let request = resolve::update(arguments)?;
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.update(machine, &request).await)
            .await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Removes what has ended, after a question.
pub(super) async fn prune(node: &Node, arguments: &Prune) -> Result<ExitCode, CliError> {
    if !arguments.force && !confirmed()? {
        return Ok(ExitCode::FAILURE);
    }
    let request = PruneMachines {
        filters: arguments.filter.clone(),
    };
    let pruned = node.call(async |client| client.prune(&request).await).await?;
    if arguments.json {
        print::json(&pruned)?;
        return Ok(ExitCode::SUCCESS);
    }
    for machine in &pruned.machines {
        print::line(machine)?;
    }
    print::note(&format!(
        "{} machines removed, {} reclaimed",
        pruned.machines.len(),
        ByteSize::from_bytes(pruned.reclaimed_bytes)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Asks whether to go on; whoever says nothing says no.
fn confirmed() -> Result<bool, CliError> {
    let mut error = std::io::stderr().lock();
    let question =
        "This removes all machines that have ended or were never started, with their disks. Go on? [y/N] ";
    let asked = write!(error, "{question}").and_then(|()| error.flush());
    asked.map_err(CliError::Output)?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(CliError::Input)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
