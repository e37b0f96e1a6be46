//! A file of what a machine was refused, or of whom it talked to, a line of JSON each, beside its record: it outlives the node and the machine's
//! end, and goes with the machine. Bounded: once it has twice as many lines as are kept, it is written anew.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::host::files;

/// A file of one machine's. It is opened for each line: nothing of a machine that is quiet is open.
#[derive(Debug)]
pub(super) struct Book<R> {
    path: PathBuf,
    /// How many records are kept.
    most: usize,
    lines: usize,
    /// The last write has failed, which is told once.
    is_failing: bool,
    of: PhantomData<R>,
}

impl<R: Serialize + DeserializeOwned> Book<R> {
    /// Reads what is there, oldest first; lines that are none are left out.
    pub(super) fn open(path: PathBuf, most: usize) -> (Self, Vec<R>) {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, path = %path.display(), "what was known of a machine's network is not");
                }
                Vec::new()
            }
        };
        let is_whole = text.is_empty() || text.ends_with(b"\n");
        let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let records: Vec<R> = lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let mut book = Self {
            path,
            most,
            lines: records.len(),
            is_failing: false,
            of: PhantomData,
        };
        // A node has died, or a disk was full, in the middle of a line.
        if !is_whole {
            book.write(&records);
        }
        (book, records)
    }

    /// Adds the newest of these.
    pub(super) fn add(&mut self, record: &R, all: impl FnOnce() -> Vec<R>) {
        if self.is_failing || self.lines >= 2 * self.most {
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
    fn write(&mut self, records: &[R]) {
        let lines: io::Result<Vec<Vec<u8>>> = records.iter().map(line).collect();
        let written =
            lines.and_then(|lines| files::write_atomic(&self.path, &lines.concat(), files::PRIVATE));
        self.lines = records.len();
        self.tell(written);
    }

    fn tell(&mut self, written: io::Result<()>) {
        let has_failed = written.is_err();
        if let (false, Err(error)) = (self.is_failing, written) {
            tracing::error!(%error, path = %self.path.display(), "what becomes known of a machine's network is not kept");
        }
        self.is_failing = has_failed;
    }
}

fn line(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}
