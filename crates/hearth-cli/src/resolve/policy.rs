//! Policies of networks: flags and files to what the node is asked for, and what a machine was asked for to a policy.

use std::net::IpAddr;
use std::path::PathBuf;

use hearth_api::v1::{self, NetworkPolicy, PolicyPreset};
use hearth_machine::Uplink;
use hearth_machine::policy::{
    Connection, Destination, DomainName, Host as RuleHost, Policy, PolicyError, Preset, Protocol,
};

use super::{Host, ResolveError};
use crate::arguments::{Network, PolicyFlags};

/// The port of a destination that names none.
const PORT_DEFAULT: u16 = 443;

/// What `--network` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Networks {
    /// What the machine reaches.
    pub(super) mode: Option<v1::NetworkMode>,
    /// The networks of machines that it is on.
    pub(super) names: Vec<String>,
    /// Where it leads out.
    pub(super) uplink: Option<v1::Uplink>,
}

impl Networks {
    /// Refuses a place on a bridge, which one machine alone can have.
    ///
    /// # Errors
    /// Returns [`ResolveError::PlaceOfMany`].
    pub(super) fn of_many(self) -> Result<Self, ResolveError> {
        match self.uplink {
            Some(_) => Err(ResolveError::PlaceOfMany),
            None => Ok(self),
        }
    }
}

/// Resolves `--network`.
///
/// # Errors
/// Returns [`ResolveError::Modes`] when two modes, or two places, are named.
pub(super) fn networks(asked: &[Network]) -> Result<Networks, ResolveError> {
    let mut networks = Networks::default();
    for network in asked {
        let mode = match network {
            Network::None => v1::NetworkMode::None,
            Network::Isolated => v1::NetworkMode::Isolated,
            Network::Filtered => v1::NetworkMode::Filtered,
            Network::Open => v1::NetworkMode::Open,
            Network::Named(name) => {
                networks.names.push(name.to_string());
                continue;
            }
            Network::Bridge(uplink) => {
                if networks.uplink.replace(on_wire_uplink(uplink)).is_some() {
                    return Err(ResolveError::Modes);
                }
                continue;
            }
        };
        if networks.mode.replace(mode).is_some() {
            return Err(ResolveError::Modes);
        }
    }
    Ok(networks)
}

fn on_wire_uplink(uplink: &Uplink) -> v1::Uplink {
    v1::Uplink {
        bridge: uplink.bridge().to_owned(),
        addresses: uplink.addresses().iter().map(ToString::to_string).collect(),
        gateways: uplink.gateways().iter().map(ToString::to_string).collect(),
    }
}

/// Resolves `--policy`, `--allow` and `--deny`; nothing where none is there.
///
/// # Errors
/// Returns [`ResolveError`] for a file that is no policy, or rules that make none.
pub(crate) fn policy(flags: &PolicyFlags, host: &impl Host) -> Result<Option<NetworkPolicy>, ResolveError> {
    let named = flags
        .policy
        .as_deref()
        .map(|text| named(text, host))
        .transpose()?;
    if named.is_none() && flags.allow.is_empty() && flags.deny.is_empty() {
        return Ok(None);
    }
    let mut policy = named.unwrap_or_default();
    policy.allow.extend(flags.allow.iter().cloned());
    policy.deny.extend(flags.deny.iter().cloned());
    rules(&policy, Preset::Balanced)?;
    Ok(Some(policy))
}

/// Reads a preset's name, or a file.
fn named(text: &str, host: &impl Host) -> Result<NetworkPolicy, ResolveError> {
    match text.parse::<Preset>() {
        Ok(preset) => Ok(NetworkPolicy {
            preset: Some(on_wire(preset)),
            ..NetworkPolicy::default()
        }),
        Err(_) => file(text, host),
    }
}

fn file(text: &str, host: &impl Host) -> Result<NetworkPolicy, ResolveError> {
    let path = PathBuf::from(text);
    let read = host.read(&path).map_err(|source| ResolveError::PolicyFile {
        path: path.clone(),
        source,
    })?;
    let read = String::from_utf8(read).map_err(|_| ResolveError::FileNotText(path.clone()))?;
    // A file says what the wire does.
    toml::from_str(&read).map_err(|source| ResolveError::PolicyText {
        path,
        source: Box::new(source),
    })
}

