//! What is asked for, checked: every field of a [`Spec`] is usable as it stands.

use core::fmt;
use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::certificate::{CertificateError, certificates};
use crate::health::{HealthError, HealthOptions};
use crate::network::{METADATA_MAX, NETWORKS_MAX, NetworkMode, NetworkName, RATE_MAX, RATE_MIN, Rate};
use crate::policy::{Policy, PolicyError, Preset};
use crate::{ByteSize, Container, ContainerError, CpuMilli, RestartPolicy, Shape, Signal, Uplink};

/// The least memory a machine can have: below, the kernel and the agent leave nothing for a workload.
pub const MEMORY_MIN: ByteSize = ByteSize::from_mib(64);
/// The memory of a machine that does not say.
pub const MEMORY_DEFAULT: ByteSize = ByteSize::from_mib(256);
/// The least disk a machine can have: what ext4 with a journal needs, and a little room.
pub const DISK_MIN: ByteSize = ByteSize::from_mib(16);
/// The disk of a machine that does not say.
pub const DISK_DEFAULT: ByteSize = ByteSize::from_mib(2048);
/// The most disk a machine can have.
pub const DISK_MAX: ByteSize = ByteSize::from_mib(16 * 1024 * 1024);

/// The least log a machine can have: two files, with room for some lines in each.
pub const LOG_MIN: ByteSize = ByteSize::from_bytes(64 << 10);
/// The log of a machine that does not say.
pub const LOG_DEFAULT: ByteSize = ByteSize::from_mib(64);
/// The most log a machine can have.
pub const LOG_MAX: ByteSize = ByteSize::from_mib(1024 * 1024);

/// What the host has to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLimits {
    /// Its memory.
    pub memory: ByteSize,
    /// The file system that guests' memory lies on. A guest that touched more than it holds would die of a bus error.
    pub guest_memory: ByteSize,
    /// Its processors.
    pub processors: u32,
}

/// Which virtual machine monitor is to run a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// The best one this host can run.
    Auto,
    /// QEMU.
    Qemu,
    /// Firecracker.
    Firecracker,
}

/// Where the memory of a machine that is restored comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryBackend {
    /// The file of the snapshot, shared by all machines of it.
    #[default]
    File,
    /// A process that serves page faults.
    Pager,
}

/// The most name servers of a machine: they are asked one after the other.
pub const NAME_SERVERS_MAX: usize = 3;

/// The most published ports of a machine: each is a descriptor and a task of the node.
pub const PORTS_MAX: usize = 1024;

/// What a published port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Transport {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the guest's loopback that is reachable on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// The host's address.
    pub address: IpAddr,
    /// The host's port; 0 for one that is free.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// What it carries.
    pub transport: Transport,
}

/// A machine as it was asked for, with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Nothing runs in it but what is asked for later: no command of the image's, and none of the request's.
    pub hold: bool,
    /// Replaces the image's CMD when not empty.
    pub command: Vec<String>,
    /// Replaces the image's ENTRYPOINT.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value`, added to the image's.
    pub environment: Vec<String>,
    /// Replaces the image's WORKDIR.
    pub working_directory: Option<String>,
    /// Replaces the image's USER.
    pub user: Option<String>,
    /// Host name inside.
    pub hostname: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Processor share.
    pub cpus: CpuMilli,
    /// Memory.
    pub memory: ByteSize,
    /// Size of the writable disk.
    pub disk: ByteSize,
    /// Life time.
    pub timeout: Option<Duration>,
    /// How long it may do nothing.
    pub idle_timeout: Option<Duration>,
    /// What happens when its workload has ended.
    pub restart: RestartPolicy,
    /// Driver.
    pub driver: DriverChoice,
    /// Replaces the image's STOPSIGNAL.
    pub stop_signal: Option<Signal>,
    /// Ports that the host publishes.
    pub ports: Vec<PublishedPort>,
    /// How the workload sees its machine.
    pub container: Container,
    /// What of its output is kept at most.
    pub log: ByteSize,
    /// How to find out whether it works.
    pub health: HealthOptions,
    /// What network it sees.
    pub network: NetworkMode,
    /// What it may reach there.
    pub policy: Policy,
    /// The networks of machines that it is on.
    pub networks: Vec<NetworkName>,
    /// Where it leads out; by the node's bridge when absent.
    pub uplink: Option<Uplink>,
    /// Who answers for names there; the node's servers when empty.
    pub name_servers: Vec<IpAddr>,
    /// Certificates (PEM) that its image's programs trust beside those that they trust.
    pub certificates: Vec<String>,
    /// How much its network interface may carry, each way.
    pub net_rate: Option<Rate>,
    /// How much its writable disk may.
    pub disk_rate: Option<Rate>,
    /// What the metadata service at 169.254.169.254 tells it: a JSON object.
    pub metadata: Option<String>,
    /// Where its memory comes from, when it is restored.
    pub memory_backend: MemoryBackend,
}

