//! What a workload printed, on disk: exact bytes, stream and time of each piece.
//!
//! ```text
//! output.log, output.log.1 (the older half):   piece*
//! piece:  0 time u64 (nanoseconds since 1970)   8 kind u8   9 zero   12 length u32   16 bytes
//! kind:   1 out, 2 err
//!         3 mark: how much this life of the workload has printed before (u64)
//!         4 place: how many bytes of log there were before this file (u64); comes first
//! ```
//! All little endian. A life begins with a mark of zero, and each file has one; so the log itself tells how much of a life's output
//! it has, which is what the next node asks the guest for the rest by. A piece that a crash cut off ends the log, and is cut off by
//! the next writer. The two files together never take more than the limit: a workload that prints for ever costs that, not the
//! disk. A reader that is overtaken by two rotations learns from the places how much it has missed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::guest::Stream;
use crate::host::files::PRIVATE;

const HEADER: usize = 16;
/// The longest piece: longer ones are not written, so a longer length is no piece.
const PIECE_MAX: usize = 1 << 20;
const BUFFER: usize = 1 << 16;

const OUT: u8 = 1;
const ERR: u8 = 2;
const MARK: u8 = 3;
const PLACE: u8 = 4;
/// What a mark or a place takes, header and all.
const NOTE: usize = HEADER + 8;

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
    /// Where the file begins in the whole log, and what is in it.
    begins: u64,
    length: u64,
    /// What one of the two files takes at most.
    half: u64,
    /// Bytes that this life of the workload has printed.
    printed: u64,
    /// Whether what was printed before is not what stands in the file: a mark must come first.
    mark_due: bool,
    piece: Vec<u8>,
}

