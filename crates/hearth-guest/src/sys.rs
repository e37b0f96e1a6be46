//! The system calls that rustix does not wrap safely. Everything `unsafe` of the agent is here; nothing here decides.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Pid;

/// Set in every forked child: its death is not the machine's.
static CHILD: AtomicBool = AtomicBool::new(false);

/// Tells whether this process is the agent itself, not a forked child of it.
pub(crate) fn is_agent() -> bool {
    !CHILD.load(Ordering::Relaxed)
}

/// Takes note that this process, which was executed anew, is not the agent.
pub(crate) fn leave_agent() {
    CHILD.store(true, Ordering::Relaxed);
}

/// A process that the agent made.
#[derive(Debug)]
pub(crate) struct Forked {
    /// Its id in the agent's namespace.
    pub(crate) pid: Pid,
    /// A handle to it that never names another process.
    pub(crate) pidfd: OwnedFd,
}

/// Forks into new namespaces (`CLONE_NEW*` in `namespaces`) and a cgroup; `body` runs in the child, which ends with it.
///
/// `CLONE_INTO_CGROUP` is what needs clone3: moving a process into a cgroup later waits for an RCU grace period.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn fork(
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> Infallible,
) -> io::Result<Forked> {
    /// As in the kernel's sched.h; the C library's constant does not fit its type.
    const CLONE_INTO_CGROUP: u64 = 1 << 33;
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, for which all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { zeroed() };
    arguments.flags = (libc::CLONE_PIDFD as u64) | namespaces as u64;
    arguments.pidfd = ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork: the child gets a copy of everything. The agent has one thread, so no
    // lock is held by somebody who does not exist in the child.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if pid == 0 {
        CHILD.store(true, Ordering::Relaxed);
        body();
    }
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .filter(|_| pid > 0);
    let pid = pid.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked { pid, pidfd })
}

/// Ends this process at once, without running anything else.
pub(crate) fn exit(status: i32) -> Infallible {
    // SAFETY: _exit takes any status and does not return.
    unsafe { libc::_exit(status) }
}

/// Blocks SIGCHLD and makes it readable from a descriptor.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before anything reads it; the descriptor is new and ours.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Blocks every signal, so that [`wait_for_signal`] gets it: one that is blocked reaches PID 1 of a namespace without a
/// handler, too.
pub(crate) fn block_signals() {
    // SAFETY: the set is initialised by sigfillset before anything reads it.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Waits for one of the blocked signals and returns its number.
pub(crate) fn wait_for_signal() -> u8 {
    loop {
        // SAFETY: the set is initialised by sigfillset before anything reads it; sigwaitinfo takes no information pointer.
        let number = unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigfillset(&raw mut set);
            libc::sigwaitinfo(&raw const set, ptr::null_mut())
        };
        if let Ok(number @ 1..) = u8::try_from(number) {
            return number;
        }
    }
}

