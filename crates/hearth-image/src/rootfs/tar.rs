//! Reads a layer's archive, entry by entry, from bytes that an attacker may have written.
//!
//! The `tar` crate writes our archives but does not read these: it reads pax records and long names into memory
//! without a bound, and splits pax records at line feeds, which a file capability may contain. Understood are v7,
//! ustar, pax and GNU archives with long names, base-256 numbers and sparse files (GNU's old format and its three of pax).

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::pax::{Pax, PaxError, PaxSparse};
use super::sparse::{Next, Segment, SparseMap};
use crate::Limits;

const RECORD: usize = 512;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
}

/// One entry; its content is read through [`TarReader::content`].
#[derive(Debug)]
pub(crate) struct Entry {
    /// The path as written.
    pub(crate) path: Vec<u8>,
    /// The target of a hard or symbolic link as written.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// Returns how many bytes its names and attributes have.
    pub(crate) fn memory(&self) -> usize {
        let xattrs = self
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len() + 8);
        // The path is the key of what its layer has, and its last part that of the directory.
        2 * self.path.len() + self.link.len() + xattrs.sum::<usize>()
    }
}

/// Says why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream failed: IO, or damaged compression.
    #[error("its content cannot be decompressed or read")]
    Read(#[source] io::Error),
    /// The stream ended within an entry.
    #[error("it ends at byte {offset} in the middle of an entry: it is truncated")]
    Truncated {
        /// Where, in decompressed bytes.
        offset: u64,
    },
    /// A header's checksum does not match.
    #[error("the header at byte {offset} is not one of a tar archive")]
    Checksum {
        /// Where, in decompressed bytes.
        offset: u64,
    },
    /// A number in a header is none, or out of range.
    #[error("the header at byte {offset} has no valid {field}")]
    Field {
        /// Where, in decompressed bytes.
        offset: u64,
        /// Which field.
        field: &'static str,
    },
    /// A type that no layer may hold.
    #[error("the entry at byte {offset} is of type {kind:#04x}, which is none of a container image")]
    Type {
        /// Where, in decompressed bytes.
        offset: u64,
        /// The type byte.
        kind: u8,
    },
    /// The pax records before an entry are damaged.
    #[error("the pax records before byte {offset} are damaged")]
    Pax {
        /// Where, in decompressed bytes.
        offset: u64,
        /// What is wrong with them.
        #[source]
        source: PaxError,
    },
    /// The map of a sparse file is damaged.
    #[error("the map of the sparse file at byte {offset} is damaged")]
    Sparse {
        /// Where, in decompressed bytes.
        offset: u64,
    },
    /// More than [`Limits`] allows.
    #[error("it goes over the limit of {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
}

/// What all layers of an image may still use up.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    unpacked_bytes: u64,
    bytes: u64,
    entries: u64,
    memory: u64,
}