/// Says what of a request cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too little memory.
    #[error("{0} of memory is too little: a machine needs {MEMORY_MIN} at least")]
    MemoryTooSmall(ByteSize),
    /// More memory than the host has.
    #[error("{asked} of memory is more than this host's {host}")]
    MemoryTooLarge {
        /// What was asked for.
        asked: ByteSize,
        /// What there is.
        host: ByteSize,
    },
    /// More memory than the place of guests' memory has.
    #[error(
        "{asked} of memory does not fit: the file system of guests' memory, /dev/shm most often, has {room}"
    )]
    MemoryDoesNotFit {
        /// What was asked for.
        asked: ByteSize,
        /// What there is.
        room: ByteSize,
    },
    /// Not a share of processors.
    #[error("{0}m is no processor share: 1m to {max}m is", max = CpuMilli::MAX.milli())]
    Cpu(u32),
    /// More virtual processors than the host has.
    #[error("{asked} processors are more than this host's {host}")]
    TooManyProcessors {
        /// What was asked for.
        asked: u32,
        /// What there is.
        host: u32,
    },
    /// Disk out of bounds.
    #[error("a disk of {0} cannot be: {DISK_MIN} to {DISK_MAX} can")]
    Disk(ByteSize),
    /// Log out of bounds.
    #[error("a log of {0} cannot be: {LOG_MIN} to {LOG_MAX} can")]
    Log(ByteSize),
    /// A health check that cannot be.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// An environment entry without a name.
    #[error("{0:?} is not an environment entry: NAME=value is, without NUL")]
    Environment(String),
    /// A NUL byte where the kernel takes none.
    #[error("{0} must not contain a NUL byte")]
    Nul(&'static str),
    /// Not a host name.
    #[error("{0:?} is not a host name: 1 to 63 letters, digits, hyphens and dots are")]
    Hostname(String),
    /// Not an absolute path.
    #[error("working directory {0:?} is not an absolute path")]
    WorkingDirectory(String),
    /// A guest's port that is none.
    #[error("port 0 of a machine cannot be published: 1 to 65535 can")]
    GuestPort,
    /// Two ports on one.
    #[error("port {0}/{1} of the host is published twice")]
    HostPort(u16, Transport),
    /// More than a node can serve for one machine.
    #[error("{0} ports are to be published: {PORTS_MAX} of a machine can be at most")]
    Ports(usize),
    /// A setting of the workload's world.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A machine that is to run nothing, and something.
    #[error("a machine that holds runs no command of its own: leave out the command and the entrypoint")]
    HoldWithCommand,
    /// A rate out of bounds.
    #[error("a rate of {0} bytes a second cannot be: {RATE_MIN} to {RATE_MAX} can")]
    Rate(u64),
    /// More metadata than the service holds.
    #[error("{0} bytes of metadata are too many: {METADATA_MAX} is the limit")]
    Metadata(usize),
    /// What travels over a network, without one.
    #[error("{0} needs a network interface, and --network none gives none")]
    NoInterface(&'static str),
    /// Rules that make no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Rules of what is reached, where nothing is.
    #[error(
        "--network {0} reaches nothing, so --allow, --deny and --policy say nothing there: leave them out, or choose 'filtered'"
    )]
    PolicyWithoutNetwork(&'static str),
    /// A network and a preset that contradict each other.
    #[error("--network {network} and the preset '{preset}' contradict each other: leave out one of them")]
    PresetOfNetwork {
        /// The one.
        network: &'static str,
        /// The other.
        preset: Preset,
    },
    /// A machine of a network that has no way out of itself.
    #[error(
        "a machine on a network needs 'filtered' or 'open' beside it, not '{0}'; --policy locked lets it reach nothing but the machines of \
         its networks"
    )]
    NetworksWithoutUplink(&'static str),
    /// A place on a bridge, and no way there.
    #[error(
        "a place on a bridge (--network bridge=) is for a machine that leads out: 'filtered' and 'open' do, '{0}' does not"
    )]
    UplinkWithoutNetwork(&'static str),
    /// A network is named twice.
    #[error("the network {0} is named twice")]
    NetworkTwice(NetworkName),
    /// Too many networks.
    #[error("{0} networks are too many: a machine can be on {NETWORKS_MAX}")]
    Networks(usize),
    /// Name servers that cannot be reached.
    #[error("--dns needs a network that leads out, as 'filtered' and 'open' are")]
    NamesWithoutNetwork,
    /// Too many name servers.
    #[error("{0} name servers are too many: {NAME_SERVERS_MAX} can be")]
    NameServers(usize),
    /// What is no certificate.
    #[error("these are no certificates to trust: {0}")]
    Certificate(#[from] CertificateError),
    /// No time at all.
    #[error("a time limit of zero leaves nothing to run")]
    Timeout,
}

impl Spec {
    /// Returns the virtual machine that carries this machine.
    pub const fn shape(&self) -> Shape {
        Shape::of(self.cpus, self.memory)
    }

    /// Checks every field, and the amounts against what the host has.
    ///
    /// # Errors
    /// Returns the first thing that cannot be.
    pub fn check(mut self, host: HostLimits) -> Result<Self, SpecError> {
        self.check_amounts(host)?;
        if self.hold && !(self.command.is_empty() && self.entrypoint.is_none()) {
            return Err(SpecError::HoldWithCommand);
        }
        self.environment
            .iter()
            .try_for_each(|entry| check_environment(entry))?;
        let arguments = self.command.iter().chain(self.entrypoint.iter().flatten());
        check_no_nul("a command's argument", arguments)?;
        check_no_nul("the user", self.user.iter())?;
        if let Some(name) = self.hostname.as_ref().filter(|name| !is_hostname(name)) {
            return Err(SpecError::Hostname(name.clone()));
        }
        if let Some(path) = self.working_directory.as_ref().filter(|path| !is_absolute(path)) {
            return Err(SpecError::WorkingDirectory(path.clone()));
        }
        check_ports(&self.ports)?;
        self.check_network()?;
        if !self.certificates.is_empty() {
            self.certificates = certificates(&self.certificates.concat())?;
        }
        self.container = self.container.check()?;
        self.health.check()?;
        Ok(self)
    }

    fn check_network(&mut self) -> Result<(), SpecError> {
        let rates = [self.net_rate, self.disk_rate].into_iter().flatten();
        for rate in rates.map(|rate| rate.bytes_per_second) {
            if !(RATE_MIN..=RATE_MAX).contains(&rate) {
                return Err(SpecError::Rate(rate));
            }
        }
        if let Some(length) = self
            .metadata
            .as_ref()
            .map(String::len)
            .filter(|&length| length > METADATA_MAX)
        {
            return Err(SpecError::Metadata(length));
        }
        self.policy = std::mem::take(&mut self.policy).check()?;
        if self.name_servers.len() > NAME_SERVERS_MAX {
            return Err(SpecError::NameServers(self.name_servers.len()));
        }
        let leads_nowhere = matches!(self.network, NetworkMode::None | NetworkMode::Isolated);
        if leads_nowhere && !self.name_servers.is_empty() {
            return Err(SpecError::NamesWithoutNetwork);
        }
        self.check_networks()?;
        match (self.network, self.net_rate, &self.metadata) {
            (NetworkMode::None, Some(_), _) => Err(SpecError::NoInterface("--net-rate")),
            (NetworkMode::None, None, Some(_)) => Err(SpecError::NoInterface("--metadata")),
            _ => Ok(()),
        }
    }

    fn check_networks(&self) -> Result<(), SpecError> {
        if self.networks.len() > NETWORKS_MAX {
            return Err(SpecError::Networks(self.networks.len()));
        }
        let mut named = BTreeSet::new();
        if let Some(twice) = self.networks.iter().find(|name| !named.insert(*name)) {
            return Err(SpecError::NetworkTwice(twice.clone()));
        }
        let mode = match self.network {
            NetworkMode::None => "none",
            NetworkMode::Isolated => "isolated",
            NetworkMode::Filtered | NetworkMode::Open => return Ok(()),
        };
        match (self.networks.is_empty(), &self.uplink) {
            (false, _) => Err(SpecError::NetworksWithoutUplink(mode)),
            (true, Some(_)) => Err(SpecError::UplinkWithoutNetwork(mode)),
            (true, None) => Ok(()),
        }
    }

    fn check_amounts(&self, host: HostLimits) -> Result<(), SpecError> {
        if self.memory < MEMORY_MIN {
            return Err(SpecError::MemoryTooSmall(self.memory));
        }
        if self.memory > host.memory {
            return Err(SpecError::MemoryTooLarge {
                asked: self.memory,
                host: host.memory,
            });
        }
        if self.memory > host.guest_memory {
            return Err(SpecError::MemoryDoesNotFit {
                asked: self.memory,
                room: host.guest_memory,
            });
        }
        if self.cpus.vcpus() > host.processors {
            return Err(SpecError::TooManyProcessors {
                asked: self.cpus.vcpus(),
                host: host.processors,
            });
        }
        if self.disk < DISK_MIN || self.disk > DISK_MAX {
            return Err(SpecError::Disk(self.disk));
        }
        if self.log < LOG_MIN || self.log > LOG_MAX {
            return Err(SpecError::Log(self.log));
        }
        let limits = [self.timeout, self.idle_timeout];
        if limits.into_iter().flatten().any(|limit| limit.is_zero()) {
            return Err(SpecError::Timeout);
        }
        Ok(())
    }
}

fn check_ports(ports: &[PublishedPort]) -> Result<(), SpecError> {
    if ports.len() > PORTS_MAX {
        return Err(SpecError::Ports(ports.len()));
    }
    let mut taken = BTreeSet::new();
    for port in ports {
        if port.guest == 0 {
            return Err(SpecError::GuestPort);
        }
        if port.host != 0 && !taken.insert((port.address, port.host, port.transport)) {
            return Err(SpecError::HostPort(port.host, port.transport));
        }
    }
    Ok(())
}

/// Checks one `NAME=value`.
///
/// # Errors
/// Returns [`SpecError::Environment`] when there is no name, or a NUL byte.
pub fn check_environment(entry: &str) -> Result<(), SpecError> {
    let named = entry.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    if named && !entry.contains('\0') {
        Ok(())
    } else {
        Err(SpecError::Environment(entry.to_owned()))
    }
}

fn check_no_nul<'a>(
    what: &'static str,
    mut texts: impl Iterator<Item = &'a String>,
) -> Result<(), SpecError> {
    if texts.any(|text| text.contains('\0')) {
        Err(SpecError::Nul(what))
    } else {
        Ok(())
    }
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0')
}