/// Tells whether a word names a preset or a file, and no machine.
pub(crate) fn is_policy(text: &str) -> bool {
    text.parse::<Preset>().is_ok() || text.contains('/') || text.ends_with(".toml")
}

/// Resolves what `policy check` takes beside machines.
///
/// # Errors
/// Returns [`ResolveError`] for a file that is no policy.
pub(crate) fn policy_named(text: &str, host: &impl Host) -> Result<Policy, ResolveError> {
    rules(&named(text, host)?, Preset::Balanced)
}

/// Returns the policy of a machine; nothing for one that reaches nothing.
///
/// # Errors
/// Returns [`ResolveError`] for one that this version does not know.
pub(crate) fn policy_of(spec: &v1::MachineSpec) -> Result<Option<Policy>, ResolveError> {
    let asked = spec.policy.clone().unwrap_or_default();
    let preset = match spec.network {
        Some(v1::NetworkMode::None | v1::NetworkMode::Isolated) => return Ok(None),
        None if spec.policy.is_none() => return Ok(None),
        Some(v1::NetworkMode::Open) => Preset::Open,
        Some(v1::NetworkMode::Filtered) | None => Preset::Balanced,
    };
    rules(&asked, preset).map(Some)
}

fn rules(policy: &NetworkPolicy, preset: Preset) -> Result<Policy, ResolveError> {
    let read = |texts: &[String]| -> Result<Vec<Destination>, PolicyError> {
        texts
            .iter()
            .map(|text| text.parse().map_err(PolicyError::from))
            .collect()
    };
    let preset = match policy.preset {
        None => preset,
        Some(PolicyPreset::Locked) => Preset::Locked,
        Some(PolicyPreset::Balanced) => Preset::Balanced,
        Some(PolicyPreset::Open) => Preset::Open,
    };
    let made = Policy {
        preset,
        allow: read(&policy.allow)?,
        deny: read(&policy.deny)?,
    };
    Ok(made.check()?)
}

/// Says it as the wire does.
pub(crate) fn policy_on_wire(policy: &Policy) -> NetworkPolicy {
    let texts = |rules: &[Destination]| rules.iter().map(ToString::to_string).collect();
    NetworkPolicy {
        preset: Some(on_wire(policy.preset)),
        allow: texts(&policy.allow),
        deny: texts(&policy.deny),
    }
}

const fn on_wire(preset: Preset) -> PolicyPreset {
    match preset {
        Preset::Locked => PolicyPreset::Locked,
        Preset::Balanced => PolicyPreset::Balanced,
        Preset::Open => PolicyPreset::Open,
    }
}

/// Resolves the rules of `policy allow` and `policy deny`.
///
/// # Errors
/// Returns [`ResolveError`] for a text that names nothing.
pub(crate) fn destinations(texts: &[String]) -> Result<Vec<Destination>, ResolveError> {
    let read = |text: &String| text.parse().map_err(PolicyError::from);
    Ok(texts.iter().map(read).collect::<Result<_, _>>()?)
}

/// What somebody asks a policy about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    name: Option<DomainName>,
    address: Option<IpAddr>,
    protocol: Protocol,
    port: u16,
}

impl Asked {
    /// Resolves `HOST[:PORT][/udp]`.
    ///
    /// # Errors
    /// Returns [`ResolveError`] for a text that is no single host.
    pub(crate) fn read(text: &str) -> Result<Self, ResolveError> {
        let (place, protocol) = match text.rsplit_once('/') {
            Some((place, "udp")) => (place, Protocol::Udp),
            Some((place, "tcp")) => (place, Protocol::Tcp),
            _ => (text, Protocol::Tcp),
        };
        let destination: Destination = place.parse().map_err(PolicyError::from)?;
        let single = |network: &ipnet::IpNet| network.prefix_len() == network.max_prefix_len();
        let (name, address) = match destination.host {
            RuleHost::Name(name) => (Some(name), None),
            RuleHost::Network(network) if single(&network) => (None, Some(network.addr())),
            RuleHost::Network(_) | RuleHost::Below(_) | RuleHost::Any => {
                return Err(ResolveError::NotOneHost(text.to_owned()));
            }
        };
        Ok(Self {
            name,
            address,
            protocol,
            port: destination.port.unwrap_or(PORT_DEFAULT),
        })
    }

