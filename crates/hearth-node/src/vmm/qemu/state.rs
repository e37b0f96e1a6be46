//! The stream of a machine's state, as far as a snapshot takes it apart (QEMU: docs/devel/migration.rst, "Stream structure").
//!
//! ```text
//! magic, version | configuration | memory: start, parts, end | devices | end | description
//! `------------------- the same for all clones ------------' `-- these processors and devices
//! ```
//! QEMU writes private memory into a stream, where nobody could share it. So a clone's stream is put together: of the one that it was
//! restored from comes the part about memory, which says where memory lies and has what else QEMU holds in it, firmware and tables that
//! no guest can write to; the rest QEMU writes alone. The pages that the guest has written to are read out of QEMU itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::host::files::PRIVATE;

const MAGIC: u32 = u32::from_be_bytes(*b"QEVM");
const VERSION: u32 = 3;
/// What a stream begins with, in bytes.
const HEADER: usize = 8;
/// The most that is looked at, in bytes; the part about memory takes less than 1 MiB.
const PART_MAX: u64 = 64 << 20;
/// What follows the end of a stream: a description, which is empty.
const DESCRIPTION: [u8; 5] = [6, 0, 0, 0, 0];

const PAGE: usize = 4 << 10;

mod section {
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(super) const FULL: u8 = 4;
    pub(super) const SUBSECTION: u8 = 5;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// What a record about memory is, in the low bits of its address.
mod memory {
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const SIZES: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const SAME_BLOCK: u64 = 0x20;
    pub(super) const FLAGS: u64 = 0xfff;
}

/// A stream that is being put together.
#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    file: File,
    /// The part about memory. QEMU empties what it opens, and writes its header where this ends: so it is written last.
    part: Vec<u8>,
}

impl Stream {
    /// Begins a stream in a new file, with the part about memory of another one.
    ///
    /// # Errors
    /// Returns the file system's error, and [`io::ErrorKind::InvalidData`] for a stream that is not known.
    pub(super) fn begin(path: &Path, origin: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(origin)?.take(PART_MAX).read_to_end(&mut bytes)?;
        let part = memory_part(&bytes).ok_or_else(|| invalid("the state is not laid out as expected"))?;
        let part = part.to_vec();
        // For writing alone: QEMU looks for a descriptor that is open for no more than it needs.
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(PRIVATE).open(path)?;
        file.seek(SeekFrom::Start(begin(&part)))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            part,
        })
    }

    /// Returns the descriptor that QEMU writes processors and devices to.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Ends it, once QEMU has written.
    pub(super) fn end(self) -> io::Result<()> {
        let written = File::open(&self.path)?;
        let mut header = [0; HEADER + 1];
        written.read_exact_at(&mut header, begin(&self.part))?;
        let mut reader = Reader(&header);
        if reader.header().is_none() || reader.byte() != Some(section::FULL) {
            return Err(invalid("QEMU has not written what was expected"));
        }
        self.file.write_all_at(&self.part, 0)?;
        self.file.write_all_at(&DESCRIPTION, written.metadata()?.len())
    }
}

