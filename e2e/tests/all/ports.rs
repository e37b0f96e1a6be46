//! Published ports: what reaches the guest's loopback, and what does not.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result};
use e2e::TestNode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::node::kill;
use crate::support::logged;

/// Echoes what each client sends, and ends its connection when the client has ended its own.
const ECHO: &str = "echo ready; exec nc -ll -p 7 -e cat";

/// How many connections are open at once. The guest has a process for each.
fn connections() -> usize {
    if e2e::is_soak() { 1000 } else { 50 }
}

/// Starts a machine that echoes on port 7; returns where that is on the host.
fn echo(node: &TestNode) -> Result<String> {
    node.start([
        "--name",
        "m",
        "-m",
        if e2e::is_soak() { "1g" } else { "256m" },
        "-p",
        "127.0.0.1::7",
        "-p",
        "127.0.0.1::9",
        "busybox",
        "sh",
        "-c",
        ECHO,
    ])?;
    logged(node, "m", "ready", 1)?;
    node.hearth(["port", "m", "7"]).ok()
}

fn converse(address: &str, text: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.write_all(text)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

pub(crate) fn published_ports_reach_the_guests_loopback(node: &TestNode) -> Result<()> {
    let address = echo(node)?;
    let listed = node.hearth(["port", "m"]).ok()?;
    assert!(listed.contains(&format!("7/tcp -> {address}")), "{listed}");
    assert!(node.hearth(["ps"]).ok()?.contains(&format!("{address}->7")));
    let long: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
    // The end of what the client sends comes through alone: the answer follows it.
    assert!(converse(&address, &long)? == long);
    let mut open: Vec<_> = (0..connections())
        .map(|_| TcpStream::connect(&address))
        .collect::<Result<_, _>>()?;
    for (number, stream) in open.iter_mut().enumerate().rev() {
        stream.write_all(&number.to_le_bytes())?;
        let mut answer = [0; size_of::<usize>()];
        stream.read_exact(&mut answer)?;
        assert_eq!(usize::from_le_bytes(answer), number);
    }
    // Nobody listens there in the guest.
    let refused = node.hearth(["port", "m", "9"]).ok()?;
    assert!(converse(&refused, b"hello").map_or(true, |answer| answer.is_empty()));
    node.hearth(["port", "m", "10"])
        .run()?
        .expect_code(1)?
        .complains("10")?;
    Ok(())
}

pub(crate) fn connections_are_many_at_once(node: &TestNode) -> Result<()> {
    let count = if e2e::is_soak() { 1000 } else { 100 };
    // Each is a descriptor here, too, and the usual limit is 1024.
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
    node.start([
        "--name",
        "m",
        "-m",
        "1g",
        "-p",
        "127.0.0.1::7",
        "busybox",
        "sh",
        "-c",
        ECHO,
    ])?;
    logged(node, "m", "ready", 1)?;
    let address = node.hearth(["port", "m", "7"]).ok()?;
    let began = std::time::Instant::now();
    let mut open = Vec::new();
    for number in 0..count {
        let text = format!("connection {number}");
        let mut stream = TcpStream::connect(&address)?;
        stream.write_all(text.as_bytes())?;
        // Busybox lets two clients wait: the next one comes when this one has been let in.
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer)?;
        assert_eq!(answer, text.as_bytes());
        open.push(stream);
    }
    // All of them are open now, and each still has its own bytes and its own end.
    for (number, mut stream) in open.into_iter().enumerate().rev() {
        write!(stream, "{number}")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        assert_eq!(answer, number.to_string());
    }
    println!("{count} connections at once: {:?}", began.elapsed());
    Ok(())
}

pub(crate) fn a_port_that_is_taken_is_refused_before_the_boot(node: &TestNode) -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = format!("127.0.0.1:{}:80", taken.local_addr()?.port());
    node.run(["--rm", "-p", &port, "busybox", "true"])
        .run()?
        .expect_code(125)?
        .complains("publish")?;
    Ok(())
}

pub(crate) fn published_ports_outlive_the_node_and_end_with_the_machine(node: &TestNode) -> Result<()> {
    let address = echo(node)?;
    assert_eq!(converse(&address, b"before")?, b"before");
    kill(node)?;
    assert_eq!(node.hearth(["port", "m", "7"]).ok()?, address);
    assert_eq!(converse(&address, b"after")?, b"after");
    node.hearth(["restart", "-t", "1", "m"]).ok()?;
    logged(node, "m", "ready", 2)?;
    let address = node.hearth(["port", "m", "7"]).ok()?;
    assert_eq!(converse(&address, b"again")?, b"again");
    node.hearth(["stop", "-t", "1", "m"]).ok()?;
    assert!(TcpStream::connect(&address).is_err());
    assert_eq!(node.hearth(["port", "m"]).ok()?, "");
    Ok(())
}
