//! A network with nothing in it, for programs that have no business on one.
//!
//! Made once per node and entered by every monitor that [`super::launch`] starts: making one takes the kernel
//! milliseconds, entering one microseconds.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The child's stack while it opens two files, in bytes.
const CHILD_STACK: usize = 64 << 10;

/// An empty network namespace that lives as long as this value or a process inside it.
#[derive(Debug)]
pub struct EmptyNetwork {
    /// Set when the node is not root: only inside a user namespace of its own may it make a network.
    user: Option<OwnedFd>,
    network: OwnedFd,
}

struct Opened {
    tap: Option<Tap>,
    user: RawFd,
    network: RawFd,
    errno: i32,
}

/// The name of a machine's TAP. Each is alone in its namespace, so that machines of one snapshot find theirs.
pub const TAP: &str = "tap0";

/// What TAP is made.
#[derive(Debug, Clone, Copy)]
struct Tap {
    /// Who may use it, where not everybody in the namespace may.
    owner: Option<u32>,
}

impl EmptyNetwork {
    /// Makes one: directly when the node is root, in a user namespace of its own otherwise.
    ///
    /// # Errors
    /// When the host forbids it, as some do for ordinary users (`kernel.unprivileged_userns_clone`, AppArmor).
    pub fn create() -> io::Result<Self> {
        Self::make(None)
    }

    /// Makes one for a single machine, with the TAP [`TAP`] in it, which is up. `owner` is the user that may use it, when the node
    /// is root. Frames that nobody takes end there.
    ///
    /// # Errors
    /// As [`EmptyNetwork::create`]; when the kernel has no TAPs.
    pub fn with_tap(owner: Option<u32>) -> io::Result<Self> {
        Self::make(Some(Tap { owner }))
    }

    fn make(tap: Option<Tap>) -> io::Result<Self> {
        let user_namespace = if rustix::process::geteuid().is_root() {
            0
        } else {
            libc::CLONE_NEWUSER
        };
        let mut opened = Opened {
            tap,
            user: -1,
            network: -1,
            errno: 0,
        };
        let mut stack = vec![0_u128; CHILD_STACK / size_of::<u128>()];
        let flags =
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::CLONE_NEWNET | libc::SIGCHLD;
        // SAFETY: CLONE_VFORK suspends this thread until the child has ended, so the stack and `opened` outlive it and are its
        // alone. It makes raw system calls only. CLONE_FILES makes the descriptors that it opens this process's.
        let pid = unsafe {
            libc::clone(
                open_namespaces,
                stack.as_mut_ptr_range().end.cast(),
                flags | user_namespace,
                (&raw mut opened).cast(),
            )
        };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let status = rustix::process::Pid::from_raw(pid);
        let _ = rustix::process::waitpid(status, rustix::process::WaitOptions::empty());
        // SAFETY: the child stored descriptors that the kernel had just given it, or -1; nobody else knows them.
        let own = |fd: RawFd| (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        match (own(opened.user), own(opened.network)) {
            (Some(user), Some(network)) if opened.errno == 0 => Ok(Self {
                user: (user_namespace != 0).then_some(user),
                network,
            }),
            _ => Err(io::Error::from_raw_os_error(opened.errno)),
        }
    }

    /// Returns what a child passes to `setns`, in this order.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.user
            .iter()
            .chain([&self.network])
            .map(AsRawFd::as_raw_fd)
            .collect()
    }
}

extern "C" fn open_namespaces(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the argument is the `Opened` that `create` passed, which waits in the parent while this runs.
    let opened = unsafe { &mut *argument.cast::<Opened>() };
    opened.user = open(c"/proc/self/ns/user", opened);
    opened.network = open(c"/proc/self/ns/net", opened);
    if let Some(tap) = opened.tap {
        make_tap(tap, opened);
    }
    0
}

/// `struct ifreq` as the calls below take it: a name and flags, in the kernel's 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

impl InterfaceRequest {
    fn of(flags: libc::c_int) -> Self {
        let mut name = [0; libc::IFNAMSIZ];
        name[..TAP.len()].copy_from_slice(TAP.as_bytes());
        Self {
            name,
            flags: flags as libc::c_short,
            rest: [0; 22],
        }
    }
}

/// Makes the TAP, as tuntap(4) of the kernel's documentation has it, and lets it be up (netdevice(7)). It stays with its namespace.
fn make_tap(tap: Tap, opened: &mut Opened) {
    let device = open_for(c"/dev/net/tun", libc::O_RDWR | libc::O_CLOEXEC, opened);
    let attach = InterfaceRequest::of(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    control(
        device,
        libc::TUNSETIFF as libc::c_ulong,
        (&raw const attach) as usize,
        opened,
    );
    if let Some(owner) = tap.owner {
        control(device, libc::TUNSETOWNER as libc::c_ulong, owner as usize, opened);
    }
    control(device, libc::TUNSETPERSIST as libc::c_ulong, 1, opened);
    // SAFETY: socket takes numbers alone.
    let socket = unsafe {
        libc::syscall(
            libc::SYS_socket,
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        )
    };
    let socket = RawFd::try_from(socket).unwrap_or(-1);
    let up = InterfaceRequest::of(libc::IFF_UP);
    control(
        socket,
        libc::SIOCSIFFLAGS as libc::c_ulong,
        (&raw const up) as usize,
        opened,
    );
    for descriptor in [device, socket] {
        // SAFETY: both were opened above and are nobody else's; closing what did not open does nothing.
        unsafe { libc::syscall(libc::SYS_close, descriptor) };
    }
}

/// Makes one ioctl, and keeps the first error.
fn control(descriptor: RawFd, request: libc::c_ulong, argument: usize, opened: &mut Opened) {
    if opened.errno != 0 {
        return;
    }
    // SAFETY: the argument is a number, or the address of an `InterfaceRequest` of the caller's, as the request takes it; errno is
    // this thread's own, since its parent's is suspended.
    unsafe {
        if libc::syscall(libc::SYS_ioctl, descriptor, request, argument) < 0 {
            opened.errno = *libc::__errno_location();
        }
    }
}

fn open(path: &std::ffi::CStr, opened: &mut Opened) -> RawFd {
    open_for(path, libc::O_RDONLY | libc::O_CLOEXEC, opened)
}

fn open_for(path: &std::ffi::CStr, flags: libc::c_int, opened: &mut Opened) -> RawFd {
    // SAFETY: openat with a NUL-terminated path; errno is this thread's own, since its parent's is suspended.
    unsafe {
        let returned = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
        if returned < 0 {
            opened.errno = *libc::__errno_location();
        }
        RawFd::try_from(returned).unwrap_or(-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_a_tap_of_the_same_name_that_is_up_and_goes_with_its_namespace() {
        let make = || EmptyNetwork::with_tap(rustix::process::geteuid().is_root().then_some(65534));
        let (Ok(first), Ok(second)) = (make(), make()) else {
            return crate::host::skip::skipped("this host has no TAPs for this user");
        };
        if !rustix::process::geteuid().is_root() {
            return crate::host::skip::skipped("only root enters a namespace from a thread");
        }
        for network in [&first, &second] {
            let network = network.network.try_clone().unwrap();
            let look = std::thread::spawn(move || {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), kind).unwrap();
                std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
            });
            assert!(look.join().unwrap().contains("tap0:"));
        }
        assert!(
            !std::path::Path::new("/sys/class/net/tap0").exists(),
            "it is not the host's"
        );
    }
}
