//! What a process has made its own of a file that it maps privately.
//!
//! A page that a process writes to becomes its own copy; `/proc/PID/pagemap` tells which are (proc_pid_pagemap(5)), and
//! `/proc/PID/mem` has their bytes. That takes the rights to trace the process, which a node has over the monitors that it started,
//! unless the host forbids even that (Yama).

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;

use super::memory_changes::{PAGE, Piece};
use super::process::ProcessId;

/// An entry's bits: the page is in memory; it is in swap; it is the file's, or shared memory.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_PAGE: u64 = 1 << 61;

/// How many entries are read at once.
const ENTRIES: usize = 64 << 10;

/// The memory of a process that stands still for as long as it is looked at.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: File,
    /// Its own pages: the first one's number in the file, how many, and the first one's address.
    own: Vec<(u64, u64, u64)>,
    /// How much of the file it maps, in bytes.
    bytes: u64,
}

/// Looks whether the memory of a process may be read.
///
/// # Errors
/// Returns the kernel's error.
pub fn check(process: ProcessId) -> io::Result<()> {
    open(process, "mem").map(drop)
}

fn open(process: ProcessId, file: &str) -> io::Result<File> {
    File::open(format!("/proc/{}/{file}", process.pid))
}

impl ProcessMemory {
    /// Looks at the private mappings of a file whose name in `/proc/PID/maps` begins so.
    ///
    /// # Errors
    /// Returns the kernel's error; [`io::ErrorKind::NotFound`] when nothing is mapped under that name.
    pub fn of(process: ProcessId, name: &str) -> io::Result<Self> {
        let maps = BufReader::new(open(process, "maps")?);
        let pagemap = open(process, "pagemap")?;
        let mut found = Self {
            memory: open(process, "mem")?,
            own: Vec::new(),
            bytes: 0,
        };
        for line in maps.lines() {
            if let Some(mapping) = Mapping::parse(&line?, name) {
                found.add(&mapping, &pagemap)?;
            }
        }
        if found.bytes == 0 {
            let text = format!("process {process} has no private mapping of {name}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        found.own.sort_unstable();
        Ok(found)
    }

    fn add(&mut self, mapping: &Mapping, pagemap: &File) -> io::Result<()> {
        let pages = mapping.bytes / PAGE;
        let mut entries = vec![[0; 8]; ENTRIES.min(usize::try_from(pages).unwrap_or(ENTRIES))];
        let mut done = 0;
        while done < pages {
            let wanted = usize::try_from(pages - done).unwrap_or(ENTRIES).min(ENTRIES);
            let entries = &mut entries[..wanted];
            let at = (mapping.address / PAGE + done) * 8;
            pagemap.read_exact_at(entries.as_flattened_mut(), at)?;
            for (number, entry) in (done..).zip(entries.iter()) {
                let entry = u64::from_le_bytes(*entry);
                if entry & (PRESENT | SWAPPED) != 0 && entry & FILE_PAGE == 0 {
                    self.push(mapping.offset / PAGE + number, mapping.address + number * PAGE);
                }
            }
            done += wanted as u64;
        }
        self.bytes += mapping.bytes;
        Ok(())
    }

    fn push(&mut self, page: u64, address: u64) {
        match self.own.last_mut() {
            Some((first, pages, at)) if *first + *pages == page && *at + *pages * PAGE == address => {
                *pages += 1
            }
            _ => self.own.push((page, 1, address)),
        }
    }

    /// Returns the pages that are the process's own, in order.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let piece = |&(first, pages, at): &(u64, u64, u64)| Piece {
            first,
            pages,
            file: &self.memory,
            at,
        };
        self.own.iter().map(piece).collect()
    }

    /// Returns how much of the file is mapped, in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A mapping of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    address: u64,
    bytes: u64,
    /// Where in the file it begins, in bytes.
    offset: u64,
}

impl Mapping {
    /// Reads a line of `/proc/PID/maps`: `START-END PERMISSIONS OFFSET DEVICE INODE NAME`; none if it is not private or of another name.
    fn parse(line: &str, name: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_private = fields.next()?.ends_with('p');
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let file = fields.nth(2)?;
        if !is_private || !file.starts_with(name) {
            return None;
        }
        let address = u64::from_str_radix(start, 16).ok()?;
        let bytes = u64::from_str_radix(end, 16).ok()?.checked_sub(address)?;
        Some(Self {
            address,
            bytes,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_mappings_of_a_name_are_found() {
        let line = "7f0cb3fff000-7f0cc3fff000 rw-p 00001000 00:01 42248                      /memfd:hearth-memory (deleted)";
        let found = Mapping {
            address: 0x7f0c_b3ff_f000,
            bytes: 256 << 20,
            offset: 0x1000,
        };
        assert_eq!(Mapping::parse(line, "/memfd:hearth-memory"), Some(found));
        assert_eq!(Mapping::parse(line, "/memfd:other"), None);
        let shared = line.replace("rw-p", "rw-s");
        assert_eq!(Mapping::parse(&shared, "/memfd:hearth-memory"), None);
        assert_eq!(Mapping::parse("7f0-7f1 rw-p 0 00:00 0", "/memfd"), None);
        assert_eq!(Mapping::parse("", "/memfd"), None);
    }

    #[test]
    fn pages_that_were_written_to_are_ones_own_and_have_the_new_bytes() {
        use rustix::fs::{MemfdFlags, memfd_create};
        use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

        let name = format!("hearth-test-{}", std::process::id());
        let file = File::from(memfd_create(name.as_str(), MemfdFlags::CLOEXEC).unwrap());
        let length = 32 * PAGE as usize;
        file.write_all_at(&vec![1; length], 0).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping where the kernel finds room.
        let mapped = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::PRIVATE,
                &file,
                0,
            )
        }
        .unwrap();
        // SAFETY: it has that length, and is this test's own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mapped.cast::<u8>(), length) };
        assert_eq!(bytes[5 * PAGE as usize], 1);
        for page in [7, 8, 31] {
            bytes[page * PAGE as usize] = 9;
        }
        let myself = ProcessId::of(i32::try_from(std::process::id()).unwrap())
            .unwrap()
            .unwrap();
        let found = ProcessMemory::of(myself, &format!("/memfd:{name}")).unwrap();
        assert_eq!(found.bytes(), length as u64);
        let pieces = found.pieces();
        let runs: Vec<_> = pieces.iter().map(|piece| (piece.first, piece.pages)).collect();
        assert_eq!(runs, [(7, 2), (31, 1)]);
        let mut read = [0; 2];
        pieces[0].file.read_exact_at(&mut read, pieces[0].at).unwrap();
        assert_eq!(read, [9, 1]);
        // SAFETY: nothing borrows from it any more.
        unsafe { munmap(mapped, length) }.unwrap();
        let gone = ProcessMemory::of(myself, &format!("/memfd:{name}")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }
}