/// Returns where QEMU begins: so that its header lies under the end of the part about memory.
const fn begin(part: &[u8]) -> u64 {
    (part.len() - HEADER) as u64
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Returns a stream as far as it is about memory.
pub(super) fn memory_part(stream: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader(stream);
    reader.header()?;
    loop {
        let rest = reader.0.len();
        match reader.byte()? {
            section::CONFIGURATION => reader.configuration()?,
            section::START => reader.start()?,
            section::PART | section::END => reader.part()?,
            section::FULL => return stream.get(..stream.len() - rest),
            _ => return None,
        }
    }
}

/// What is left of a stream.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A name behind its length.
    fn name(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    fn header(&mut self) -> Option<()> {
        (self.u32()? == MAGIC && self.u32()? == VERSION).then_some(())
    }

    /// The machine's kind, and with which abilities it was written.
    fn configuration(&mut self) -> Option<()> {
        let length = self.u32()?;
        self.take(length.try_into().ok()?)?;
        while self.0.first() == Some(&section::SUBSECTION) {
            self.byte()?;
            if self.name()? != b"configuration/capabilities" {
                return None;
            }
            let (_version, count) = (self.u32()?, self.u32()?);
            for _ in 0..count {
                self.name()?;
            }
        }
        Some(())
    }

    fn start(&mut self) -> Option<()> {
        let id = self.u32()?;
        let name = self.name()?;
        let (_instance, version) = (self.u32()?, self.u32()?);
        (name == b"ram" && version == 4).then_some(())?;
        self.records(id)
    }

    fn part(&mut self) -> Option<()> {
        let id = self.u32()?;
        self.records(id)
    }

    /// What a section says of memory, and its footer.
    fn records(&mut self, id: u32) -> Option<()> {
        loop {
            let record = self.u64()?;
            let kind = record & memory::FLAGS & !memory::SAME_BLOCK;
            let is_page = matches!(kind, memory::ZERO | memory::PAGE);
            if is_page && record & memory::SAME_BLOCK == 0 {
                self.name()?;
            }
            match kind {
                memory::SIZES => self.sizes(record & !memory::FLAGS)?,
                memory::ZERO => drop(self.byte()?),
                memory::PAGE => drop(self.take(PAGE)?),
                memory::END => break,
                _ => return None,
            }
        }
        (self.byte()? == section::FOOTER && self.u32()? == id).then_some(())
    }

    /// The blocks of memory: name, size and, as shared ones are left out, address.
    fn sizes(&mut self, mut total: u64) -> Option<()> {
        while total > 0 {
            let _name = self.name()?;
            total = total.checked_sub(self.u64()?)?;
            let _address = self.u64()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a stream like that of a clone: one block that is shared, a page of zeros and a page of another, and a device.
    fn stream() -> (Vec<u8>, usize) {
        let mut stream = [MAGIC.to_be_bytes(), VERSION.to_be_bytes()].concat();
        let named = |stream: &mut Vec<u8>, name: &[u8]| {
            stream.push(u8::try_from(name.len()).unwrap());
            stream.extend_from_slice(name);
        };
        stream.push(section::CONFIGURATION);
        stream.extend_from_slice(&7_u32.to_be_bytes());
        stream.extend_from_slice(b"pc-q35X");
        stream.push(section::SUBSECTION);
        named(&mut stream, b"configuration/capabilities");
        stream.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1]);
        named(&mut stream, b"x-ignore-shared");
        let footer = |stream: &mut Vec<u8>| {
            stream.push(section::FOOTER);
            stream.extend_from_slice(&2_u32.to_be_bytes());
        };
        stream.push(section::START);
        stream.extend_from_slice(&2_u32.to_be_bytes());
        named(&mut stream, b"ram");
        stream.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4]);
        stream.extend_from_slice(&(0x11_0000 | memory::SIZES).to_be_bytes());
        for (name, bytes) in [(&b"memory"[..], 0x10_0000_u64), (b"rom", 0x1_0000)] {
            named(&mut stream, name);
            stream.extend_from_slice(&bytes.to_be_bytes());
            stream.extend_from_slice(&[0; 8]);
        }
        stream.extend_from_slice(&memory::END.to_be_bytes());
        footer(&mut stream);
        for kind in [section::PART, section::END] {
            stream.push(kind);
            stream.extend_from_slice(&2_u32.to_be_bytes());
            stream.extend_from_slice(&memory::ZERO.to_be_bytes());
            named(&mut stream, b"rom");
            stream.push(0);
            stream.extend_from_slice(&(0x1000 | memory::PAGE | memory::SAME_BLOCK).to_be_bytes());
            stream.extend_from_slice(&[section::FULL; PAGE]);
            stream.extend_from_slice(&memory::END.to_be_bytes());
            footer(&mut stream);
        }
        let part = stream.len();
        stream.extend_from_slice(b"\x04device\0");
        (stream, part)
    }

    #[test]
    fn the_part_about_memory_ends_before_the_first_device() {
        let (stream, part) = stream();
        assert_eq!(memory_part(&stream).unwrap().len(), part);
    }

    #[test]
    fn what_is_cut_off_or_of_another_layout_is_not_taken_apart() {
        let (mut stream, part) = stream();
        for length in 0..=part {
            assert!(memory_part(&stream[..length]).is_none(), "{length} bytes");
        }
        stream[0] = b'X';
        assert!(memory_part(&stream).is_none());
    }

    #[test]
    fn a_stream_is_put_together_around_what_the_monitor_writes() {
        use std::io::Write as _;
        let (origin, part) = stream();
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("origin"), directory.path().join("state"));
        std::fs::write(&from, &origin).unwrap();
        let new = Stream::begin(&to, &from).unwrap();
        let devices = [&origin[..HEADER], b"\x04other device\0"].concat();
        File::from(new.descriptor().unwrap()).write_all(&devices).unwrap();
        new.end().unwrap();
        let expected = [&origin[..part], b"\x04other device\0", &DESCRIPTION].concat();
        assert!(std::fs::read(&to).unwrap() == expected);
    }

    #[test]
    fn a_monitor_that_writes_something_else_is_noticed() {
        use std::io::Write as _;
        let (origin, _) = stream();
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("origin"), directory.path().join("state"));
        std::fs::write(&from, &origin).unwrap();
        let new = Stream::begin(&to, &from).unwrap();
        File::from(new.descriptor().unwrap())
            .write_all(b"something else")
            .unwrap();
        assert_eq!(new.end().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
