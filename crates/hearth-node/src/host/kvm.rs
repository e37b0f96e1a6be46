//! Judges KVM by what it does: runs a few instructions in a throw-away virtual machine and looks at the end.
//!
//! That `/dev/kvm` opens and makes virtual machines says little: a host that is itself a virtual machine may run them
//! through KVM's own instruction emulator, which knows too few instructions for Linux and ends it with
//! `KVM_EXIT_INTERNAL_ERROR`. The guest here executes, in 64-bit mode, one instruction of each kind that such hosts
//! were seen to fail at: SSE, `lock cmpxchg16b` and BMI2.
//!
//! Called by the doctor and by the choice of a driver; the callers cache the answer.

use std::io;
use std::time::{Duration, Instant};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// What KVM is good for on this host, and how long it took to find out.
#[derive(Debug)]
pub struct KvmProbe {
    /// The answer.
    pub answer: KvmAnswer,
    /// The time from opening the device to the last clean-up.
    pub took: Duration,
}

/// What KVM is good for on this host.
#[derive(Debug)]
pub enum KvmAnswer {
    /// The processor executes guests: Linux runs.
    Native,
    /// The device makes virtual machines, and cannot run Linux in them.
    Emulated {
        /// How the guest ended.
        end: GuestEnd,
    },
    /// There is no KVM to use.
    Absent {
        /// Why.
        cause: KvmAbsent,
    },
}

/// How a guest ended that should have halted with the right results.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestEnd {
    /// KVM met an instruction that it would have to emulate and cannot.
    #[error("KVM tried to emulate a guest's instruction and could not (KVM_EXIT_INTERNAL_ERROR)")]
    EmulationFailure,
    /// It halted, and its memory does not hold what its instructions compute.
    #[error("a guest's instructions computed something else than a processor does")]
    WrongResults,
    /// It ended in another way.
    #[error("a guest of a few instructions ended with {0}")]
    Other(String),
}

/// Why there is no KVM to use.
#[derive(Debug, thiserror::Error)]
pub enum KvmAbsent {
    /// There is no `/dev/kvm`.
    #[error("there is no /dev/kvm")]
    NoDevice,
    /// This user may not open it.
    #[error("/dev/kvm is there, and this user may not open it")]
    NoPermission,
    /// It speaks another version of the interface than every Linux since 2007.
    #[error("/dev/kvm speaks version {0} of its interface, not {KVM_API_VERSION}")]
    OtherVersion(i32),
    /// A step towards a virtual machine failed.
    #[error("/dev/kvm is there, and fails to {step}")]
    Failed {
        /// The step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Runs the throw-away guest. It blocks for a millisecond (some tens on a host that is slow at making virtual
/// machines).
///
/// It cannot hang: the guest is a dozen instructions in a row without a jump, with interrupts off and no device that
/// could be waited for, so each instruction ends or leaves the guest; and as there is no interrupt controller in the
/// kernel, `hlt` leaves it too instead of waiting. A timer with a signal was rejected: its handler would be the
/// whole process's.
pub fn probe() -> KvmProbe {
    let start = Instant::now();
    let answer = match try_guest() {
        Ok(None) => KvmAnswer::Native,
        Ok(Some(end)) => KvmAnswer::Emulated { end },
        Err(cause) => KvmAnswer::Absent { cause },
    };
    KvmProbe {
        answer,
        took: start.elapsed(),
    }
}

/// Returns how the guest ended, or nothing when it ended as it should.
fn try_guest() -> Result<Option<GuestEnd>, KvmAbsent> {
    let kvm = open()?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("tell its processor's features"))?;
    let guest = Guest {
        bmi2: has_bmi2(&cpuid),
    };
    let mut memory = GuestMemory::new().map_err(|source| KvmAbsent::Failed {
        step: "get memory for a guest",
        source,
    })?;
    guest.write(memory.bytes());
    // Made after the memory and dropped before it: KVM must not outlive what it maps.
    let vm = kvm.create_vm().map_err(failed("make a virtual machine"))?;
    give_memory(&vm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("make a virtual processor"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(failed("set a processor's features"))?;
    enter_long_mode(&vcpu)?;
    let end = match vcpu.run() {
        Ok(VcpuExit::Hlt) => None,
        Ok(VcpuExit::InternalError) => Some(GuestEnd::EmulationFailure),
        Ok(other) => Some(GuestEnd::Other(format!("{other:?}"))),
        Err(error) => Some(GuestEnd::Other(io::Error::from(error).to_string())),
    };
    drop((vcpu, vm));
    Ok(end.or_else(|| (!guest.succeeded(memory.bytes())).then_some(GuestEnd::WrongResults)))
}

fn open() -> Result<Kvm, KvmAbsent> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => KvmAbsent::NoDevice,
        libc::EACCES | libc::EPERM => KvmAbsent::NoPermission,
        _ => failed("open")(error),
    })?;
    match kvm.get_api_version() {
        version if u32::try_from(version) == Ok(KVM_API_VERSION) => Ok(kvm),
        version => Err(KvmAbsent::OtherVersion(version)),
    }
}

fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmAbsent {
    move |error| KvmAbsent::Failed {
        step,
        source: error.into(),
    }
}

/// CPUID leaf 7, EBX bit 8.
fn has_bmi2(cpuid: &CpuId) -> bool {
    let mut entries = cpuid.as_slice().iter();
    entries.any(|entry| entry.function == 7 && entry.index == 0 && entry.ebx & (1 << 8) != 0)
}

fn give_memory(vm: &VmFd, memory: &GuestMemory) -> Result<(), KvmAbsent> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: GuestMemory::SIZE as u64,
        userspace_addr: memory.start as u64,
    };
    // SAFETY: the region is one mapping of exactly this size, which `try_guest` keeps until the machine is gone.
    let given = unsafe { vm.set_user_memory_region(region) };
    given.map_err(failed("give a guest memory"))
}

/// Physical addresses in the guest. The page tables map the first 2 MiB to themselves.
mod place {
    pub(super) const PML4: usize = 0x1000;
    pub(super) const PDPT: usize = 0x2000;
    pub(super) const PAGE_DIRECTORY: usize = 0x3000;
    pub(super) const CODE: usize = 0x4000;
    /// Sixteen bytes that the SSE instructions add to themselves.
    pub(super) const SSE: usize = 0x5000;
    /// Sixteen bytes, zero, that `cmpxchg16b` replaces.
    pub(super) const EXCHANGE: usize = 0x5010;
    /// Eight bytes for the result of BMI2.
    pub(super) const SHIFTED: usize = 0x5020;
    pub(super) const STACK_TOP: usize = 0x7000;
}

/// A page table entry: present, writable; and with a 2 MiB page behind it.
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 0x80;

/// What stands in memory for the SSE instructions, and what they make of it.
const SSE_BEFORE: [u32; 4] = [1, 20, 300, 4000];
const SSE_AFTER: [u32; 4] = [2, 40, 600, 8000];

/// What `cmpxchg16b` writes: RBX, then RCX.
const EXCHANGED: [u64; 2] = [0x1122_3344_5566_7788, 5];

/// What BMI2 computes: RBX shifted left by RCX.
const SHIFTED: u64 = EXCHANGED[0] << EXCHANGED[1];

/// RDI points at [`place::SSE`].
const SSE_CODE: [u8; 12] = [
    0xf3, 0x0f, 0x6f, 0x07, // movdqu xmm0, [rdi]
    0x66, 0x0f, 0xfe, 0xc0, // paddd xmm0, xmm0
    0xf3, 0x0f, 0x7f, 0x07, // movdqu [rdi], xmm0
];
/// RDX:RAX is zero, as the memory is.
const EXCHANGE_CODE: [u8; 6] = [
    0xf0, 0x48, 0x0f, 0xc7, 0x4f, 0x10, // lock cmpxchg16b [rdi+0x10]
];
const BMI2_CODE: [u8; 9] = [
    0xc4, 0xe2, 0xf1, 0xf7, 0xc3, // shlx rax, rbx, rcx
    0x48, 0x89, 0x47, 0x20, // mov [rdi+0x20], rax
];
const HALT_CODE: [u8; 1] = [0xf4];

/// The guest's program, and what it leaves in memory.
struct Guest {
    bmi2: bool,
}

impl Guest {
    fn write(&self, memory: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| memory[at..at + bytes.len()].copy_from_slice(bytes);
        let entry = |address: usize, flags: u64| (address as u64 | flags).to_le_bytes();
        put(place::PML4, &entry(place::PDPT, PRESENT_WRITABLE));
        put(place::PDPT, &entry(place::PAGE_DIRECTORY, PRESENT_WRITABLE));
        put(place::PAGE_DIRECTORY, &entry(0, PRESENT_WRITABLE | LARGE_PAGE));
        put(place::SSE, SSE_BEFORE.map(u32::to_le_bytes).as_flattened());
        let mut code = [&SSE_CODE[..], &EXCHANGE_CODE].concat();
        if self.bmi2 {
            code.extend_from_slice(&BMI2_CODE);
        }
        code.extend_from_slice(&HALT_CODE);
        put(place::CODE, &code);
    }