/// Takes charge of a descriptor that this program was started with.
///
/// # Errors
/// Returns the kernel's error when there is none.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD changes no memory, and fails for a number that is none; this program owns nothing else of that number.
    unsafe {
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Gives a child the signals of a fresh process: none blocked, none ignored.
pub(crate) fn reset_signals() {
    // SAFETY: an empty set and SIG_DFL are valid for every signal; for those that cannot be set the calls fail harmlessly.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// Replaces this process by an opened program; returns only with the error.
pub(crate) fn execute_opened(
    program: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and the strings they point to outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Replaces this process by a program with the environment it has; returns only with the error.
pub(crate) fn execute_inheriting(program: &CStr, arguments: &[CString]) -> io::Error {
    let arguments = pointers(arguments);
    // SAFETY: the list ends with a null pointer, and the strings it points to outlive the call.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    io::Error::last_os_error()
}

/// Limits this process and those it makes; `u64::MAX` is no limit.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn set_limit(resource: u8, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: prlimit64 reads the limit, and writes nothing where the old one is not asked for.
    let set = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            libc::c_int::from(resource),
            &raw const limit,
            0,
        )
    };
    match set {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Replaces this process by a program; returns only with the error.
pub(crate) fn execute(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both lists end with a null pointer, and the strings they point to outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Makes `to` (the number of a standard stream, or the one behind them) another name of `from`, kept across execve.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn place(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: nobody owns descriptors 0 to 2 in Rust's sense; number 3 is only taken by a child about to execute another
    // program, which uses none of the agent's values any more.
    match unsafe { libc::dup2(from.as_raw_fd(), to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Closes every descriptor above the standard streams in a child that will not execute a program, but for `keep`.
pub(crate) fn close_others(keep: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    numbers.sort_unstable();
    let mut from: u32 = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > from {
            // SAFETY: the child never uses what it closes here: its owners are the agent's values, which it never drops.
            unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) };
        }
        from = from.max(number.saturating_add(1));
    }
}

/// Feeds 32 random bytes to the kernel's generator, credits them, and makes it use them at once.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn add_entropy(random: BorrowedFd<'_>, seed: &[u8; 32]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; 32],
    }
    let info = RandPoolInfo {
        entropy_count: 256,
        buf_size: 32,
        buf: *seed,
    };
    // SAFETY: the structure is the kernel's rand_pool_info with the 32 bytes that buf_size announces.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const info) };
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) };
    if added < 0 || reseeded < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets a file system stand still or go on: FIFREEZE, FITHAW.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn file_system_control(directory: BorrowedFd<'_>, request: u32) -> io::Result<()> {
    // SAFETY: both requests ignore their argument.
    match unsafe { libc::ioctl(directory.as_raw_fd(), request as _, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Listens on a port of this guest's vsock, without blocking.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn listen_on_vsock(port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes any numbers.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: sockaddr_vm is plain data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (libc::VMADDR_CID_ANY, port);
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: bind reads a sockaddr_vm of that length; listen takes any numbers.
    let listens = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) == 0
            && libc::listen(socket.as_raw_fd(), 8) == 0
    };
    match listens {
        true => Ok(socket),
        false => Err(io::Error::last_os_error()),
    }
}

/// Has a socket use one network interface only; the name ends with a NUL.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn bind_to_device(socket: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    // SAFETY: SO_BINDTODEVICE reads so many bytes of the name.
    let bound = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    match bound {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Brings a network interface up.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn interface_up(socket: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let mut request = interface_request(name);
    // SAFETY: SIOCGIFFLAGS reads a terminated name and writes flags, SIOCSIFFLAGS reads both.
    unsafe {
        interface_control(socket, libc::SIOCGIFFLAGS, &raw mut request)?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        interface_control(socket, libc::SIOCSIFFLAGS, &raw mut request)
    }
}

/// Gives an Ethernet interface another hardware address; it may be up.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn set_hardware_address(socket: BorrowedFd<'_>, name: &str, address: [u8; 6]) -> io::Result<()> {
    let mut request = interface_request(name.as_bytes());
    let mut hardware = libc::sockaddr {
        sa_family: libc::ARPHRD_ETHER,
        sa_data: [0; 14],
    };
    for (to, from) in hardware.sa_data.iter_mut().zip(address) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: SIOCSIFHWADDR reads a terminated name and an address of the family that the interface has.
    unsafe { interface_control(socket, libc::SIOCSIFHWADDR, &raw mut request) }
}

/// Returns a request about an interface, see netdevice(7).
fn interface_request(name: &[u8]) -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, &from) in request.ifr_name.iter_mut().zip(name).take(libc::IFNAMSIZ - 1) {
        *to = from as libc::c_char;
    }
    request
}

