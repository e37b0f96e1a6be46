//! Network namespaces: an empty one for programs that have no business on a network, and those of single machines with a TAP in them.
//!
//! The empty one is made once per node and entered by every monitor that [`super::launch`] starts: making one takes the kernel
//! milliseconds, entering one microseconds.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::{Mutex, PoisonError};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::ambient;
use super::fork;
use super::launch::{AllSignalsBlocked, HostUser};
use super::own;
use super::process;

/// The child's stack while it opens two files, in bytes.
const CHILD_STACK: usize = 64 << 10;

/// That of one that does more.
const VISITOR_STACK: usize = 256 << 10;

/// A network namespace that lives as long as this value, a process inside it, or a socket of it.
#[derive(Debug)]
pub struct NetworkNamespace {
    /// Set when the node is not root: only inside a user namespace of its own may it make a network.
    user: Option<OwnedFd>,
    network: OwnedFd,
    /// One end of a pipe, which a program that lives inside inherits: whoever has the other end sees when nobody is left.
    lifeline: Option<OwnedFd>,
    /// Can be read, or hangs up, when that has ended.
    end: Option<OwnedFd>,
}

struct Opened {
    with_tap: bool,
    user: RawFd,
    network: RawFd,
    tap: RawFd,
    errno: i32,
}

/// The name of a machine's TAP. Each is alone in its namespace, so that machines of one snapshot find theirs.
pub const TAP: &str = "tap0";

/// What the kernel answers about an interface that is not there, and to one that is to be made and is there: errno(3).
pub const NO_DEVICE: i32 = libc::ENODEV;
/// See [`NO_DEVICE`].
pub const EXISTS: i32 = libc::EEXIST;

/// The host's end of a machine's network interface. It stays in its namespace when this value goes.
#[derive(Debug)]
pub struct Tap(Mutex<Option<OwnedFd>>);

