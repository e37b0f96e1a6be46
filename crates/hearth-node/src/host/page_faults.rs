//! Page faults of another process, from the side of who serves them: userfaultfd(2), ioctl_userfaultfd(2).
//!
//! The process whose memory it is made the descriptor, chose its features and registered its memory; here events are read and
//! pages are put in place. The crate `userfaultfd` was left out: it needs libclang to build, for constants that are in
//! `linux-raw-sys`, and a second version of `nix`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general::{uffdio_copy, uffdio_range, uffdio_zeropage};
use linux_raw_sys::ioctl::{UFFDIO_COPY, UFFDIO_WAKE, UFFDIO_ZEROPAGE};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl};

/// What the kernel calls such a descriptor in `/proc/self/fd`.
const LINK: &[u8] = b"anon_inode:[userfaultfd]";

/// `struct uffd_msg`: its bytes, its kinds, and where their fields lie.
const MESSAGE: usize = 32;
const PAGEFAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;
const FAULT_ADDRESS: usize = 16;
const REMOVE_RANGE: [usize; 2] = [8, 16];

/// Messages that are read at a time.
const BATCH: usize = 64;

/// What happened to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for the page that holds this address.
    Missing {
        /// Not rounded to the page.
        address: u64,
    },
    /// The process gives memory back; what it touches there later is missing anew. It waits until this event is read.
    Removed {
        /// The first byte.
        begin: u64,
        /// The first one that is not of it.
        end: u64,
    },
    /// Something that was not to be told.
    Unknown(u8),
}

impl Event {
    fn of(message: &[u8]) -> Self {
        let word = |at: usize| {
            message
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        match message[0] {
            PAGEFAULT => Self::Missing {
                address: word(FAULT_ADDRESS),
            },
            REMOVE => Self::Removed {
                begin: word(REMOVE_RANGE[0]),
                end: word(REMOVE_RANGE[1]),
            },
            other => Self::Unknown(other),
        }
    }
}

/// What became of putting pages in place.
#[derive(Debug)]
pub enum Placed {
    /// All are there.
    All,
    /// So many bytes are; behind them is a page that was there already.
    UpToPresent(u64),
    /// So many bytes are; then the process was about to give memory back, and the events that say so come first.
    UpToChange(u64),
    /// The process has ended.
    Gone,
}

/// The descriptor of a process that misses pages.
#[derive(Debug)]
pub struct PageFaults {
    descriptor: OwnedFd,
}

impl PageFaults {
    /// Takes a descriptor that somebody sent; `None` when it is of another kind. Reading never waits from then on.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn new(descriptor: OwnedFd) -> io::Result<Option<Self>> {
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        if rustix::fs::readlink(path, Vec::new())?.as_bytes() != LINK {
            return Ok(None);
        }
        let flags = fcntl_getfl(&descriptor)?;
        fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        Ok(Some(Self { descriptor }))
    }

    /// Reads events that are there, a batch at most; none means that there are none.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let mut buffer = [0; MESSAGE * BATCH];
        match rustix::io::read(&self.descriptor, &mut buffer) {
            Ok(count) => Ok(buffer[..count].chunks_exact(MESSAGE).map(Event::of).collect()),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Copies whole pages to an address, and wakes who waits for them.
    ///
    /// # Errors
    /// The address is not registered there, or no memory is left.
    pub fn copy(&self, pages: &[u8], to: u64) -> io::Result<Placed> {
        let mut request = uffdio_copy {
            dst: to,
            src: pages.as_ptr().addr() as u64,
            len: pages.len() as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the structure is the one of this request. The kernel reads `pages`, which live across the call, and writes
        // to memory of the process that made the descriptor, which is never this one: it makes none.
        let made = unsafe {
            let call = Updater::<{ UFFDIO_COPY as Opcode }, uffdio_copy>::new(&mut request);
            ioctl(&self.descriptor, call)
        };
        placed(made, request.copy)
    }

    /// Puts zero pages to an address, and wakes who waits for them. Not for huge pages.
    ///
    /// # Errors
    /// As for [`PageFaults::copy`].
    pub fn zero(&self, to: u64, length: u64) -> io::Result<Placed> {
        let mut request = uffdio_zeropage {
            range: uffdio_range {
                start: to,
                len: length,
            },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: the structure is the one of this request; memory of another process is written to, as for `copy`.
        let made = unsafe {
            let call = Updater::<{ UFFDIO_ZEROPAGE as Opcode }, uffdio_zeropage>::new(&mut request);
            ioctl(&self.descriptor, call)
        };
        placed(made, request.zeropage)
    }

    /// Wakes who waits for a page that is there.
    ///
    /// # Errors
    /// The address is not registered there.
    pub fn wake(&self, at: u64, length: u64) -> io::Result<()> {
        let range = uffdio_range {
            start: at,
            len: length,
        };
        // SAFETY: the structure is the one of this request, which touches no memory.
        let woken = unsafe {
            ioctl(
                &self.descriptor,
                Setter::<{ UFFDIO_WAKE as Opcode }, uffdio_range>::new(range),
            )
        };
        Ok(woken?)
    }
}

impl AsFd for PageFaults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Reads a result: what the kernel did before it stopped stands in the structure, or the error in negative.
fn placed(made: rustix::io::Result<()>, bytes: i64) -> io::Result<Placed> {
    let done = u64::try_from(bytes).unwrap_or(0);
    match made {
        Ok(()) => Ok(Placed::All),
        Err(Errno::EXIST) => Ok(Placed::UpToPresent(done)),
        Err(Errno::AGAIN) => Ok(Placed::UpToChange(done)),
        Err(Errno::SRCH) => Ok(Placed::Gone),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_the_kernel_lays_them_out() {
        let mut message = [0_u8; MESSAGE];
        message[0] = PAGEFAULT;
        message[16..24].copy_from_slice(&0x7f00_0000_1234_u64.to_ne_bytes());
        let missing = Event::Missing {
            address: 0x7f00_0000_1234,
        };
        assert_eq!(Event::of(&message), missing);
        message[0] = REMOVE;
        message[8..16].copy_from_slice(&0x1000_u64.to_ne_bytes());
        message[16..24].copy_from_slice(&0x3000_u64.to_ne_bytes());
        let removed = Event::Removed {
            begin: 0x1000,
            end: 0x3000,
        };
        assert_eq!(Event::of(&message), removed);
        message[0] = 0x13;
        assert_eq!(Event::of(&message), Event::Unknown(0x13));
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused() {
        let (one, _other) = rustix::pipe::pipe().unwrap();
        assert!(PageFaults::new(one).unwrap().is_none());
    }
}