fn is_hostname(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    (1..=63).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['-', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_need_a_way_out_and_are_named_once() {
        let on = |network, names: &[&str]| {
            let networks = names.iter().map(|name| name.parse().unwrap()).collect();
            let spec = Spec {
                network,
                networks,
                ..spec()
            };
            spec.check(HOST).map(drop)
        };
        assert_eq!(on(NetworkMode::Filtered, &["a", "b"]), Ok(()));
        assert_eq!(on(NetworkMode::None, &[]), Ok(()));
        let refused = on(NetworkMode::None, &["a"]);
        assert_eq!(refused, Err(SpecError::NetworksWithoutUplink("none")));
        let refused = on(NetworkMode::Open, &["a", "a"]);
        assert_eq!(refused, Err(SpecError::NetworkTwice("a".parse().unwrap())));
        let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        assert_eq!(on(NetworkMode::Open, &many), Err(SpecError::Networks(9)));
    }

    const HOST: HostLimits = HostLimits {
        memory: ByteSize::from_mib(4096),
        guest_memory: ByteSize::from_mib(2048),
        processors: 2,
    };

    fn spec() -> Spec {
        Spec {
            hold: false,
            command: vec!["true".into()],
            entrypoint: None,
            environment: vec!["A=".into()],
            working_directory: Some("/w".into()),
            user: None,
            hostname: Some("web-1.example".into()),
            labels: BTreeMap::new(),
            cpus: CpuMilli::from_milli(500).unwrap(),
            memory: MEMORY_DEFAULT,
            disk: DISK_DEFAULT,
            timeout: None,
            idle_timeout: None,
            restart: RestartPolicy::No,
            driver: DriverChoice::Auto,
            stop_signal: None,
            ports: vec![port(8080), port(0), port(0)],
            container: Container::default(),
            log: LOG_DEFAULT,
            health: HealthOptions::default(),
            network: NetworkMode::None,
            policy: Policy::default(),
            networks: Vec::new(),
            uplink: None,
            name_servers: Vec::new(),
            certificates: Vec::new(),
            net_rate: None,
            disk_rate: None,
            metadata: None,
            memory_backend: MemoryBackend::File,
        }
    }

    fn port(host: u16) -> PublishedPort {
        PublishedPort {
            address: IpAddr::from([127, 0, 0, 1]),
            host,
            guest: 80,
            transport: Transport::Tcp,
        }
    }

    fn refused(change: impl FnOnce(&mut Spec)) -> SpecError {
        let mut spec = spec();
        change(&mut spec);
        spec.check(HOST).unwrap_err()
    }

    #[test]
    fn a_sensible_spec_passes_unchanged() {
        assert_eq!(spec().check(HOST), Ok(spec()));
        assert_eq!(
            spec().shape(),
            Shape {
                vcpus: 1,
                memory_mib: 256
            }
        );
    }

    #[test]
    fn memory_below_64_mib_and_above_the_hosts_is_refused() {
        let small = ByteSize::from_bytes(MEMORY_MIN.bytes() - 1);
        assert_eq!(refused(|s| s.memory = small), SpecError::MemoryTooSmall(small));
        let error = refused(|s| s.memory = ByteSize::from_mib(4097));
        assert_eq!(
            error.to_string(),
            "4.0 GiB of memory is more than this host's 4 GiB"
        );
    }

    #[test]
    fn memory_that_its_file_system_cannot_hold_is_refused() {
        let error = refused(|s| s.memory = ByteSize::from_mib(3072));
        assert_eq!(
            error.to_string(),
            "3 GiB of memory does not fit: the file system of guests' memory, /dev/shm most often, has 2 GiB"
        );
        let mut fits = spec();
        fits.memory = HOST.guest_memory;
        assert!(fits.check(HOST).is_ok());
    }

    #[test]
    fn a_port_is_published_once_and_leads_somewhere() {
        let twice = SpecError::HostPort(8080, Transport::Tcp);
        assert_eq!(refused(|s| s.ports.push(port(8080))), twice);
        let mut both = spec();
        let udp = Transport::Udp;
        both.ports.push(PublishedPort {
            transport: udp,
            ..port(8080)
        });
        assert!(both.check(HOST).is_ok());
        let many = |s: &mut Spec| s.ports = vec![port(0); PORTS_MAX + 1];
        assert_eq!(refused(many), SpecError::Ports(PORTS_MAX + 1));
        assert_eq!(refused(|s| s.ports[0].guest = 0), SpecError::GuestPort);
    }

    #[test]
    fn what_the_kernel_could_not_take_is_refused() {
        assert!(matches!(
            refused(|s| s.environment = vec!["=x".into()]),
            SpecError::Environment(_)
        ));
        assert!(matches!(
            refused(|s| s.environment = vec!["x".into()]),
            SpecError::Environment(_)
        ));
        assert!(matches!(
            refused(|s| s.command = vec!["a\0b".into()]),
            SpecError::Nul(_)
        ));
        assert!(matches!(
            refused(|s| s.hostname = Some("a/b".into())),
            SpecError::Hostname(_)
        ));
        assert!(matches!(
            refused(|s| s.working_directory = Some("w".into())),
            SpecError::WorkingDirectory(_)
        ));
        assert!(matches!(refused(|s| s.hold = true), SpecError::HoldWithCommand));
        assert!(matches!(
            refused(|s| s.cpus = CpuMilli::MAX),
            SpecError::TooManyProcessors { .. }
        ));
        assert!(matches!(
            refused(|s| s.disk = ByteSize::from_mib(1)),
            SpecError::Disk(_)
        ));
        assert!(matches!(
            refused(|s| s.log = ByteSize::from_bytes(1000)),
            SpecError::Log(_)
        ));
        assert!(matches!(
            refused(|s| s.health.retries = Some(0)),
            SpecError::Health(_)
        ));
        assert!(matches!(
            refused(|s| s.timeout = Some(Duration::ZERO)),
            SpecError::Timeout
        ));
    }
}
