//! Networks of machines: which there are, which machines are on them, and by which names and addresses these reach each other.
//!
//! Places are given away here and nowhere else, and written down before anybody has one: also after a crash nobody has another's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_machine::policy::DomainName;
use hearth_machine::{InvalidSubnet, MachineId, NetworkName, Subnets};
use ipnet::{IpNet, Ipv4Net};

use super::address::{Network, NodeKey, has_v6};
use super::record::{MemberPlace, NetworkRecord};
use crate::host::own;
use crate::ledger::{NamedRecords, RecordError};

/// The longest packet unless somebody says otherwise, and the bounds: what IPv6 needs (RFC 8200, 5), and jumbo frames.
pub(super) const MTU_DEFAULT: u32 = 1500;
pub(super) const MTU_MIN: u32 = 1280;
const MTU_MAX: u32 = 9000;

/// Says why something cannot be done with a network of machines.
#[derive(Debug, thiserror::Error)]
pub enum UserNetworkError {
    /// No network of that name.
    #[error("there is no network {0:?}")]
    NotFound(String),
    /// The name is another's.
    #[error("there is a network {0} already")]
    Taken(NetworkName),
    /// Machines are on it.
    #[error("the network {name} is in use by {}", machines.join(", "))]
    InUse {
        /// The network.
        name: String,
        /// The names of the machines.
        machines: Vec<String>,
    },
    /// The machine is on it.
    #[error("the machine is on the network {0} already")]
    OnIt(NetworkName),
    /// The machine is not on it.
    #[error("the machine is not on the network {0}")]
    NotOnIt(String),
    /// A range of addresses that cannot be.
    #[error(transparent)]
    Subnet(#[from] InvalidSubnet),
    /// A range of addresses that is another's, too.
    #[error("{range} overlaps {with}")]
    Overlap {
        /// The range.
        range: IpNet,
        /// Whose it is.
        with: String,
    },
    /// A length of packets out of bounds.
    #[error("packets of {0} bytes at most cannot be: {MTU_MIN} to {MTU_MAX} can")]
    Mtu(u32),
    /// All ranges are in use.
    #[error(
        "each /20 of 10.64.0.0/10 overlaps a route of this host or another network; name a range (--subnet)"
    )]
    NoRange,
    /// All addresses are in use.
    #[error("all {count} addresses of the network {name} are taken")]
    NoPlace {
        /// The network.
        name: String,
        /// How many there are.
        count: u32,
    },
    /// It could not be written down.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What somebody wants a network to be.
#[derive(Debug)]
pub struct NewNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its ranges, as they were given.
    pub subnets: Vec<String>,
    /// The longest packet.
    pub mtu: Option<u32>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// A network as it is now.
#[derive(Debug, Clone)]
pub struct UserNetwork {
    /// What is written down of it.
    pub record: NetworkRecord,
    network: Network,
    bridge: String,
    present: BTreeSet<String>,
}

/// A machine's place on one network.
#[derive(Debug, Clone)]
pub(super) struct Membership {
    pub(super) number: u16,
    pub(super) network: Network,
    pub(super) place: u32,
    pub(super) mtu: u32,
}

impl Membership {
    /// Returns the network's ranges.
    pub(super) fn ranges(&self) -> [IpNet; 2] {
        [self.network.v4.into(), self.network.v6.into()]
    }
}

impl UserNetwork {
    /// Reads one from its record; nothing where the ranges in it are none.
    fn of(key: NodeKey, record: NetworkRecord) -> Option<Self> {
        let network = Network {
            v4: record.v4.parse().ok()?,
            v6: record.v6.parse().ok()?,
        };
        Some(Self {
            bridge: key.user_bridge(record.number),
            record,
            network,
            present: BTreeSet::new(),
        })
    }

    /// Returns a machine's addresses.
    pub fn addresses(&self, place: u32) -> Vec<IpAddr> {
        let (v4, v6) = self.network.machine(place);
        let v6 = has_v6().then_some(v6.into());
        [v4.into()].into_iter().chain(v6).collect()
    }

