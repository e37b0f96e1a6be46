//! What a machine may reach: a preset, what is allowed beside it, and what is denied.
//!
//! [`Policy::judge`] and [`Policy::judge_name`] are what is said about a connection and about a name; the node's firewall and its
//! name server are made from the same rules. What is denied is denied, whatever allows it; then counts what is allowed, and then
//! the preset.

mod destination;
mod ranges;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

pub use destination::{Destination, DomainName, Host, InvalidDestination};
pub use ranges::{METADATA, PRIVATE, RESOLVERS, Ranges};

/// The most rules of each kind: beyond, a policy is a mistake.
pub const RULES_MAX: usize = 256;

/// The TCP ports that [`Preset::Balanced`] lets out: ssh, web, and git.
pub const BALANCED_TCP: [u16; 4] = [22, 80, 443, 9418];
/// Its UDP ports: the web again (QUIC).
pub const BALANCED_UDP: [u16; 1] = [443];

/// What holds where no rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// Nothing is reached, and no name is known.
    Locked,
    /// The internet is: names, web, ssh and git.
    #[default]
    Balanced,
    /// Everything is that the host reaches, but for the host itself, other machines and metadata services.
    Open,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Locked, Self::Balanced, Self::Open];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Balanced => "balanced",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Says that a word is no preset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no preset: locked, balanced and open are")]
pub struct InvalidPreset(String);

impl FromStr for Preset {
    type Err = InvalidPreset;

    fn from_str(text: &str) -> Result<Self, InvalidPreset> {
        let found = Self::ALL.into_iter().find(|preset| preset.name() == text);
        found.ok_or_else(|| InvalidPreset(text.to_owned()))
    }
}

/// What a machine may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// What holds where no rule does.
    pub preset: Preset,
    /// What is allowed beside it.
    pub allow: Vec<Destination>,
    /// What is denied, whatever allows it.
    pub deny: Vec<Destination>,
}

/// Says why rules make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A rule names nothing.
    #[error(transparent)]
    Destination(#[from] InvalidDestination),
    /// The preset is none.
    #[error(transparent)]
    Preset(#[from] InvalidPreset),
    /// Too many.
    #[error("{0} rules are too many: {RULES_MAX} of each kind can be")]
    TooMany(usize),
    /// One rule says the contrary of another.
    #[error("{0} is allowed and denied: leave out one of them")]
    Contradiction(Destination),
    /// Never to be reached.
    #[error("{0} cannot be allowed: metadata services and link-local addresses are the host's alone")]
    Metadata(Destination),
    /// A name is denied by the name server, which knows no ports.
    #[error(
        "{0} cannot be denied for one port: a name is denied as a whole, addresses can be denied by port"
    )]
    PortOfName(Destination),
}

/// Who carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Another one, by its number (IANA).
    Other(u8),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Other(1 | 58) => f.write_str("icmp"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// A connection, or what somebody asks about one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// By which name the address was found.
    pub name: Option<&'a DomainName>,
    /// Where to; absent where only the name is known.
    pub address: Option<IpAddr>,
    /// Who carries it.
    pub protocol: Protocol,
    /// The port, where the protocol has some.
    pub port: Option<u16>,
}

/// What a policy says about a connection or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// It is let through.
    pub allowed: bool,
    /// Which rule decides.
    pub reason: Reason<'a>,
}

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason<'a> {
    /// A rule of [`Policy::allow`].
    Allow(&'a Destination),
    /// One of [`Policy::deny`].
    Deny(&'a Destination),
    /// A metadata service, or another link-local address.
    Metadata,
    /// An address that is not of the internet.
    Private,
    /// A name server that speaks encrypted protocols.
    Resolver,
    /// The preset.
    Preset(Preset),
}

impl fmt::Display for Verdict<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Allow(rule) => write!(f, "--allow {rule}"),
            Reason::Deny(rule) => write!(f, "--deny {rule}"),
            Reason::Metadata => f.write_str("metadata services and link-local addresses are never reached"),
            Reason::Private => f.write_str("a private address, and no --allow names it"),
            Reason::Resolver => f.write_str("a public name server that would answer past the policy"),
            Reason::Preset(preset) if self.allowed => write!(f, "the preset '{preset}' lets it out"),
            Reason::Preset(preset) => write!(f, "the preset '{preset}' does not let it out"),
        }
    }
}

/// On which ports of a name's addresses something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// On all of them.
    All,
    /// On these.
    Only(Vec<u16>),
}

