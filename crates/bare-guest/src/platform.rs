//! What the processor and the oldest devices of a PC offer: ports, the console, the clock, reset.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};
use core::fmt;
use core::sync::atomic::{Ordering, fence};
use core::time::Duration;

/// The first serial port, which the monitor connects with its standard output.
const SERIAL: u16 = 0x3f8;

/// The keyboard controller, and what makes it pull the reset line. Firecracker ends then.
const KEYBOARD: u16 = 0x64;
const RESET: u8 = 0xfe;

/// KVM's paravirtual clock: where its signature, its features and its register are (Linux, `kvm_para.h`).
const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// Writes a line to the console.
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::platform::write_line(format_args!($($arguments)*))
    };
}
pub(crate) use println;

fn write_port(port: u16, byte: u8) {
    // SAFETY: the ports written to here belong to a serial line and a keyboard controller; neither touches memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags)) }
}

struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| write_port(SERIAL, byte));
        Ok(())
    }
}

/// Writes a line to the console; [`println`] calls it.
pub(crate) fn write_line(arguments: fmt::Arguments<'_>) {
    // The console takes everything.
    let _ = fmt::Write::write_fmt(&mut Console, format_args!("{arguments}\n"));
}

/// Ends the machine.
pub(crate) fn reset() -> ! {
    write_port(KEYBOARD, RESET);
    loop {
        core::hint::spin_loop();
    }
}

/// What KVM writes when its clock's register is set: nanoseconds at some moment, and how to count on from there.
#[repr(C, align(64))]
struct SystemTime {
    version: u32,
    padding: u32,
    tsc: u64,
    nanoseconds: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
    padding_behind: [u8; 2],
}

static mut SYSTEM_TIME: SystemTime = SystemTime {
    version: 0,
    padding: 0,
    tsc: 0,
    nanoseconds: 0,
    multiplier: 0,
    shift: 0,
    flags: 0,
    padding_behind: [0; 2],
};

/// Where time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockSource {
    /// KVM's clock, which a restore sets right.
    Kvm,
    /// The processor's counter, taken for one of a gigahertz.
    Counter,
}

/// Time since the start, and time of day once the host has told it.
#[derive(Debug)]
pub(crate) struct Clock {
    source: ClockSource,
    started: Duration,
    /// Time of day at the start, since 1970.
    epoch: Duration,
}

impl Clock {
    /// Starts counting.
    pub(crate) fn start() -> Self {
        let source = enable_kvm_clock();
        Self {
            source,
            started: now(source),
            epoch: Duration::ZERO,
        }
    }

    /// Returns where time comes from.
    pub(crate) fn source(&self) -> ClockSource {
        self.source
    }

    /// Returns the time since the start.
    pub(crate) fn uptime(&self) -> Duration {
        now(self.source).saturating_sub(self.started)
    }

    /// Returns the time since 1970; since the start as long as nobody has told it.
    pub(crate) fn of_day(&self) -> Duration {
        self.epoch + self.uptime()
    }

    /// Takes the time of day from the host.
    pub(crate) fn set(&mut self, of_day: Duration) {
        self.epoch = of_day.saturating_sub(self.uptime());
    }
}

/// Returns the processor's counter.
pub(crate) fn counter() -> u64 {
    // SAFETY: reading the counter has no effect, and nothing forbids it in ring 0.
    unsafe { _rdtsc() }
}

fn enable_kvm_clock() -> ClockSource {
    let signature = __cpuid(KVM_SIGNATURE);
    let is_kvm = [signature.ebx, signature.ecx, signature.edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d];
    if !is_kvm || __cpuid(KVM_FEATURES).eax & KVM_FEATURE_CLOCKSOURCE2 == 0 {
        return ClockSource::Counter;
    }
    let address = (&raw mut SYSTEM_TIME) as u64;
    let (low, high) = ((address | 1) as u32, (address >> 32) as u32);
    // SAFETY: the register exists, as KVM said; memory is mapped one to one, and the page it names is for it alone.
    unsafe { asm!("wrmsr", in("ecx") MSR_KVM_SYSTEM_TIME, in("eax") low, in("edx") high, options(nostack)) }
    if kvm_time().is_zero() {
        return ClockSource::Counter;
    }
    ClockSource::Kvm
}

fn now(source: ClockSource) -> Duration {
    match source {
        ClockSource::Kvm => kvm_time(),
        ClockSource::Counter => Duration::from_nanos(counter()),
    }
}

/// Reads KVM's clock; zero when KVM never wrote one.
fn kvm_time() -> Duration {
    loop {
        // SAFETY: KVM writes there only while this processor is not in the guest; the version tells if it did meanwhile.
        let time = unsafe { (&raw const SYSTEM_TIME).read_volatile() };
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let version = unsafe { (&raw const SYSTEM_TIME.version).read_volatile() };
        if version == 0 {
            return Duration::ZERO;
        }
        if version == time.version && version.is_multiple_of(2) {
            let ticks = counter().wrapping_sub(time.tsc);
            let ticks = match time.shift {
                left @ 0.. => ticks << left,
                right => ticks >> right.unsigned_abs(),
            };
            let beyond = (u128::from(ticks) * u128::from(time.multiplier)) >> 32;
            return Duration::from_nanos(time.nanoseconds.wrapping_add(beyond as u64));
        }
    }
}