/// Makes one ioctl about interfaces or routes.
///
/// # Safety
/// `argument` is what the request takes.
unsafe fn interface_control<T>(
    socket: BorrowedFd<'_>,
    request: libc::c_ulong,
    argument: *mut T,
) -> io::Result<()> {
    // SAFETY: as the caller says.
    match unsafe { libc::ioctl(socket.as_raw_fd(), request as _, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the number of an interface.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn interface_index(socket: BorrowedFd<'_>, name: &str) -> io::Result<i32> {
    let mut request = interface_request(name.as_bytes());
    // SAFETY: SIOCGIFINDEX reads a terminated name and writes an int.
    unsafe {
        interface_control(socket, libc::SIOCGIFINDEX, &raw mut request)?;
        Ok(request.ifr_ifru.ifru_ifindex)
    }
}

/// Gives an interface its address and the network of that.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn add_address_v4(
    socket: BorrowedFd<'_>,
    name: &str,
    address: Ipv4Addr,
    prefix: u8,
) -> io::Result<()> {
    let mask = Ipv4Addr::from(u32::MAX << (32 - prefix));
    for (request, value) in [(libc::SIOCSIFADDR, address), (libc::SIOCSIFNETMASK, mask)] {
        let mut argument = interface_request(name.as_bytes());
        argument.ifr_ifru.ifru_addr = socket_address_v4(value);
        // SAFETY: both requests read an ifreq with a terminated name and a sockaddr_in.
        unsafe { interface_control(socket, request, &raw mut argument)? };
    }
    Ok(())
}

/// Adds the route to everywhere by this gateway.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn add_default_route_v4(socket: BorrowedFd<'_>, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is plain data, for which all zeroes is a valid value.
    let mut route: libc::rtentry = unsafe { zeroed() };
    route.rt_dst = socket_address_v4(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address_v4(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address_v4(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT of an AF_INET socket reads an rtentry.
    unsafe { interface_control(socket, libc::SIOCADDRT, &raw mut route) }
}

fn socket_address_v4(address: Ipv4Addr) -> libc::sockaddr {
    let octets = address.octets().map(|octet| octet as libc::c_char);
    let mut data = [0; 14];
    // Behind two bytes of a port (ip(7), `struct sockaddr_in`).
    data[2..6].copy_from_slice(&octets);
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

/// What SIOCSIFADDR of an AF_INET6 socket takes: `struct in6_ifreq`, see ipv6(7).
#[repr(C)]
struct AddressRequestV6 {
    address: libc::in6_addr,
    prefix: u32,
    interface: libc::c_int,
}

/// Gives an interface one more address, and the network of that.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn add_address_v6(
    socket: BorrowedFd<'_>,
    interface: i32,
    address: Ipv6Addr,
    prefix: u8,
) -> io::Result<()> {
    let mut request = AddressRequestV6 {
        address: address_v6(address),
        prefix: prefix.into(),
        interface,
    };
    // SAFETY: SIOCSIFADDR of an AF_INET6 socket reads an in6_ifreq.
    unsafe { interface_control(socket, libc::SIOCSIFADDR, &raw mut request) }
}

/// What SIOCADDRT of an AF_INET6 socket takes: `struct in6_rtmsg` of `linux/ipv6_route.h`.
#[repr(C)]
struct RouteRequestV6 {
    destination: libc::in6_addr,
    source: libc::in6_addr,
    gateway: libc::in6_addr,
    kind: u32,
    destination_prefix: u16,
    source_prefix: u16,
    metric: u32,
    info: libc::c_ulong,
    flags: u32,
    interface: libc::c_int,
}

/// Adds the route to everywhere by this gateway.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn add_default_route_v6(
    socket: BorrowedFd<'_>,
    interface: i32,
    gateway: Ipv6Addr,
) -> io::Result<()> {
    let nowhere = address_v6(Ipv6Addr::UNSPECIFIED);
    let mut route = RouteRequestV6 {
        destination: nowhere,
        source: nowhere,
        gateway: address_v6(gateway),
        kind: 0,
        destination_prefix: 0,
        source_prefix: 0,
        metric: 1,
        info: 0,
        flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
        interface,
    };
    // SAFETY: SIOCADDRT of an AF_INET6 socket reads an in6_rtmsg.
    unsafe { interface_control(socket, libc::SIOCADDRT, &raw mut route) }
}

fn address_v6(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr {
        s6_addr: address.octets(),
    }
}

/// Gives this process namespaces of its own.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn unshare(namespaces: libc::c_int) -> io::Result<()> {
    // SAFETY: none of the CLONE_NEW* flags unshares memory or descriptors.
    match unsafe { libc::unshare(namespaces) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Sends a signal, any of 1 to 64, to a process; false when it is gone.
pub(crate) fn kill(pid: Pid, signal: u8) -> bool {
    // SAFETY: kill takes any numbers.
    unsafe { libc::kill(pid.as_raw_nonzero().get(), libc::c_int::from(signal)) == 0 }
}
