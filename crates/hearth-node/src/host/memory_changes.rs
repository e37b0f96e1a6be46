//! What differs between two images of one memory, in a file of its own.
//!
//! ```text
//! 0      "HEARTHMC", size of the memory, offset of the table, number of runs; 64 bits each, little endian
//! 4096   the pages of the runs, one behind the other
//! table  for each run, in order: its first page, and how many it has; 64 bits each, little endian
//! ```
//! Holes cannot say it: a page of zeros in the place of another is a change, too, and a file system may tell holes at any granularity.
//! Such a file comes with a snapshot, which may be anybody's: nothing in it is believed.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::files::PRIVATE;

/// The size of a page, in bytes.
pub const PAGE: u64 = 4 << 10;

const MAGIC: u64 = u64::from_le_bytes(*b"HEARTHMC");
/// Where the pages begin, in bytes.
const PAGES_AT: u64 = PAGE;
/// What the table has for each run, in bytes.
const ENTRY: u64 = 16;
/// How much is copied at once, in bytes.
const CHUNK: u64 = 1 << 20;

/// Pages of a memory that lie in a row, and where their bytes are.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// The first page.
    pub first: u64,
    /// How many there are.
    pub pages: u64,
    /// Has their bytes.
    pub file: &'a File,
    /// Where in that, in bytes.
    pub at: u64,
}

impl<'a> Piece<'a> {
    const fn end(&self) -> u64 {
        self.first + self.pages
    }

    /// The part of it that is in this range of pages.
    fn part(&self, range: Range<u64>) -> Option<Piece<'a>> {
        let (first, end) = (self.first.max(range.start), self.end().min(range.end));
        (first < end).then(|| Piece {
            first,
            pages: end - first,
            at: self.at + (first - self.first) * PAGE,
            ..*self
        })
    }

    fn copy(&self, target: &File, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let (mut done, bytes) = (0, self.pages * PAGE);
        while done < bytes {
            let wanted = usize::try_from(CHUNK.min(bytes - done)).unwrap_or(buffer.len());
            self.file.read_exact_at(&mut buffer[..wanted], self.at + done)?;
            target.write_all_at(&buffer[..wanted], at + done)?;
            done += wanted as u64;
        }
        Ok(())
    }
}

/// Returns the pages of both; where both have one, the newer one's. Either has its pieces in order, and no page twice; so has what
/// is returned.
pub fn overlay<'a>(older: &[Piece<'a>], newer: &[Piece<'a>]) -> Vec<Piece<'a>> {
    let mut all = newer.to_vec();
    for piece in older {
        let mut from = piece.first;
        let behind = newer.partition_point(|other| other.end() <= piece.first);
        for other in newer[behind..]
            .iter()
            .take_while(|other| other.first < piece.end())
        {
            all.extend(piece.part(from..other.first));
            from = other.end();
        }
        all.extend(piece.part(from..piece.end()));
    }
    all.sort_by_key(|piece| piece.first);
    all
}

/// Finds the pages in which one memory differs from another one of its size; their bytes are the first one's.
///
/// # Errors
/// Returns the file system's error, also when the sizes differ.
pub fn difference<'a>(memory: &'a File, base: &File) -> io::Result<Vec<Piece<'a>>> {
    let bytes = memory.metadata()?.len();
    if base.metadata()?.len() != bytes || !bytes.is_multiple_of(PAGE) {
        return Err(invalid("the memories that are compared do not have one size"));
    }
    let mut pieces: Vec<Piece<'a>> = Vec::new();
    let (mut one, mut other) = (buffer(), buffer());
    let mut at = 0;
    while at < bytes {
        let wanted = usize::try_from(CHUNK.min(bytes - at)).unwrap_or(one.len());
        memory.read_exact_at(&mut one[..wanted], at)?;
        base.read_exact_at(&mut other[..wanted], at)?;
        let page = PAGE as usize;
        let pairs = one[..wanted].chunks(page).zip(other[..wanted].chunks(page));
        for (number, _) in (at / PAGE..).zip(pairs).filter(|(_, (one, other))| one != other) {
            match pieces.last_mut() {
                Some(last) if last.end() == number => last.pages += 1,
                _ => pieces.push(Piece {
                    first: number,
                    pages: 1,
                    file: memory,
                    at: number * PAGE,
                }),
            }
        }
        at += wanted as u64;
    }
    Ok(pieces)
}

