//! Networks of machines of Firecracker: the cases of the driver suite that need the other end of a machine's interface, and what leads out.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use e2e::{BareGuest, DEADLINE, TestNode};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
use rustix::process::{Signal, kill_process};

use crate::firecracker::{BARE, Guest, NotHere, is_near, metadata, with};
use crate::lifecycle::nothing_of_machines;
use crate::network_policy::{denials, text};
use crate::network_rootless::{monitor, processes, queue};
use crate::network_user::addresses;
use crate::node::kill;
use crate::stage::{HOST as THE_HOST, PRIVATE, Stage, WEB, inside, obstacle, obstacle_for_user};
use crate::support::until;

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
    ensure!(said.starts_with("mac=02-00-00-"), "{said}");
    Ok(fs::File::open(path)?)
}

/// Sends bytes to the guest's echo while it reads them back.
fn through(guest: SocketAddr, bytes: usize) -> Result<()> {
    let mut reader = TcpStream::connect_timeout(&guest, DEADLINE)?;
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
        inside(network, || through((GUEST, 7).into(), 20_000))?;
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
            through((GUEST, 7).into(), BYTES)?;
            let (after, took) = (carried()?, begin.elapsed().as_secs_f64());
            // The buckets are full at the beginning: a second's worth of so low a rate.
            let [out, back] = [0, 1].map(|way| (after[way] - before[way] - f64::from(RATE)) / took);
            Ok([out.min(back), out.max(back)])
        })
    })
}

/// The guest's address and its gateway's, as every machine has them (`hearth_guest_protocol::network`).
const USUAL: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 254);
const GATEWAY: &str = "100.127.255.253";

#[test]
fn machines_of_firecracker_have_networks() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return e2e::skip!("{reason}"),
    };
    match obstacle() {
        Some(reason) => e2e::skip!("{reason}"),
        None => Stage::set()?.play(bare.node(), |node, stage| {
            networks(node, stage, || {
                let links = inside(&stage.host, || {
                    Ok(fs::read_to_string("/proc/thread-self/net/dev")?)
                })?;
                Ok(links
                    .lines()
                    .filter(|line| line.trim_start().starts_with("hv"))
                    .count())
            })
        }),
    }
}

#[test]
fn an_ordinary_users_machines_of_firecracker_have_networks() -> Result<()> {
    let bare = match BareGuest::find() {
        Ok(bare) => bare,
        Err(reason) => return e2e::skip!("{reason}"),
    };
    match obstacle_for_user() {
        Some(reason) => e2e::skip!("{reason}"),
        None => Stage::set()?.play_for_user(
            |uid| bare.node_for(uid),
            |node, stage| networks(node, stage, || Ok(processes(node, "pasta")?.len())),
        ),
    }
}

/// What networks are to machines; `ways_out` counts those that there are.
fn networks(node: &TestNode, stage: &Stage, ways_out: impl Fn() -> Result<usize>) -> Result<()> {
    for mode in ["filtered", "open"] {
        start(node, mode, &["--network", mode])?;
        is_connected(node, stage, mode, mode)?;
        reaches(node, mode, THE_HOST, 80, false)?;
    }
    ensure!(node.inspect("open")?.template.is_some(), "it is no clone");
    until("it is told what was denied", || {
        let told = denials(node, "filtered")?;
        Ok(told.iter().any(|denial| text(denial, "address") == PRIVATE))
    })?;
    // What goes on of one has the guest's side as it was, and a way out of its own.
    node.hearth(["fork", "filtered", "--name", "twin"]).ok()?;
    node.hearth(["snapshot", "create", "filtered", "-n", "kept"])
        .ok()?;
    node.hearth(["restore", "kept", "--name", "copy"]).ok()?;
    for name in ["twin-1", "copy", "filtered"] {
        is_connected(node, stage, name, "filtered").with_context(|| name.to_owned())?;
    }
    node.hearth(["rm", "-f", "twin-1", "copy"]).ok()?;
    node.hearth(["network", "create", "red"]).ok()?;
    for name in ["a", "b"] {
        start(node, name, &["--network", "red"])?;
    }
    let of_b = addresses(node, "red", "b")?;
    let of_b = format!("{}:7", of_b.first().context("it has no address")?);
    let hears = |name: &str| node.exec([name, "reach", &of_b, "hello"]).run();
    assert_eq!(hears("a")?.success()?.text()?, "hello");
    hears("open")?.expect_code(1)?;
    is_limited(node)?;
    // The next node finds them, with their ways out.
    kill(node)?;
    assert_eq!(hears("a")?.success()?.text()?, "hello");
    is_connected(node, stage, "filtered", "filtered")?;
    node.hearth(["rm", "-f", "a", "b", "slow"]).ok()?;
    metadata(node, &BARE)?;
    node.hearth(["rm", "-f", "told"]).ok()?;
    // One that ends while there is no node takes its own along.
    let ending = monitor(node, "open")?;
    kill(node)?;
    kill_process(ending, Signal::KILL)?;
    until("one way out is left", || Ok(ways_out()? == 1))?;
    is_connected(node, stage, "filtered", "filtered")?;
    node.hearth(["rm", "-f", "open", "filtered"]).ok()?;
    node.hearth(["network", "rm", "red"]).ok()?;
    node.hearth(["snapshot", "rm", "kept"]).ok()?;
    nothing_of_machines(node)
}

