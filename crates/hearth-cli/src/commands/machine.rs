//! Verbs about machines that exist, several at once where docker takes several.

use std::process::ExitCode;

use futures_util::{StreamExt as _, stream};
use hearth_api::ClientError;
use hearth_api::v1::{ErrorCode, Machine, StopMachine};

use super::report;
use super::run::{Start as Begin, connect, start_attached};
use crate::arguments::{Attach, Inspect, Kill, Port, Remove, Restart, Start, StayFlags, Stop, Wait};
use crate::error::CliError;
use crate::node::Node;
use crate::print;
use crate::resolve::{Attachment, Keys, ResolveError, SignalsTo, guest_port, shown_port};

/// How many machines are worked on at once: stopping may take each its whole grace period.
const AT_ONCE: usize = 16;

/// Acts on each machine, prints what is returned in the order of the arguments, and fails when one failed.
pub(super) async fn each(
    machines: &[String],
    act: impl AsyncFn(&str) -> Result<String, CliError>,
) -> Result<ExitCode, CliError> {
    let mut results = stream::iter(machines)
        .map(|machine| act(machine))
        .buffered(AT_ONCE);
    let mut code = ExitCode::SUCCESS;
    while let Some(result) = results.next().await {
        match report(result)? {
            Some(text) => print::line(&text)?,
            None => code = ExitCode::FAILURE,
        }
    }
    Ok(code)
}

/// Starts machines; with `-a` or `-i` one, and stays with it.
pub(super) async fn start(node: &Node, arguments: &Start) -> Result<ExitCode, CliError> {
    if !arguments.attach && !arguments.interactive {
        return each(&arguments.machines, async |machine| {
            node.call(async |client| client.start(machine).await).await?;
            Ok(machine.to_owned())
        })
        .await;
    }
    let [machine] = arguments.machines.as_slice() else {
        return Err(ResolveError::SeveralAttached.into());
    };
    let found = look(node, machine).await?;
    let attachment = attachment_of(&found, arguments.interactive, &arguments.stay)?;
    crate::stream::check_terminal(attachment)?;
    start_attached(node, machine, attachment).await
}

/// Stops machines and starts them again.
pub(super) async fn restart(node: &Node, arguments: &Restart) -> Result<ExitCode, CliError> {
    let stop = StopMachine {
        grace_seconds: Some(arguments.time),
    };
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.restart(machine, &stop).await)
            .await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Tells where published ports are; fails when the one that was asked for is not published.
pub(super) async fn port(node: &Node, arguments: &Port) -> Result<ExitCode, CliError> {
    let wanted = arguments.guest.as_deref().map(guest_port).transpose()?;
    let mut ports = look(node, &arguments.machine).await?.ports;
    ports.retain(|port| wanted.is_none_or(|wanted| (port.guest, port.protocol) == wanted));
    if let (Some((guest, protocol)), true) = (wanted, ports.is_empty()) {
        return Err(CliError::NotPublished {
            machine: arguments.machine.clone(),
            guest,
            protocol,
        });
    }
    if arguments.json {
        print::json(&ports)?;
        return Ok(ExitCode::SUCCESS);
    }
    for port in &ports {
        match wanted {
            Some(_) => print::line(&shown_port(port))?,
            None => print::line(&format!(
                "{}/{} -> {}",
                port.guest,
                port.protocol,
                shown_port(port)
            ))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects to a running machine.
pub(super) async fn attach(node: &Node, arguments: &Attach) -> Result<ExitCode, CliError> {
    let found = look(node, &arguments.machine).await?;
    let attachment = attachment_of(&found, !arguments.no_stdin, &arguments.stay)?;
    connect(node, &arguments.machine, attachment, Begin::No).await
}

/// How to connect to a machine that was made elsewhere: input only where it takes some.
fn attachment_of(machine: &Machine, stdin: bool, flags: &StayFlags) -> Result<Attachment, ResolveError> {
    Ok(Attachment {
        stdin: stdin && machine.spec.stdin,
        terminal: machine.spec.terminal,
        keys: Keys::of(flags.keys.detach_keys.as_deref())?,
        signals: SignalsTo::of(flags),
    })
}

async fn look(node: &Node, machine: &str) -> Result<Machine, CliError> {
    node.call(async |client| client.inspect(machine).await).await
}

/// Stops machines.
pub(super) async fn stop(node: &Node, arguments: &Stop) -> Result<ExitCode, CliError> {
    let request = StopMachine {
        grace_seconds: arguments.time,
    };
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.stop(machine, &request).await)
            .await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Sends a signal.
pub(super) async fn kill(node: &Node, arguments: &Kill) -> Result<ExitCode, CliError> {
    each(&arguments.machines, async |machine| {
        node.call(async |client| client.kill(machine, &arguments.signal).await)
            .await?;
        Ok(machine.to_owned())
    })
    .await
}

/// Removes machines.
pub(super) async fn remove(node: &Node, arguments: &Remove) -> Result<ExitCode, CliError> {
    each(&arguments.machines, async |machine| {
        let removed = node.call(async |client| client.remove(machine, arguments.force).await);
        match removed.await {
            Err(CliError::Client(ClientError::Refused(body)))
                if arguments.force && body.code == ErrorCode::MachineNotFound => {}
            result => result?,
        }
        Ok(machine.to_owned())
    })
    .await
}

/// Waits for machines, and prints exit codes.
pub(super) async fn wait(node: &Node, arguments: &Wait) -> Result<ExitCode, CliError> {
    each(&arguments.machines, async |machine| {
        let status = node.call(async |client| client.wait(machine).await).await?;
        Ok(status.exit_code.to_string())
    })
    .await
}

/// Prints machines as a JSON array; those that exist, when some do not.
pub(super) async fn inspect(node: &Node, arguments: &Inspect) -> Result<ExitCode, CliError> {
    let mut found = Vec::new();
    for machine in &arguments.machines {
        found.extend(report(look(node, machine).await)?);
    }
    print::json(&found)?;
    let complete = found.len() == arguments.machines.len();
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