/// Writes changes of a memory of this size, given in order and without a page twice. `to` is new.
///
/// # Errors
/// Returns the error of a source or of the file system; what was begun is removed.
pub fn write(to: &Path, memory: u64, pieces: &[Piece<'_>]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let target = options.write(true).create_new(true).mode(PRIVATE).open(to)?;
    let written = write_to(&target, memory, pieces);
    if written.is_err() {
        // The error that counts is the first one.
        let _ = std::fs::remove_file(to);
    }
    written
}

fn write_to(target: &File, memory: u64, pieces: &[Piece<'_>]) -> io::Result<()> {
    let mut buffer = buffer();
    let mut at = PAGES_AT;
    let mut table = Vec::with_capacity(pieces.len() * ENTRY as usize);
    for piece in pieces {
        piece.copy(target, at, &mut buffer)?;
        at += piece.pages * PAGE;
        table.extend_from_slice(&piece.first.to_le_bytes());
        table.extend_from_slice(&piece.pages.to_le_bytes());
    }
    // Whole, also without any run.
    target.set_len(at + table.len() as u64)?;
    target.write_all_at(&table, at)?;
    let header = [MAGIC, memory, at, pieces.len() as u64].map(u64::to_le_bytes);
    target.write_all_at(header.as_flattened(), 0)
}

/// Changes that were written.
#[derive(Debug)]
pub struct Changes {
    file: File,
    memory: u64,
    /// First page and number of each run.
    runs: Vec<(u64, u64)>,
}

impl Changes {
    /// Opens changes of a memory.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::InvalidData`] for a file that cannot have been written here, and the file system's error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut header = [[0; 8]; 4];
        file.read_exact_at(header.as_flattened_mut(), 0)?;
        let [magic, memory, table_at, count] = header.map(u64::from_le_bytes);
        if magic != MAGIC || !memory.is_multiple_of(PAGE) {
            return Err(invalid("these are no changes of a memory"));
        }
        let table_bytes = length.checked_sub(table_at).filter(|_| table_at >= PAGES_AT);
        if table_bytes.is_none() || table_bytes != count.checked_mul(ENTRY) {
            return Err(invalid("the changes of the memory have another size"));
        }
        let mut table = vec![0; usize::try_from(length - table_at).map_err(io::Error::other)?];
        file.read_exact_at(&mut table, table_at)?;
        let (numbers, _) = table.as_chunks::<8>();
        let (pairs, _) = numbers.as_chunks::<2>();
        let runs: Vec<_> = pairs.iter().map(|pair| pair.map(u64::from_le_bytes)).collect();
        let mut end = Some(0);
        let mut total: u64 = 0;
        for [first, pages] in &runs {
            end = end
                .filter(|end| first >= end && *pages > 0)
                .and_then(|_| first.checked_add(*pages));
            total = total.saturating_add(*pages);
        }
        let in_memory = end.is_some_and(|end| end <= memory / PAGE);
        if !in_memory || PAGES_AT + total * PAGE != table_at {
            return Err(invalid("the changes of the memory are not in it"));
        }
        Ok(Self {
            file,
            memory,
            runs: runs.into_iter().map(<(u64, u64)>::from).collect(),
        })
    }

    /// Returns the size of the memory, in bytes.
    pub const fn memory(&self) -> u64 {
        self.memory
    }

    /// Returns what they are, in order.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut at = PAGES_AT;
        let piece = |&(first, pages): &(u64, u64)| {
            let piece = Piece {
                first,
                pages,
                file: &self.file,
                at,
            };
            at += pages * PAGE;
            piece
        };
        self.runs.iter().map(piece).collect()
    }

    /// Writes them over an image of the memory that they were taken from.
    ///
    /// # Errors
    /// Returns the file system's error, also when the image has another size.
    pub fn apply(&self, image: &File) -> io::Result<()> {
        if image.metadata()?.len() != self.memory {
            return Err(invalid("the changes are of a memory of another size"));
        }
        let mut buffer = buffer();
        let pieces = self.pieces();
        pieces
            .iter()
            .try_for_each(|piece| piece.copy(image, piece.first * PAGE, &mut buffer))
    }
}

