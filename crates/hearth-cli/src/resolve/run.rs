//! `run` and `exec`: arguments to requests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hearth_api::v1;
use hearth_machine::{Rate, certificate};

use super::{
    Host, Keys, ResolveError, container, duration, environment, health, image_reference, ports, proxy,
};
use crate::arguments::{Driver, Exec, MemoryBackend, Pull, Run, StayFlags};

/// Everything that `run` asks for.
#[derive(Debug)]
pub(crate) struct RunRequest {
    /// What the node is asked to create.
    pub(crate) create: v1::CreateMachine,
    /// When the image is fetched.
    pub(crate) pull: Pull,
    /// How this process stays with the workload; `None` in the background.
    pub(crate) attachment: Option<Attachment>,
}

/// How this process connects to a process in a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment {
    /// Standard input goes there.
    pub(crate) stdin: bool,
    /// It has a terminal.
    pub(crate) terminal: bool,
    /// What is typed to leave it running.
    pub(crate) keys: Keys,
    /// Whose signals to this program are, where there is no terminal.
    pub(crate) signals: SignalsTo,
}

/// Whom signals to this program are meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalsTo {
    /// The process in the machine.
    Process,
    /// This program: it ends, and the process goes on.
    Here,
}

impl SignalsTo {
    /// Reads `--sig-proxy`.
    pub(crate) const fn of(flags: &StayFlags) -> Self {
        if flags.sig_proxy {
            Self::Process
        } else {
            Self::Here
        }
    }
}

/// Resolves `run`.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense.
pub(crate) fn run(arguments: Run, host: &impl Host) -> Result<RunRequest, ResolveError> {
    let (image, command) = split(&arguments.image_and_command);
    let world = arguments.container;
    let networks = super::policy::networks(&arguments.network.network)?;
    let proxy = proxy::resolve(arguments.network.http_proxy.as_deref(), networks.mode, host)?;
    let mut variables = proxy.environment;
    variables.extend(environment::collect(&arguments.env_file, &arguments.env, host)?);
    let spec = v1::MachineSpec {
        image: image_reference(&image, host)?,
        command,
        hold: arguments.hold,
        entrypoint: arguments.entrypoint.map(entrypoint),
        environment: variables,
        working_directory: arguments.workdir,
        user: arguments.user,
        hostname: arguments.hostname,
        labels: labels(&arguments.label)?,
        cpu_milli: arguments.cpus.map(|cpus| cpus.milli()),
        memory_bytes: arguments.memory.map(|memory| memory.bytes()),
        disk_bytes: arguments.disk.map(|disk| disk.bytes()),
        terminal: arguments.tty,
        stdin: arguments.interactive,
        auto_remove: arguments.rm,
        timeout_seconds: arguments.timeout.as_deref().map(duration::seconds).transpose()?,
        idle_timeout_seconds: arguments
            .idle_timeout
            .as_deref()
            .map(duration::seconds)
            .transpose()?,
        restart: arguments.restart,
        driver: driver(arguments.driver),
        stop_signal: arguments.stop_signal,
        ports: ports::parse_all(&arguments.publish)?,
        init: world.init,
        read_only: world.read_only,
        tmpfs: world.tmpfs.iter().map(|text| container::tmpfs(text)).collect(),
        extra_hosts: each(&world.add_host, container::extra_host)?,
        ulimits: each(&world.ulimit, container::ulimit)?,
        groups: world.group_add,
        log_max_bytes: arguments.log_max_size.map(|size| size.bytes()),
        health: health::options(&arguments.health)?,
        no_template: arguments.no_template,
        network: networks.mode,
        networks: networks.names,
        uplink: networks.uplink,
        policy: proxy::allowed(super::policy(&arguments.network.policy, host)?, proxy.allow),
        name_servers: arguments.dns,
        ca_certificates: certificates(&arguments.network.ca_cert, host)?,
        net_rate: arguments.net_rate.map(rate),
        disk_rate: arguments.disk_rate.map(rate),
        metadata: arguments
            .metadata
            .as_deref()
            .map(|text| metadata(text, host))
            .transpose()?,
        memory_backend: arguments.memory_backend.map(memory_backend),
    };
    let secrets = environment::secrets(&arguments.secret, host)?;
    let attachment = Attachment {
        stdin: arguments.interactive,
        terminal: arguments.tty,
        keys: Keys::of(arguments.stay.keys.detach_keys.as_deref())?,
        signals: SignalsTo::of(&arguments.stay),
    };
    Ok(RunRequest {
        create: v1::CreateMachine {
            name: arguments.name,
            spec,
            secrets,
        },
        pull: arguments.pull,
        attachment: Some(attachment).filter(|_| !arguments.detach),
    })
}

