//! Connections to published ports, in every way they end, and in numbers: afterwards neither the node nor the guest holds anything of them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, Driver, TestNode, check, debian_python, skip};
use hearth_api::v1::NetworkMode;
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{logged, until};

const SERVICES: &str = include_str!("connections.py");

/// How many clients there are at a time that connect, talk and end.
const CLIENTS: usize = 8;

/// The kernel counts open files exactly in each processor alone, and tells what is that far from it, up or down (`file-nr`; lib/percpu_counter.c).
const FILES_BATCH: usize = 32;

/// What is open: the node's descriptors, and the guest's files and sockets, the agent's among them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
struct Open {
    node: usize,
    guest_files: usize,
    guest_sockets: usize,
}

impl Open {
    fn of(node: &TestNode) -> Result<Self> {
        let said = node
            .exec(["m", "cat", "/proc/sys/fs/file-nr", "/proc/net/sockstat"])
            .ok()?;
        let mut numbers = said.split_whitespace().filter_map(|word| word.parse().ok());
        let guest_files = numbers.next().context("no file-nr")?;
        let guest_sockets = numbers.nth(2).context("no sockstat")?;
        let open = std::fs::read_dir(format!("/proc/{}/fd", node.status()?.pid))?;
        Ok(Self {
            node: open.count(),
            guest_files,
            guest_sockets,
        })
    }

    /// Waits until no more is open than was: of the guest's files, than two readings of one number can differ by.
    fn settles(self, node: &TestNode) -> Result<()> {
        let mut now = self;
        let settled = until("what was open is closed", || {
            now = Self::of(node)?;
            Ok(now.node <= self.node
                && now.guest_files <= self.guest_files + 2 * FILES_BATCH
                && now.guest_sockets <= self.guest_sockets)
        });
        settled.with_context(|| format!("{now:?} is open, and {self:?} was"))
    }
}

/// Where services listen: those of the loopback are reached over the guest channel, others by the machine's network.
const LOOPBACK: &str = "ADDRESS=127.0.0.1";
const EVERYWHERE: &str = "ADDRESS=0.0.0.0";

/// Runs a test with a machine that has the services at an address.
fn with_services(address: &str, more: &[&str], test: impl FnOnce(&TestNode) -> Result<()>) -> Result<()> {
    let image = match debian_python() {
        Ok(image) => image,
        Err(error) => return skip!("no image of Debian can be made here: {error:#}"),
    };
    check(TestNode::ready(Driver::Qemu), |node| {
        let ports = [
            "-p",
            "127.0.0.1::7",
            "-p",
            "127.0.0.1::8-9",
            "-p",
            "127.0.0.1::11-14",
        ];
        let head = ["--name", "m", "-m", "512m", "-e", address];
        let tail = ["--entrypoint", "python3", &image, "-c", SERVICES];
        node.start(head.iter().chain(more).chain(&ports).chain(&tail))?;
        logged(node, "m", "services ready", 1)?;
        test(node)
    })
}

