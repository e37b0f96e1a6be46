//! From the wire's spec to the checked one; for new requests and for records alike.

use std::net::IpAddr;
use std::time::Duration;

use hearth_api::v1;
use hearth_machine::spec::{DISK_DEFAULT, LOG_DEFAULT, MEMORY_DEFAULT};
use hearth_machine::{
    ByteSize, Container, ContainerError, CpuMilli, DriverChoice, ExtraHost, HostLimits, Limit, MemoryBackend,
    NetworkMode, NetworkName, Policy, PolicyError, Preset, PublishedPort, Rate, RestartPolicy, Spec,
    SpecError, Tmpfs, Transport, Uplink,
};

use super::health;

/// The processor share of a machine that does not say, in thousandths.
pub const CPU_DEFAULT: u32 = 1000;

/// Says why a wire spec is no spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSpec {
    /// A value cannot be.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A port's address is none.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The restart policy is none.
    #[error(transparent)]
    Restart(#[from] hearth_machine::InvalidRestartPolicy),
    /// A machine that is to be removed when it ends, and to be started again.
    #[error(
        "a machine cannot be removed when it ends and be restarted, too: --rm and --restart exclude each other"
    )]
    RestartOfRemoved,
    /// The metadata are no object.
    #[error("metadata are a JSON object, as in {{\"role\": \"web\"}}")]
    Metadata,
    /// A network's name is none.
    #[error(transparent)]
    Network(#[from] hearth_machine::InvalidNetworkName),
    /// A place on a bridge is none.
    #[error(transparent)]
    Uplink(#[from] hearth_machine::InvalidUplink),
    /// The stop signal is no signal.
    #[error(transparent)]
    Signal(#[from] hearth_machine::signal::InvalidSignal),
}

/// Checks a spec against what the host has.
///
/// # Errors
/// Returns [`InvalidSpec`] with the first thing that cannot be.
pub fn check(wire: &v1::MachineSpec, host: HostLimits) -> Result<Spec, InvalidSpec> {
    let milli = wire.cpu_milli.unwrap_or(CPU_DEFAULT);
    let (network, policy) = network_and_policy(wire)?;
    let spec = Spec {
        hold: wire.hold,
        command: wire.command.clone(),
        entrypoint: wire.entrypoint.clone(),
        environment: wire.environment.clone(),
        working_directory: wire.working_directory.clone(),
        user: wire.user.clone(),
        hostname: wire.hostname.clone(),
        labels: wire.labels.clone(),
        cpus: CpuMilli::from_milli(milli).ok_or(SpecError::Cpu(milli))?,
        memory: wire.memory_bytes.map_or(MEMORY_DEFAULT, ByteSize::from_bytes),
        disk: wire.disk_bytes.map_or(DISK_DEFAULT, ByteSize::from_bytes),
        timeout: wire.timeout_seconds.map(Duration::from_secs),
        idle_timeout: wire.idle_timeout_seconds.map(Duration::from_secs),
        restart: wire
            .restart
            .as_deref()
            .map_or(Ok(RestartPolicy::No), str::parse)?,
        driver: match wire.driver {
            v1::DriverChoice::Auto => DriverChoice::Auto,
            v1::DriverChoice::Qemu => DriverChoice::Qemu,
            v1::DriverChoice::Firecracker => DriverChoice::Firecracker,
        },
        stop_signal: wire.stop_signal.as_deref().map(str::parse).transpose()?,
        ports: wire.ports.iter().map(port).collect::<Result<_, _>>()?,
        container: container(wire).map_err(SpecError::from)?,
        log: wire.log_max_bytes.map_or(LOG_DEFAULT, ByteSize::from_bytes),
        health: wire.health.as_ref().map(health::options).unwrap_or_default(),
        network,
        policy,
        networks: networks(wire)?,
        uplink: wire.uplink.as_ref().map(uplink).transpose()?,
        name_servers: name_servers(wire)?,
        certificates: wire.ca_certificates.clone(),
        net_rate: wire.net_rate.map(rate),
        disk_rate: wire.disk_rate.map(rate),
        metadata: wire.metadata.as_ref().map(metadata).transpose()?,
        memory_backend: memory_backend(wire.memory_backend),
    };
    if wire.auto_remove && spec.restart != RestartPolicy::No {
        return Err(InvalidSpec::RestartOfRemoved);
    }
    Ok(spec.check(host)?)
}

/// What is said. A request that says nothing was given its network when its machine was created: an old record has none, or the
/// interface that something else in it needs.
fn network(wire: &v1::MachineSpec) -> NetworkMode {
    match wire.network {
        Some(v1::NetworkMode::None) => NetworkMode::None,
        Some(v1::NetworkMode::Isolated) => NetworkMode::Isolated,
        Some(v1::NetworkMode::Filtered) => NetworkMode::Filtered,
        Some(v1::NetworkMode::Open) => NetworkMode::Open,
        // Names need a way out, and networks of machines one beside them.
        None if !wire.name_servers.is_empty() || !wire.networks.is_empty() || wire.uplink.is_some() => {
            NetworkMode::Filtered
        }
        None if wire.net_rate.is_some() || wire.metadata.is_some() => NetworkMode::Isolated,
        None => NetworkMode::None,
    }
}

/// Writes a mode as the wire has it.
pub fn network_mode(mode: NetworkMode) -> v1::NetworkMode {
    match mode {
        NetworkMode::None => v1::NetworkMode::None,
        NetworkMode::Isolated => v1::NetworkMode::Isolated,
        NetworkMode::Filtered => v1::NetworkMode::Filtered,
        NetworkMode::Open => v1::NetworkMode::Open,
    }
}

/// Reads mode and policy: each says what the other one leaves open, and they must agree.
fn network_and_policy(wire: &v1::MachineSpec) -> Result<(NetworkMode, Policy), SpecError> {
    let Some(asked) = &wire.policy else {
        let network = network(wire);
        let preset = match network {
            NetworkMode::Open => Preset::Open,
            NetworkMode::None | NetworkMode::Isolated | NetworkMode::Filtered => Preset::Balanced,
        };
        let policy = Policy {
            preset,
            ..Policy::default()
        };
        return Ok((network, policy));
    };
    let preset = asked.preset.map(preset);
    let (network, preset) = match (wire.network, preset) {
        (Some(v1::NetworkMode::None), _) => return Err(SpecError::PolicyWithoutNetwork("none")),
        (Some(v1::NetworkMode::Isolated), _) => return Err(SpecError::PolicyWithoutNetwork("isolated")),
        (Some(v1::NetworkMode::Open), None | Some(Preset::Open)) | (None, Some(Preset::Open)) => {
            (NetworkMode::Open, Preset::Open)
        }
        (Some(v1::NetworkMode::Open), Some(preset)) => {
            return Err(SpecError::PresetOfNetwork {
                network: "open",
                preset,
            });
        }
        (Some(v1::NetworkMode::Filtered), Some(preset @ Preset::Open)) => {
            return Err(SpecError::PresetOfNetwork {
                network: "filtered",
                preset,
            });
        }
        (Some(v1::NetworkMode::Filtered) | None, preset) => {
            (NetworkMode::Filtered, preset.unwrap_or_default())
        }
    };
    let read = |texts: &[String]| -> Result<Vec<_>, PolicyError> {
        texts
            .iter()
            .map(|text| text.parse().map_err(PolicyError::from))
            .collect()
    };
    let policy = Policy {
        preset,
        allow: read(&asked.allow)?,
        deny: read(&asked.deny)?,
    };
    Ok((network, policy))
}

fn preset(wire: v1::PolicyPreset) -> Preset {
    match wire {
        v1::PolicyPreset::Locked => Preset::Locked,
        v1::PolicyPreset::Balanced => Preset::Balanced,
        v1::PolicyPreset::Open => Preset::Open,
    }
}

fn networks(wire: &v1::MachineSpec) -> Result<Vec<NetworkName>, InvalidSpec> {
    let read = |text: &String| Ok(text.parse()?);
    wire.networks.iter().map(read).collect()
}

fn uplink(wire: &v1::Uplink) -> Result<Uplink, InvalidSpec> {
    let invalid = |text: &String| InvalidSpec::Address(text.clone());
    let addresses = wire
        .addresses
        .iter()
        .map(|text| text.parse().map_err(|_| invalid(text)));
    let gateways = wire
        .gateways
        .iter()
        .map(|text| text.parse().map_err(|_| invalid(text)));
    Ok(Uplink::new(
        wire.bridge.clone(),
        addresses.collect::<Result<_, _>>()?,
        gateways.collect::<Result<_, _>>()?,
    )?)
}

fn name_servers(wire: &v1::MachineSpec) -> Result<Vec<IpAddr>, InvalidSpec> {
    let read = |text: &String| text.parse().map_err(|_| InvalidSpec::Address(text.clone()));
    wire.name_servers.iter().map(read).collect()
}

fn rate(wire: v1::Rate) -> Rate {
    Rate {
        bytes_per_second: wire.bytes_per_second,
        burst_bytes: wire.burst_bytes,
    }
}

fn memory_backend(wire: Option<v1::MemoryBackend>) -> MemoryBackend {
    match wire {
        None | Some(v1::MemoryBackend::File) => MemoryBackend::File,
        Some(v1::MemoryBackend::Pager) => MemoryBackend::Pager,
    }
}

fn metadata(wire: &serde_json::Value) -> Result<String, InvalidSpec> {
    if wire.is_object() {
        Ok(wire.to_string())
    } else {
        Err(InvalidSpec::Metadata)
    }
}

fn container(wire: &v1::MachineSpec) -> Result<Container, ContainerError> {
    let tmpfs = wire
        .tmpfs
        .iter()
        .map(|tmpfs| Tmpfs::parse(&tmpfs.path, &tmpfs.options));
    let hosts = wire
        .extra_hosts
        .iter()
        .map(|host| ExtraHost::parse(&host.name, &host.address));
    let limits = wire
        .ulimits
        .iter()
        .map(|limit| Limit::parse(&limit.name, limit.soft, limit.hard));
    Ok(Container {
        init: wire.init,
        read_only: wire.read_only,
        tmpfs: tmpfs.collect::<Result<_, _>>()?,
        hosts: hosts.collect::<Result<_, _>>()?,
        limits: limits.collect::<Result<_, _>>()?,
        groups: wire.groups.clone(),
    })
}

/// Reads a port from the wire.
///
/// # Errors
/// Returns [`InvalidSpec::Address`].
pub fn port(wire: &v1::PortMapping) -> Result<PublishedPort, InvalidSpec> {
    let address = wire.address.as_deref().unwrap_or("0.0.0.0");
    Ok(PublishedPort {
        address: address
            .parse()
            .map_err(|_| InvalidSpec::Address(address.to_owned()))?,
        host: wire.host,
        guest: wire.guest,
        transport: match wire.protocol {
            v1::PortProtocol::Tcp => Transport::Tcp,
            v1::PortProtocol::Udp => Transport::Udp,
        },
    })
}

/// Writes a port as the wire has it.
pub fn port_mapping(port: &PublishedPort) -> v1::PortMapping {
    v1::PortMapping {
        address: Some(port.address.to_string()),
        host: port.host,
        guest: port.guest,
        protocol: match port.transport {
            Transport::Tcp => v1::PortProtocol::Tcp,
            Transport::Udp => v1::PortProtocol::Udp,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_open_has_defaults_and_what_is_said_converts_exactly() {
        let host = HostLimits {
            memory: ByteSize::from_mib(1024),
            guest_memory: ByteSize::from_mib(1024),
            processors: 1,
        };
        let open = check(&v1::MachineSpec::default(), host).unwrap();
        assert_eq!((open.shape().vcpus, open.shape().memory_mib), (1, 256));
        let said = v1::MachineSpec {
            cpu_milli: Some(500),
            memory_bytes: Some(536_870_912),
            stop_signal: Some("SIGINT".to_owned()),
            ..v1::MachineSpec::default()
        };
        let said = check(&said, host).unwrap();
        assert_eq!((said.shape().vcpus, said.shape().memory_mib), (1, 512));
        assert_eq!(said.cpus.quota_us_per_100ms(), Some(50_000));
        let nothing = v1::MachineSpec {
            cpu_milli: Some(0),
            ..v1::MachineSpec::default()
        };
        assert!(check(&nothing, host).is_err());
    }
}