/// Starts a machine whose echo is published, at its usual address.
fn start(node: &TestNode, name: &str, flags: &[&str]) -> Result<()> {
    let head = with(&["-m", "96m", "--name", name, "-p", "127.0.0.1::7"], flags);
    node.start(with(&head, &["busybox", "wait"]))?;
    let usual = format!("{USUAL}/30");
    node.exec([name, "network", &usual, GATEWAY]).ok().map(drop)
}

/// Makes sure that a machine is reached by its published port, and that it reaches what its mode says.
fn is_connected(node: &TestNode, stage: &Stage, name: &str, mode: &str) -> Result<()> {
    // By its network: the bare guest takes no connections from the channel.
    let address = node.hearth(["port", name, "7"]).ok()?.parse()?;
    inside(&stage.host, || through(address, 20_000))?;
    let is_open = mode == "open";
    reaches(node, name, WEB, 80, true)?;
    reaches(node, name, WEB, 25, is_open)?;
    reaches(node, name, PRIVATE, 80, is_open)
}

/// Makes sure that a server says where it is, or that it is not reached.
fn reaches(node: &TestNode, name: &str, host: &str, port: u16, is_reached: bool) -> Result<()> {
    let outcome = node.exec([name, "reach", &format!("{host}:{port}")]).run()?;
    match is_reached {
        true => assert_eq!(outcome.success()?.text()?, format!("at {host} {port}")),
        false => drop(outcome.expect_code(1)?),
    }
    Ok(())
}

/// Makes sure that what comes into a machine is not more than it may be.
fn is_limited(node: &TestNode) -> Result<()> {
    const RATE: u32 = 64 << 10;
    const BYTES: usize = 224 << 10;
    start(node, "slow", &["--network", "open", "--net-rate", "64k"])?;
    let monitor = monitor(node, "slow")?;
    let network = fs::File::open(format!("/proc/{}/ns/net", monitor.as_raw_nonzero()))?;
    let before = queue(monitor, "tap0")?;
    let begun = Instant::now();
    inside(&network, || through((USUAL, 7).into(), BYTES))?;
    let after = queue(monitor, "tap0")?;
    let (passed, took) = (after.bytes - before.bytes, begun.elapsed().as_secs_f64());
    let room = f64::from(RATE) * took + after.burst as f64;
    println!("{passed} bytes in {took:.3} s, room for {room:.0}");
    ensure!(after.rate == u64::from(RATE), "{} bytes a second", after.rate);
    ensure!(
        passed >= BYTES as u64 && passed as f64 <= 1.02 * room,
        "{passed} bytes"
    );
    ensure!(after.overlimits > before.overlimits, "nothing had to wait");
    assert_eq!(queue(monitor, "uplink")?.rate, u64::from(RATE));
    Ok(())
}
