//! What happened to machines, in order: one bounded log of the node, kept across its restarts.
//!
//! ```text
//! actors --tell--> ring of the newest EVENTS_MAX, and a file of JSON lines --Reader--> clients
//! ```
//! Whoever tells never waits for whoever reads. A reader that falls behind by more than the ring holds is told how many it has
//! missed. A line is in the file before any reader sees it; the kernel keeps it when the node is killed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_api::v1::{Event, EventAction};
use tokio::sync::watch;

use crate::host::files;
use crate::records::MachineRecord;

/// Events that are kept. The file holds twice as many at most, some 2 MiB with usual names and labels.
pub const EVENTS_MAX: usize = 4096;
/// Labels that take more than this together are left out of events, in bytes.
const LABELS_MAX: usize = 1024;
/// The longest attribute, in bytes: reasons may hold a console's tail.
const ATTRIBUTE_MAX: usize = 512;

/// The log; cloned freely.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// Guards the ring and the file behind it: every actor writes, every client of `events` reads. Held for one line's write, and
    /// never across an await.
    kept: Mutex<Kept>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Arc<Event>>,
    /// The file that is appended to; `None` once it cannot be, which is reported once.
    file: Option<File>,
    /// Lines in it.
    lines: usize,
}

impl EventLog {
    /// Opens the log of an earlier node, or begins one. A line that a crash has torn is dropped.
    pub fn open(path: PathBuf) -> Self {
        let text = std::fs::read(&path).unwrap_or_default();
        let lines = text.split_inclusive(|&byte| byte == b'\n');
        let mut kept = Kept::default();
        for line in lines.filter(|line| line.ends_with(b"\n")) {
            kept.lines += 1;
            // A line of a later version, or a damaged one, is no reason to be without the others.
            if let Ok(event) = serde_json::from_slice::<Event>(line) {
                kept.push(event);
            }
        }
        if !text.is_empty() && !text.ends_with(b"\n") {
            kept.lines = usize::MAX; // Written anew with the next event.
        }
        kept.file = append(&path)
            .inspect_err(|error| tracing::error!(path = %path.display(), %error, "events are not kept"))
            .ok();
        let newest = kept.events.back().map_or(0, |event| event.sequence);
        Self(Arc::new(Shared {
            path,
            kept: Mutex::new(kept),
            newest: watch::Sender::new(newest),
        }))
    }

    /// Writes down that something has happened to a machine.
    pub fn tell<const N: usize>(
        &self,
        record: &MachineRecord,
        action: EventAction,
        attributes: [(&str, String); N],
    ) {
        let attributes = attributes.into_iter().filter(|(_, value)| !value.is_empty());
        let event = Event {
            sequence: 0,
            time: String::new(),
            action,
            machine: record.id.clone(),
            name: record.name.clone(),
            image: record.spec.image.clone(),
            labels: small(&record.spec.labels),
            attributes: attributes
                .map(|(name, value)| (name.to_owned(), cut(value)))
                .collect(),
        };
        let mut kept = self.lock();
        let sequence = kept.events.back().map_or(1, |last| last.sequence + 1);
        kept.push(Event {
            sequence,
            // Under the lock, so that times are in the order of the numbers as far as the clock goes forward.
            time: format!("{:.9}", jiff::Timestamp::now()),
            ..event
        });
        if let Err(error) = kept.write(&self.0.path) {
            kept.file = None;
            tracing::error!(path = %self.0.path.display(), %error, "events are no longer kept");
        }
        drop(kept);
        self.0.newest.send_replace(sequence);
    }

    /// Returns a reader that begins with the first event that is not before `since`, or with what happens next.
    pub fn reader(&self, since: Option<jiff::Timestamp>) -> Reader {
        let next = match since {
            None => *self.0.newest.borrow() + 1,
            Some(since) => {
                let kept = self.lock();
                let first = kept.events.iter().find(|event| time_of(event) >= Some(since));
                first.map_or_else(|| *self.0.newest.borrow() + 1, |event| event.sequence)
            }
        };
        Reader {
            log: self.clone(),
            newest: self.0.newest.subscribe(),
            next,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Every update leaves ring and file usable.
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an event's time.
pub fn time_of(event: &Event) -> Option<jiff::Timestamp> {
    event.time.parse().ok()
}

fn small(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let bytes: usize = labels.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > LABELS_MAX {
        BTreeMap::new()
    } else {
        labels.clone()
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ATTRIBUTE_MAX));
    text
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(files::PRIVATE)
        .open(path)
}

fn line(event: &Event) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(event)?;
    bytes.push(b'\n');
    Ok(bytes)
}

impl Kept {
    fn push(&mut self, event: Event) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(Arc::new(event));
    }