    /// Returns the name of the bridge that carries it; none where a switch does.
    pub fn bridge(&self) -> String {
        match own::is_root() {
            true => self.bridge.clone(),
            false => String::new(),
        }
    }

    /// Tells whether a machine is there now.
    pub fn is_present(&self, machine: &str) -> bool {
        self.present.contains(machine)
    }

    fn membership(&self, machine: &str) -> Option<Membership> {
        let place = self.record.members.get(machine)?.place;
        Some(Membership {
            number: self.record.number,
            network: self.network,
            place,
            mtu: self.record.mtu,
        })
    }
}

/// All networks of machines of a node.
#[derive(Debug)]
pub struct UserNetworks {
    key: NodeKey,
    records: NamedRecords<NetworkRecord>,
    /// Held by who changes a record until it is written; those that only read wait for no disk.
    changes: Mutex<()>,
    known: Mutex<BTreeMap<String, UserNetwork>>,
}

impl UserNetworks {
    /// Reads those that are written down.
    pub(super) fn open(key: NodeKey, directory: PathBuf) -> Self {
        let records = NamedRecords::new(directory);
        let loaded = records.load().unwrap_or_else(|error| (Vec::new(), vec![error]));
        for error in loaded.1 {
            tracing::error!(error = %error, "a network's record is left alone");
        }
        let networks = loaded
            .0
            .into_iter()
            .filter_map(|record| UserNetwork::of(key, record));
        let known = networks.map(|network| (network.record.name.clone(), network));
        Self {
            key,
            records,
            changes: Mutex::default(),
            known: Mutex::new(known.collect()),
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, UserNetwork>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a network in ranges that no route of this host's leads to.
    pub(super) fn create(&self, new: NewNetwork, routes: &[Ipv4Net]) -> Result<(), UserNetworkError> {
        let _turn = self.change();
        let known = self.known().clone();
        if known.contains_key(new.name.as_str()) {
            return Err(UserNetworkError::Taken(new.name));
        }
        let mtu = new.mtu.unwrap_or(MTU_DEFAULT);
        if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
            return Err(UserNetworkError::Mtu(mtu));
        }
        let numbers: BTreeSet<u16> = known.values().map(|network| network.record.number).collect();
        let number = (1..u16::MAX).find(|number| !numbers.contains(number));
        let number = number.ok_or(UserNetworkError::NoRange)?;
        let asked = Subnets::read(&new.subnets)?;
        let v4 = match asked.v4 {
            Some(range) => free_or_refused(range, &known, routes)?,
            None => self.free(&known, routes)?,
        };
        let v6 = asked.v6.unwrap_or_else(|| self.key.v6(number));
        let overlaps = |other: &&UserNetwork| {
            let other = other.network.v6;
            other.contains(&v6) || v6.contains(&other)
        };
        if let Some(other) = known.values().find(overlaps) {
            return Err(UserNetworkError::Overlap {
                range: v6.into(),
                with: format!("the network {}", other.record.name),
            });
        }
        self.write(UserNetwork {
            record: NetworkRecord {
                format: NetworkRecord::FORMAT,
                name: new.name.to_string(),
                number,
                v4: v4.to_string(),
                v6: v6.to_string(),
                mtu,
                labels: new.labels,
                created_at: jiff::Timestamp::now().to_string(),
                members: BTreeMap::new(),
            },
            network: Network { v4, v6 },
            bridge: self.key.user_bridge(number),
            present: BTreeSet::new(),
        })
    }

    /// Finds a range that is nobody's, from that end at which nodes do not look for their own.
    fn free(
        &self,
        known: &BTreeMap<String, UserNetwork>,
        routes: &[Ipv4Net],
    ) -> Result<Ipv4Net, UserNetworkError> {
        let ranges = self.key.networks().rev().map(|network| network.v4);
        ranges
            .into_iter()
            .find(|&range| free_or_refused(range, known, routes).is_ok())
            .ok_or(UserNetworkError::NoRange)
    }

    /// Writes a network down, and knows it from then on. For who holds the turn.
    fn write(&self, network: UserNetwork) -> Result<(), UserNetworkError> {
        self.records.write(&network.record)?;
        self.known().insert(network.record.name.clone(), network);
        Ok(())
    }

    /// Forgets a network that no machine is on; returns its number.
    pub(super) fn remove(&self, name: &str) -> Result<u16, UserNetworkError> {
        let _turn = self.change();
        let found = self.find(name)?;
        if !found.record.members.is_empty() {
            let members = found.record.members.into_values();
            let mut machines: Vec<String> = members.map(|member| member.name).collect();
            machines.sort();
            return Err(UserNetworkError::InUse {
                name: name.to_owned(),
                machines,
            });
        }
        self.records.remove(name)?;
        self.known().remove(name);
        Ok(found.record.number)
    }

    /// Returns all networks, by name.
    pub fn list(&self) -> Vec<UserNetwork> {
        self.known().values().cloned().collect()
    }

    /// Returns one.
    ///
    /// # Errors
    /// [`UserNetworkError::NotFound`].
    pub fn find(&self, name: &str) -> Result<UserNetwork, UserNetworkError> {
        let found = self.known().get(name).cloned();
        found.ok_or_else(|| UserNetworkError::NotFound(name.to_owned()))
    }

    /// Returns the ranges that machines have.
    pub(super) fn ranges(&self) -> Vec<Ipv4Net> {
        self.known().values().map(|network| network.network.v4).collect()
    }

    /// Returns the numbers of all networks.
    pub(super) fn numbers(&self) -> Vec<u16> {
        self.known()
            .values()
            .map(|network| network.record.number)
            .collect()
    }

    /// Gives a machine a place on each of these networks, or on none. One that it has it keeps.
    ///
    /// # Errors
    /// [`UserNetworkError`].
    pub fn join(&self, id: MachineId, name: &str, networks: &[NetworkName]) -> Result<(), UserNetworkError> {
        let _turn = self.change();
        let mut changed = Vec::new();
        for network in networks {
            let mut network = self.find(network.as_str())?;
            let members = &mut network.record.members;
            if members.contains_key(&id.to_string()) {
                continue;
            }
            let taken: BTreeSet<u32> = members.values().map(|member| member.place).collect();
            let count = network.network.places();
            let free = (0..count).find(|place| !taken.contains(place));
            let place = free.ok_or_else(|| UserNetworkError::NoPlace {
                name: network.record.name.clone(),
                count,
            })?;
            let name = name.to_owned();
            members.insert(id.to_string(), MemberPlace { name, place });
            changed.push(network);
        }
        // What is written when the next one cannot be is the machine's until somebody forgets it.
        changed.into_iter().try_for_each(|network| self.write(network))
    }

    /// Takes a machine off those networks that `off` says; returns their numbers.
    fn take_off(&self, id: MachineId, off: impl Fn(&str) -> bool) -> Result<Vec<u16>, UserNetworkError> {
        let _turn = self.change();
        let mut numbers = Vec::new();
        for mut network in self.list() {
            let is_on_it = network.record.members.contains_key(&id.to_string());
            if is_on_it && off(&network.record.name) {
                network.record.members.remove(&id.to_string());
                network.present.remove(&id.to_string());
                numbers.push(network.record.number);
                self.write(network)?;
            }
        }
        Ok(numbers)
    }

    /// Takes a machine off one network, and returns its number.
    pub(super) fn leave(&self, id: MachineId, network: &str) -> Result<u16, UserNetworkError> {
        let left = self.take_off(id, |name| name == network)?;
        let number = left.first().copied();
        number.ok_or_else(|| UserNetworkError::NotOnIt(network.to_owned()))
    }

    /// Takes a machine off all networks.
    pub(super) fn forget(&self, id: MachineId) {
        if let Err(error) = self.take_off(id, |_| true) {
            tracing::error!(machine = %id, error = %error, "its places on networks stay taken");
        }
    }

    /// Calls a machine by another name.
    ///
    /// # Errors
    /// [`UserNetworkError::Record`]; some networks may know the new name then, and the others the old one.
    pub fn rename(&self, id: MachineId, name: &str) -> Result<(), UserNetworkError> {
        let _turn = self.change();
        for mut network in self.list() {
            if let Some(member) = network.record.members.get_mut(&id.to_string())
                && member.name != name
            {
                name.clone_into(&mut member.name);
                self.write(network)?;
            }
        }
        Ok(())
    }

    /// Sets right what an earlier node has left half done: these are machines with their names and networks, and some others exist.
    pub fn settle(
        &self,
        machines: &[(MachineId, String, Vec<NetworkName>)],
        exists: impl Fn(MachineId) -> bool,
    ) {
        for network in self.list() {
            let members = network.record.members.keys();
            let members = members.filter_map(|id| id.parse().ok());
            members.filter(|&id| !exists(id)).for_each(|id| self.forget(id));
        }
        for (id, name, networks) in machines {
            let off = self.take_off(*id, |network| !networks.iter().any(|own| own.as_str() == network));
            let settled = off
                .map(drop)
                .and_then(|()| self.join(*id, name, networks))
                .and_then(|()| self.rename(*id, name));
            if let Err(error) = settled {
                tracing::error!(machine = %id, error = %error, "its networks are not as they were");
            }
        }
    }

    /// Returns the places of a machine.
    pub(super) fn memberships(&self, id: MachineId) -> Vec<Membership> {
        let id = id.to_string();
        let known = self.known();
        known
            .values()
            .filter_map(|network| network.membership(&id))
            .collect()
    }

    /// Returns the machines that are there, on one network.
    pub(super) fn present_on(&self, number: u16) -> Vec<MachineId> {
        let known = self.known();
        let network = known.values().find(|network| network.record.number == number);
        let present = network.into_iter().flat_map(|network| &network.present);
        present.filter_map(|id| id.parse().ok()).collect()
    }

    /// Says whether a machine is there, on the networks that it is on: others find it then.
    pub(super) fn set_present(&self, id: MachineId, is_present: bool) {
        let id = id.to_string();
        for network in self.known().values_mut() {
            if is_present && network.record.members.contains_key(&id) {
                network.present.insert(id.clone());
            } else {
                network.present.remove(&id);
            }
        }
    }

    /// Finds what a name stands for that a machine asks for: another one that is there on one of its networks, as NAME or
    /// NAME.NETWORK.
    pub(super) fn resolve(&self, asking: MachineId, name: &DomainName) -> Option<Found> {
        let asking = asking.to_string();
        let name = name.to_string();
        let (machine, of) = match name.split_once('.') {
            Some((machine, network)) => (machine, Some(network)),
            None => (name.as_str(), None),
        };
        let known = self.known();
        let networks = known.values().filter(|network| {
            network.record.members.contains_key(&asking) && of.is_none_or(|of| of == network.record.name)
        });
        let mut found = Vec::new();
        for network in networks {
            for (id, member) in &network.record.members {
                if !member.name.eq_ignore_ascii_case(machine) {
                    continue;
                }
                if *id == asking {
                    return Some(Found::Oneself);
                }
                if network.present.contains(id) {
                    found.extend(network.addresses(member.place));
                }
            }
        }
        (!found.is_empty()).then_some(Found::Others(found))
    }
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// The machine that asks.
    Oneself,
    /// Another one.
    Others(Vec<IpAddr>),
}

fn free_or_refused(
    range: Ipv4Net,
    known: &BTreeMap<String, UserNetwork>,
    routes: &[Ipv4Net],
) -> Result<Ipv4Net, UserNetworkError> {
    let overlap = |with: String| UserNetworkError::Overlap {
        range: range.into(),
        with,
    };
    if let Some(other) = known.values().find(|other| other.network.overlaps(range)) {
        return Err(overlap(format!("the network {}", other.record.name)));
    }
    let overlaps =
        |route: &&Ipv4Net| route.prefix_len() > 0 && (range.contains(*route) || route.contains(&range));
    match routes.iter().find(overlaps) {
        Some(route) => Err(overlap(format!("the route of this host to {route}"))),
        None => Ok(range),
    }
}

#[cfg(test)]
mod tests;
