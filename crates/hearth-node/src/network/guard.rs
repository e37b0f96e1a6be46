//! What stands between one machine and the network: its policy, the firewall that carries it out, the names that were answered,
//! and the journal.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_guest_protocol::network::{GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6};
use hearth_machine::policy::{Connection, DomainName, Host, Policy, Preset, Protocol, Reason, Verdict};
use ipnet::IpNet;

use super::firewall::Firewall;
use super::here::Here;
use super::journal::{Journal, Target};
use super::question::{Asking, Told};

/// How many addresses are known with their names.
const ADDRESSES_MAX: usize = 4096;
/// How long an address is reached by its name at least, and at most: answers that count for no time at all are there to be used.
const PIN_MIN: Duration = Duration::from_secs(30);
const PIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How many different names may be asked for within [`NAMES_SPAN`]. A program that needs so many has something to say in them.
const NAMES_MAX: usize = 1000;
const NAMES_SPAN: Duration = Duration::from_secs(600);

/// What guards one machine.
#[derive(Debug)]
pub(super) struct Guard {
    /// Held for single calls of the kernel, never across a wait: changes of the policy, answers and denials are in one order.
    post: Mutex<Post>,
    journal: Arc<Journal>,
}

#[derive(Debug)]
struct Post {
    policy: Policy,
    firewall: Firewall,
    /// What is this host, where the firewall is told.
    here: Here,
    /// By which names addresses were found, and until when.
    found: HashMap<IpAddr, Found>,
    asked: Asked,
    /// Ranges of addresses of the networks of machines that the machine is on.
    networks: Vec<IpNet>,
}

#[derive(Debug)]
struct Found {
    name: DomainName,
    until: Instant,
}

/// The names that were asked for lately.
#[derive(Debug)]
struct Asked {
    names: HashSet<DomainName>,
    since: Instant,
}

impl Asked {
    /// Tells whether there is room for this one.
    fn admits(&mut self, name: &DomainName) -> bool {
        if self.since.elapsed() > NAMES_SPAN {
            self.names.clear();
            self.since = Instant::now();
        }
        self.names.contains(name) || self.names.len() < NAMES_MAX && self.names.insert(name.clone())
    }
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answerable {
    /// It is passed on.
    Yes,
    /// The name is not to be known.
    No,
}

impl Guard {
    /// Carries a policy out.
    pub(super) fn new(mut firewall: Firewall, policy: Policy, journal: Arc<Journal>) -> io::Result<Self> {
        firewall.apply(&policy)?;
        let asked = Asked {
            names: HashSet::new(),
            since: Instant::now(),
        };
        let post = Post {
            policy,
            firewall,
            here: Here::default(),
            found: HashMap::new(),
            asked,
            networks: Vec::new(),
        };
        Ok(Self {
            post: Mutex::new(post),
            journal,
        })
    }

