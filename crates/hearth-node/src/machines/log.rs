//! What a workload printed, on disk: exact bytes, stream and time of each piece.
//!
//! ```text
//! output.log, output.log.1 (the older half):   piece*
//! piece:  0 time u64 (nanoseconds since 1970)   8 stream u8 (1 out, 2 err, 3 mark)   9 zero   12 length u32   16 bytes
//! mark:   its bytes are a u64: how much this life of the workload has printed before
//! ```
//! All little endian. A life begins with a mark of zero, and so does each file; so the log itself tells how much of a life's output
//! it has, which is what the next node asks the guest for the rest by. A piece that a crash cut off ends the log, and is cut off by
//! the next writer. The two files together are bounded: a workload that prints for ever costs [`LOG_LIMIT`], not the disk.

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

/// The kind of piece that is a mark.
const MARK: u8 = 3;

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
    /// Bytes that this life of the workload has printed.
    printed: u64,
    /// Whether what was printed before is not what stands in the file: a mark must come first.
    mark_due: bool,
}

impl LogWriter {
    /// Opens the log of the machine whose data is in `directory`; goes on behind what is there, which is the output of this life.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let path = path(directory);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(PRIVATE)
            .open(&path)?;
        let (length, printed) = survey(&file)?;
        if file.metadata()?.len() > length {
            file.set_len(length)?;
        }
        Ok(Self {
            path,
            file,
            length,
            printed,
            mark_due: false,
        })
    }

    /// Opens the log for a new life of the workload.
    pub(super) fn begin(directory: &Path, time_unix_ns: u64) -> io::Result<Self> {
        let mut log = Self::open(directory)?;
        log.printed = 0;
        log.mark(time_unix_ns)?;
        Ok(log)
    }

    /// Returns how many bytes this life of the workload has printed, as far as they came here.
    pub(super) const fn printed(&self) -> u64 {
        self.printed
    }

    /// Appends a piece. Where that fails the log is as it was, and the piece counts as printed.
    pub(super) fn write(&mut self, time_unix_ns: u64, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let kind = if stream == Stream::Stdout { 1 } else { 2 };
        let mut written = Ok(());
        for part in bytes.chunks(PIECE_MAX) {
            if written.is_ok() {
                written = self.write_part(time_unix_ns, kind, part);
            }
            self.mark_due |= written.is_err();
            self.printed += part.len() as u64;
        }
        written
    }

    fn write_part(&mut self, time_unix_ns: u64, kind: u8, part: &[u8]) -> io::Result<()> {
        self.rotate_if_full()?;
        if self.mark_due {
            self.mark(time_unix_ns)?;
        }
        self.append(time_unix_ns, kind, part)
    }

    fn mark(&mut self, time_unix_ns: u64) -> io::Result<()> {
        self.append(time_unix_ns, MARK, &self.printed.to_le_bytes())?;
        self.mark_due = false;
        Ok(())
    }

    fn append(&mut self, time_unix_ns: u64, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let mut piece = Vec::with_capacity(HEADER + bytes.len());
        piece.extend_from_slice(&time_unix_ns.to_le_bytes());
        piece.extend_from_slice(&[kind, 0, 0, 0]);
        piece.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        piece.extend_from_slice(bytes);
        // One write, so that a reader never sees half a piece unless the disk is full.
        if let Err(error) = self.file.write_all(&piece) {
            // What follows must begin where a piece can be read.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += piece.len() as u64;
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
        (self.length, self.mark_due) = (0, true);
        Ok(())
    }
}