impl LogWriter {
    /// Opens the log of the machine whose data is in `directory`, which takes `limit` bytes at most; goes on behind what is there,
    /// which is the output of this life.
    pub(super) fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        let path = path(directory);
        let file = open_for_writing(&path)?;
        let mut survey = Piecewise::new(File::open(&path)?)?.survey()?;
        let mark_due = survey.length == 0;
        if let (true, Some(before)) = (mark_due, open_if_there(&older(&path))?) {
            // After a crash in the middle of a rotation.
            let before = Piecewise::new(before)?.survey()?;
            (survey.begins, survey.printed) = (before.begins + before.length, before.printed);
        }
        if file.metadata()?.len() > survey.length {
            file.set_len(survey.length)?;
        }
        Ok(Self {
            path,
            file,
            begins: survey.begins,
            length: survey.length,
            half: limit / 2,
            printed: survey.printed,
            mark_due,
            piece: Vec::new(),
        })
    }

    /// Opens the log for a new life of the workload.
    pub(super) fn begin(directory: &Path, limit: u64, time_unix_ns: u64) -> io::Result<Self> {
        Self::begin_behind(directory, limit, time_unix_ns, 0)
    }

    /// Opens the log for a life that goes on where another machine was, which had printed so much.
    pub(super) fn begin_behind(
        directory: &Path,
        limit: u64,
        time_unix_ns: u64,
        printed: u64,
    ) -> io::Result<Self> {
        let mut log = Self::open(directory, limit)?;
        log.printed = printed;
        log.mark(time_unix_ns)?;
        Ok(log)
    }

    /// Returns how many bytes this life of the workload has printed, as far as they came here.
    pub(super) const fn printed(&self) -> u64 {
        self.printed
    }

    /// Appends a piece. Where that fails the log is as it was, and the piece counts as printed.
    pub(super) fn write(&mut self, time_unix_ns: u64, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let kind = if stream == Stream::Stdout { OUT } else { ERR };
        let fits = (self.half as usize).saturating_sub(2 * NOTE + HEADER);
        let mut written = Ok(());
        for part in bytes.chunks(fits.clamp(1, PIECE_MAX)) {
            if written.is_ok() {
                written = self.write_part(time_unix_ns, kind, part);
            }
            self.mark_due |= written.is_err();
            self.printed += part.len() as u64;
        }
        written
    }

    fn write_part(&mut self, time_unix_ns: u64, kind: u8, part: &[u8]) -> io::Result<()> {
        let mark = if self.mark_due { NOTE } else { 0 };
        if self.length + (mark + HEADER + part.len()) as u64 > self.half {
            self.rotate()?;
        }
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
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        if self.length == 0 {
            put(&mut piece, time_unix_ns, PLACE, &self.begins.to_le_bytes());
        }
        put(&mut piece, time_unix_ns, kind, bytes);
        // One write, so that a reader never sees half a piece unless the disk is full.
        let written = self.file.write_all(&piece);
        match written {
            Ok(()) => self.length += piece.len() as u64,
            // What follows must begin where a piece can be read.
            Err(_) => self.file.set_len(self.length)?,
        }
        self.piece = piece;
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, older(&self.path))?;
        self.file = open_for_writing(&self.path)?;
        self.begins += self.length;
        (self.length, self.mark_due) = (0, true);
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, time_unix_ns: u64, kind: u8, bytes: &[u8]) {
    out.extend_from_slice(&time_unix_ns.to_le_bytes());
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn open_for_writing(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(PRIVATE).open(path)
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
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
    /// Bytes of the log before it that were rotated away before they were read.
    pub missed: u64,
}

/// A file of pieces.
#[derive(Debug)]
struct Piecewise {
    file: BufReader<File>,
    inode: u64,
    /// Where the file begins in the whole log, once that was read.
    begins: Option<u64>,
    /// Where the next piece begins in the file.
    offset: u64,
}

/// What a whole file tells.
struct Survey {
    /// Where it begins in the whole log.
    begins: u64,
    /// Where its whole pieces end.
    length: u64,
    /// How much was printed in the life it ends with.
    printed: u64,
}

impl Piecewise {
    /// Begins at the first piece.
    fn new(file: File) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        let mut this = Self {
            file: BufReader::with_capacity(BUFFER, file),
            inode,
            begins: None,
            offset: 0,
        };
        if let Some(first) = read_whole(&mut this.file)? {
            this.note(&first);
        }
        this.back()?;
        Ok(this)
    }

    /// Returns where the next piece is in the whole log.
    fn position(&self) -> u64 {
        self.begins.unwrap_or(0) + self.offset
    }

    /// Goes back to where the next piece begins.
    fn back(&mut self) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.offset)).map(drop)
    }

    fn note(&mut self, piece: &RawPiece) {
        if piece.kind == PLACE {
            self.begins = piece.number().or(self.begins);
        }
    }

    /// Returns the next piece of whatever kind; `None` where there is none yet.
    fn next_raw(&mut self) -> io::Result<Option<RawPiece>> {
        let piece = read_whole(&mut self.file)?;
        match &piece {
            Some(piece) => {
                self.note(piece);
                self.offset += (HEADER + piece.bytes.len()) as u64;
            }
            None => self.back()?,
        }
        Ok(piece)
    }

    /// Returns the next piece of output; `None` where there is none yet.
    fn next(&mut self) -> io::Result<Option<Piece>> {
        while let Some(raw) = self.next_raw()? {
            let stream = match raw.kind {
                OUT => Stream::Stdout,
                ERR => Stream::Stderr,
                _ => continue,
            };
            return Ok(Some(Piece {
                time_unix_ns: raw.time_unix_ns,
                stream,
                bytes: raw.bytes,
                missed: 0,
            }));
        }
        Ok(None)
    }

    /// Reads through the file.
    fn survey(mut self) -> io::Result<Survey> {
        let mut printed = 0;
        while let Some(piece) = self.next_raw()? {
            printed = match piece.kind {
                MARK => piece.number().unwrap_or(printed),
                PLACE => printed,
                _ => printed + piece.bytes.len() as u64,
            };
        }
        Ok(Survey {
            begins: self.begins.unwrap_or(0),
            length: self.offset,
            printed,
        })
    }
}

/// The reading end; goes from the older file to the newer one.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Piecewise,
    /// What was missed before the next piece.
    missed: u64,
}

