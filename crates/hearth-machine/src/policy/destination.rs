//! What a rule names: `HOST[:PORT]`, `*.domain[:PORT]`, `CIDR[:PORT]`, `*:PORT`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The longest name, in characters (RFC 1035, 2.3.4, without the root's dot).
const NAME_MAX: usize = 253;
/// The longest label of a name.
const LABEL_MAX: usize = 63;

/// A name of the domain name system: lower case, without the root's dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

impl DomainName {
    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Tells whether it lies below another one, however deep.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0
            .strip_suffix(&other.0)
            .is_some_and(|rest| rest.ends_with('.'))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for DomainName {
    type Err = InvalidDestination;

    /// Takes letters, digits, hyphens and underscores, as resolvers do (RFC 2181, 11); a number is the beginning of an address.
    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(known)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() <= NAME_MAX && name.split('.').all(is_label) && !is_number {
            Ok(Self(name))
        } else {
            Err(InvalidDestination::Name(text.to_owned()))
        }
    }
}

/// Says why a text names no destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDestination {
    /// Neither a name nor an address.
    #[error(
        "{0:?} is no destination: a name (example.com, *.example.com), an address or a network (192.0.2.0/24, [2001:db8::]/32) is, \
         with a port behind a colon where it is for that one alone; names of other alphabets are written in punycode (xn--...)"
    )]
    Name(String),
    /// Its port is none.
    #[error("{port:?} of {text:?} is no port: 1 to 65535 is")]
    Port {
        /// What should be one.
        port: String,
        /// All of it.
        text: String,
    },
    /// A network whose address has more bits than its prefix.
    #[error("{text:?} has an address beyond its prefix: did you mean {meant}?")]
    Bits {
        /// What was said.
        text: String,
        /// The network that it lies in.
        meant: IpNet,
    },
    /// Everything, with no port.
    #[error(
        "\"*\" stands for every host of the internet and takes a port, as in *:8080; for everything there is the preset 'open'"
    )]
    Everything,
}

/// What a rule names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// This name alone.
    Name(DomainName),
    /// Every name below this one, and not itself.
    Below(DomainName),
    /// Addresses.
    Network(IpNet),
    /// Every host of the internet.
    Any,
}

/// A host and a port, or all of its ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Where to.
    pub host: Host,
    /// By TCP or UDP; everything, other protocols too, when absent.
    pub port: Option<u16>,
}

impl Destination {
    /// Tells whether it names this name.
    pub fn names(&self, name: &DomainName) -> bool {
        match &self.host {
            Host::Name(own) => own == name,
            Host::Below(own) => name.is_below(own),
            Host::Network(_) | Host::Any => false,
        }
    }

    /// Tells whether it is of names.
    pub const fn is_named(&self) -> bool {
        matches!(self.host, Host::Name(_) | Host::Below(_))
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}")?,
            Host::Below(name) => write!(f, "*.{name}")?,
            Host::Any => f.write_str("*")?,
            Host::Network(network) => {
                let single = network.prefix_len() == network.max_prefix_len();
                match (network.addr(), self.port) {
                    (IpAddr::V6(address), Some(_)) => write!(f, "[{address}]")?,
                    (address, _) => write!(f, "{address}")?,
                }
                if !single {
                    write!(f, "/{}", network.prefix_len())?;
                }
            }
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let refused = || InvalidDestination::Name(text.to_owned());
        let (host, port) = split(text).ok_or_else(refused)?;
        let port = port.map(|port| read_port(port, text)).transpose()?;
        let host = match host.strip_prefix("*.") {
            Some(below) => Host::Below(below.parse().map_err(|_| refused())?),
            None if host == "*" => Host::Any,
            None => match read_network(&host) {
                Some(network) if network.trunc() != network => {
                    return Err(InvalidDestination::Bits {
                        text: text.to_owned(),
                        meant: network.trunc(),
                    });
                }
                Some(network) => Host::Network(network),
                None => Host::Name(host.parse().map_err(|_| refused())?),
            },
        };
        match (&host, port) {
            (Host::Any, None) => Err(InvalidDestination::Everything),
            _ => Ok(Self { host, port }),
        }
    }
}

fn read_port(port: &str, text: &str) -> Result<u16, InvalidDestination> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let number = port.parse().ok().filter(|&number: &u16| digits && number > 0);
    number.ok_or_else(|| InvalidDestination::Port {
        port: port.to_owned(),
        text: text.to_owned(),
    })
}

fn read_network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => text.parse().ok(),
    }
}

/// Splits a port off. An address of IPv6 has brackets when there is one: `[::1]:80`, `[2001:db8::]/32:443`.
fn split(text: &str) -> Option<(String, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, behind) = rest.split_once(']')?;
        let (prefix, port) = match behind.split_once(':') {
            Some((prefix, port)) => (prefix, Some(port)),
            None => (behind, None),
        };
        // Between the brackets is an address, or a network with its prefix inside or behind.
        let is_prefix = prefix.is_empty() || prefix.starts_with('/') && !address.contains('/');
        return (is_prefix && address.contains(':')).then(|| (format!("{address}{prefix}"), port));
    }
    match text.matches(':').count() {
        1 => text
            .split_once(':')
            .map(|(host, port)| (host.to_owned(), Some(port))),
        _ => Some((text.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Destination {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn destinations_are_names_and_networks_with_a_port_or_none() {
        for text in [
            "example.com",
            "example.com:8443",
            "*.example.com",
            "*.example.com:443",
            "192.0.2.7",
            "192.0.2.0/24",
            "10.0.0.0/8:5432",
            "2001:db8::/32",
            "2001:db8::1",
            "[2001:db8::1]:443",
            "[2001:db8::]/32:443",
            "*:8080",
            "_acme.example.com",
            "localhost",
        ] {
            assert_eq!(read(text).to_string(), text);
        }
        assert_eq!(read("EXAMPLE.com.:80").to_string(), "example.com:80");
        assert_eq!(read("[2001:db8::/32]:443").to_string(), "[2001:db8::]/32:443");
        assert_eq!(read("192.0.2.7/32").to_string(), "192.0.2.7");
    }

    #[test]
    fn what_names_nothing_is_refused_with_its_reason() {
        for text in [
            "",
            ":80",
            "a b",
            "https://example.com",
            "example..com",
            "-a.com",
            "1.2.3",
            "300.1.1.1",
            "*",
            "*.",
            "**.com",
            "a*.com",
            "example.com:0",
            "example.com:65536",
            "example.com:+1",
            "example.com:http",
            "10.0.0.1/8",
            "[2001:db8::1",
            "[192.0.2.1]:80",
            "[example.com]:80",
            "bücher.example",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
        let beyond = "10.0.0.1/8".parse::<Destination>();
        assert!(beyond.is_err_and(|error| error.to_string().contains("did you mean 10.0.0.0/8")));
    }

    #[test]
    fn a_star_stands_for_what_is_below_and_not_for_itself() {
        let name = |text: &str| text.parse::<DomainName>().unwrap();
        let below = read("*.example.com");
        assert!(below.names(&name("a.example.com")) && below.names(&name("a.b.Example.com")));
        assert!(!below.names(&name("example.com")) && !below.names(&name("notexample.com")));
        assert!(read("example.com").names(&name("example.com.")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            if let Ok(destination) = text.parse::<Destination>() {
                prop_assert_eq!(destination.to_string().parse::<Destination>(), Ok(destination));
            }
        }
    }
}
