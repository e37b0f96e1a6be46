//! Rights of a process in a user namespace that stay when it executes a program, capabilities(7).
//!
//! Whoever enters a user namespace has all rights in it and loses them with the next program, unless its user is called root in there,
//! or they are ambient. Monitors are to lose them; a program that sets up a machine's network is not.

use std::os::fd::RawFd;

/// Numbers of capabilities (include/uapi/linux/capability.h).
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;

/// Setting a network up.
pub(super) const NETWORK: u64 = 1 << NET_ADMIN;

/// That, entering it, and a program's own confinement. No more than pasta(1) keeps of its own: else it could not find the network of who
/// has started it.
pub(super) const RIGHTS: u64 = NETWORK | 1 << NET_BIND_SERVICE | 1 << SYS_ADMIN;

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits.
const VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`, of which there are two.
#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Keeps these rights and no others, also when this process executes a program. Makes raw system calls only: it runs between clone and
/// exec. Returns an error's number.
pub(super) fn keep(rights: u64) -> Result<(), i32> {
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    let half = |half: u32| Data {
        effective: half,
        permitted: half,
        inheritable: half,
    };
    let data = [half(rights as u32), half((rights >> 32) as u32)];
    // SAFETY: capset reads the two structures, which live until it returns.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    for number in (0..u64::BITS).filter(|number| rights & 1 << number != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong;
        // SAFETY: prctl takes numbers here.
        check(unsafe {
            libc::syscall(
                libc::SYS_prctl,
                libc::PR_CAP_AMBIENT,
                raise,
                libc::c_ulong::from(number),
                0,
                0,
            )
        })?;
    }
    Ok(())
}

/// Enters a namespace. Makes one raw system call.
pub(super) fn enter(namespace: RawFd) -> Result<(), i32> {
    // SAFETY: setns takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setns, namespace, 0) })
}

fn check(returned: libc::c_long) -> Result<(), i32> {
    match returned {
        // SAFETY: errno's address is this thread's own.
        ..0 => Err(unsafe { *libc::__errno_location() }),
        _ => Ok(()),
    }
}