/// Reads through a log; returns where its whole pieces end, and how much was printed in the life it ends with.
fn survey(file: &File) -> io::Result<(u64, u64)> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let (mut end, mut printed) = (0, 0);
    while let Some(piece) = read_whole(&mut reader)? {
        end += (HEADER + piece.bytes.len()) as u64;
        printed = match <[u8; 8]>::try_from(&piece.bytes[..]) {
            Ok(mark) if piece.kind == MARK => u64::from_le_bytes(mark),
            _ => printed + piece.bytes.len() as u64,
        };
    }
    Ok((end, printed))
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
            // Marks that were passed over are passed over again.
            self.file.seek(io::SeekFrom::Start(start))?;
        }
        Ok(piece)
    }

    fn read_whole_piece(&mut self) -> io::Result<Option<Piece>> {
        while let Some(raw) = read_whole(&mut self.file)? {
            let stream = match raw.kind {
                MARK => continue,
                1 => Stream::Stdout,
                _ => Stream::Stderr,
            };
            return Ok(Some(Piece {
                time_unix_ns: raw.time_unix_ns,
                stream,
                bytes: raw.bytes,
            }));
        }
        Ok(None)
    }
}

/// A piece of whatever kind.
struct RawPiece {
    time_unix_ns: u64,
    kind: u8,
    bytes: Vec<u8>,
}

/// Reads a piece; `None` where no whole one follows.
fn read_whole(reader: &mut impl io::Read) -> io::Result<Option<RawPiece>> {
    let mut header = [0; HEADER];
    if !read_full(reader, &mut header)? {
        return Ok(None);
    }
    let (time, rest) = header.split_at(8);
    let time_unix_ns = u64::from_le_bytes(time.try_into().unwrap_or_default());
    let length = u32::from_le_bytes(rest[4..].try_into().unwrap_or_default()) as usize;
    let kind = rest[0];
    if !(1..=MARK).contains(&kind) || length > PIECE_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    let whole = read_full(reader, &mut bytes)?;
    Ok(whole.then_some(RawPiece {
        time_unix_ns,
        kind,
        bytes,
    }))
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
    fn the_log_tells_how_much_of_a_life_it_has_and_a_torn_piece_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let mut former = LogWriter::begin(directory.path(), 1).unwrap();
        former.write(2, Stream::Stdout, b"of another life").unwrap();
        let mut writer = LogWriter::begin(directory.path(), 3).unwrap();
        writer.write(4, Stream::Stdout, b"12345").unwrap();
        writer.write(5, Stream::Stderr, b"678").unwrap();
        let torn = std::fs::read(path(directory.path())).unwrap();
        writer
            .file
            .write_all(&torn[torn.len() - 19..torn.len() - 1])
            .unwrap();

        let mut next = LogWriter::open(directory.path()).unwrap();
        assert_eq!(next.printed(), 8);
        next.write(6, Stream::Stdout, b"9").unwrap();
        assert_eq!(LogWriter::open(directory.path()).unwrap().printed(), 9);
        let mut reader = LogReader::open(directory.path()).unwrap().unwrap();
        let printed: Vec<_> = all(&mut reader).into_iter().map(|piece| piece.bytes).collect();
        let expected: [&[u8]; 4] = [b"of another life", b"12345", b"678", b"9"];
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_log_that_could_not_be_written_counts_what_it_lost_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::begin(directory.path(), 1).unwrap();
        writer.write(2, Stream::Stdout, b"first").unwrap();
        let good = std::mem::replace(
            &mut writer.file,
            File::options().read(true).open("/dev/null").unwrap(),
        );
        assert!(writer.write(3, Stream::Stdout, b"lost").is_err());
        writer.file = good;
        writer.write(4, Stream::Stdout, b"third").unwrap();
        assert_eq!(writer.printed(), 14);
        assert_eq!(LogWriter::open(directory.path()).unwrap().printed(), 14);
        let mut reader = LogReader::open(directory.path()).unwrap().unwrap();
        let times: Vec<_> = all(&mut reader).iter().map(|piece| piece.time_unix_ns).collect();
        assert_eq!(times, [2, 4]);
    }

    #[test]
    fn a_rotated_log_tells_how_much_of_a_life_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::begin(directory.path(), 1).unwrap();
        writer.write(2, Stream::Stdout, b"before").unwrap();
        writer.length = LOG_LIMIT;
        writer.write(3, Stream::Stdout, b"after").unwrap();
        assert_eq!(LogWriter::open(directory.path()).unwrap().printed(), 11);
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
