//! TCP connections that a guest has from an earlier life, as another machine: their other ends know nothing of this one. They are closed
//! in one batch, by the kernel's socket diagnosis (sock_diag(7), `SOCK_DESTROY`), so that programs hear of it at once and not after
//! minutes of silence.
//!
//! A connection whose two ends are both in this guest goes on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::boot;

/// The modules by which a distribution's kernel finds and closes TCP sockets, in load order.
const MODULES: [&str; 2] = ["inet_diag", "tcp_diag"];

/// Orders in one message to the kernel. Each that fails is answered; all the answers fit the socket's buffer.
const BATCH: usize = 128;

/// States, as in the kernel's tcp_states.h.
const TIME_WAIT: u8 = 6;
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;

/// A socket of this guest that is connected, or about to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
}

/// Closes those that lead out of this guest; returns how many there were. A kernel that cannot do it leaves them to time out.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn close_stale() -> io::Result<usize> {
    let listed = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let all: Vec<Connection> = listed.iter().flat_map(|text| parse(text)).collect();
    let stale = stale(&all);
    if stale.is_empty() {
        return Ok(0);
    }
    boot::load_on_demand(&MODULES);
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(SOCK_DIAG),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let interfaces = interfaces();
    let orders: Vec<_> = stale
        .iter()
        .flat_map(|connection| interfaces.iter().map(|&interface| order(connection, interface)))
        .collect();
    orders
        .chunks(BATCH)
        .try_for_each(|batch| destroy(&socket, batch))?;
    Ok(stale.len())
}

/// Sends a batch of orders. The kernel has carried them out when this returns; what it could not do is gone already, or cannot be done.
fn destroy(socket: &OwnedFd, batch: &[[u8; ORDER_LEN]]) -> Result<(), Errno> {
    send(socket, &batch.concat(), SendFlags::empty())?;
    let mut answers = [0; 4096];
    while recv(socket, &mut answers, RecvFlags::empty()).is_ok() {}
    Ok(())
}

/// Leaves out what goes on: connections within this guest, to a loopback address or because both ends are in the list.
fn stale(all: &[Connection]) -> Vec<Connection> {
    // A socket of the newer protocol may be connected with one of the older.
    let plain = |end: SocketAddr| (end.ip().to_canonical(), end.port());
    let ends: BTreeSet<_> = all.iter().map(|it| (plain(it.local), plain(it.remote))).collect();
    let is_within = |it: &&Connection| {
        let (local, remote) = (plain(it.local), plain(it.remote));
        remote.0.is_loopback() || ends.contains(&(remote, local))
    };
    all.iter().filter(|it| !is_within(it)).copied().collect()
}

/// Reads `/proc/net/tcp` or `tcp6`, proc_net_tcp(5): connections only. One that lingers after its end is left out: no program waits for it.
fn parse(text: &str) -> impl Iterator<Item = Connection> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote) = (address(words.next()?)?, address(words.next()?)?);
        let state = u8::from_str_radix(words.next()?, 16).ok()?;
        let is_connection = ![TIME_WAIT, CLOSED, LISTENING].contains(&state);
        is_connection.then_some(Connection { local, remote })
    })
}

/// Reads an address, as in `0100007F:1F90`: words of the processor's order, as they lie in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |digits: &str| Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    let ip = match address.len() {
        8 => IpAddr::from(word(address)?),
        32 => {
            let mut bytes = [0; 16];
            for (place, at) in bytes.chunks_exact_mut(4).zip((0..).step_by(8)) {
                place.copy_from_slice(&word(address.get(at..at + 8)?)?);
            }
            IpAddr::from(bytes)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Returns the numbers of the network interfaces: a socket that is bound to one is found only by that, any other by each.
fn interfaces() -> Vec<u32> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| fs::read_to_string(entry.path().join("ifindex")).ok());
    numbers.filter_map(|number| number.trim().parse().ok()).collect()
}