impl Tap {
    /// Returns a descriptor for a monitor that is given one.
    ///
    /// # Errors
    /// When there are too many; when [`Tap::leave_to`] was called.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        let descriptor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        descriptor
            .as_ref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?
            .try_clone()
    }

    /// Lets a monitor that opens it by its name do so, from within the namespace: as `owner`, or as who made it.
    ///
    /// # Errors
    /// When the kernel refuses that user.
    pub fn leave_to(&self, owner: Option<u32>) -> io::Result<()> {
        let descriptor = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(descriptor), Some(owner)) = (descriptor, owner) {
            // SAFETY: TUNSETOWNER takes a number.
            let set = unsafe {
                libc::ioctl(
                    descriptor.as_raw_fd(),
                    libc::TUNSETOWNER as _,
                    libc::c_ulong::from(owner),
                )
            };
            if set < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl NetworkNamespace {
    /// Makes an empty one: directly when the node is root, in a user namespace of its own otherwise.
    ///
    /// # Errors
    /// When the host forbids it, as some do for ordinary users (`kernel.unprivileged_userns_clone`, AppArmor).
    pub fn create() -> io::Result<Self> {
        Self::make(false).map(|(namespace, _)| namespace)
    }

    /// Makes one for a single machine, with the TAP [`TAP`] in it, which is up. Frames that nobody takes end there.
    ///
    /// # Errors
    /// As [`NetworkNamespace::create`]; when the kernel has no TAPs for this user.
    pub fn with_tap() -> io::Result<(Self, Tap)> {
        let (namespace, tap) = Self::make(true)?;
        Ok((namespace, Tap(Mutex::new(tap))))
    }

    /// Finds the one that a process of this user's is in.
    ///
    /// # Errors
    /// When the process is gone or may not be looked at.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        let open = |kind| File::open(format!("/proc/{pid}/ns/{kind}")).map(OwnedFd::from);
        let user = match own::is_root() {
            true => None,
            false => Some(open("user")?),
        };
        Ok(Self {
            end: user.is_some().then(|| process::handle(pid)).transpose()?,
            user,
            network: open("net")?,
            lifeline: None,
        })
    }

    /// Does something inside: on a thread of its own, or in a process that borrows this one's memory where only a process may
    /// enter. What it opens there stays there, and is this process's. It is to open things and to return.
    ///
    /// # Errors
    /// Those of `act`; when this process may not enter.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        if let Some(user) = &self.user {
            return visit([user.as_raw_fd(), self.network.as_raw_fd()], act);
        }
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
                act()
            });
            entered
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Tells whether a process is in the user namespace that this one belongs to.
    pub fn is_owner_of(&self, pid: i32) -> bool {
        let theirs = std::fs::metadata(format!("/proc/{pid}/ns/user"));
        let own = self.user.as_ref().map(rustix::fs::fstat);
        match (own, theirs) {
            (Some(Ok(own)), Ok(theirs)) => (own.st_dev, own.st_ino) == (theirs.dev(), theirs.ino()),
            // Where it belongs to none of its own, or somebody else's may not be looked at.
            _ => false,
        }
    }

    /// Has programs that will live inside hold one end of a pipe, and returns the other, which hangs up when this value and all of
    /// them have gone.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn tie(&mut self) -> io::Result<OwnedFd> {
        let (tied, held) = fork::pipe()?;
        self.lifeline = Some(held);
        self.end = Some(tied.try_clone()?);
        Ok(tied)
    }

    /// Returns what can be read, or hangs up, when what lives inside has ended: of one that was tied, or that a process was found in which is
    /// not root's.
    ///
    /// # Errors
    /// It is neither, or there are too many open files.
    pub fn end(&self) -> io::Result<OwnedFd> {
        let end = self.end.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        end.try_clone()
    }

    /// Names it once more, without what [`NetworkNamespace::tie`] has tied.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn untied(&self) -> io::Result<Self> {
        Ok(Self {
            user: self.user.as_ref().map(OwnedFd::try_clone).transpose()?,
            network: self.network.try_clone()?,
            lifeline: None,
            end: None,
        })
    }

    /// Returns what names it to a program that is given this descriptor.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn pass(&self) -> io::Result<OwnedFd> {
        self.network.try_clone()
    }

    /// Returns what names it to the kernel in this process.
    pub fn descriptor(&self) -> RawFd {
        self.network.as_raw_fd()
    }

    fn make(with_tap: bool) -> io::Result<(Self, Option<OwnedFd>)> {
        let user_namespace = if rustix::process::geteuid().is_root() {
            0
        } else {
            libc::CLONE_NEWUSER
        };
        let mut opened = Opened {
            with_tap,
            user: -1,
            network: -1,
            tap: -1,
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
        let tap = own(opened.tap);
        match (own(opened.user), own(opened.network)) {
            (Some(user), Some(network)) if opened.errno == 0 => {
                let user = (user_namespace != 0).then_some(user);
                let namespace = Self {
                    user,
                    network,
                    lifeline: None,
                    end: None,
                };
                Ok((namespace, tap))
            }
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

    /// Returns the same, for whoever keeps it longer.
    pub(super) fn cloned(&self) -> io::Result<Vec<OwnedFd>> {
        self.user
            .iter()
            .chain([&self.network])
            .map(OwnedFd::try_clone)
            .collect()
    }

    /// Returns what a child that stays outside passes to `setns`: it has rights over the network then, where this process is not
    /// root's.
    pub(super) fn owner(&self) -> Option<RawFd> {
        self.user.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Returns what a program inside inherits.
    pub(super) fn lifeline(&self) -> Option<RawFd> {
        self.lifeline.as_ref().map(AsRawFd::as_raw_fd)
    }
}

/// What a visitor of a namespace is to do, and what came of it.
struct Visit<F, T> {
    namespaces: [RawFd; 2],
    act: Option<F>,
    outcome: Option<std::thread::Result<io::Result<T>>>,
}

/// Does something in a user namespace and a network namespace of it, which only processes with one thread may enter: in a child that
/// borrows this process's memory and descriptors, and this thread's place in it, until it ends.
fn visit<T: Send, F: FnOnce() -> io::Result<T> + Send>(namespaces: [RawFd; 2], act: F) -> io::Result<T> {
    let mut visit = Visit {
        namespaces,
        act: Some(act),
        outcome: None,
    };
    let mut stack = vec![0_u128; VISITOR_STACK / size_of::<u128>()];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    let signals = AllSignalsBlocked::new();
    // SAFETY: CLONE_VFORK suspends this thread until the child has ended, so the stack and `visit` outlive it and are its alone. To
    // the C library and to Rust the child is this thread, on another stack: the same thread-local storage, and locks that other
    // threads wait for as ever. `act` may therefore allocate and open files; its bounds say that it may move to another thread. No
    // handler of a signal runs in the child, and no panic leaves it.
    let pid = unsafe {
        libc::clone(
            run_visit::<F, T>,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            (&raw mut visit).cast(),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = rustix::process::Pid::from_raw(pid);
    // It has ended, and no signal interrupts this.
    let _ = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
    drop(signals);
    match visit.outcome {
        Some(Ok(outcome)) => outcome,
        Some(Err(panic)) => std::panic::resume_unwind(panic),
        None => Err(io::Error::other("the visitor of a network namespace was killed")),
    }
}

extern "C" fn run_visit<F: FnOnce() -> io::Result<T>, T>(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the argument is the `Visit` that `visit` passed, which waits in the parent while this runs.
    let visit = unsafe { &mut *argument.cast::<Visit<F, T>>() };
    for namespace in visit.namespaces {
        if let Err(errno) = ambient::enter(namespace) {
            visit.outcome = Some(Ok(Err(io::Error::from_raw_os_error(errno))));
            return 1;
        }
    }
    if let Some(act) = visit.act.take() {
        visit.outcome = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)));
    }
    0
}

extern "C" fn open_namespaces(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the argument is the `Opened` that `create` passed, which waits in the parent while this runs.
    let opened = unsafe { &mut *argument.cast::<Opened>() };
    opened.user = open(c"/proc/self/ns/user", opened);
    opened.network = open(c"/proc/self/ns/net", opened);
    if opened.with_tap {
        make_tap(opened);
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
        Self::named(TAP, flags)
    }

    fn named(name: &str, flags: libc::c_int) -> Self {
        let mut bytes = [0; libc::IFNAMSIZ];
        for (byte, of_name) in bytes[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
            *byte = of_name;
        }
        Self {
            name: bytes,
            flags: flags as libc::c_short,
            rest: [0; 22],
        }
    }
}

/// Gives this user and group their numbers in the user namespace that this process has entered, which is theirs and knows nobody yet.
///
/// # Errors
/// When the kernel refuses.
pub fn map_user(user: HostUser) -> io::Result<()> {
    let HostUser { uid, gid } = user;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Makes a TAP in the namespace that this thread is in, which stays without anybody at its other end: whoever may open it by its name
/// takes that up.
///
/// # Errors
/// When the kernel refuses.
pub fn make_tap_named(name: &str) -> io::Result<()> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    let attach = InterfaceRequest::named(name, libc::IFF_TAP | libc::IFF_NO_PI);
    // SAFETY: TUNSETIFF takes the address of an `ifreq`, which lives until it returns; TUNSETPERSIST takes a number.
    let made = unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw const attach) == 0
            && libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST as _, 1) == 0
    };
    match made {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}