impl Policy {
    /// Checks every rule, and the rules against each other.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check(mut self) -> Result<Self, PolicyError> {
        for rules in [&mut self.allow, &mut self.deny] {
            rules.sort();
            rules.dedup();
            if rules.len() > RULES_MAX {
                return Err(PolicyError::TooMany(rules.len()));
            }
        }
        if let Some(rule) = self.allow.iter().find(|rule| self.deny.contains(rule)) {
            return Err(PolicyError::Contradiction(rule.clone()));
        }
        if let Some(rule) = self.allow.iter().find(|rule| is_metadata(rule)) {
            return Err(PolicyError::Metadata(rule.clone()));
        }
        let of_name = |rule: &&Destination| rule.is_named() && rule.port.is_some();
        if let Some(rule) = self.deny.iter().find(of_name) {
            return Err(PolicyError::PortOfName(rule.clone()));
        }
        Ok(self)
    }

    /// Says whether a connection is let through.
    pub fn judge(&self, connection: &Connection<'_>) -> Verdict<'_> {
        let address = connection.address;
        let is_in = |ranges: Ranges| address.is_some_and(|address| ranges.contain(address));
        if is_in(METADATA) {
            return no(Reason::Metadata);
        }
        if let Some(rule) = self.deny.iter().find(|rule| rule.meets(connection)) {
            return no(Reason::Deny(rule));
        }
        let is_private = is_in(PRIVATE);
        let is_resolver = is_in(RESOLVERS) || connection.name.is_some_and(is_resolver_name);
        let counts = |rule: &&Destination| match rule.host {
            Host::Network(_) => true,
            // Whoever answers for a name could point anywhere.
            Host::Name(_) | Host::Below(_) => !is_private,
            Host::Any => !is_private && !is_resolver,
        };
        if let Some(rule) = self
            .allow
            .iter()
            .filter(counts)
            .find(|rule| rule.meets(connection))
        {
            return yes(Reason::Allow(rule));
        }
        if self.preset == Preset::Open {
            return yes(Reason::Preset(self.preset));
        }
        if is_private {
            return no(Reason::Private);
        }
        if is_resolver {
            return no(Reason::Resolver);
        }
        let ports: &[u16] = match (self.preset, connection.protocol) {
            (Preset::Balanced, Protocol::Tcp) => &BALANCED_TCP,
            (Preset::Balanced, Protocol::Udp) => &BALANCED_UDP,
            _ => &[],
        };
        let allowed = connection.port.is_some_and(|port| ports.contains(&port));
        let reason = Reason::Preset(self.preset);
        Verdict { allowed, reason }
    }

    /// Says whether a name is answered. Any of its ports will do.
    pub fn judge_name(&self, name: &DomainName) -> Verdict<'_> {
        if let Some(rule) = self.deny.iter().find(|rule| rule.names(name)) {
            return no(Reason::Deny(rule));
        }
        if let Some(rule) = self.allow.iter().find(|rule| rule.names(name)) {
            return yes(Reason::Allow(rule));
        }
        let reason = Reason::Preset(self.preset);
        match self.preset {
            Preset::Open => yes(reason),
            Preset::Balanced if is_resolver_name(name) => no(Reason::Resolver),
            Preset::Balanced => yes(reason),
            // An address that any name may lead to is reached by its name, too.
            Preset::Locked => match self.allow.iter().find(|rule| rule.host == Host::Any) {
                Some(rule) => yes(Reason::Allow(rule)),
                None => no(reason),
            },
        }
    }

    /// Says whether an answer may tell this address: one that is private is told where a network allows it.
    pub fn may_be_answered(&self, address: IpAddr) -> bool {
        let allows =
            |rule: &Destination| matches!(&rule.host, Host::Network(network) if network.contains(&address));
        !METADATA.contain(address)
            && (!PRIVATE.contain(address) || self.preset == Preset::Open || self.allow.iter().any(allows))
    }

    /// Returns the ports that rules of this name allow at its addresses.
    pub fn ports_of(&self, name: &DomainName) -> Option<Ports> {
        let rules = self.allow.iter().filter(|rule| rule.names(name));
        let ports: Option<Vec<u16>> = rules.map(|rule| rule.port).collect();
        match ports {
            None => Some(Ports::All),
            Some(ports) if ports.is_empty() => None,
            Some(ports) => Some(Ports::Only(ports)),
        }
    }

    /// Tells whether its name server must be the only one that is reached.
    pub fn captures_names(&self) -> bool {
        let has_names = |rules: &[Destination]| rules.iter().any(Destination::is_named);
        self.preset != Preset::Open || has_names(&self.deny)
    }
}

impl Destination {
    fn meets(&self, connection: &Connection<'_>) -> bool {
        if self.port.is_some() && self.port != connection.port {
            return false;
        }
        match &self.host {
            Host::Network(network) => connection
                .address
                .is_some_and(|address| network.contains(&address)),
            Host::Any => true,
            Host::Name(_) | Host::Below(_) => connection.name.is_some_and(|name| self.names(name)),
        }
    }
}

const fn yes(reason: Reason<'_>) -> Verdict<'_> {
    Verdict {
        allowed: true,
        reason,
    }
}

const fn no(reason: Reason<'_>) -> Verdict<'_> {
    Verdict {
        allowed: false,
        reason,
    }
}

fn is_metadata(rule: &Destination) -> bool {
    match &rule.host {
        Host::Network(ipnet::IpNet::V4(network)) => METADATA.v4.iter().any(|range| range.contains(network)),
        Host::Network(ipnet::IpNet::V6(network)) => METADATA.v6.iter().any(|range| range.contains(network)),
        Host::Name(_) | Host::Below(_) | Host::Any => false,
    }
}

fn is_resolver_name(name: &DomainName) -> bool {
    ranges::RESOLVER_NAMES.iter().any(|resolver| {
        let rest = name.as_str().strip_suffix(resolver);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests;