    /// Keeps the machine off these addresses; connections to them end.
    pub(super) fn keep_off(&self, here: Here) -> io::Result<()> {
        let mut post = self.post();
        post.firewall.keep_off(&here)?;
        post.here = here;
        let Post { firewall, here, .. } = &mut *post;
        firewall.cut(|address, _, _| !is_in(here, address))
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which networks of machines the machine is on now.
    pub(super) fn set_networks(&self, ranges: Vec<IpNet>) {
        self.post().networks = ranges;
    }

    /// Tells whether a rule denies the name of another machine; notes it then.
    pub(super) fn denies(&self, asked: &Asking) -> bool {
        let Asking::Name(name) = asked else {
            return false;
        };
        let post = self.post();
        let verdict = post.policy.judge_name(name);
        if !matches!(verdict.reason, Reason::Deny(_)) {
            return false;
        }
        let (reason, remedy) = (verdict.to_string(), remedy(&verdict, &name.to_string()));
        drop(post);
        self.refuse_name(name, None, reason, remedy);
        true
    }

    /// Carries another policy out: connections that it allows go on, others end.
    pub(super) fn change(&self, policy: Policy) -> io::Result<()> {
        let mut post = self.post();
        post.firewall.apply(&policy)?;
        post.firewall.unpin()?;
        post.policy = policy;
        let Post {
            policy,
            firewall,
            found,
            networks,
            ..
        } = &mut *post;
        for (&address, found) in found.iter() {
            let left = found.until.saturating_duration_since(Instant::now());
            match policy.ports_of(&found.name) {
                Some(ports) if !left.is_zero() => firewall.pin(address, &ports, left)?,
                _ => {}
            }
        }
        // A connection may outlive the time of its address.
        firewall.cut(|address, protocol, port| {
            let name = found.get(&address).map(|found| &found.name);
            let connection = Connection {
                name,
                address: Some(address),
                protocol,
                port,
            };
            // The guest itself is talked to by the node alone, for ports that are published.
            let own = [
                GATEWAY_V4.into(),
                GATEWAY_V6.into(),
                GUEST_V4.into(),
                GUEST_V6.into(),
            ];
            let is_own = own.contains(&address);
            let verdict = policy.judge(&connection);
            // Other machines are reached unless a rule denies it.
            let is_machine = networks.iter().any(|range| range.contains(&address));
            let is_denied = matches!(verdict.reason, Reason::Deny(_));
            is_own || verdict.allowed || is_machine && !is_denied
        })
    }

    /// Returns how many packets the firewall has refused or dropped.
    pub(super) fn dropped(&self) -> io::Result<u64> {
        self.post().firewall.dropped()
    }

    /// Says whether a question is passed on; notes it where it is not.
    pub(super) fn ask(&self, asked: &Asking) -> Answerable {
        let mut post = self.post();
        let name = match asked {
            Asking::Name(name) => name,
            // No rule can deny what no rule can name.
            Asking::Odd if post.policy.captures_names() => return Answerable::No,
            Asking::Root if post.policy.preset == Preset::Locked => return Answerable::No,
            Asking::Odd | Asking::Root => return Answerable::Yes,
        };
        let verdict = post.policy.judge_name(name);
        if !verdict.allowed {
            let remedy = remedy(&verdict, &name.to_string());
            let reason = verdict.to_string();
            drop(post);
            self.refuse_name(name, None, reason, remedy);
            return Answerable::No;
        }
        // A name that a rule spells out carries nothing else.
        let is_spelt = matches!(verdict.reason, Reason::Allow(rule) if matches!(rule.host, Host::Name(_)));
        if is_spelt || post.asked.admits(name) {
            return Answerable::Yes;
        }
        drop(post);
        let reason = format!("more than {NAMES_MAX} different names were asked for in ten minutes");
        self.refuse_name(name, None, reason, None);
        Answerable::No
    }

    /// Says whether an answer may be given: no name in it is denied, and no address is one that its name must not lead to. Lets
    /// the addresses be reached then.
    pub(super) fn answer(&self, asked: &Asking, told: &Told) -> Answerable {
        let Asking::Name(name) = asked else {
            return Answerable::Yes;
        };
        let mut post = self.post();
        let policy = &post.policy;
        let denied = told.aliases.iter().find_map(|alias| {
            let verdict = policy.judge_name(alias);
            matches!(verdict.reason, Reason::Deny(_)).then(|| verdict.to_string())
        });
        if let Some(reason) = denied {
            drop(post);
            self.refuse_name(name, None, reason, None);
            return Answerable::No;
        }
        let hidden = told
            .addresses
            .iter()
            .find(|(address, _)| !policy.may_be_answered(*address));
        if let Some(&(address, _)) = hidden {
            drop(post);
            let reason = "the name leads to a private address, and no --allow names that".to_owned();
            self.refuse_name(name, Some(address), reason, Some(format!("--allow {address}")));
            return Answerable::No;
        }
        for &(address, time) in &told.addresses {
            let time = time.clamp(PIN_MIN, PIN_MAX);
            if let Err(error) = post.find(name, address, time) {
                tracing::warn!(%name, %address, %error, "an address cannot be let out");
            }
        }
        Answerable::Yes
    }

    /// Tells whether hints of addresses are kept from the machine: it could not follow them.
    pub(super) fn hides_hints(&self) -> bool {
        self.post().policy.preset == Preset::Locked
    }

    fn refuse_name(
        &self,
        name: &DomainName,
        address: Option<IpAddr>,
        reason: String,
        remedy: Option<String>,
    ) {
        let target = Target {
            name: Some(name.clone()),
            address,
            protocol: None,
            port: None,
        };
        self.journal.refused(target, reason, remedy);
    }

    /// Notes a connection that the firewall has refused.
    pub(super) fn refused(&self, address: IpAddr, protocol: Protocol, port: Option<u16>) {
        let post = self.post();
        let name = post.found.get(&address).map(|found| found.name.clone());
        let verdict = post.policy.judge(&Connection {
            name: name.as_ref(),
            address: Some(address),
            protocol,
            port,
        });
        let is_here = is_in(&post.here, address);
        let reason = if is_here {
            "it is the host itself".to_owned()
        } else if verdict.allowed {
            "the time of the name's address is over: it is to be asked for again".to_owned()
        } else {
            verdict.to_string()
        };
        let host = match &name {
            Some(name) if verdict.reason != Reason::Private => name.to_string(),
            _ => match address {
                IpAddr::V6(address) if port.is_some() => format!("[{address}]"),
                address => address.to_string(),
            },
        };
        let destination = match port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        let remedy = remedy(&verdict, &destination).filter(|_| !is_here);
        drop(post);
        let target = target(name, address, protocol, port);
        self.journal.refused(target, reason, remedy);
    }

    /// Notes one that it has let out.
    pub(super) fn let_out(&self, address: IpAddr, protocol: Protocol, port: Option<u16>) {
        let name = self.post().found.get(&address).map(|found| found.name.clone());
        self.journal.let_out(target(name, address, protocol, port));
    }
}

impl Post {
    fn find(&mut self, name: &DomainName, address: IpAddr, time: Duration) -> io::Result<()> {
        let now = Instant::now();
        if self.found.len() >= ADDRESSES_MAX && !self.found.contains_key(&address) {
            self.found.retain(|_, found| found.until > now);
            let soonest = self.found.iter().min_by_key(|(_, found)| found.until);
            if let (true, Some((&soonest, _))) = (self.found.len() >= ADDRESSES_MAX, soonest) {
                self.found.remove(&soonest);
            }
        }
        let found = Found {
            name: name.clone(),
            until: now + time,
        };
        self.found.insert(address, found);
        match self.policy.ports_of(name) {
            Some(ports) => self.firewall.pin(address, &ports, time),
            None => Ok(()),
        }
    }
}

fn target(name: Option<DomainName>, address: IpAddr, protocol: Protocol, port: Option<u16>) -> Target {
    Target {
        name,
        address: Some(address),
        protocol: Some(protocol),
        port,
    }
}

fn is_in(here: &Here, address: IpAddr) -> bool {
    here.iter().any(|range| range.contains(&address))
}

/// Says what would allow it.
fn remedy(verdict: &Verdict<'_>, destination: &str) -> Option<String> {
    match verdict.reason {
        _ if verdict.allowed => None,
        Reason::Metadata => None,
        Reason::Deny(rule) => Some(format!("leave out --deny {rule}")),
        Reason::Private | Reason::Resolver | Reason::Preset(_) | Reason::Allow(_) => {
            Some(format!("--allow {destination}"))
        }
    }
}