    /// Returns the machine of a network that is meant, by its name there or by an address.
    pub(crate) fn member<'a>(&self, network: &'a v1::Network) -> Option<&'a str> {
        let name = self.name.as_ref().map(ToString::to_string);
        let address = self.address.map(|address| address.to_string());
        let is_meant = |member: &&v1::NetworkMember| {
            let own = member.name.to_ascii_lowercase();
            name.as_ref()
                .is_some_and(|name| *name == own || *name == format!("{own}.{}", network.name))
                || address
                    .as_ref()
                    .is_some_and(|address| member.addresses.contains(address))
        };
        network
            .machines
            .iter()
            .find(is_meant)
            .map(|member| member.name.as_str())
    }

    /// Returns it as policies see it.
    pub(crate) fn connection(&self) -> Connection<'_> {
        Connection {
            name: self.name.as_ref(),
            address: self.address,
            protocol: self.protocol,
            port: Some(self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    fn flags(policy: Option<&str>, allow: &[&str], deny: &[&str]) -> PolicyFlags {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        PolicyFlags {
            policy: policy.map(ToOwned::to_owned),
            allow: texts(allow),
            deny: texts(deny),
        }
    }

    #[test]
    fn flags_and_files_make_one_policy() {
        let host = FakeHost {
            files: [("p.toml", b"preset = \"locked\"\nallow = [\"a.com\"]\n".as_slice())].into(),
            ..FakeHost::default()
        };
        assert_eq!(policy(&flags(None, &[], &[]), &host).unwrap(), None);
        let made = policy(&flags(Some("p.toml"), &["b.com:80"], &["10.0.0.0/8"]), &host);
        let expected = NetworkPolicy {
            preset: Some(PolicyPreset::Locked),
            allow: vec!["a.com".to_owned(), "b.com:80".to_owned()],
            deny: vec!["10.0.0.0/8".to_owned()],
        };
        assert_eq!(made.unwrap(), Some(expected));
        let made = policy(&flags(Some("open"), &[], &[]), &host).unwrap();
        assert_eq!(made.and_then(|policy| policy.preset), Some(PolicyPreset::Open));
    }

    #[test]
    fn what_makes_no_policy_is_refused() {
        let host = FakeHost {
            files: [
                ("wrong.toml", b"presets = 1".as_slice()),
                ("word.toml", b"preset = \"wide\"".as_slice()),
            ]
            .into(),
            ..FakeHost::default()
        };
        for wrong in ["wrong.toml", "word.toml", "absent.toml"] {
            assert!(policy(&flags(Some(wrong), &[], &[]), &host).is_err(), "{wrong}");
        }
        assert!(policy(&flags(None, &["a b"], &[]), &host).is_err());
        assert!(policy(&flags(None, &["a.com"], &["a.com"]), &host).is_err());
    }

    #[test]
    fn a_machine_of_a_network_is_meant_by_its_name_or_an_address() {
        let network = v1::Network {
            name: "red".to_owned(),
            subnets: Vec::new(),
            mtu: 1500,
            bridge: String::new(),
            labels: std::collections::BTreeMap::new(),
            created_at: String::new(),
            machines: vec![v1::NetworkMember {
                machine: "0123456789ab".to_owned(),
                name: "Db".to_owned(),
                addresses: vec!["10.1.0.2".to_owned(), "fd12::2".to_owned()],
                running: true,
            }],
        };
        let meant = |text: &str| Asked::read(text).unwrap().member(&network).map(str::to_owned);
        for text in ["db", "db.red:80", "10.1.0.2:80", "[fd12::2]:80"] {
            assert_eq!(meant(text).as_deref(), Some("Db"), "{text}");
        }
        for text in ["db.blue", "web", "10.1.0.3"] {
            assert_eq!(meant(text), None, "{text}");
        }
    }

    #[test]
    fn a_question_is_of_one_host() {
        let asked = |text: &str| Asked::read(text).map(|asked| (asked.protocol, asked.port));
        assert_eq!(asked("example.com").ok(), Some((Protocol::Tcp, 443)));
        assert_eq!(asked("example.com:53/udp").ok(), Some((Protocol::Udp, 53)));
        assert_eq!(asked("[2001:db8::1]:80/tcp").ok(), Some((Protocol::Tcp, 80)));
        for wrong in ["10.0.0.0/8", "*.example.com", "*:80", "example.com/sctp", ""] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
    }
}