impl Budget {
    /// Makes the budget of an image whose blobs have so many bytes.
    pub(crate) fn new(limits: Limits, blob_bytes: u64) -> Self {
        let unpacked_bytes = limits.expanded(blob_bytes);
        Self {
            limits,
            unpacked_bytes,
            bytes: unpacked_bytes,
            entries: limits.entries,
            memory: limits.memory_bytes,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes bytes of a decompressed layer.
    pub(crate) fn take_bytes(&mut self, count: u64) -> Result<(), ArchiveError> {
        let refused = ArchiveError::Limit {
            what: "unpacked bytes",
            limit: self.unpacked_bytes,
        };
        self.bytes = self.bytes.checked_sub(count).ok_or(refused)?;
        Ok(())
    }

    /// Takes archive entries, or directories that entries imply.
    pub(crate) fn take_entries(&mut self, count: u64) -> Result<(), ArchiveError> {
        let refused = ArchiveError::Limit {
            what: "entries",
            limit: self.limits.entries,
        };
        self.entries = self.entries.checked_sub(count).ok_or(refused)?;
        Ok(())
    }

    /// Takes the memory of so many entries, whose names and attributes have `bytes`.
    pub(crate) fn take_memory(&mut self, entries: u64, bytes: usize) -> Result<(), ArchiveError> {
        let refused = ArchiveError::Limit {
            what: "bytes of names and attributes",
            limit: self.limits.memory_bytes,
        };
        let wanted = entries
            .saturating_mul(Limits::ENTRY_MEMORY)
            .saturating_add(bytes as u64);
        self.memory = self.memory.checked_sub(wanted).ok_or(refused)?;
        Ok(())
    }
}

/// Passes over bytes of an input. Ones that are missing are an error.
type Skip<R> = fn(&mut R, u64) -> io::Result<()>;

fn skip_reading<R: Read>(input: &mut R, count: u64) -> io::Result<()> {
    match io::copy(&mut input.take(count), &mut io::sink())? {
        skipped if skipped < count => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

fn skip_seeking<R: Read + Seek>(input: &mut R, count: u64) -> io::Result<()> {
    let target = input.stream_position()?.saturating_add(count);
    if target > input.seek(SeekFrom::End(0))? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    input.seek(SeekFrom::Start(target)).map(drop)
}

/// Reads the entries of one archive.
pub(crate) struct TarReader<'b, R> {
    input: R,
    skip: Skip<R>,
    budget: &'b mut Budget,
    offset: u64,
    /// Stored bytes of the current entry that were not read yet, and the padding behind them.
    stored: u64,
    padding: u64,
    sparse: Option<SparseMap>,
}

/// What extension headers said of the next entry.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'b, R: Read + Seek> TarReader<'b, R> {
    /// Reads an archive whose content need not be read to be passed over.
    pub(crate) fn seeking(input: R, budget: &'b mut Budget) -> Self {
        Self {
            skip: skip_seeking,
            ..Self::new(input, budget)
        }
    }
}

impl<'b, R: Read> TarReader<'b, R> {
    pub(crate) fn new(input: R, budget: &'b mut Budget) -> Self {
        Self {
            input,
            skip: skip_reading,
            budget,
            offset: 0,
            stored: 0,
            padding: 0,
            sparse: None,
        }
    }

    /// Returns what is left to use up.
    pub(crate) fn budget(&mut self) -> &mut Budget {
        self.budget
    }

    /// Advances to the next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        self.sparse = None;
        self.skip_stored()?;
        let mut extensions = Extensions::default();
        let mut announced = false;
        loop {
            let Some(header) = self.header()? else {
                // What records or a long name announce must come.
                return match announced {
                    true => Err(ArchiveError::Truncated { offset: self.offset }),
                    false => Ok(None),
                };
            };
            self.budget.take_entries(1)?;
            announced |= matches!(header.kind(), b'x' | b'L' | b'K');
            match header.kind() {
                b'x' => {
                    let records = self.extension(&header)?;
                    let limit = self.budget.limits.xattr_bytes;
                    extensions
                        .pax
                        .parse(&records, limit)
                        .map_err(|source| ArchiveError::Pax {
                            offset: self.offset,
                            source,
                        })?;
                }
                // Global records carry comments (git archive writes its commit there); docker ignores them too.
                b'g' => drop(self.extension(&header)?),
                b'L' => extensions.long_name = Some(until_nul(&self.extension(&header)?)),
                b'K' => extensions.long_link = Some(until_nul(&self.extension(&header)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads the content of the current entry: exactly [`Entry::size`] bytes, or an error.
    pub(crate) fn content(&mut self) -> Content<'_, 'b, R> {
        Content { reader: self }
    }

    /// Returns where the content of the current entry begins, if it is stored as it is.
    pub(crate) fn content_offset(&self) -> Option<u64> {
        self.sparse.is_none().then_some(self.offset)
    }

    /// Says why the content of the current entry could not be read.
    pub(crate) fn content_error(&self, source: io::Error) -> ArchiveError {
        read_error(source, self.offset)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
        let at = self.offset - RECORD as u64;
        let field = |field| move || ArchiveError::Field { offset: at, field };
        let mut pax = extensions.pax;
        let sparse = pax
            .take_sparse()
            .map_err(|source| ArchiveError::Pax { offset: at, source })?;
        let path = pax
            .sparse_name
            .or(pax.path)
            .or(extensions.long_name)
            .unwrap_or_else(|| header.path());
        let kind = entry_kind(header.kind(), &path).ok_or(ArchiveError::Type {
            offset: at,
            kind: header.kind(),
        })?;
        let stored = pax
            .size
            .or_else(|| header.unsigned(124..136))
            .ok_or_else(field("size"))?;
        // Links and the like carry no content, whatever the size field says: as Go's and GNU's readers have it.
        let stored = if kind == Kind::Regular { stored } else { 0 };
        self.begin_content(stored)?;
        let size = match sparse {
            _ if header.kind() == b'S' => self.begin_gnu_sparse(header)?,
            _ if kind != Kind::Regular => stored,
            Some(PaxSparse::Content { size }) => self.begin_pax_sparse(size)?,
            Some(PaxSparse::Records { size, map }) => self.begin_sparse(Some(map), size)?,
            None => stored,
        };
        self.budget.take_bytes(size.max(stored))?;
        let id = |own: Option<u64>, at| {
            own.or_else(|| header.unsigned(at))
                .and_then(|id| u32::try_from(id).ok())
                // The last number means nobody: chown(2) takes it for "leave it".
                .filter(|id| *id != u32::MAX)
        };
        Ok(Entry {
            path,
            link: pax
                .link
                .or(extensions.long_link)
                .unwrap_or_else(|| until_nul(&header.0[157..257])),
            kind,
            size,
            mode: (header.unsigned(100..108).ok_or_else(field("mode"))? & 0o7777) as u16,
            uid: id(pax.uid, 108..116).ok_or_else(field("user id"))?,
            gid: id(pax.gid, 116..124).ok_or_else(field("group id"))?,
            mtime: pax
                .mtime
                .or_else(|| Some((header.number(136..148)?, 0)))
                .ok_or_else(field("time"))?,
            device: header.device(kind).ok_or_else(field("device number"))?,
            xattrs: pax.xattrs,
        })
    }

    fn begin_content(&mut self, stored: u64) -> Result<(), ArchiveError> {
        self.stored = stored;
        self.padding = stored.wrapping_neg() % RECORD as u64;
        match stored.checked_add(RECORD as u64) {
            Some(_) => Ok(()),
            None => Err(ArchiveError::Field {
                offset: self.offset,
                field: "size",
            }),
        }
    }

    /// GNU's old format: four segments in the header, more in records behind it.
    fn begin_gnu_sparse(&mut self, header: &Header) -> Result<u64, ArchiveError> {
        let damaged = || ArchiveError::Sparse { offset: self.offset };
        let size = header.unsigned(483..495).ok_or_else(damaged)?;
        let mut segments = header.segments(386..482);
        let mut more = header.0[482] != 0;
        while more {
            let record = Header(
                self.record()?
                    .ok_or(ArchiveError::Truncated { offset: self.offset })?,
            );
            segments.extend(record.segments(0..504));
            more = record.0[504] != 0;
            self.check_segments(&segments)?;
        }
        self.begin_sparse(segments.into_iter().collect::<Option<_>>(), size)
    }

    /// Pax 1.0: the map comes before the content, as decimal lines, padded to a whole record.
    fn begin_pax_sparse(&mut self, size: u64) -> Result<u64, ArchiveError> {
        let before = self.stored;
        let count = self.decimal_line()?;
        let mut segments = Vec::new();
        for _ in 0..count {
            let segment = Segment {
                offset: self.decimal_line()?,
                length: self.decimal_line()?,
            };
            segments.push(Some(segment));
            self.check_segments(&segments)?;
        }
        let map = before - self.stored;
        let rest = map.next_multiple_of(RECORD as u64) - map;
        self.discard_stored(rest)?;
        self.begin_sparse(segments.into_iter().collect(), size)
    }

    fn check_segments(&self, segments: &[Option<Segment>]) -> Result<(), ArchiveError> {
        let limit = self.budget.limits.header_bytes;
        if (size_of_val(segments) as u64) < limit {
            return Ok(());
        }
        Err(ArchiveError::Limit {
            what: "bytes of header",
            limit,
        })
    }

    fn begin_sparse(&mut self, segments: Option<Vec<Segment>>, size: u64) -> Result<u64, ArchiveError> {
        let map = segments.and_then(|segments| SparseMap::new(segments, size, self.stored));
        self.sparse = Some(map.ok_or(ArchiveError::Sparse { offset: self.offset })?);
        Ok(size)
    }

    fn decimal_line(&mut self) -> Result<u64, ArchiveError> {
        let mut value: u64 = 0;
        for _ in 0..20 {
            let mut byte = [0];
            self.read_stored(&mut byte)?;
            let digit = match byte[0] {
                b'\n' => return Ok(value),
                digit @ b'0'..=b'9' => u64::from(digit - b'0'),
                _ => break,
            };
            let Some(next) = value.checked_mul(10).and_then(|v| v.checked_add(digit)) else {
                break;
            };
            value = next;
        }
        Err(ArchiveError::Sparse { offset: self.offset })
    }

    /// Reads stored bytes of the current entry, exactly as many as asked for.
    fn read_stored(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let count = buffer.len() as u64;
        self.stored = self
            .stored
            .checked_sub(count)
            .ok_or(ArchiveError::Sparse { offset: self.offset })?;
        let read = self.input.read_exact(buffer);
        self.offset += count;
        read.map_err(|source| read_error(source, self.offset))
    }

    fn discard_stored(&mut self, count: u64) -> Result<(), ArchiveError> {
        self.stored = self
            .stored
            .checked_sub(count)
            .ok_or(ArchiveError::Sparse { offset: self.offset })?;
        if count > 0 {
            (self.skip)(&mut self.input, count)
                .map_err(|source| read_error(source, self.offset.saturating_add(count)))?;
            self.offset += count;
        }
        Ok(())
    }

    /// Skips what is left of the current entry. Its padding may be missing where nothing follows: some writers (umoci-insert(1)) leave
    /// that and the end of the archive away, and Go's and GNU's readers take it.
    fn skip_stored(&mut self) -> Result<(), ArchiveError> {
        self.discard_stored(self.stored)?;
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(padding), &mut io::sink());
        self.offset += skipped.map_err(|source| read_error(source, self.offset))?;
        Ok(())
    }

    /// Reads the content of an extension header whole.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let field = ArchiveError::Field {
            offset: self.offset,
            field: "size",
        };
        let size = header.unsigned(124..136).ok_or(field)?;
        let limit = self.budget.limits.header_bytes;
        if size > limit {
            return Err(ArchiveError::Limit {
                what: "bytes of header",
                limit,
            });
        }
        self.budget.take_bytes(size)?;
        self.begin_content(size)?;
        let mut content = vec![0; size as usize];
        self.read_stored(&mut content)?;
        self.skip_stored()?;
        Ok(content)
    }

    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let Some(record) = self.record()? else {
            return Ok(None);
        };
        if record.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(record);
        if header.checksum_matches() {
            return Ok(Some(header));
        }
        Err(ArchiveError::Checksum {
            offset: self.offset - RECORD as u64,
        })
    }

    /// Reads 512 bytes; `None` when the stream ends before the first.
    fn record(&mut self) -> Result<Option<[u8; RECORD]>, ArchiveError> {
        self.budget.take_bytes(RECORD as u64)?;
        let mut record = [0; RECORD];
        let mut filled = 0;
        while filled < RECORD {
            match self.input.read(&mut record[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(ArchiveError::Truncated {
                        offset: self.offset + filled as u64,
                    });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error, self.offset + filled as u64)),
            }
        }
        self.offset += RECORD as u64;
        Ok(Some(record))
    }
}

/// Reads the content of an entry, holes as zeros.
pub(crate) struct Content<'r, 'b, R> {
    reader: &'r mut TarReader<'b, R>,
}

impl<R: Read> Read for Content<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let reader = &mut *self.reader;
        let mut length = reader.stored.min(buffer.len() as u64) as usize;
        if let Some(sparse) = &mut reader.sparse {
            match sparse.next(buffer.len()) {
                Next::Hole(zeros) => {
                    buffer[..zeros].fill(0);
                    return Ok(zeros);
                }
                Next::Data(data) => length = length.min(data),
            }
        }
        let count = reader.input.read(&mut buffer[..length])?;
        reader.stored -= count as u64;
        reader.offset += count as u64;
        if let Some(sparse) = &mut reader.sparse {
            sparse.consumed(count as u64);
        }
        Ok(count)
    }
}