/// Resolves `exec`: the machine, the request without a terminal's size, and how to connect.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense.
pub(crate) fn exec(
    arguments: Exec,
    host: &impl Host,
) -> Result<(String, v1::ExecRequest, Attachment), ResolveError> {
    let (machine, command) = split(&arguments.machine_and_command);
    if command.is_empty() {
        return Err(ResolveError::NoCommand);
    }
    let request = v1::ExecRequest {
        command,
        environment: environment::collect(&arguments.env_file, &arguments.env, host)?,
        working_directory: arguments.workdir,
        user: arguments.user,
        terminal: None,
        stdin: arguments.interactive && !arguments.detach,
        detach: arguments.detach,
    };
    let attachment = Attachment {
        stdin: request.stdin,
        terminal: arguments.tty,
        keys: Keys::of(arguments.keys.detach_keys.as_deref())?,
        signals: SignalsTo::Process,
    };
    Ok((machine, request, attachment))
}

pub(crate) fn memory_backend(backend: MemoryBackend) -> v1::MemoryBackend {
    match backend {
        MemoryBackend::File => v1::MemoryBackend::File,
        MemoryBackend::Pager => v1::MemoryBackend::Pager,
    }
}

fn rate(rate: Rate) -> v1::Rate {
    v1::Rate {
        bytes_per_second: rate.bytes_per_second,
        burst_bytes: rate.burst_bytes,
    }
}

/// Reads metadata: a JSON object as it stands, or the content of a file.
fn metadata(text: &str, host: &impl Host) -> Result<serde_json::Value, ResolveError> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(ResolveError::Metadata);
    }
    let path = std::path::PathBuf::from(text);
    let content = host.read(&path);
    let content = content.map_err(|source| ResolveError::File { path, source })?;
    serde_json::from_slice(&content).map_err(ResolveError::Metadata)
}

/// Reads files of certificates.
pub(super) fn certificates(paths: &[PathBuf], host: &impl Host) -> Result<Vec<String>, ResolveError> {
    let mut all = Vec::new();
    for path in paths {
        let content = host.read(path).map_err(|source| ResolveError::File {
            path: path.clone(),
            source,
        })?;
        let found = certificate::certificates(&String::from_utf8_lossy(&content));
        all.extend(found.map_err(|source| ResolveError::Certificates {
            path: path.clone(),
            source,
        })?);
    }
    Ok(all)
}

/// Says which monitor is meant.
pub(super) fn driver(driver: Driver) -> v1::DriverChoice {
    match driver {
        Driver::Auto => v1::DriverChoice::Auto,
        Driver::Qemu => v1::DriverChoice::Qemu,
        Driver::Firecracker => v1::DriverChoice::Firecracker,
    }
}

fn each<T>(texts: &[String], read: impl Fn(&str) -> Result<T, ResolveError>) -> Result<Vec<T>, ResolveError> {
    texts.iter().map(|text| read(text)).collect()
}

/// Resolves `create`: what `run` would create.
///
/// # Errors
/// Returns [`ResolveError`] for the first argument that makes no sense.
pub(crate) fn create(arguments: Run, host: &impl Host) -> Result<RunRequest, ResolveError> {
    if arguments.detach {
        return Err(ResolveError::DetachOfCreate);
    }
    run(arguments, host)
}

/// Splits `IMAGE [--] COMMAND...`.
fn split(all: &[String]) -> (String, Vec<String>) {
    let (first, rest) = all
        .split_first()
        .map_or((String::new(), all), |(f, r)| (f.clone(), r));
    let rest = rest.strip_prefix(&["--".to_owned()]).unwrap_or(rest);
    (first, rest.to_vec())
}

/// An empty one means none at all.
fn entrypoint(program: String) -> Vec<String> {
    if program.is_empty() {
        Vec::new()
    } else {
        vec![program]
    }
}