fn buffer() -> Vec<u8> {
    vec![0; CHUNK as usize]
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 64 * PAGE;

    /// A memory whose pages have these first bytes.
    fn memory(pages: &BTreeMap<u64, u8>) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY).unwrap();
        for (page, byte) in pages {
            file.write_all_at(&[*byte; PAGE as usize], page * PAGE).unwrap();
        }
        file
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn written(pieces: &[Piece<'_>]) -> (tempfile::TempDir, Changes) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("changes");
        write(&path, MEMORY, pieces).unwrap();
        let changes = Changes::open(&path).unwrap();
        (directory, changes)
    }

    fn pages() -> impl Strategy<Value = BTreeMap<u64, u8>> {
        proptest::collection::btree_map(0..MEMORY / PAGE, 0_u8..4, 0..64)
    }

    proptest! {
        #[test]
        fn changes_of_changes_make_of_a_memory_what_it_has_become(base in pages(), once in pages(), twice in pages()) {
            let (base, once, twice) = (memory(&base), memory(&once), memory(&twice));
            let (_first_directory, first) = written(&difference(&once, &base).unwrap());
            let newer = difference(&twice, &once).unwrap();
            let (_second_directory, second) = written(&overlay(&first.pieces(), &newer));
            second.apply(&base).unwrap();
            prop_assert!(bytes(&base) == bytes(&twice));
        }

        #[test]
        fn whatever_lies_there_is_refused_or_within_the_memory(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000), table in 0_u64..3) {
            if bytes.len() > 32 {
                bytes[..8].copy_from_slice(b"HEARTHMC");
                bytes[8..16].copy_from_slice(&MEMORY.to_le_bytes());
                bytes[16..24].copy_from_slice(&(PAGES_AT + table * PAGE).to_le_bytes());
            }
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("changes");
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(changes) = Changes::open(&path) {
                prop_assert!(changes.pieces().iter().all(|piece| piece.end() <= MEMORY / PAGE));
            }
        }
    }

    #[test]
    fn a_page_that_has_become_zeros_is_a_change() {
        let (base, now) = (memory(&BTreeMap::from([(3, 7)])), memory(&BTreeMap::new()));
        let (_directory, changes) = written(&difference(&now, &base).unwrap());
        assert_eq!(changes.runs, [(3, 1)]);
        changes.apply(&base).unwrap();
        assert!(bytes(&base).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_memory_that_is_the_same_has_no_changes() {
        let base = memory(&BTreeMap::from([(3, 7)]));
        let (_directory, changes) = written(&difference(&base, &base).unwrap());
        assert!(changes.pieces().is_empty());
        changes.apply(&base).unwrap();
    }

    #[test]
    fn what_was_cut_off_is_refused() {
        let now = memory(&BTreeMap::from([(3, 7), (9, 1)]));
        let base = memory(&BTreeMap::new());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("changes");
        write(&path, MEMORY, &difference(&now, &base).unwrap()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 31, 4096, 8192, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Changes::open(&path).is_err(), "{length} bytes");
        }
        let mut outside = whole.clone();
        let table = whole.len() - 32;
        outside[table..table + 8].copy_from_slice(&(MEMORY / PAGE).to_le_bytes());
        std::fs::write(&path, &outside).unwrap();
        let refused = Changes::open(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }
}
