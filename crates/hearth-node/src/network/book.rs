//! The file of what a machine was refused, a line of JSON each, beside its record: it outlives the node and the machine's end, and goes with
//! the machine. Bounded: once it has twice as many lines as are kept, the older half goes.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::record::DenialRecord;
use crate::host::files;

/// How many denials are kept.
pub(super) const DENIALS_MAX: usize = 1024;

/// The file of one machine. It is opened for each line: nothing of a machine that is quiet is open.
#[derive(Debug)]
pub(super) struct Book {
    path: PathBuf,
    lines: usize,
    /// The last write has failed, which is told once.
    is_failing: bool,
}

impl Book {
    /// Reads what is there; lines that are none are left out.
    pub(super) fn open(path: PathBuf) -> (Self, Vec<DenialRecord>) {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, path = %path.display(), "what a machine was refused is not known");
                }
                Vec::new()
            }
        };
        let is_whole = text.is_empty() || text.ends_with(b"\n");
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut records: Vec<DenialRecord> = lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        records.drain(..records.len().saturating_sub(DENIALS_MAX));
        let mut book = Self {
            path,
            lines: records.len(),
            is_failing: false,
        };
        // A node has died, or a disk was full, in the middle of a line.
        if !is_whole {
            book.write(&records);
        }
        (book, records)
    }

    /// Adds the newest of these.
    pub(super) fn add(&mut self, record: &DenialRecord, all: impl FnOnce() -> Vec<DenialRecord>) {
        if self.is_failing || self.lines >= 2 * DENIALS_MAX {
            return self.write(&all());
        }
        let written = line(record).and_then(|line| {
            let mut options = OpenOptions::new();
            let options = options.append(true).create(true).mode(files::PRIVATE);
            options.open(&self.path)?.write_all(&line)
        });
        self.lines += 1;
        self.tell(written);
    }

    /// Writes all anew.
    fn write(&mut self, records: &[DenialRecord]) {
        let lines: io::Result<Vec<Vec<u8>>> = records.iter().map(line).collect();
        let written =
            lines.and_then(|lines| files::write_atomic(&self.path, &lines.concat(), files::PRIVATE));
        self.lines = records.len();
        self.tell(written);
    }

    fn tell(&mut self, written: io::Result<()>) {
        let has_failed = written.is_err();
        if let (false, Err(error)) = (self.is_failing, written) {
            tracing::error!(%error, path = %self.path.display(), "what a machine is refused is not kept");
        }
        self.is_failing = has_failed;
    }
}

fn line(record: &DenialRecord) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}