impl LogReader {
    /// Opens a machine's log at its beginning; `None` when there is none yet.
    ///
    /// # Errors
    /// Returns the file system's error.
    pub fn open(directory: &Path) -> io::Result<Option<Self>> {
        let path = path(directory);
        for candidate in [older(&path), path.clone()] {
            if let Some(file) = open_if_there(&candidate)? {
                let file = Piecewise::new(file)?;
                return Ok(Some(Self {
                    path,
                    file,
                    missed: 0,
                }));
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
            if let Some(piece) = self.next_here()? {
                return Ok(Some(piece));
            }
            let Some(next) = self.next_file()? else {
                return Ok(None);
            };
            // What was written between our last look and the rotation is still in the file we hold.
            if let Some(piece) = self.next_here()? {
                return Ok(Some(piece));
            }
            self.missed += next.begins.unwrap_or(0).saturating_sub(self.file.position());
            self.file = next;
        }
    }

    fn next_here(&mut self) -> io::Result<Option<Piece>> {
        let mut piece = self.file.next()?;
        if let Some(piece) = &mut piece {
            piece.missed = std::mem::take(&mut self.missed);
        }
        Ok(piece)
    }

    /// Finds the file that follows the one we hold, which may have been renamed or removed meanwhile.
    fn next_file(&self) -> io::Result<Option<Piecewise>> {
        for candidate in [older(&self.path), self.path.clone()] {
            let Some(file) = open_if_there(&candidate)? else {
                continue;
            };
            let next = Piecewise::new(file)?;
            let follows = match next.begins {
                Some(begins) => begins >= self.file.begins.unwrap_or(0),
                // It is new and has not begun, or is of a node that knew no places: the newer one follows then.
                None => candidate == self.path && next.file.get_ref().metadata()?.len() > 0,
            };
            if next.inode != self.file.inode && follows {
                return Ok(Some(next));
            }
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

impl RawPiece {
    /// Returns the number of a mark or a place.
    fn number(&self) -> Option<u64> {
        self.bytes[..].try_into().ok().map(u64::from_le_bytes)
    }
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
    if !(OUT..=PLACE).contains(&kind) || length > PIECE_MAX {
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
    use tempfile::TempDir;

    use super::*;

    const LIMIT: u64 = 4096;

    fn all(reader: &mut LogReader) -> Vec<Piece> {
        std::iter::from_fn(|| reader.next_piece().unwrap()).collect()
    }

    fn times(reader: &mut LogReader) -> Vec<u64> {
        all(reader).iter().map(|piece| piece.time_unix_ns).collect()
    }

    fn reader(directory: &TempDir) -> LogReader {
        LogReader::open(directory.path()).unwrap().unwrap()
    }

    fn writer(directory: &TempDir) -> LogWriter {
        LogWriter::open(directory.path(), LIMIT).unwrap()
    }

    fn begin(directory: &TempDir, time: u64) -> LogWriter {
        LogWriter::begin(directory.path(), LIMIT, time).unwrap()
    }

    /// What both files take.
    fn taken(directory: &TempDir) -> u64 {
        let files = std::fs::read_dir(directory.path()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn pieces_come_back_exactly_and_a_torn_one_ends_the_log() {
        let directory = tempfile::tempdir().unwrap();
        assert!(LogReader::open(directory.path()).unwrap().is_none());
        let mut writer = writer(&directory);
        writer.write(5, Stream::Stdout, b"\0\xff\n").unwrap();
        writer.write(6, Stream::Stderr, b"e").unwrap();
        let mut reader = reader(&directory);
        let expected = [
            Piece {
                time_unix_ns: 5,
                stream: Stream::Stdout,
                bytes: b"\0\xff\n".to_vec(),
                missed: 0,
            },
            Piece {
                time_unix_ns: 6,
                stream: Stream::Stderr,
                bytes: b"e".to_vec(),
                missed: 0,
            },
        ];
        assert_eq!(all(&mut reader), expected);
        writer.file.write_all(&[1, 2, 3]).unwrap();
        assert_eq!(all(&mut reader), []);
    }

    #[test]
    fn the_log_tells_how_much_of_a_life_it_has_and_a_torn_piece_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let mut former = begin(&directory, 1);
        former.write(2, Stream::Stdout, b"of another life").unwrap();
        let mut writer = begin(&directory, 3);
        writer.write(4, Stream::Stdout, b"12345").unwrap();
        writer.write(5, Stream::Stderr, b"678").unwrap();
        let mut following = reader(&directory);
        assert_eq!(times(&mut following), [2, 4, 5]);
        let torn = std::fs::read(path(directory.path())).unwrap();
        writer
            .file
            .write_all(&torn[torn.len() - 19..torn.len() - 1])
            .unwrap();
        assert!(times(&mut following).is_empty());

        let mut next = self::writer(&directory);
        assert_eq!(next.printed(), 8);
        next.write(6, Stream::Stdout, b"9").unwrap();
        assert_eq!(self::writer(&directory).printed(), 9);
        assert_eq!(times(&mut following), [6]);
        let printed: Vec<_> = all(&mut reader(&directory))
            .into_iter()
            .map(|piece| piece.bytes)
            .collect();
        let expected: [&[u8]; 4] = [b"of another life", b"12345", b"678", b"9"];
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_log_that_could_not_be_written_counts_what_it_lost_and_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = begin(&directory, 1);
        writer.write(2, Stream::Stdout, b"first").unwrap();
        let good = std::mem::replace(
            &mut writer.file,
            File::options().read(true).open("/dev/null").unwrap(),
        );
        assert!(writer.write(3, Stream::Stdout, b"lost").is_err());
        writer.file = good;
        writer.write(4, Stream::Stdout, b"third").unwrap();
        assert_eq!(writer.printed(), 14);
        assert_eq!(self::writer(&directory).printed(), 14);
        assert_eq!(times(&mut reader(&directory)), [2, 4]);
    }

    #[test]
    fn a_rotated_log_tells_how_much_of_a_life_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = begin(&directory, 1);
        writer.write(2, Stream::Stdout, &[b'x'; 1900]).unwrap();
        writer.write(3, Stream::Stdout, b"after").unwrap();
        writer.write(4, Stream::Stdout, &[b'x'; 1800]).unwrap();
        assert!(older(&writer.path).exists());
        assert_eq!(self::writer(&directory).printed(), 3705);
        // The node died in the middle of a rotation.
        std::fs::rename(path(directory.path()), older(&path(directory.path()))).unwrap();
        let mut next = self::writer(&directory);
        assert_eq!(next.printed(), 3705);
        next.write(5, Stream::Stdout, b"again").unwrap();
        assert_eq!(self::writer(&directory).printed(), 3710);
        let pieces = all(&mut reader(&directory));
        assert!(pieces.iter().all(|piece| piece.missed == 0));
    }

    #[test]
    fn a_reader_follows_rotations_and_the_limit_holds() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = begin(&directory, 0);
        writer.write(0, Stream::Stdout, b"first").unwrap();
        let mut reader = reader(&directory);
        assert_eq!(times(&mut reader), [0]);
        let mut read = Vec::new();
        for time in 1..=100 {
            writer.write(time, Stream::Stdout, &[b'x'; 500]).unwrap();
            assert!(taken(&directory) <= LIMIT);
            if time % 3 == 0 {
                read.extend(all(&mut reader));
            }
        }
        read.extend(all(&mut reader));
        assert!(
            read.iter()
                .all(|piece| piece.missed == 0 && piece.bytes.len() == 500)
        );
        let times: Vec<_> = read.iter().map(|piece| piece.time_unix_ns).collect();
        assert_eq!(times, (1..=100).collect::<Vec<_>>());
    }

    #[test]
    fn a_piece_larger_than_a_file_is_divided() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(&directory);
        let long: Vec<u8> = (0..3000_u32).map(|number| number as u8).collect();
        writer.write(1, Stream::Stdout, &long).unwrap();
        assert!(taken(&directory) <= LIMIT);
        let read: Vec<u8> = all(&mut reader(&directory))
            .into_iter()
            .flat_map(|piece| piece.bytes)
            .collect();
        assert_eq!(read, long);
    }

    #[test]
    fn a_reader_that_is_overtaken_learns_how_much_it_has_missed() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = writer(&directory);
        writer.write(0, Stream::Stdout, b"x").unwrap();
        let mut reader = reader(&directory);
        assert_eq!(times(&mut reader), [0]);
        for time in 1..=50 {
            writer.write(time, Stream::Stdout, &[b'x'; 500]).unwrap();
        }
        let pieces = all(&mut reader);
        // What was in the file that it holds comes first: three pieces, as in each file.
        let (held, rest) = pieces.split_at(3);
        assert!(
            held.iter()
                .all(|piece| piece.missed == 0 && piece.time_unix_ns <= 3)
        );
        let lost = rest[0].time_unix_ns - 4;
        let file = (2 * NOTE + 3 * (HEADER + 500)) as u64;
        assert!(lost > 0);
        assert_eq!(rest[0].missed, lost / 3 * file);
        assert!(rest[1..].iter().all(|piece| piece.missed == 0));
        assert_eq!(pieces.last().unwrap().time_unix_ns, 50);
    }

    #[test]
    fn a_log_of_a_node_that_knew_no_places_is_read_and_gone_on_with() {
        let directory = tempfile::tempdir().unwrap();
        let mut old = Vec::new();
        put(&mut old, 1, OUT, b"old");
        std::fs::write(path(directory.path()), old).unwrap();
        let mut reader = reader(&directory);
        assert_eq!(times(&mut reader), [1]);
        let mut writer = writer(&directory);
        for time in 2..=5 {
            writer.write(time, Stream::Stdout, &[b'x'; 900]).unwrap();
        }
        let pieces = all(&mut reader);
        let times: Vec<_> = pieces.iter().map(|piece| piece.time_unix_ns).collect();
        assert_eq!(times, [2, 3, 4, 5]);
        assert!(pieces.iter().all(|piece| piece.missed == 0));
    }
}