    /// Writes the newest event; the whole ring anew where the file has grown to twice its size.
    fn write(&mut self, path: &Path) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        if self.lines >= 2 * EVENTS_MAX {
            let all: Vec<_> = self
                .events
                .iter()
                .map(|event| line(event))
                .collect::<Result<_, _>>()?;
            files::write_atomic(path, &all.concat(), files::PRIVATE)?;
            self.lines = all.len();
            self.file = Some(append(path)?);
            return Ok(());
        }
        if let Some(event) = self.events.back() {
            // One write: a crash leaves a whole line or none.
            file.write_all(&line(event)?)?;
            self.lines += 1;
        }
        Ok(())
    }
}

/// Reads the log from a place on; never in the way of whoever writes.
#[derive(Debug)]
pub struct Reader {
    log: EventLog,
    newest: watch::Receiver<u64>,
    /// The number of the event that is wanted next.
    next: u64,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// An event.
    Event(Arc<Event>),
    /// So many events are not kept any more.
    Lost(u64),
}

impl Reader {
    /// Returns what there is, in order; nothing when there is nothing new.
    pub fn batch(&mut self, at_most: usize) -> Vec<Told> {
        let kept = self.log.lock();
        let Some(oldest) = kept.events.front().map(|event| event.sequence) else {
            return Vec::new();
        };
        let mut told = Vec::new();
        if self.next < oldest {
            told.push(Told::Lost(oldest - self.next));
            self.next = oldest;
        }
        // Numbers have no gaps but where a damaged line was dropped.
        let from = kept.events.partition_point(|event| event.sequence < self.next);
        let found = kept.events.range(from..).take(at_most).cloned();
        told.extend(found.map(Told::Event));
        if let Some(Told::Event(last)) = told.last() {
            self.next = last.sequence + 1;
        }
        told
    }

    /// Waits until there is something new.
    pub async fn more(&mut self) {
        // Fails only when the log is gone, which this reader keeps.
        let _ = self.newest.wait_for(|&newest| newest >= self.next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::machine::tests::record;

    fn log(root: &tempfile::TempDir) -> EventLog {
        EventLog::open(root.path().join("events.jsonl"))
    }

    fn numbers(reader: &mut Reader) -> Vec<u64> {
        let number = |told| match told {
            Told::Event(event) => event.sequence,
            Told::Lost(count) => panic!("{count} lost"),
        };
        reader.batch(usize::MAX).into_iter().map(number).collect()
    }

    #[test]
    fn events_outlive_the_node_and_numbers_go_on() {
        let root = tempfile::tempdir().unwrap();
        let record = record("0123456789ab");
        let begin = jiff::Timestamp::now();
        for exit_code in 1..=3 {
            log(&root).tell(&record, EventAction::Die, [("exit_code", exit_code.to_string())]);
        }
        // A node that was killed while it wrote.
        let mut file = append(&root.path().join("events.jsonl")).unwrap();
        file.write_all(b"{\"sequence\":4,\"ti").unwrap();
        log(&root).tell(&record, EventAction::Start, []);
        log(&root).tell(&record, EventAction::Stop, []);
        let log = log(&root);
        assert_eq!(numbers(&mut log.reader(Some(begin))), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&mut log.reader(None)), [0; 0]);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_has_missed_and_stops_nobody() {
        let root = tempfile::tempdir().unwrap();
        let (log, record) = (log(&root), record("0123456789ab"));
        let mut reader = log.reader(None);
        for _ in 0..3 * EVENTS_MAX + 5 {
            log.tell(&record, EventAction::Kill, [("signal", "SIGHUP".to_owned())]);
        }
        reader.more().await;
        let told = reader.batch(2);
        let lost = 2 * EVENTS_MAX as u64 + 5;
        assert_eq!(told[0], Told::Lost(lost));
        assert!(matches!(&told[1..], [Told::Event(a), Told::Event(b)]
            if a.sequence == lost + 1 && b.sequence == lost + 2));
        assert_eq!(numbers(&mut reader).len(), EVENTS_MAX - 2);
        let text = std::fs::read_to_string(root.path().join("events.jsonl")).unwrap();
        assert!(text.lines().count() <= 2 * EVENTS_MAX);
        assert_eq!(
            EventLog::open(root.path().join("events.jsonl"))
                .lock()
                .events
                .len(),
            EVENTS_MAX
        );
    }

    #[test]
    fn what_is_long_is_cut() {
        let root = tempfile::tempdir().unwrap();
        let (log, mut record) = (log(&root), record("0123456789ab"));
        record
            .spec
            .labels
            .insert("long".to_owned(), "x".repeat(LABELS_MAX));
        let mut reader = log.reader(None);
        log.tell(
            &record,
            EventAction::Die,
            [("reason", "ä".repeat(1000)), ("signal", String::new())],
        );
        let [Told::Event(event)] = &reader.batch(9)[..] else {
            panic!()
        };
        assert!(event.labels.is_empty());
        assert_eq!(event.attributes.len(), 1);
        assert_eq!(event.attributes["reason"].len(), ATTRIBUTE_MAX);
    }
}
