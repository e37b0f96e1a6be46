//! Datagrams of a socket that stands for several addresses of the host's: each tells which of them it was sent to, and its answer leaves by
//! that one, `IP_PKTINFO` of ip(7) and `IPV6_RECVPKTINFO` of ipv6(7). Without, an answer has the address that the route to the client
//! has, and a client that has asked another one does not take it.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, RawFd};
use std::ptr;

use libc::{c_int, c_void, cmsghdr, in_pktinfo, in6_pktinfo, iovec, msghdr, sockaddr_in, sockaddr_in6};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Room for either message of control with its header, cmsg(3).
const CONTROL: usize = 64;

/// Such room; the kernel's structures begin at multiples of eight.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// An address of the host's that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Asked {
    address: IpAddr,
    /// Where that is, since there may be several of a link's own (RFC 4291, 2.5.6); 0 for others.
    interface: u32,
}

impl Asked {
    fn new(address: IpAddr, interface: u32) -> Option<Self> {
        // Nobody answers by the address of a group.
        let is_one = !address.is_unspecified() && !address.is_multicast();
        let is_of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        is_one.then_some(Self {
            address,
            interface: if is_of_link { interface } else { 0 },
        })
    }
}

/// A datagram that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its bytes, as many as there was room for.
    pub bytes: usize,
    /// Who has sent it.
    pub client: SocketAddr,
    /// To whom, where the socket stands for several.
    pub asked: Option<Asked>,
}

/// A socket that is bound.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// Binds one.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn bind(address: IpAddr, port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, port)).await?;
        if address.is_unspecified() {
            let (level, option) = match address {
                IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
                IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            };
            enable(socket.as_raw_fd(), level, option)?;
        }
        Ok(Self { socket })
    }

    /// Returns where it is bound.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits for a datagram. What is longer than the buffer is cut off.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let descriptor = self.socket.as_raw_fd();
        let received = self
            .socket
            .async_io(Interest::READABLE, || receive(descriptor, buffer));
        received.await
    }

    /// Sends a datagram to who has asked, by the address that was asked. Where that is none to send by, as one that was the host's then, or
    /// that of all on a link, by the route's.
    ///
    /// # Errors
    /// The kernel's; the datagram is lost.
    pub async fn answer(&self, bytes: &[u8], client: SocketAddr, asked: Option<Asked>) -> io::Result<()> {
        let Some(asked) = asked else {
            return self.socket.send_to(bytes, client).await.map(drop);
        };
        let descriptor = self.socket.as_raw_fd();
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || send(descriptor, bytes, client, asked));
        match sent.await {
            Err(error) if is_no_source(&error) => self.socket.send_to(bytes, client).await.map(drop),
            sent => sent,
        }
    }
}

fn is_no_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::ENODEV)
    )
}

fn size<T>(value: usize) -> T
where
    T: TryFrom<usize> + Default,
{
    // Sizes of the kernel's structures fit into whatever it counts them in.
    T::try_from(value).unwrap_or_default()
}

