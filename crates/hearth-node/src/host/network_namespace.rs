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
    user: RawFd,
    network: RawFd,
    errno: i32,
}

impl EmptyNetwork {
    /// Makes one: directly when the node is root, in a user namespace of its own otherwise.
    ///
    /// # Errors
    /// When the host forbids it, as some do for ordinary users (`kernel.unprivileged_userns_clone`, AppArmor).
    pub fn create() -> io::Result<Self> {
        let user_namespace = if rustix::process::geteuid().is_root() {
            0
        } else {
            libc::CLONE_NEWUSER
        };
        let mut opened = Opened {
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
            (Some(user), Some(network)) => Ok(Self {
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
    0
}

fn open(path: &std::ffi::CStr, opened: &mut Opened) -> RawFd {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: openat with a NUL-terminated path; errno is this thread's own, since its parent's is suspended.
    unsafe {
        let returned = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0);
        if returned < 0 {
            opened.errno = *libc::__errno_location();
        }
        RawFd::try_from(returned).unwrap_or(-1)
    }
}
