//! What a machine was refused, and whom it has talked to, within bounds: of a guest that is refused much, the oldest is forgotten, and of one
//! that talks to many, the newest. Both are in files, too ([`super::book`]).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::policy::{DomainName, Protocol};
use jiff::Timestamp;
use tokio::sync::watch;

use super::book::Book;
use super::firewall::protocol_of;
use super::record::{ContactRecord, DenialRecord, TargetRecord};

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
#[derive(Debug)]
pub struct Journal {
    /// Single calls write and read it, never across a wait.
    pages: Mutex<Pages>,
    written: watch::Sender<u64>,
}

#[derive(Debug)]
struct Pages {
    denials: VecDeque<Denial>,
    sequence: u64,
    of_denials: Book<DenialRecord>,
    contacts: HashMap<Target, bool>,
    of_contacts: Book<ContactRecord>,
}

impl Target {
    /// Reads one from a file; nothing where it makes no sense.
    fn of(record: TargetRecord) -> Option<Self> {
        Some(Self {
            name: record.name.map(|name| name.parse()).transpose().ok()?,
            address: record.address,
            protocol: record.protocol.map(protocol_of),
            port: record.port,
        })
    }

    fn record(&self) -> TargetRecord {
        TargetRecord {
            name: self.name.as_ref().map(ToString::to_string),
            address: self.address,
            protocol: self.protocol.map(number_of),
            port: self.port,
        }
    }
}

impl Denial {
    /// Reads one from the file; nothing where it makes no sense.
    fn of(record: DenialRecord) -> Option<Self> {
        Some(Self {
            sequence: record.sequence,
            time: record.time.parse().ok()?,
            target: Target::of(record.target)?,
            reason: record.reason,
            remedy: record.remedy,
        })
    }

    fn record(&self) -> DenialRecord {
        DenialRecord {
            sequence: self.sequence,
            time: self.time.to_string(),
            target: self.target.record(),
            reason: self.reason.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

impl Contact {
    /// As [`Denial::of`].
    fn of(record: ContactRecord) -> Option<Self> {
        Some(Self {
            target: Target::of(record.target)?,
            allowed: record.allowed,
        })
    }
}

impl Journal {
    /// Goes on where an earlier node has ended.
    pub(super) fn open(denials: PathBuf, contacts: PathBuf) -> Self {
        let (of_denials, records) = Book::open(denials, DENIALS_MAX);
        let mut denials: VecDeque<Denial> = records.into_iter().filter_map(Denial::of).collect();
        denials.drain(..denials.len().saturating_sub(DENIALS_MAX));
        let (of_contacts, records) = Book::open(contacts, CONTACTS_MAX);
        let contacts = records.into_iter().filter_map(Contact::of);
        let sequence = denials.back().map_or(0, |denial| denial.sequence);
        Self {
            pages: Mutex::new(Pages {
                denials,
                sequence,
                of_denials,
                contacts: contacts
                    .map(|contact| (contact.target, contact.allowed))
                    .collect(),
                of_contacts,
            }),
            written: watch::Sender::new(sequence),
        }
    }

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
        let denial = Denial {
            sequence,
            time,
            target,
            reason,
            remedy,
        };
        let record = denial.record();
        pages.denials.push_back(denial);
        let Pages {
            of_denials, denials, ..
        } = &mut *pages;
        of_denials.add(&record, || denials.iter().map(Denial::record).collect());
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
        let known = self.contacts.get(&target).copied();
        if known == Some(allowed) || (known.is_none() && self.contacts.len() >= CONTACTS_MAX) {
            return;
        }
        let record = |(target, allowed): (&Target, bool)| ContactRecord {
            target: target.record(),
            allowed,
        };
        let newest = record((&target, allowed));
        self.contacts.insert(target, allowed);
        let all = self.contacts.iter().map(|(target, &allowed)| (target, allowed));
        self.of_contacts.add(&newest, || all.map(record).collect());
    }
}

/// See [`protocol_of`].
fn number_of(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Other(number) => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(directory: &tempfile::TempDir) -> Journal {
        let place = |name| directory.path().join(name);
        Journal::open(place("denials.jsonl"), place("contacts.jsonl"))
    }

    #[test]
    fn denials_outlive_the_node_within_bounds_and_a_line_that_was_cut_off_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let first = journal(&directory);
        let named = Target {
            name: Some("a.example".parse().unwrap()),
            address: None,
            protocol: None,
            port: None,
        };
        first.refused(named, "why".to_owned(), Some("--allow a.example".to_owned()));
        first.refused(target(25), "why".to_owned(), None);
        let before = first.denials(0);
        assert_eq!(before.len(), 2);
        drop(first);
        let path = directory.path().join("denials.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"sequence\":3,\"ti"].concat()).unwrap();
        let second = journal(&directory);
        assert_eq!(second.denials(0), before);
        assert_eq!(*second.watch().borrow(), 2);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        second.refused(target(26), "why".to_owned(), None);
        assert_eq!(second.denials(2).len(), 1);
        for port in 1000..5000 {
            second.refused(target(port), String::new(), None);
        }
        let kept = second.denials(0);
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!((DENIALS_MAX..=2 * DENIALS_MAX).contains(&lines), "{lines}");
        assert_eq!(journal(&directory).denials(0), kept);
    }

    #[test]
    fn a_journal_without_a_place_to_write_goes_on_in_memory() {
        let journal = Journal::open("/nowhere/denials.jsonl".into(), "/nowhere/contacts.jsonl".into());
        journal.refused(target(25), "why".to_owned(), None);
        journal.refused(target(26), "why".to_owned(), None);
        journal.let_out(target(443));
        assert_eq!(journal.denials(0).len(), 2);
        assert_eq!(journal.contacts().len(), 3);
    }

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
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
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
    fn a_contact_is_what_it_was_last_also_to_the_next_node() {
        let directory = tempfile::tempdir().unwrap();
        let first = journal(&directory);
        first.refused(target(25), String::new(), None);
        first.let_out(target(25));
        first.let_out(target(443));
        first.let_out(target(443));
        let file = directory.path().join("contacts.jsonl");
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
        for journal in [first, journal(&directory)] {
            let mut contacts = journal.contacts();
            contacts.sort_by_key(|contact| contact.target.port);
            let seen: Vec<_> = contacts
                .iter()
                .map(|contact| (contact.target.port, contact.allowed))
                .collect();
            assert_eq!(seen, [(Some(25), true), (Some(443), true)]);
        }
    }
}
