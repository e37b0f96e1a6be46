//! Memory: page tables of our own, the heap, and the pages that belong to nobody, which commands fill and a balloon takes.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// What the heap takes: buffers of queues and sessions.
const HEAP: usize = 12 * 1024 * 1024;

/// The zero page (Linux, `Documentation/arch/x86/zero-page.rst`).
const E820_COUNT: usize = 0x1e8;
const COMMAND_LINE: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
const E820_RAM: u32 = 1;

/// Present, writable; and one page of 2 MiB.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7 | TABLE;
const LARGE_PAGE_SIZE: u64 = 2 * 1024 * 1024;

/// What is mapped, one to one: the devices lie below 4 GiB, memory beyond is not used.
const MAPPED_GIB: usize = 4;

#[repr(C, align(4096))]
struct Table([u64; 512]);

static mut ROOT: Table = Table([0; 512]);
static mut POINTERS: Table = Table([0; 512]);
static mut DIRECTORIES: [Table; MAPPED_GIB] = [const { Table([0; 512]) }; MAPPED_GIB];

unsafe extern "C" {
    static IMAGE_END: u8;
}

/// What the start learns.
pub(crate) struct Boot {
    /// The kernel's command line.
    pub(crate) command_line: &'static str,
    /// What is left of memory.
    pub(crate) pages: Pages,
}

/// Takes memory over from the monitor.
pub(crate) fn enter(zero_page: usize) -> Boot {
    map();
    let begin = (&raw const IMAGE_END).addr();
    let end = end_of_memory(zero_page, begin);
    assert!(begin + HEAP < end, "there is too little memory for this guest");
    BLOCKS.init(begin, HEAP);
    // SAFETY: the zero page holds the address of a string that ends in NUL, in memory that nothing else uses.
    let command_line = unsafe { CStr::from_ptr(read::<u32>(zero_page + COMMAND_LINE) as *const c_char) };
    Boot {
        command_line: command_line.to_str().unwrap_or(""),
        pages: Pages {
            begin: begin + HEAP,
            end,
            touched: 0,
        },
    }
}

fn map() {
    let directories = (&raw mut DIRECTORIES).cast::<Table>();
    // SAFETY: one processor, and nobody else knows of the tables yet.
    unsafe {
        for gib in 0..MAPPED_GIB {
            let directory = directories.add(gib);
            for entry in 0..512 {
                let page = (gib * 512 + entry) as u64 * LARGE_PAGE_SIZE;
                (*directory).0[entry] = page | LARGE_PAGE;
            }
            POINTERS.0[gib] = directory.addr() as u64 | TABLE;
        }
        ROOT.0[0] = (&raw const POINTERS).addr() as u64 | TABLE;
    }
    // SAFETY: the tables map what the monitor's mapped, and more; code and stack stay where they are.
    unsafe { asm!("mov cr3, {}", in(reg) (&raw const ROOT).addr(), options(nostack, preserves_flags)) }
}

/// Returns the end of the memory that `address` is in, as the monitor's table says.
fn end_of_memory(zero_page: usize, address: usize) -> usize {
    let entries = usize::from(read::<u8>(zero_page + E820_COUNT));
    let table = zero_page + E820_TABLE;
    let end = (0..entries)
        .map(|index| table + index * E820_ENTRY)
        .find_map(|entry| {
            let (base, size) = (read::<u64>(entry) as usize, read::<u64>(entry + 8) as usize);
            let is_ours = read::<u32>(entry + 16) == E820_RAM && (base..base + size).contains(&address);
            is_ours.then_some(base + size)
        });
    // A table that lacks the memory this code runs in is none to go by.
    end.unwrap_or(address) & !(PAGE - 1)
}

fn read<T: Copy>(address: usize) -> T {
    // SAFETY: called for fields of the zero page only, which the monitor filled; any bytes are a number.
    unsafe { (address as *const T).read_unaligned() }
}

/// Memory that is nobody's. Commands fill and check it from its begin, the balloon takes pages from its end.
#[derive(Debug)]
pub(crate) struct Pages {
    begin: usize,
    end: usize,
    touched: u64,
}