fn connect(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Closes a connection by a reset.
fn vanish(stream: TcpStream) -> Result<()> {
    Ok(set_socket_linger(&stream, Some(Duration::ZERO))?)
}

fn is_reset(result: std::io::Result<usize>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn connections_end_as_either_side_ends_them() -> Result<()> {
    ends(LOOPBACK)
}

#[test]
fn connections_by_the_network_end_as_either_side_ends_them() -> Result<()> {
    ends(EVERYWHERE)
}

/// Tells by whom a service is reached.
fn ensure_way(node: &TestNode, address: &str) -> Result<()> {
    let mut told = String::new();
    connect(&node.hearth(["port", "m", "8"]).ok()?)?.read_to_string(&mut told)?;
    let leads_out = matches!(
        node.inspect("m")?.spec.network,
        Some(NetworkMode::Filtered | NetworkMode::Open)
    );
    let expected = match address {
        EVERYWHERE if leads_out => "100.127.255.253",
        _ => "127.0.0.1",
    };
    assert_eq!(told, expected);
    Ok(())
}

#[test]
fn a_change_of_policy_leaves_ports_alone() -> Result<()> {
    with_services(EVERYWHERE, &[], |node| {
        if node.inspect("m")?.spec.network == Some(NetworkMode::None) {
            return skip!("machines have no network here");
        }
        ensure_way(node, EVERYWHERE)?;
        let mut client = connect(&node.hearth(["port", "m", "7"]).ok()?)?;
        for (word, preset) in [(b"first", "locked"), (b"again", "balanced"), (b"third", "locked")] {
            client.write_all(word)?;
            let mut answer = [0; 5];
            client.read_exact(&mut answer)?;
            ensure!(&answer == word, "{answer:?}");
            node.hearth(["policy", "set", "m", "--policy", preset]).ok()?;
        }
        // Nor is anybody kept out who comes then.
        ensure_way(node, EVERYWHERE)
    })
}

fn ends(address: &str) -> Result<()> {
    let health = ["--health-tcp", "15", "--health-interval", "1s"];
    with_services(address, &health, |node| {
        ensure_way(node, address)?;
        let at = |port: &str| node.hearth(["port", "m", port]).ok();
        let (echo, nobody, goes_on, ends_first, waits, resets) =
            (at("7")?, at("9")?, at("11")?, at("12")?, at("13")?, at("14")?);
        let before = Open::of(node)?;
        let mut buffer = Vec::new();

        // The client ends, and the service goes on.
        let mut client = connect(&goes_on)?;
        client.write_all(&[7; 100_000])?;
        client.shutdown(Shutdown::Write)?;
        client.read_to_end(&mut buffer)?;
        ensure!(buffer.len() == 300_000, "{}", buffer.len());
        logged(node, "m", "goes on: end after 100000", 1)?;

        // The service ends, and the client goes on.
        let mut client = connect(&ends_first)?;
        buffer.clear();
        client.read_to_end(&mut buffer)?;
        ensure!(buffer == b"hello");
        for _ in 0..10 {
            client.write_all(&[7; 50_000])?;
        }
        drop(client);
        logged(node, "m", "ends first: end after 500000", 1)?;

        // The client vanishes: that is no end, whatever it had sent.
        let mut client = connect(&ends_first)?;
        buffer.clear();
        client.read_to_end(&mut buffer)?;
        client.write_all(b"half of it")?;
        vanish(client)?;
        logged(node, "m", "ends first: reset", 1)?;

        // It ends, and vanishes while nobody has anything to say.
        let mut client = connect(&waits)?;
        client.read_exact(&mut [0; 2])?;
        client.shutdown(Shutdown::Write)?;
        // A reset right behind the end may overtake it.
        logged(node, "m", "waits: end after 0", 1)?;
        vanish(client)?;
        logged(node, "m", "waits: gone", 1)?;

        // A probe has what it wanted: it has not vanished.
        logged(node, "m", "probed: end after 0", 1)?;

        // The service vanishes.
        let mut client = connect(&resets)?;
        client.read_exact(&mut [0; 4])?;
        client.write_all(b"x")?;
        ensure!(is_reset(client.read(&mut [0; 1])), "it is no reset");

        // Nobody listens.
        for _ in 0..50 {
            ensure!(is_reset(connect(&nobody)?.read(&mut [0; 1])), "it is no refusal");
        }
        // Clients that vanish at once, before anything, or in the middle of much.
        for round in 0..50 {
            let mut client = connect(&echo)?;
            if round % 2 == 0 {
                client.write_all(&[7; 200_000])?;
            }
            vanish(client)?;
        }
        before.settles(node)
    })
}

#[test]
fn connections_come_in_numbers_and_leave_nothing() -> Result<()> {
    numbers(LOOPBACK)
}

#[test]
fn connections_by_the_network_come_in_numbers_and_leave_nothing() -> Result<()> {
    numbers(EVERYWHERE)
}

fn numbers(address: &str) -> Result<()> {
    // Each is a descriptor here, too, and the usual limit is 1024.
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
    let (short, at_once) = (10_000, 1000);
    with_services(address, &[], |node| {
        ensure_way(node, address)?;
        let address = node.hearth(["port", "m", "7"]).ok()?;
        converse(&address, b"first")?;
        let before = Open::of(node)?;
        let began = Instant::now();
        std::thread::scope(|scope| {
            let clients = (0..CLIENTS).map(|client| {
                let address = &address;
                scope.spawn(move || -> Result<()> {
                    for number in (client..short).step_by(CLIENTS) {
                        converse(address, format!("connection {number}").as_bytes())?;
                    }
                    Ok(())
                })
            });
            let clients: Vec<_> = clients.collect();
            clients.into_iter().try_for_each(|client| match client.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        println!(
            "{short} short connections by {CLIENTS} clients: {:?}",
            began.elapsed()
        );
        before.settles(node)?;
        let began = Instant::now();
        let mut open = Vec::new();
        for _ in 0..at_once {
            open.push(connect(&address)?);
        }
        // All at once, and each has its own bytes.
        for (number, stream) in open.iter_mut().enumerate() {
            write!(stream, "connection {number}")?;
        }
        for (number, mut stream) in open.into_iter().enumerate().rev() {
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer == format!("connection {number}"), "{number}: {answer}");
        }
        println!("{at_once} connections at once: {:?}", began.elapsed());
        before.settles(node)
    })
}

fn converse(address: &str, text: &[u8]) -> Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == text, "{} bytes came back", answer.len());
    Ok(())
}
