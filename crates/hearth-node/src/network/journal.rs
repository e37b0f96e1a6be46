//! What a machine was refused, and whom it has talked to, within bounds: a guest that asks for much has the oldest of it forgotten. What it
//! was refused is in a file, too ([`super::book`]); whom it has talked to is known while the node is.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::policy::{DomainName, Protocol};
use jiff::Timestamp;
use tokio::sync::watch;

use super::book::{Book, DENIALS_MAX};
use super::firewall::protocol_of;
use super::record::DenialRecord;

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
    book: Book,
    denials: VecDeque<Denial>,
    sequence: u64,
    contacts: HashMap<Target, bool>,
}

impl Denial {
    /// Reads one from the file; nothing where it makes no sense.
    fn of(record: DenialRecord) -> Option<Self> {
        let name = record.name.map(|name| name.parse()).transpose().ok()?;
        Some(Self {
            sequence: record.sequence,
            time: record.time.parse().ok()?,
            target: Target {
                name,
                address: record.address,
                protocol: record.protocol.map(protocol_of),
                port: record.port,
            },
            reason: record.reason,
            remedy: record.remedy,
        })
    }

    fn record(&self) -> DenialRecord {
        DenialRecord {
            sequence: self.sequence,
            time: self.time.to_string(),
            name: self.target.name.as_ref().map(ToString::to_string),
            address: self.target.address,
            protocol: self.target.protocol.map(number_of),
            port: self.target.port,
            reason: self.reason.clone(),
            remedy: self.remedy.clone(),
        }
    }
}

impl Journal {
    /// Goes on where an earlier node has ended.
    pub(super) fn open(path: PathBuf) -> Self {
        let (book, records) = Book::open(path);
        let denials: VecDeque<Denial> = records.into_iter().filter_map(Denial::of).collect();
        let sequence = denials.back().map_or(0, |denial| denial.sequence);
        Self {
            pages: Mutex::new(Pages {
                book,
                denials,
                sequence,
                contacts: HashMap::new(),
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
        let Pages { book, denials, .. } = &mut *pages;
        book.add(&record, || denials.iter().map(Denial::record).collect());
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
        Journal::open(directory.path().join("denials.jsonl"))
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
        let journal = Journal::open("/nowhere/denials.jsonl".into());
        journal.refused(target(25), "why".to_owned(), None);
        journal.refused(target(26), "why".to_owned(), None);
        assert_eq!(journal.denials(0).len(), 2);
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
    fn a_contact_is_what_it_was_last() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(&directory);
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
