//! IPv4 packets of one interface as they lie on the link, packet(7): by these a host talks that has no address yet. They pass by the rules
//! of the firewall, and nobody but root has such a socket.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

use libc::{c_int, c_ushort, sock_filter, sock_fprog, sockaddr_ll, socklen_t};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A hardware address of an Ethernet.
pub type Card = [u8; 6];

/// That of all on the link.
pub const EVERYBODY: Card = [0xff; 6];

/// Opens a socket that is told of UDP datagrams to a port alone, in the namespace that this thread is in.
///
/// # Errors
/// The kernel's.
pub fn open(interface: u32, port: u16) -> io::Result<OwnedFd> {
    // Of no protocol at first: nothing comes before the filter is there.
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: it takes numbers alone.
    let descriptor = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    attach(&socket, &mut datagrams_to(port))?;
    let place = place(interface, EVERYBODY);
    // SAFETY: the address lives until the call returns, and is as long as is said.
    let bound = unsafe { libc::bind(descriptor, ptr::from_ref(&place).cast(), place_length()) };
    match bound {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Such a socket, of this interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: AsyncFd<OwnedFd>,
    interface: u32,
}

impl PacketSocket {
    /// Takes one that [`open`] has opened to this runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: OwnedFd, interface: u32) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stays open, and the same, for as long as the `AsyncFd` owns it.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket, interface })
    }

    /// Waits for a packet; returns its length and who on the link has sent it. What is longer than the buffer is cut off.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Card)> {
        let received = self.socket.async_io(Interest::READABLE, |socket| {
            let mut from = place(0, EVERYBODY);
            let mut length = place_length();
            // SAFETY: buffer and address live until the call returns, and are as long as is said.
            let count = unsafe {
                libc::recvfrom(
                    socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    ptr::from_mut(&mut from).cast(),
                    &raw mut length,
                )
            };
            let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
            let [a, b, c, d, e, f, ..] = from.sll_addr;
            Ok((count, [a, b, c, d, e, f]))
        });
        received.await
    }

    /// Sends a packet to somebody on the link.
    ///
    /// # Errors
    /// The kernel's; the packet is lost.
    pub fn send(&self, packet: &[u8], to: Card) -> io::Result<()> {
        let place = place(self.interface, to);
        // SAFETY: packet and address live until the call returns, and are as long as is said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                ptr::from_ref(&place).cast(),
                place_length(),
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn place(interface: u32, card: Card) -> sockaddr_ll {
    // SAFETY: all zeroes are an address.
    let mut place: sockaddr_ll = unsafe { mem::zeroed() };
    place.sll_family = libc::AF_PACKET as c_ushort;
    place.sll_protocol = (libc::ETH_P_IP as c_ushort).to_be();
    place.sll_ifindex = interface as c_int;
    place.sll_halen = card.len() as u8;
    place.sll_addr[..card.len()].copy_from_slice(&card);
    place
}

fn place_length() -> socklen_t {
    mem::size_of::<sockaddr_ll>() as socklen_t
}

/// Writes the filter of the kernel's that lets datagrams to a port through (socket filters, networking/filter.rst of Linux): the protocol is
/// UDP, the packet is not a later fragment, and the port behind the header, whose length it says, is this one.
fn datagrams_to(port: u16) -> [sock_filter; 9] {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_HEADER_LENGTH: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const LOAD_BEHIND: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const IF_ANY: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jt: u8, jf: u8| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    [
        step(LOAD_BYTE, 9, 0, 0),
        step(IF_EQUAL, libc::IPPROTO_UDP as u32, 0, 5),
        step(LOAD_HALF, 6, 0, 0),
        step(IF_ANY, 0x1fff, 3, 0),
        step(LOAD_HEADER_LENGTH, 0, 0, 0),
        step(LOAD_BEHIND, 2, 0, 0),
        step(IF_EQUAL, port.into(), 1, 0),
        step(RETURN, 0, 0, 0),
        step(RETURN, u32::MAX, 0, 0),
    ]
}

fn attach(socket: &OwnedFd, filter: &mut [sock_filter]) -> io::Result<()> {
    let program = sock_fprog {
        len: filter.len() as c_ushort,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and its steps live until the call returns; the kernel copies them.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ptr::from_ref(&program).cast(),
            mem::size_of::<sock_fprog>() as socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn datagrams_to_its_port_come_and_others_do_not() {
        // The loopback is the first interface of each namespace.
        let opened = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = opened.local_addr().unwrap().port();
        let Ok(socket) = open(1, port) else {
            return crate::host::skip::skipped("only root has such sockets");
        };
        let socket = PacketSocket::new(socket, 1).unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.send_to(b"not this", other.local_addr().unwrap()).unwrap();
        from.send_to(b"this one", ("127.0.0.1", port)).unwrap();
        let mut buffer = [0; 100];
        let received = tokio::time::timeout(Duration::from_secs(5), socket.receive(&mut buffer));
        let (length, _) = received.await.unwrap().unwrap();
        // Headers of IPv4 and of UDP stand before it.
        assert_eq!(&buffer[28..length], b"this one");
        // What is sent comes back there, as it is.
        let packet = buffer[..length].to_vec();
        socket.send(&packet, [0; 6]).unwrap();
        let received = tokio::time::timeout(Duration::from_secs(5), socket.receive(&mut buffer));
        assert_eq!(received.await.unwrap().unwrap().0, length);
        assert_eq!(buffer[..length], packet);
    }
}