/// Makes the order to close a connection over this interface: a `nlmsghdr` and an `inet_diag_req_v2`, as in linux/netlink.h and linux/inet_diag.h.
fn order(connection: &Connection, interface: u32) -> [u8; ORDER_LEN] {
    const SOCK_DESTROY: u16 = 21;
    const NLM_F_REQUEST: u16 = 1;
    let mut bytes = [0; ORDER_LEN];
    let mut at = 0;
    let mut put = |part: &[u8]| {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    };
    let family = match connection.local.is_ipv6() {
        true => libc::AF_INET6,
        false => libc::AF_INET,
    };
    put(&(ORDER_LEN as u32).to_ne_bytes());
    put(&SOCK_DESTROY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    // Number and port of the sender, which the kernel fills in.
    put(&[0; 8]);
    // Family, protocol, extensions, padding; any state.
    put(&[family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    put(&u32::MAX.to_ne_bytes());
    put(&connection.local.port().to_be_bytes());
    put(&connection.remote.port().to_be_bytes());
    put(&octets(connection.local.ip()));
    put(&octets(connection.remote.ip()));
    put(&interface.to_ne_bytes());
    // Any socket of these addresses.
    put(&[0xff; 8]);
    bytes
}

const ORDER_LEN: usize = 16 + 56;

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const TCP: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0302010A:C350 0909090A:0050 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0302010A:C351 0909090A:0050 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 100 0 0 10 0
   3: 0100007F:1F90 0100007F:C352 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   4: 0302010A:0016 0402010A:C353 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
   5: 0402010A:C353 0302010A:0016 08 00000000:00000000 00:00000000 00000000     0        0 5 1 0 100 0 0 10 0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn only_connections_that_lead_out_of_the_guest_are_stale() {
        let all: Vec<_> = parse(TCP).collect();
        assert_eq!(all.len(), 4);
        let expected = Connection {
            local: "10.1.2.3:50000".parse().unwrap(),
            remote: "10.9.9.9:80".parse().unwrap(),
        };
        assert_eq!(stale(&all), [expected]);
    }

    #[test]
    fn a_connection_between_the_two_protocols_is_within_the_guest() {
        let ends = |local: &str, remote: &str| Connection {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
        };
        let all = [
            ends("[::ffff:10.1.2.3]:80", "[::ffff:10.1.2.4]:999"),
            ends("10.1.2.4:999", "10.1.2.3:80"),
            ends("[::ffff:127.0.0.1]:80", "[::ffff:127.0.0.1]:998"),
            ends("127.0.0.1:997", "10.9.9.9:80"),
        ];
        assert_eq!(stale(&all), [all[3]]);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_read_as_the_kernel_prints_them() {
        let six = "B80D0120000000000000000001000000:0035";
        assert_eq!(address(six), Some("[2001:db8::1]:53".parse().unwrap()));
        assert_eq!(address("0100007F:0050"), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(address("0100007F"), None);
        assert_eq!(address("01ü0007:0050"), None);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn golden_bytes_of_an_order() {
        let connection = Connection {
            local: "10.1.2.3:50000".parse().unwrap(),
            remote: "10.9.9.9:80".parse().unwrap(),
        };
        let order = order(&connection, 2);
        let mut expected = vec![72, 0, 0, 0, 21, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xc3, 0x50, 0, 80]);
        expected.extend([10, 1, 2, 3].iter().chain(&[0; 12]));
        expected.extend(
            [10, 9, 9, 9]
                .iter()
                .chain(&[0; 12])
                .chain(&[2, 0, 0, 0])
                .chain(&[0xff; 8]),
        );
        assert_eq!(order[..], expected);
    }

    #[test]
    fn a_connection_within_the_guest_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let listed = fs::read_to_string("/proc/net/tcp").unwrap();
        let own = Connection {
            local: client.local_addr().unwrap(),
            remote: client.peer_addr().unwrap(),
        };
        let all: Vec<_> = parse(&listed).collect();
        assert!(all.contains(&own), "{own:?} is not in {listed}");
        assert!(!stale(&all).contains(&own));
        drop(server);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
}
