//! The balloon: gives pages to the host and takes them back, as the host sets its size (virtio 1.2, section 5.5).

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use bitflags::bitflags;
use virtio_drivers::Result;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use crate::memory::{PAGE, Pages};
use crate::transport::{Identity, OneByOne};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;

/// Fields of the device's configuration: pages that the host wants, and pages that it has.
const WANTED: usize = 0;
const ACTUAL: usize = 4;

/// Pages of one request: Firecracker skips longer ones.
const PAGES_MAX: usize = 256;

/// How often the size is looked at; each look is an exit to the host.
const INTERVAL: Duration = Duration::from_millis(5);

/// What the statistics tell: free, all and available memory, each a tag and bytes.
const TAGS: [u16; 3] = [4, 5, 6];
const STATISTIC: usize = 10;

bitflags! {
    /// What this driver knows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Features: u64 {
        const STATISTICS = 1 << 1;
        const DEFLATE_ON_OOM = 1 << 2;
        const VERSION_1 = 1 << 32;
    }
}

/// The device.
pub(crate) struct Balloon {
    transport: OneByOne,
    inflate: VirtQueue<Identity, 4>,
    deflate: VirtQueue<Identity, 4>,
    statistics: Option<Statistics>,
    given: usize,
    looked: Duration,
}

/// A buffer that the host gives back when it wants news.
struct Statistics {
    queue: VirtQueue<Identity, 4>,
    buffer: Box<[u8; TAGS.len() * STATISTIC]>,
    token: u16,
}

impl Balloon {
    /// Starts the device.
    ///
    /// # Errors
    /// Returns the device's.
    pub(crate) fn start(mut transport: OneByOne) -> Result<Self> {
        let features = transport.begin_init(Features::all());
        let inflate = VirtQueue::new(&mut transport, INFLATE, false, false)?;
        let deflate = VirtQueue::new(&mut transport, DEFLATE, false, false)?;
        let statistics = match features.contains(Features::STATISTICS) {
            true => Some(Statistics::start(&mut transport)?),
            false => None,
        };
        transport.finish_init();
        if statistics.is_some() {
            transport.notify(STATISTICS);
        }
        Ok(Self {
            transport,
            inflate,
            deflate,
            statistics,
            given: 0,
            looked: Duration::ZERO,
        })
    }

    /// Returns how many pages the host has.
    pub(crate) fn given(&self) -> usize {
        self.given
    }

    /// Goes one request towards what the host wants; tells whether there was one to make.
    pub(crate) fn turn(&mut self, now: Duration, pages: &mut Pages) -> bool {
        if now < self.looked + INTERVAL {
            return false;
        }
        self.looked = now;
        if let Some(statistics) = &mut self.statistics {
            statistics.renew(&mut self.transport, pages);
        }
        let Ok(wanted) = self.transport.read_config_space::<u32>(WANTED) else {
            return false;
        };
        let wanted = wanted as usize;
        let moved = if wanted > self.given {
            let numbers: Vec<u8> = bytes(pages.give((wanted - self.given).min(PAGES_MAX)));
            self.given += numbers.len() / size_of::<u32>();
            request(&mut self.inflate, &numbers, &mut self.transport)
        } else if wanted < self.given {
            let numbers = bytes(pages.take((self.given - wanted).min(PAGES_MAX)));
            self.given -= numbers.len() / size_of::<u32>();
            request(&mut self.deflate, &numbers, &mut self.transport)
        } else {
            false
        };
        if moved {
            // There are more requests to make, at once.
            self.looked = Duration::ZERO;
            let _ = self.transport.write_config_space(ACTUAL, self.given as u32);
        }
        moved
    }
}

fn bytes(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    numbers.flat_map(u32::to_le_bytes).collect()
}

fn request(queue: &mut VirtQueue<Identity, 4>, numbers: &[u8], transport: &mut OneByOne) -> bool {
    !numbers.is_empty() && queue.add_notify_wait_pop(&[numbers], &mut [], transport).is_ok()
}

impl Statistics {
    fn start(transport: &mut OneByOne) -> Result<Self> {
        let mut queue = VirtQueue::new(transport, STATISTICS, false, false)?;
        let buffer = Box::new([0; TAGS.len() * STATISTIC]);
        // SAFETY: the buffer lives as long as the queue, and is not touched before the device gives it back.
        let token = unsafe { queue.add(&[&*buffer], &mut []) }?;
        Ok(Self { queue, buffer, token })
    }

    /// Tells the host what there is now, if it has asked.
    fn renew(&mut self, transport: &mut OneByOne, pages: &Pages) {
        // SAFETY: the buffer is the one that was added with this token.
        if unsafe { self.queue.pop_used(self.token, &[&*self.buffer], &mut []) }.is_err() {
            return;
        }
        for (tag, entry) in TAGS.iter().zip(self.buffer.chunks_exact_mut(STATISTIC)) {
            entry[..2].copy_from_slice(&tag.to_le_bytes());
            entry[2..].copy_from_slice(&(pages.len() as u64 / PAGE as u64 * PAGE as u64).to_le_bytes());
        }
        // SAFETY: as in `start`.
        if let Ok(token) = unsafe { self.queue.add(&[&*self.buffer], &mut []) } {
            self.token = token;
            transport.notify(STATISTICS);
        }
    }
}