fn enable(descriptor: RawFd, level: c_int, option: c_int) -> io::Result<()> {
    let on: c_int = 1;
    let length = size(mem::size_of::<c_int>());
    // SAFETY: the option's value is an int that lives until the call returns.
    let set = unsafe { libc::setsockopt(descriptor, level, option, ptr::from_ref(&on).cast(), length) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts the parts of a message together, recvmsg(2). They must live as long as the message does.
fn message(place: *mut c_void, place_length: usize, part: &mut iovec, control: &mut Control) -> msghdr {
    // SAFETY: all zeroes are a message of nothing.
    let mut message: msghdr = unsafe { mem::zeroed() };
    message.msg_name = place;
    message.msg_namelen = size(place_length);
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size(CONTROL);
    message
}

fn receive(descriptor: RawFd, buffer: &mut [u8]) -> io::Result<Received> {
    // Larger than either family's, and all zeroes is one of neither.
    // SAFETY: all zeroes are an address of no family.
    let mut place: sockaddr_in6 = unsafe { mem::zeroed() };
    let mut part = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut control = Control([0; CONTROL]);
    let mut message = message(
        ptr::from_mut(&mut place).cast(),
        mem::size_of::<sockaddr_in6>(),
        &mut part,
        &mut control,
    );
    // SAFETY: all that the message points to lives until the call returns, and is as long as it says.
    let count = unsafe { libc::recvmsg(descriptor, &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let client = client(&place).ok_or(io::ErrorKind::InvalidData)?;
    let asked = asked(&message);
    Ok(Received { bytes, client, asked })
}

/// Reads an address that the kernel has written.
fn client(place: &sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(place.sin6_family) {
        libc::AF_INET => {
            // SAFETY: it is one of this family, which is the shorter one, and no more strictly aligned.
            let place = unsafe { &*ptr::from_ref(place).cast::<sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(place.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(place.sin_port)).into())
        }
        libc::AF_INET6 => {
            let (port, flow) = (u16::from_be(place.sin6_port), place.sin6_flowinfo);
            let address = Ipv6Addr::from(place.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, port, flow, place.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Finds the address that was asked among what the kernel says of a datagram.
fn asked(message: &msghdr) -> Option<Asked> {
    // SAFETY: the kernel has filled in the message, whose control is there still.
    let mut header: *const cmsghdr = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: it is within the control, and whole: the kernel writes no other.
        let (level, kind, data) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, libc::CMSG_DATA(header)) };
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: that is what a message of this kind holds.
                let info: in_pktinfo = unsafe { ptr::read_unaligned(data.cast()) };
                // The host's own, also where all on a link were asked.
                let address = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr));
                return Asked::new(address.into(), 0);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: that is what a message of this kind holds.
                let info: in6_pktinfo = unsafe { ptr::read_unaligned(data.cast()) };
                return Asked::new(Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), info.ipi6_ifindex);
            }
            _ => {}
        }
        // SAFETY: as for the first one.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn send(descriptor: RawFd, bytes: &[u8], client: SocketAddr, asked: Asked) -> io::Result<()> {
    let mut v4 = place_v4(client);
    let mut v6 = place_v6(client);
    let (place, length) = match client {
        SocketAddr::V4(_) => (ptr::from_mut(&mut v4).cast(), mem::size_of::<sockaddr_in>()),
        SocketAddr::V6(_) => (ptr::from_mut(&mut v6).cast(), mem::size_of::<sockaddr_in6>()),
    };
    let mut part = iovec {
        // Nobody writes there: sendmsg(2) reads.
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL]);
    let mut message = message(place, length, &mut part, &mut control);
    match asked.address {
        IpAddr::V4(address) => {
            let info = in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(address).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            say(&mut message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        IpAddr::V6(address) => {
            let info = in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: asked.interface,
            };
            say(&mut message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }
    // SAFETY: all that the message points to lives until the call returns, and is as long as it says.
    let sent = unsafe { libc::sendmsg(descriptor, &raw const message, libc::MSG_DONTWAIT) };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Writes the only message of control.
fn say<T>(message: &mut msghdr, level: c_int, kind: c_int, info: T) {
    let length: u32 = size(mem::size_of::<T>());
    // SAFETY: arithmetic alone.
    let (whole, space) = unsafe { (libc::CMSG_LEN(length), libc::CMSG_SPACE(length)) };
    // SAFETY: there is room for either message, [`CONTROL`], which is aligned as headers are.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = whole as _;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast(), info);
    }
    message.msg_controllen = space as _;
}

fn place_v4(client: SocketAddr) -> sockaddr_in {
    let address = match client.ip() {
        IpAddr::V4(address) => u32::from(address).to_be(),
        IpAddr::V6(_) => 0,
    };
    sockaddr_in {
        sin_family: libc::AF_INET as _,
        sin_port: client.port().to_be(),
        sin_addr: libc::in_addr { s_addr: address },
        sin_zero: [0; 8],
    }
}

fn place_v6(client: SocketAddr) -> sockaddr_in6 {
    let (octets, flow, scope) = match client {
        SocketAddr::V4(_) => ([0; 16], 0, 0),
        SocketAddr::V6(place) => (place.ip().octets(), place.flowinfo(), place.scope_id()),
    };
    sockaddr_in6 {
        sin6_family: libc::AF_INET6 as _,
        sin6_port: client.port().to_be(),
        sin6_flowinfo: flow,
        sin6_addr: libc::in6_addr { s6_addr: octets },
        sin6_scope_id: scope,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asks(server: &Datagrams, from: &str, to: &str) -> Option<Asked> {
        let client = UdpSocket::bind(from).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let to = SocketAddr::new(to.parse().unwrap(), port);
        client.send_to(b"question", to).await.unwrap();
        let mut buffer = [0; 100];
        let received = server.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..received.bytes], b"question");
        assert_eq!(received.client.port(), client.local_addr().unwrap().port());
        let sent = server.answer(b"answer", received.client, received.asked);
        sent.await.unwrap();
        let (count, by) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..count], b"answer");
        assert_eq!(by, to);
        received.asked
    }

    #[tokio::test]
    async fn an_answer_leaves_by_the_address_that_was_asked() {
        let server = Datagrams::bind(Ipv4Addr::UNSPECIFIED.into(), 0).await.unwrap();
        for to in ["127.0.0.1", "127.0.0.2", "127.9.9.9"] {
            let asked = asks(&server, "127.0.0.1:0", to).await;
            assert_eq!(asked.unwrap().address, to.parse::<IpAddr>().unwrap());
        }
        let alone = Datagrams::bind("127.0.0.5".parse().unwrap(), 0).await.unwrap();
        assert_eq!(asks(&alone, "127.0.0.1:0", "127.0.0.5").await, None);
    }

    #[tokio::test]
    async fn a_socket_of_both_families_answers_in_either() {
        let Ok(server) = Datagrams::bind(Ipv6Addr::UNSPECIFIED.into(), 0).await else {
            return crate::host::skip::skipped("there is no IPv6 here");
        };
        for to in ["127.0.0.1", "127.0.0.2"] {
            let asked = asks(&server, "127.0.0.1:0", to).await;
            let mapped = to.parse::<Ipv4Addr>().unwrap().to_ipv6_mapped();
            assert_eq!(asked.unwrap().address, IpAddr::from(mapped));
        }
        let asked = asks(&server, "[::1]:0", "::1").await;
        assert_eq!(asked.unwrap().address, IpAddr::from(Ipv6Addr::LOCALHOST));
    }

    #[tokio::test]
    async fn an_address_that_is_not_the_hosts_any_more_gives_way_to_the_routes() {
        let server = Datagrams::bind(Ipv4Addr::UNSPECIFIED.into(), 0).await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let gone = Asked::new("192.0.2.77".parse().unwrap(), 0);
        let sent = server.answer(b"answer", client.local_addr().unwrap(), gone);
        sent.await.unwrap();
        let mut buffer = [0; 100];
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 6);
    }
}
