//! What a workload printed, on disk: exact bytes, stream and time of each piece.
//!
//! ```text
//! output.log, output.log.1 (the older half):   piece*
//! piece:  0 time u64 (nanoseconds since 1970)   8 stream u8 (1 out, 2 err)   9 zero   12 length u32   16 bytes
//! ```
//! All little endian. A piece that a crash cut off ends the log. The two files together are bounded: a workload that
//! prints for ever costs [`LOG_LIMIT`], not the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::guest::Stream;
use crate::host::files::PRIVATE;

/// What both files of a log take at most, in bytes.
const LOG_LIMIT: u64 = 64 << 20;

const HEADER: usize = 16;
/// The longest piece: longer ones are not written, so a longer length is no piece.
const PIECE_MAX: usize = 1 << 20;

/// The file that is written.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("output.log")
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The writing end.
#[derive(Debug)]
pub(super) struct LogWriter {
    path: PathBuf,
    file: File,
    length: u64,
}

impl LogWriter {
    /// Opens the log of the machine whose data is in `directory`; goes on behind what is there.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = path(directory);
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(PRIVATE)
            .open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { path, file, length })
    }

    /// Appends a piece.
    pub(super) fn write(&mut self, time_unix_ns: u64, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(PIECE_MAX) {
            self.rotate_if_full()?;
            let mut piece = Vec::with_capacity(HEADER + part.len());
            piece.extend_from_slice(&time_unix_ns.to_le_bytes());
            piece.extend_from_slice(&[if stream == Stream::Stdout { 1 } else { 2 }, 0, 0, 0]);
            piece.extend_from_slice(&(part.len() as u32).to_le_bytes());
            piece.extend_from_slice(part);
            // One write, so that a reader never sees half a piece unless the disk is full.
            self.file.write_all(&piece)?;
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    fn rotate_if_full(&mut self) -> io::Result<()> {
        if self.length < LOG_LIMIT / 2 {
            return Ok(());
        }
        std::fs::rename(&self.path, older(&self.path))?;
        self.file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&self.path)?;
        self.length = 0;
        Ok(())
    }
}

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// Which output.
    pub stream: Stream,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The reading end; goes from the older file to the newer one.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    in_older: bool,
}

impl LogReader {
    /// Opens a machine's log at its beginning; `None` when there is none yet.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn open(directory: &Path) -> io::Result<Option<Self>> {
        let path = path(directory);
        for (candidate, in_older) in [(older(&path), true), (path.clone(), false)] {
            match File::open(candidate) {
                Ok(file) => {
                    return Ok(Some(Self {
                        path,
                        file: BufReader::with_capacity(1 << 16, file),
                        in_older,
                    }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns the next piece, or `None` where the log ends for now: what is written later is found by a later call.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.read_piece()? {
                return Ok(Some(piece));
            }
            if !self.in_older {
                return self.follow_rotation();
            }
            self.file = BufReader::with_capacity(1 << 16, File::open(&self.path)?);
            self.in_older = false;
        }
    }

    /// At the end of the newer file: it may have become the older one meanwhile.
    fn follow_rotation(&mut self) -> io::Result<Option<Piece>> {
        use std::os::unix::fs::MetadataExt as _;
        let current = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if current.ino() == self.file.get_ref().metadata()?.ino() {
            return Ok(None);
        }
        // What was written between our last read and the rotation is still in the file we hold.
        if let Some(piece) = self.read_piece()? {
            return Ok(Some(piece));
        }
        self.file = BufReader::with_capacity(1 << 16, File::open(&self.path)?);
        self.read_piece()
    }

    fn read_piece(&mut self) -> io::Result<Option<Piece>> {
        use std::io::Seek as _;
        let start = self.file.stream_position()?;
        let piece = self.read_whole_piece()?;
        if piece.is_none() {
            self.file.seek(io::SeekFrom::Start(start))?;
        }
        Ok(piece)
    }

    fn read_whole_piece(&mut self) -> io::Result<Option<Piece>> {
        let mut header = [0; HEADER];
        if !read_full(&mut self.file, &mut header)? {
            return Ok(None);
        }
        let (time, rest) = header.split_at(8);
        let time_unix_ns = u64::from_le_bytes(time.try_into().unwrap_or_default());
        let length = u32::from_le_bytes(rest[4..].try_into().unwrap_or_default()) as usize;
        let stream = match rest[0] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return Ok(None),
        };
        if length > PIECE_MAX {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        let whole = read_full(&mut self.file, &mut bytes)?;
        Ok(whole.then_some(Piece {
            time_unix_ns,
            stream,
            bytes,
        }))
    }
}

fn read_full(reader: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(reader: &mut LogReader) -> Vec<Piece> {
        std::iter::from_fn(|| reader.next_piece().unwrap()).collect()
    }

    #[test]
    fn pieces_come_back_exactly_and_a_torn_one_ends_the_log() {
        let directory = tempfile::tempdir().unwrap();
        assert!(LogReader::open(directory.path()).unwrap().is_none());
        let mut writer = LogWriter::open(directory.path()).unwrap();
        writer.write(5, Stream::Stdout, b"\0\xff\n").unwrap();
        writer.write(6, Stream::Stderr, b"e").unwrap();
        let mut reader = LogReader::open(directory.path()).unwrap().unwrap();
        let expected = [
            Piece {
                time_unix_ns: 5,
                stream: Stream::Stdout,
                bytes: b"\0\xff\n".to_vec(),
            },
            Piece {
                time_unix_ns: 6,
                stream: Stream::Stderr,
                bytes: b"e".to_vec(),
            },
        ];
        assert_eq!(all(&mut reader), expected);
        writer.file.write_all(&[1, 2, 3]).unwrap();
        assert_eq!(all(&mut reader), []);
    }

    #[test]
    fn a_reader_follows_what_is_written_later_and_the_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::open(directory.path()).unwrap();
        writer.write(1, Stream::Stdout, b"first").unwrap();
        let mut reader = LogReader::open(directory.path()).unwrap().unwrap();
        assert_eq!(all(&mut reader).len(), 1);
        writer.write(2, Stream::Stdout, b"second").unwrap();
        writer.length = LOG_LIMIT;
        writer.write(3, Stream::Stdout, b"third").unwrap();
        let times: Vec<_> = all(&mut reader).iter().map(|piece| piece.time_unix_ns).collect();
        assert_eq!(times, [2, 3]);
        let mut fresh = LogReader::open(directory.path()).unwrap().unwrap();
        assert_eq!(all(&mut fresh).len(), 3);
    }
}
