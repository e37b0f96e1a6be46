//! Waits for many descriptors at once in a process without tokio: epoll(7).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// Events that are taken at a time.
const BATCH: usize = 64;

/// Descriptors, each with a number that its user chose.
#[derive(Debug)]
pub struct Poller {
    descriptor: OwnedFd,
}

impl Poller {
    /// Makes an empty one.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn new() -> io::Result<Self> {
        let descriptor = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { descriptor })
    }

    /// Watches a descriptor until it can be read, or has ended. Closing it is its end here.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn add(&self, descriptor: impl AsFd, token: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(
            &self.descriptor,
            descriptor,
            data,
            epoll::EventFlags::IN,
        )?)
    }

    /// Stops watching a descriptor that stays open elsewhere.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn remove(&self, descriptor: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.descriptor, descriptor)?)
    }

    /// Waits, not longer than `limit`, and returns the numbers of those that are ready.
    ///
    /// # Errors
    /// Returns the kernel's.
    pub fn wait(&self, limit: Duration) -> io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(BATCH);
        let limit = Timespec::try_from(limit).ok();
        match epoll::wait(
            &self.descriptor,
            rustix::buffer::spare_capacity(&mut events),
            limit.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(|event| event.data.u64()).collect())
    }
}