    fn succeeded(&self, memory: &[u8]) -> bool {
        let holds = |at: usize, bytes: &[u8]| memory[at..].starts_with(bytes);
        holds(place::SSE, SSE_AFTER.map(u32::to_le_bytes).as_flattened())
            && holds(place::EXCHANGE, EXCHANGED.map(u64::to_le_bytes).as_flattened())
            && (!self.bmi2 || holds(place::SHIFTED, &SHIFTED.to_le_bytes()))
    }
}

/// Puts a processor into 64-bit mode at the guest's first instruction.
///
/// The bits are those of the Intel manual, volume 3: CR0.PE, MP, ET, NE, PG; CR4.PAE, OSFXSR, OSXMMEXCPT; EFER.LME,
/// LMA. No descriptor table is needed, as the guest loads no segment and takes no interrupt.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), KvmAbsent> {
    let set = || -> Result<(), kvm_ioctls::Error> {
        let mut special = vcpu.get_sregs()?;
        special.cr0 = 0x8000_0033;
        special.cr3 = place::PML4 as u64;
        special.cr4 = 0x0000_0620;
        special.efer = 0x500;
        let flat = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            ..kvm_segment::default()
        };
        let data = kvm_segment {
            selector: 16,
            type_: 3,
            db: 1,
            ..flat
        };
        special.cs = kvm_segment {
            selector: 8,
            type_: 11,
            l: 1,
            ..flat
        };
        // Intel refuses to enter 64-bit mode with another task segment than a busy one.
        special.tr = kvm_segment {
            limit: 0xffff,
            type_: 11,
            present: 1,
            ..kvm_segment::default()
        };
        (special.ds, special.es, special.fs) = (data, data, data);
        (special.gs, special.ss) = (data, data);
        vcpu.set_sregs(&special)?;
        vcpu.set_regs(&kvm_regs {
            rip: place::CODE as u64,
            rsp: place::STACK_TOP as u64,
            rdi: place::SSE as u64,
            rbx: EXCHANGED[0],
            rcx: EXCHANGED[1],
            // The one bit that is always set; interrupts are off.
            rflags: 0x2,
            ..kvm_regs::default()
        })
    };
    set().map_err(failed("set a processor's registers"))
}

/// The guest's memory: private, zero, unmapped at the end.
struct GuestMemory {
    start: *mut u8,
}

impl GuestMemory {
    const SIZE: usize = 0x8000;

    fn new() -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place of a new mapping; nothing that exists is touched.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), Self::SIZE, protection, MapFlags::PRIVATE) }?;
        Ok(Self { start: start.cast() })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has this size and lives as long as `self`, which is borrowed for the slice; the guest,
        // who writes to it too, runs only within `VcpuFd::run`, and no slice is held then.
        unsafe { std::slice::from_raw_parts_mut(self.start, Self::SIZE) }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: `start` and `SIZE` are those of the mapping made in `new`, and no slice of it is left.
        // It fails only for arguments that are not those of a mapping.
        let _ = unsafe { munmap(self.start.cast(), Self::SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_comes_within_50_ms() {
        let times: Vec<Duration> = (0..5).map(|_| probe().took).collect();
        println!("took {times:?}: {:?}", probe().answer);
        // The best of five: other tests run on the same processors.
        assert!(times.iter().min() < Some(&Duration::from_millis(50)), "{times:?}");
    }

    #[test]
    fn the_answer_names_a_cause_when_there_is_no_device() {
        let there = std::path::Path::new("/dev/kvm").exists();
        let absent = matches!(
            probe().answer,
            KvmAnswer::Absent {
                cause: KvmAbsent::NoDevice
            }
        );
        assert_eq!(absent, !there);
    }

    #[test]
    fn results_are_told_from_no_results() {
        let mut memory = vec![0; GuestMemory::SIZE];
        let guest = Guest { bmi2: true };
        guest.write(&mut memory);
        assert!(!guest.succeeded(&memory));
        memory[place::SSE..][..16].copy_from_slice(SSE_AFTER.map(u32::to_le_bytes).as_flattened());
        memory[place::EXCHANGE..][..16].copy_from_slice(EXCHANGED.map(u64::to_le_bytes).as_flattened());
        assert!(!guest.succeeded(&memory), "BMI2 is asked for");
        memory[place::SHIFTED..][..8].copy_from_slice(&SHIFTED.to_le_bytes());
        assert!(guest.succeeded(&memory));
    }
}