fn read_error(source: io::Error, offset: u64) -> ArchiveError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated { offset },
        _ => ArchiveError::Read(source),
    }
}

fn entry_kind(kind: u8, path: &[u8]) -> Option<Kind> {
    Some(match kind {
        // Archives older than ustar mark directories by a slash at the end.
        b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
        b'0' | 0 | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

/// A header record; offsets as in `pax(1)`, "ustar Interchange Format".
struct Header([u8; RECORD]);

impl Header {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // GNU's magic is "ustar  "; it keeps times where ustar has the prefix.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [&prefix[..], &name].join(&b'/')
        } else {
            name
        }
    }

    fn device(&self, kind: Kind) -> Option<(u32, u32)> {
        if !matches!(kind, Kind::Character | Kind::Block) {
            return Some((0, 0));
        }
        let part = |range, limit| self.unsigned(range).filter(|n| *n < limit).map(|n| n as u32);
        Some((part(329..337, 1 << 12)?, part(337..345, 1 << 20)?))
    }

    fn segments(&self, range: std::ops::Range<usize>) -> Vec<Option<Segment>> {
        range
            .step_by(24)
            .filter(|at| self.0[*at] != 0)
            .map(|at| {
                Some(Segment {
                    offset: self.unsigned(at..at + 12)?,
                    length: self.unsigned(at + 12..at + 24)?,
                })
            })
            .collect()
    }

    fn unsigned(&self, range: std::ops::Range<usize>) -> Option<u64> {
        self.number(range).and_then(|number| u64::try_from(number).ok())
    }

    /// Reads octal digits between blanks, or GNU's base-256; an empty field is 0, as for Go's reader.
    fn number(&self, range: std::ops::Range<usize>) -> Option<i64> {
        let field = &self.0[range];
        if field[0] & 0x80 != 0 {
            return base_256(field);
        }
        let digits = until_nul(field);
        let digits = digits.trim_ascii();
        digits.iter().try_fold(0i64, |value, byte| match byte {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
            _ => None,
        })
    }

    fn checksum_matches(&self) -> bool {
        let sum = |signed: bool| {
            self.0.iter().enumerate().fold(0i64, |sum, (at, byte)| {
                let byte = if (148..156).contains(&at) { b' ' } else { *byte };
                sum + if signed {
                    i64::from(byte as i8)
                } else {
                    i64::from(byte)
                }
            })
        };
        // Some old writers summed signed bytes.
        self.number(148..156)
            .is_some_and(|written| written == sum(false) || written == sum(true))
    }
}

/// Two's complement, most significant byte first; the marker bit is dropped, the next one is the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = i64::from(field[0] & 0x7f) - if negative { 0x80 } else { 0 };
    field[1..].iter().try_fold(first, |value, byte| {
        value.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}