pub(crate) fn labels(arguments: &[String]) -> Result<BTreeMap<String, String>, ResolveError> {
    let one = |argument: &String| {
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        if name.is_empty() {
            Err(ResolveError::Label(argument.clone()))
        } else {
            Ok((name.to_owned(), value.to_owned()))
        }
    };
    arguments.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::fake::FakeHost;
    use super::*;
    use crate::arguments::{Cli, Command};

    fn resolved(arguments: &str) -> Result<RunRequest, ResolveError> {
        let all = ["hearth", "run"].into_iter().chain(arguments.split(' '));
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(arguments) => run(*arguments, &FakeHost::default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_flag_reaches_the_request() {
        let flags = "-it --detach-keys ctrl-a,d --sig-proxy=false --rm --name web --cpus 1.5 -m 512m --disk 2g -e A=1 -w /srv -u app:app --entrypoint /init \
                     -l team=x -l bare --timeout 5m --idle-timeout 90s --driver qemu --pull never --hostname h --stop-signal INT \
                     --init --read-only --tmpfs /run:size=1m --add-host db:::1 --ulimit nofile=64:128 --group-add wheel \
                     --log-max-size 1m --health-tcp 80 --health-interval 2s --network filtered --network backend --network bridge=br0,ip=192.0.2.5/24,gateway=192.0.2.1 --policy locked --allow a.com --deny b.com --dns 192.0.2.53 --net-rate 10mbit --disk-rate 20m:64m --memory-backend pager --metadata {\"a\":1} --secret TOKEN=s dir:rootfs -- serve --port 80";
        let request = resolved(flags).unwrap();
        let expected = v1::MachineSpec {
            image: "dir:/work/rootfs".into(),
            command: ["serve", "--port", "80"].map(str::to_owned).to_vec(),
            hold: false,
            entrypoint: Some(vec!["/init".into()]),
            environment: vec!["A=1".into()],
            working_directory: Some("/srv".into()),
            user: Some("app:app".into()),
            hostname: Some("h".into()),
            labels: [("bare".into(), String::new()), ("team".into(), "x".into())].into(),
            cpu_milli: Some(1500),
            memory_bytes: Some(536_870_912),
            disk_bytes: Some(2 << 30),
            terminal: true,
            stdin: true,
            auto_remove: true,
            timeout_seconds: Some(300),
            idle_timeout_seconds: Some(90),
            restart: None,
            driver: v1::DriverChoice::Qemu,
            stop_signal: Some("INT".into()),
            ports: Vec::new(),
            init: true,
            read_only: true,
            tmpfs: vec![v1::TmpfsMount {
                path: "/run".into(),
                options: "size=1m".into(),
            }],
            extra_hosts: vec![v1::ExtraHost {
                name: "db".into(),
                address: "::1".into(),
            }],
            ulimits: vec![v1::Ulimit {
                name: "nofile".into(),
                soft: 64,
                hard: 128,
            }],
            groups: vec!["wheel".into()],
            log_max_bytes: Some(1 << 20),
            no_template: false,
            network: Some(v1::NetworkMode::Filtered),
            networks: vec!["backend".into()],
            uplink: Some(v1::Uplink {
                bridge: "br0".into(),
                addresses: vec!["192.0.2.5/24".into()],
                gateways: vec!["192.0.2.1".into()],
            }),
            policy: Some(v1::NetworkPolicy {
                preset: Some(v1::PolicyPreset::Locked),
                allow: vec!["a.com".into()],
                deny: vec!["b.com".into()],
            }),
            name_servers: vec!["192.0.2.53".into()],
            ca_certificates: Vec::new(),
            net_rate: Some(v1::Rate {
                bytes_per_second: 1_250_000,
                burst_bytes: 0,
            }),
            disk_rate: Some(v1::Rate {
                bytes_per_second: 20 << 20,
                burst_bytes: 64 << 20,
            }),
            metadata: Some(serde_json::json!({"a": 1})),
            memory_backend: Some(v1::MemoryBackend::Pager),
            health: Some(v1::HealthOptions {
                probe: Some(v1::HealthProbe::Tcp(80)),
                interval_ms: Some(2000),
                ..v1::HealthOptions::default()
            }),
        };
        assert_eq!(request.create.spec, expected);
        assert_eq!(request.create.name.as_deref(), Some("web"));
        assert_eq!(request.create.secrets, [("TOKEN".into(), "s".into())].into());
        assert_eq!(request.pull, Pull::Never);
        let both = Attachment {
            stdin: true,
            terminal: true,
            keys: Keys::of(Some("ctrl-a,d")).unwrap(),
            signals: SignalsTo::Here,
        };
        assert_eq!(request.attachment, Some(both));
    }

    #[test]
    fn a_file_that_holds_no_certificates_is_refused() {
        for (content, expected) in [
            ("text", "no PEM certificate"),
            ("-----BEGIN PRIVATE KEY-----", "private key"),
        ] {
            let host = FakeHost {
                files: [("ca.pem", content.as_bytes())].into(),
                ..FakeHost::default()
            };
            let refused = certificates(&["ca.pem".into()], &host).unwrap_err();
            let cause = std::error::Error::source(&refused).unwrap();
            let text = format!("{refused}: {cause}");
            assert!(text.contains("ca.pem") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_said_is_left_to_the_node() {
        let request = resolved("busybox").unwrap();
        let expected = v1::MachineSpec {
            image: "busybox".into(),
            ..v1::MachineSpec::default()
        };
        assert_eq!(request.create.spec, expected);
        assert_eq!(request.pull, Pull::Missing);
        assert!(resolved("-d busybox").unwrap().attachment.is_none());
        assert!(resolved("-d --hold busybox").unwrap().create.spec.hold);
    }

    #[test]
    fn an_empty_entrypoint_is_none_at_all() {
        let request = resolved("--entrypoint= busybox").unwrap();
        assert_eq!(request.create.spec.entrypoint, Some(Vec::new()));
    }

    #[test]
    fn half_a_processor_is_500_thousandths() {
        for cpus in ["500m", "0.5"] {
            let request = resolved(&format!("--cpus {cpus} busybox")).unwrap();
            assert_eq!(request.create.spec.cpu_milli, Some(500));
        }
    }

    #[test]
    fn exec_without_a_command_is_refused() {
        let arguments = Exec {
            machine_and_command: vec!["web".into(), "--".into()],
            interactive: false,
            tty: false,
            detach: false,
            keys: crate::arguments::KeyFlags::default(),
            env: Vec::new(),
            env_file: Vec::new(),
            workdir: None,
            user: None,
        };
        assert!(matches!(
            exec(arguments, &FakeHost::default()),
            Err(ResolveError::NoCommand)
        ));
    }
}
