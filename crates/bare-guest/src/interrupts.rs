//! Interrupts, for one thing only: that the guest can rest until a device has something to say.
//!
//! They are on at `hlt` and nowhere else, and their handler does not return: it goes on behind the `hlt`. So nothing is
//! ever interrupted, and `iretq` is not needed, which an emulating KVM does not know in long mode.

use core::arch::{asm, global_asm};

use crate::platform::{self, println};

/// The local interrupt controller, and its registers (Intel SDM, volume 3, chapter 12).
const LOCAL: usize = 0xfee0_0000;
const LOCAL_SPURIOUS: usize = LOCAL + 0xf0;
const LOCAL_TIMER: usize = LOCAL + 0x320;
const LOCAL_PIN: usize = LOCAL + 0x350;
const LOCAL_TIMER_COUNT: usize = LOCAL + 0x380;
const LOCAL_TIMER_DIVISOR: usize = LOCAL + 0x3e0;
const ENABLED: u32 = 1 << 8;
const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_ONE: u32 = 0b1011;

/// A tick, for what waits for a time rather than for a device. KVM's timer counts nanoseconds.
const TICK: u32 = 10_000_000;

/// The controller of the lines of devices (82093AA): a register to select, a register to write.
const LINES_SELECT: usize = 0xfec0_0000;
const LINES_WINDOW: usize = 0xfec0_0010;
const LINES: u32 = 24;
const LINES_TABLE: u32 = 0x10;

/// Vectors below are faults.
const FAULTS: usize = 32;
const VECTOR: u32 = 0x40;
const SPURIOUS: u32 = 0xff;

/// A gate of 64 bits that leaves interrupts off.
const GATE: u64 = 0x8e00;

#[repr(C, align(16))]
struct Gates([[u64; 2]; 256]);

static mut GATES: Gates = Gates([[0; 2]; 256]);

#[repr(C, packed)]
struct Register {
    limit: u16,
    base: u64,
}

unsafe extern "C" {
    fn rest_until_interrupt();
    fn on_interrupt();
    fn on_fault();
}

global_asm!(
    ".section .text.rest, \"ax\"",
    "rest_until_interrupt:",
    "sti",
    "hlt",
    "behind_the_rest:",
    "cli",
    "ret",
    // The processor has put its state on the stack; the stack pointer of before is the fourth word of it.
    "on_interrupt:",
    "push rax",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "mov rsp, [rsp + 24]",
    "jmp behind_the_rest",
    "on_fault:",
    "mov rdi, [rsp]",
    "mov rsi, [rsp + 8]",
    "and rsp, -16",
    "call {fault}",
    fault = sym fault,
);

/// Says where a fault was, and ends the machine. With an error code the place is the second word.
extern "C" fn fault(first: u64, second: u64) -> ! {
    println!("bare-guest: a fault at {first:#x} or {second:#x}");
    platform::reset()
}

/// Has every line of every device end a rest.
pub(crate) fn enable() {
    let code: u16;
    // SAFETY: reads a register.
    unsafe { asm!("mov {:x}, cs", out(reg) code, options(nomem, nostack, preserves_flags)) }
    let gates = &raw mut GATES;
    for vector in 0..256 {
        let handler = if vector < FAULTS {
            on_fault as *const ()
        } else {
            on_interrupt as *const ()
        };
        let handler = handler.addr() as u64;
        let low = handler & 0xffff | u64::from(code) << 16 | GATE << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: one processor, and the table is not in use yet.
        unsafe { (*gates).0[vector] = [low, handler >> 32] }
    }
    let register = Register {
        limit: (size_of::<Gates>() - 1) as u16,
        base: gates.addr() as u64,
    };
    // SAFETY: the table has a handler for every vector, and stays.
    unsafe { asm!("lidt [{}]", in(reg) &raw const register, options(readonly, nostack, preserves_flags)) }

    write(LOCAL_SPURIOUS, ENABLED | SPURIOUS);
    // The oldest controller of all hangs there, and would deliver the lines of devices as faults.
    write(LOCAL_PIN, MASKED);
    write(LOCAL_TIMER_DIVISOR, DIVIDE_BY_ONE);
    write(LOCAL_TIMER, PERIODIC | VECTOR);
    write(LOCAL_TIMER_COUNT, TICK);
    for line in 0..LINES {
        // To this processor, at an edge, not masked.
        for (half, value) in [(1, 0), (0, VECTOR + 1 + line)] {
            write(LINES_SELECT, LINES_TABLE + 2 * line + half);
            write(LINES_WINDOW, value);
        }
    }
}

/// Rests until a device has something to say, or a tick is over.
pub(crate) fn rest() {
    // SAFETY: it comes back behind its `hlt` with interrupts off, whatever interrupted it; no register is changed.
    unsafe { rest_until_interrupt() }
}

fn write(register: usize, value: u32) {
    // SAFETY: called with registers of the interrupt controllers only, which are mapped.
    unsafe { (register as *mut u32).write_volatile(value) }
}