/// Makes a TAP in the namespace that this thread is in, which goes with its other end: what is returned. That gives and takes frames
/// without their lengths, and never waits.
///
/// # Errors
/// When the kernel refuses.
pub fn make_port(name: &str) -> io::Result<OwnedFd> {
    let mut options = File::options();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let device = options.open("/dev/net/tun")?;
    let attach = InterfaceRequest::named(name, libc::IFF_TAP | libc::IFF_NO_PI);
    // SAFETY: TUNSETIFF takes the address of an `ifreq`, which lives until it returns.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw const attach) } {
        0 => Ok(device.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the TAP, as tuntap(4) of the kernel's documentation has it, and lets it be up (netdevice(7)). It stays with its namespace.
fn make_tap(opened: &mut Opened) {
    let device = open_for(c"/dev/net/tun", libc::O_RDWR | libc::O_CLOEXEC, opened);
    let attach = InterfaceRequest::of(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    control(
        device,
        libc::TUNSETIFF as libc::c_ulong,
        (&raw const attach) as usize,
        opened,
    );
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
    // SAFETY: it was opened above and is nobody else's; closing what did not open does nothing.
    unsafe { libc::syscall(libc::SYS_close, socket) };
    opened.tap = device;
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
        let (Ok((first, _)), Ok((second, tap))) =
            (NetworkNamespace::with_tap(), NetworkNamespace::with_tap())
        else {
            return crate::host::skip::skipped("this host has no TAPs for this user");
        };
        if !rustix::process::geteuid().is_root() {
            return crate::host::skip::skipped("only root enters a namespace from a thread");
        }
        for network in [&first, &second] {
            let devices = network.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
            assert!(devices.unwrap().contains("tap0:"));
        }
        assert!(tap.descriptor().is_ok());
        tap.leave_to(Some(65534)).unwrap();
        assert!(tap.descriptor().is_err(), "it is its owner's");
        assert!(
            !std::path::Path::new("/sys/class/net/tap0").exists(),
            "it is not the host's"
        );
    }
}
