//! A guest without a kernel, for tests: where a host's KVM cannot run Linux, it still proves what a monitor does.
//!
//! It is one ELF for `x86_64-unknown-none`, in plain integer instructions, entered in 64-bit mode with `rsi` at the zero
//! page. It finds its devices on the command line (`virtio_mmio.device=4K@0xd0000000:5`), listens on the vsock port of
//! [`hearth_guest_protocol::VSOCK_PORT`], and keeps the protocol as the real agent does: HELLO, CONFIGURE, EXECUTE with
//! credit, SIGNAL, PING, STOP. What it executes is not programs but the commands of [`command`].
//!
//! Words of the command line change that, for tests of what is below the protocol: with `guest.echo` it sends back every byte of
//! the stream instead, with `guest.panic` it does not come up.
//!
//! ```text
//! main      one loop: ask every device, let every session go on, rest
//! agent     the protocol; session: one command's input and output
//! command   what can be executed
//! vsock     one stream, and what becomes of it when a snapshot is taken
//! network   ARP, ICMP echo, TCP echo          balloon   gives pages to the host
//! devices   finds them; transport: Firecracker's way of starting them
//! memory    page tables, heap, and the pages that commands fill
//! interrupts rest until a device has something to say
//! platform  ports, clock
//! ```

#![no_std]
#![no_main]

extern crate alloc;

mod agent;
mod balloon;
mod command;
mod devices;
mod interrupts;
mod memory;
mod network;
mod outbox;
mod platform;
mod session;
mod transport;
mod vsock;

use core::arch::global_asm;
use core::panic::PanicInfo;

use crate::agent::{Agent, Manner};
use crate::devices::Devices;
use crate::memory::Pages;
use crate::platform::{Clock, println};
use crate::vsock::Happening;

// The monitor leaves a stack of one page; ours is behind the image.
global_asm!(
    ".section .text.entry, \"ax\"",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "lea rsp, [rip + STACK_TOP]",
    "xor ebp, ebp",
    "mov rdi, rsi",
    "call {start}",
    "ud2",
    start = sym start,
);

/// Everything that commands act on.
pub(crate) struct Machine {
    /// What answers on the bus.
    pub(crate) devices: Devices,
    /// Memory that is nobody's.
    pub(crate) pages: Pages,
    /// Time since the start, and of day.
    pub(crate) clock: Clock,
}

extern "C" fn start(zero_page: usize) -> ! {
    let boot = memory::enter(zero_page);
    interrupts::enable();
    let mut machine = Machine {
        devices: Devices::find(boot.command_line),
        pages: boot.pages,
        clock: Clock::start(),
    };
    println!("bare-guest {}: {}", env!("CARGO_PKG_VERSION"), boot.command_line);
    let has = |word: &str| boot.command_line.split(' ').any(|found| found == word);
    if has("guest.panic") {
        panic!("it was told to");
    }
    let mut agent = Agent::new(if has("guest.echo") {
        Manner::Echo
    } else {
        Manner::Protocol
    });
    loop {
        let worked = turn(&mut machine, &mut agent);
        if !worked {
            interrupts::rest();
        }
    }
}

/// Asks every device and lets every session go on, once; tells whether there was anything to do.
fn turn(machine: &mut Machine, agent: &mut Agent) -> bool {
    let now = machine.clock.uptime();
    let mut worked = false;
    if let Some(balloon) = &mut machine.devices.balloon {
        worked |= balloon.turn(now, &mut machine.pages);
    }
    if let Some(network) = &mut machine.devices.network {
        worked |= network.turn(now);
    }
    // Taken out, so that commands may use the other devices while the channel is in hand.
    if let Some(mut vsock) = machine.devices.vsock.take() {
        worked |= vsock.receive(&mut |happening| match happening {
            Happening::Reset => agent.reset(),
            Happening::Opened => agent.connected(),
            Happening::Closed => agent.disconnected(),
            Happening::Bytes(bytes) => agent.received(bytes, machine),
        });
        worked |= agent.turn(machine);
        worked |= vsock.send(&mut agent.out);
        machine.devices.vsock = Some(vsock);
    }
    worked
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("bare-guest: {info}");
    // The monitor ends when the guest resets itself: a guest that hangs would say less.
    platform::reset()
}
