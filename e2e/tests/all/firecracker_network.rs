//! The cases of the driver suite that need the other end of a machine's network interface.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{DEADLINE, TestNode};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::firecracker::{Guest, NotHere, is_near, with};

const HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 2);

/// A machine whose TAP has an address: the same for each, since each is alone in its network.
fn machine(node: &TestNode, name: &str, guest: &Guest, flags: &[&str]) -> Result<fs::File> {
    node.start(with(
        &with(&["-m", "96m", "--name", name], flags),
        &with(&["busybox"], guest.wait),
    ))?;
    let machine = node.inspect(name)?;
    let path = format!("/proc/{}/ns/net", machine.state.pid.context("it has no monitor")?);
    let (address, entry) = (format!("{HOST}/30"), format!("--net={path}"));
    let added = Command::new("nsenter")
        .args([&entry, "ip", "address", "add", &address, "dev", "tap0"])
        .output()?;
    ensure!(
        added.status.success(),
        "{}",
        String::from_utf8_lossy(&added.stderr)
    );
    let said = node.exec([name, "network", &format!("{GUEST}/30")]).ok()?;
    let tail: Vec<_> = (6..12)
        .step_by(2)
        .map(|at| machine.id[at..at + 2].to_owned())
        .collect();
    assert_eq!(said, format!("mac=02-00-00-{}", tail.join("-")));
    Ok(fs::File::open(path)?)
}

/// Does something on the TAP's side.
fn inside<T: Send>(network: &fs::File, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            act()
        });
        entered.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })
}

/// Sends bytes to the guest's echo while it reads them back.
fn through(bytes: usize) -> Result<()> {
    let mut reader = TcpStream::connect_timeout(&SocketAddr::from((GUEST, 7)), DEADLINE)?;
    reader.set_read_timeout(Some(DEADLINE))?;
    let mut writer = reader.try_clone()?;
    let sent: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
    let mut received = vec![0; bytes];
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.write_all(&sent));
        reader.read_exact(&mut received)?;
        writing.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        anyhow::Ok(())
    })?;
    ensure!(sent == received, "the echo differs");
    Ok(())
}

/// The other end of the interface is in a network that only root enters.
fn only_root() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Ok(()),
        false => Err(NotHere("only root enters a machine's network").into()),
    }
}

pub(crate) fn echo(node: &TestNode, guest: &Guest) -> Result<()> {
    only_root()?;
    // Two at once, with the same names and addresses.
    let first = machine(node, "net", guest, &["--network", "isolated"])?;
    let second = machine(node, "other", guest, &["--network", "isolated"])?;
    for network in [&first, &second] {
        inside(network, || through(20_000))?;
    }
    Ok(())
}

/// Whoever is no root sees that there is an interface.
pub(crate) fn interface(node: &TestNode, guest: &Guest) -> Result<()> {
    let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    if tun.is_err() {
        return Err(NotHere("/dev/net/tun does not open: there are no TAPs for this user").into());
    }
    let flags = ["-m", "96m", "--network", "isolated", "--name", "net", "busybox"];
    node.start(with(&flags, guest.wait))?;
    let said = node.exec(["net", "network", "172.31.77.2/30"]).ok()?;
    ensure!(said.starts_with("mac=02-00-00-"), "{said}");
    Ok(())
}

/// Asks for echoes as `ping` does.
pub(crate) fn icmp(node: &TestNode, guest: &Guest) -> Result<()> {
    only_root()?;
    let network = machine(node, "pinged", guest, &["--network", "isolated"])?;
    inside(&network, || (0..10).try_for_each(ping))
}

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// Sends one echo request (RFC 792) and waits for its reply.
fn ping(sequence: u8) -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    let payload: Vec<u8> = (0..56_u8).map(|byte| byte ^ sequence).collect();
    let mut request = vec![ECHO_REQUEST, 0, 0, 0, 0x48, 0x68, 0, sequence];
    request.extend(&payload);
    let sum = checksum(&request).to_be_bytes();
    request[2..4].copy_from_slice(&sum);
    sendto(
        &socket,
        &request,
        SendFlags::empty(),
        &SocketAddr::from((GUEST, 0)),
    )?;
    loop {
        let mut packet = [0; 256];
        let (_, length) = recv(&socket, &mut packet, RecvFlags::empty())?;
        let header = usize::from(packet[0] & 0xf) * 4;
        let message = packet.get(header..length).context("a packet without content")?;
        // A raw socket hears what others asked for as well.
        if message.first() == Some(&ECHO_REPLY) && message.get(4..8) == Some(&request[4..8]) {
            ensure!(message[8..] == payload, "the echo differs: {message:x?}");
            ensure!(checksum(message) == 0, "its checksum is wrong: {message:x?}");
            return Ok(());
        }
    }
}

/// The internet checksum (RFC 1071); that of a message with its checksum in place is zero.
fn checksum(message: &[u8]) -> u16 {
    let words = message
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}

/// Reads how many bytes have gone through the TAP, from the guest and to it, as the kernel counts: acknowledgements, too.
fn carried() -> Result<[f64; 2]> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("tap0:"));
    let counts: Vec<f64> = line
        .context("there is no TAP")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(counts.len() == 16, "not what proc_pid_net(5) says: {counts:?}");
    Ok([counts[0], counts[8]])
}

pub(crate) fn rate(node: &TestNode, guest: &Guest) -> Result<()> {
    // Half of what an emulated guest echoes at most.
    const RATE: u32 = 64 << 10;
    const BYTES: usize = 224 << 10;
    only_root()?;
    let network = machine(node, "slow", guest, &["--net-rate", "64k"])?;
    is_near("network", f64::from(RATE), || {
        inside(&network, || {
            let (before, begin) = (carried()?, Instant::now());
            through(BYTES)?;
            let (after, took) = (carried()?, begin.elapsed().as_secs_f64());
            // The buckets are full at the beginning: a second's worth of so low a rate.
            let [out, back] = [0, 1].map(|way| (after[way] - before[way] - f64::from(RATE)) / took);
            Ok([out.min(back), out.max(back)])
        })
    })
}