impl Pages {
    /// Returns how many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.end - self.begin
    }

    /// Returns how many pages commands have read or written so far.
    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    /// Writes a pattern to the first `bytes`, `stride` bytes apart; false when there are not as many.
    pub(crate) fn fill(&mut self, bytes: usize, stride: usize, seed: u64) -> bool {
        self.walk(bytes, stride, |word, index| {
            // SAFETY: `walk` stays within memory that is nobody's.
            unsafe { word.write_volatile(pattern(seed, index)) }
        })
    }

    /// Counts the words of the first `bytes`, `stride` bytes apart, that do not have the pattern; and their checksum.
    pub(crate) fn check(&mut self, bytes: usize, stride: usize, seed: u64) -> Option<(u64, u64)> {
        let (mut wrong, mut sum) = (0, 0_u64);
        let walked = self.walk(bytes, stride, |word, index| {
            // SAFETY: `walk` stays within memory that is nobody's.
            let value = unsafe { word.read_volatile() };
            wrong += u64::from(value != pattern(seed, index));
            sum = sum.rotate_left(1) ^ value;
        });
        walked.then_some((wrong, sum))
    }

    fn walk(&mut self, bytes: usize, stride: usize, mut act: impl FnMut(*mut u64, u64)) -> bool {
        if bytes > self.len() {
            return false;
        }
        for (index, offset) in (0..bytes).step_by(stride.max(size_of::<u64>())).enumerate() {
            act((self.begin + offset) as *mut u64, index as u64);
        }
        self.touched += bytes.div_ceil(PAGE.max(stride)) as u64;
        true
    }

    /// Gives away the last pages; their numbers are what is left of them. Fewer than asked for when there are no more.
    pub(crate) fn give(&mut self, count: usize) -> impl Iterator<Item = u32> + use<> {
        let count = count.min(self.len() / PAGE);
        self.end -= count * PAGE;
        let first = (self.end / PAGE) as u32;
        first..first + count as u32
    }

    /// Takes pages back, the last ones that were given; their numbers.
    pub(crate) fn take(&mut self, count: usize) -> impl Iterator<Item = u32> + use<> {
        let first = (self.end / PAGE) as u32;
        self.end += count * PAGE;
        first..first + count as u32
    }
}

/// The word that belongs at a place.
pub(crate) fn pattern(seed: u64, index: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index) ^ index << 32
}

/// The heap: blocks of powers of two, each size with a list of those that came back. One processor, and nothing is ever
/// interrupted, so nobody else is in it.
///
/// It takes few instructions, which is what counts where they are emulated; and memory that is handed out for the first
/// time is zero, so that no buffer is zeroed again.
struct Blocks(UnsafeCell<State>);

struct State {
    /// Memory that was never handed out.
    fresh: usize,
    end: usize,
    /// The first free block of each size; each holds the address of the next.
    free: [usize; usize::BITS as usize],
}

// SAFETY: there is one processor, and no interrupt handler allocates.
unsafe impl Sync for Blocks {}

#[global_allocator]
static BLOCKS: Blocks = Blocks(UnsafeCell::new(State {
    fresh: 0,
    end: 0,
    free: [0; usize::BITS as usize],
}));

/// Where a block came from.
enum Origin {
    Fresh,
    Returned,
}

impl Blocks {
    fn init(&self, begin: usize, size: usize) {
        // SAFETY: called once, before anything is allocated.
        let state = unsafe { &mut *self.0.get() };
        (state.fresh, state.end) = (begin, begin + size);
    }

    fn take(&self, layout: Layout) -> Option<(*mut u8, Origin)> {
        // SAFETY: nobody else is in the heap.
        let state = unsafe { &mut *self.0.get() };
        let size = size_of_block(layout);
        let list = &mut state.free[size.ilog2() as usize];
        if *list != 0 {
            let block = *list as *mut usize;
            // SAFETY: a block that came back holds the address of the next.
            *list = unsafe { block.read() };
            return Some((block.cast(), Origin::Returned));
        }
        let block = state.fresh.next_multiple_of(size.min(PAGE.max(layout.align())));
        state.fresh = block.checked_add(size).filter(|end| *end <= state.end)?;
        Some((block as *mut u8, Origin::Fresh))
    }
}

fn size_of_block(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(16).next_power_of_two()
}

// SAFETY: blocks are as large and as aligned as the layout wants, and nobody has one that somebody else has.
unsafe impl GlobalAlloc for Blocks {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout)
            .map_or(core::ptr::null_mut(), |(block, _)| block)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some((block, Origin::Fresh)) => block,
            Some((block, Origin::Returned)) => {
                // SAFETY: the block has this size.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            None => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: nobody else is in the heap.
        let list = unsafe { &mut (*self.0.get()).free[size_of_block(layout).ilog2() as usize] };
        // SAFETY: the block is no one's now, and has room for an address.
        unsafe { block.cast::<usize>().write(*list) };
        *list = block.addr();
    }
}
