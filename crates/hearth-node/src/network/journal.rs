//! What a machine was refused, and whom it has talked to. Kept in memory while the node knows the machine, within bounds: a guest
//! that asks for much has the oldest of it forgotten.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::policy::{DomainName, Protocol};
use jiff::Timestamp;
use tokio::sync::watch;

/// How many denials are kept.
const DENIALS_MAX: usize = 1024;
/// How many different contacts.
const CONTACTS_MAX: usize = 1024;
/// What is refused once more within this time is not told of again: programs try again and again.
const AGAIN: Duration = Duration::from_secs(1);

/// Where a connection, or a question for a name, was to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The name that was asked for, or by which the address was found.
    pub name: Option<DomainName>,
    /// The address; absent where a name was refused.
    pub address: Option<IpAddr>,
    /// Who would have carried it; absent likewise.
    pub protocol: Option<Protocol>,
    /// Its port, where the protocol has some.
    pub port: Option<u16>,
}

/// Something that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// One more than that of the denial before.
    pub sequence: u64,
    /// When.
    pub time: Timestamp,
    /// What.
    pub target: Target,
    /// Why.
    pub reason: String,
    /// What would allow it, where something does.
    pub remedy: Option<String>,
}

/// Somebody whom a machine talked to, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub target: Target,
    /// It was let out.
    pub allowed: bool,
}

/// What is known of one machine.
#[derive(Debug, Default)]
pub struct Journal {
    /// Single calls write and read it, never across a wait.
    pages: Mutex<Pages>,
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Pages {
    denials: VecDeque<Denial>,
    sequence: u64,
    contacts: HashMap<Target, bool>,
}

impl Journal {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that something was refused.
    pub(super) fn refused(&self, target: Target, reason: String, remedy: Option<String>) {
        let time = Timestamp::now();
        let mut pages = self.pages();
        let recent = pages.denials.iter().rev().take_while(|denial| {
            let ago = time.duration_since(denial.time);
            ago.unsigned_abs() < AGAIN
        });
        if recent.into_iter().any(|denial| denial.target == target) {
            return;
        }
        pages.meet(target.clone(), false);
        pages.sequence += 1;
        let sequence = pages.sequence;
        if pages.denials.len() == DENIALS_MAX {
            pages.denials.pop_front();
        }
        pages.denials.push_back(Denial {
            sequence,
            time,
            target,
            reason,
            remedy,
        });
        drop(pages);
        self.written.send_replace(sequence);
    }

    /// Notes that a connection was let out.
    pub(super) fn let_out(&self, target: Target) {
        self.pages().meet(target, true);
    }

    /// Returns what was refused after the denial of this number.
    pub fn denials(&self, after: u64) -> Vec<Denial> {
        let pages = self.pages();
        let newer = pages.denials.iter().filter(|denial| denial.sequence > after);
        newer.cloned().collect()
    }

    /// Returns what tells of new denials.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// Returns whom it talked to, or tried to.
    pub fn contacts(&self) -> Vec<Contact> {
        let pages = self.pages();
        let contact = |(target, allowed): (&Target, &bool)| Contact {
            target: target.clone(),
            allowed: *allowed,
        };
        pages.contacts.iter().map(contact).collect()
    }
}

impl Pages {
    fn meet(&mut self, target: Target, allowed: bool) {
        if self.contacts.len() < CONTACTS_MAX || self.contacts.contains_key(&target) {
            self.contacts.insert(target, allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(port: u16) -> Target {
        Target {
            name: None,
            address: Some("203.0.113.1".parse().unwrap()),
            protocol: Some(Protocol::Tcp),
            port: Some(port),
        }
    }

    #[test]
    fn denials_are_numbered_told_once_and_bounded() {
        let journal = Journal::default();
        let written = journal.watch();
        for _ in 0..3 {
            journal.refused(target(25), "why".to_owned(), None);
        }
        journal.refused(target(26), "why".to_owned(), None);
        assert_eq!(*written.borrow(), 2);
        let ports: Vec<_> = journal
            .denials(0)
            .iter()
            .map(|denial| denial.target.port)
            .collect();
        assert_eq!(ports, [Some(25), Some(26)]);
        assert_eq!(journal.denials(1).len(), 1);
        for port in 1000..4000 {
            journal.refused(target(port), String::new(), None);
        }
        assert_eq!(journal.denials(0).len(), DENIALS_MAX);
        assert_eq!(
            journal.denials(0).last().map(|denial| denial.sequence),
            Some(3002)
        );
        assert_eq!(journal.contacts().len(), CONTACTS_MAX);
    }

    #[test]
    fn a_contact_is_what_it_was_last() {
        let journal = Journal::default();
        journal.refused(target(25), String::new(), None);
        journal.let_out(target(25));
        journal.let_out(target(443));
        let mut contacts = journal.contacts();
        contacts.sort_by_key(|contact| contact.target.port);
        let seen: Vec<_> = contacts
            .iter()
            .map(|contact| (contact.target.port, contact.allowed))
            .collect();
        assert_eq!(seen, [(Some(25), true), (Some(443), true)]);
    }
}
