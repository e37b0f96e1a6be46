//! From what a machine is to what the guest is asked to run.

use std::time::Duration;

use hearth_guest_protocol::message::{Execute, Launch, ResourceLimit, Role, TerminalSize, Tmpfs, World};
use hearth_guest_protocol::network::{GATEWAY_V4, GATEWAY_V6};
use hearth_machine::{Container, ExtraHost, Limit, NetworkMode, Process, Spec, spec::check_environment};
use serde_bytes::ByteBuf;

use super::error::MachineError;
use crate::network;

/// The terminal of a workload to which nobody is attached yet.
const TERMINAL_DEFAULT: TerminalSize = TerminalSize {
    rows: 24,
    columns: 80,
};

/// A process beside the workload, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value`, over the workload's.
    pub environment: Vec<String>,
    /// The workload's when absent.
    pub working_directory: Option<String>,
    /// The workload's when absent.
    pub user: Option<String>,
    /// Rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// Input is connected.
    pub stdin: bool,
    /// How long it may run, by the guest's own clock.
    pub time_limit: Option<Duration>,
}

fn bytes(texts: &[String]) -> Vec<ByteBuf> {
    texts.iter().map(|text| ByteBuf::from(text.as_bytes())).collect()
}

/// Returns the size as the guest takes it.
pub fn terminal_size((rows, columns): (u16, u16)) -> TerminalSize {
    TerminalSize { rows, columns }
}

/// The workload. `environment` is complete, secrets included.
pub(super) fn workload(
    process: &Process,
    environment: &[String],
    container: &Container,
    terminal: Option<(u16, u16)>,
    io: &WorkloadIo,
) -> Launch {
    let size = terminal.map_or(TERMINAL_DEFAULT, terminal_size);
    let execute = Execute {
        role: Role::Main,
        arguments: bytes(&process.arguments),
        environment: bytes(environment),
        working_directory: ByteBuf::from(process.working_directory.as_bytes()),
        user: process.user.clone(),
        terminal: io.terminal.then_some(size),
        stdin: io.stdin,
    };
    Launch {
        world: world(container),
        ..with_settings(execute, container)
    }
}

/// Adds what holds for the workload and for the processes beside it.
fn with_settings(execute: Execute, container: &Container) -> Launch {
    Launch {
        limits: container.limits.iter().map(resource_limit).collect(),
        groups: container.groups.clone(),
        ..Launch::from(execute)
    }
}

fn resource_limit(limit: &Limit) -> ResourceLimit {
    ResourceLimit {
        resource: limit.resource as u8,
        soft: limit.soft.unwrap_or(u64::MAX),
        hard: limit.hard.unwrap_or(u64::MAX),
    }
}

fn world(container: &Container) -> World {
    let tmpfs = container.tmpfs.iter().map(|tmpfs| Tmpfs {
        path: ByteBuf::from(tmpfs.path.as_bytes()),
        read_only: tmpfs.read_only,
        executable: tmpfs.executable,
        set_uid: tmpfs.set_uid,
        devices: tmpfs.devices,
        options: tmpfs.kernel_options(),
    });
    World {
        init: container.init,
        read_only: container.read_only,
        tmpfs: tmpfs.collect(),
    }
}

/// The agent's own program in the place of a workload: nothing of the image's runs.
pub(super) fn rehearsal() -> Launch {
    let words = [hearth_guest_protocol::PROBE, "rehearse"];
    Launch::from(Execute {
        role: Role::Rehearsal,
        arguments: words.map(|word| ByteBuf::from(word.as_bytes())).to_vec(),
        environment: Vec::new(),
        working_directory: ByteBuf::from(*b"/"),
        user: String::new(),
        terminal: None,
        stdin: false,
    })
}

/// How a workload is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkloadIo {
    pub(super) terminal: bool,
    pub(super) stdin: bool,
}

/// A process beside the workload; the guest puts `environment` over the workload's own, which only the guest still knows
/// after a node was replaced.
pub(super) fn exec(
    process: &Process,
    container: &Container,
    asked: &ExecSpec,
) -> Result<Launch, MachineError> {
    if asked.command.first().is_none_or(String::is_empty) {
        return Err(MachineError::NoCommand);
    }
    asked
        .environment
        .iter()
        .try_for_each(|entry| check_environment(entry))?;
    let directory = asked
        .working_directory
        .as_ref()
        .unwrap_or(&process.working_directory);
    let execute = Execute {
        role: Role::Exec,
        arguments: bytes(&asked.command),
        environment: bytes(&asked.environment),
        working_directory: ByteBuf::from(directory.as_bytes()),
        user: asked.user.clone().unwrap_or_else(|| process.user.clone()),
        terminal: asked.terminal.map(terminal_size),
        stdin: asked.stdin,
    };
    Ok(with_settings(execute, container))
}

/// The workload's environment: the process's, HOSTNAME, and the secrets over both.
pub(super) fn environment<'a>(
    process: &Process,
    hostname: &str,
    secrets: impl Iterator<Item = (&'a String, &'a String)>,
) -> Vec<String> {
    let mut over = vec![format!("HOSTNAME={hostname}")];
    over.extend(process.environment.iter().cloned());
    over.extend(secrets.map(|(name, value)| format!("{name}={value}")));
    hearth_machine::process::merge_environment(&[], &over)
}

/// The host name inside.
pub(super) fn hostname(spec: &Spec, id: hearth_machine::MachineId) -> String {
    spec.hostname.clone().unwrap_or_else(|| id.to_string())
}

/// Returns `/etc/resolv.conf`: the gateway's name server where names lead somewhere, resolv.conf(5).
pub(super) fn resolver_file(network: NetworkMode) -> String {
    match network::leads_out(network) {
        true => format!("nameserver {GATEWAY_V4}\nnameserver {GATEWAY_V6}\n"),
        false => String::new(),
    }
}

/// The content of /etc/hosts inside.
pub(super) fn hosts_file(hostname: &str, more: &[ExtraHost]) -> String {
    let own = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    let more = more
        .iter()
        .map(|host| format!("{}\t{}\n", host.address, host.name));
    more.chain([format!("127.0.1.1\t{hostname}\n")])
        .fold(own.to_owned(), |file, line| file + &line)
}

#[cfg(test)]
mod tests {
    use hearth_machine::Signal;

    use super::*;

    fn process() -> Process {
        Process {
            arguments: vec!["sh".into()],
            environment: vec!["A=1".into(), "PATH=/bin".into()],
            working_directory: "/w".into(),
            user: "1000".into(),
            stop_signal: Signal::TERM,
        }
    }

    #[test]
    fn secrets_win_over_the_environment_and_an_exec_says_only_what_is_its_own() {
        let secrets = [("A".to_owned(), "s".to_owned())];
        let environment = environment(&process(), "box", secrets.iter().map(|(n, v)| (n, v)));
        assert_eq!(environment, ["HOSTNAME=box", "A=s", "PATH=/bin"]);
        let asked = ExecSpec {
            command: vec!["id".into()],
            environment: vec!["B=2".into()],
            ..ExecSpec::default()
        };
        let container = Container::default();
        let execute = exec(&process(), &container, &asked).unwrap().execute;
        assert_eq!(execute.environment, [ByteBuf::from(*b"B=2")]);
        assert_eq!(
            (execute.user.as_str(), &execute.working_directory[..]),
            ("1000", &b"/w"[..])
        );
        assert!(matches!(
            exec(&process(), &container, &ExecSpec::default()),
            Err(MachineError::NoCommand)
        ));
    }
}
