//! Published UDP ports: datagrams as they were sent, clients apart, in every mode of a network and through every change of a machine.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{Driver, TestNode, check, debian_python, skip};

use crate::node::kill;
use crate::stage::{HOST, HOST_V6, inside, ip, obstacle, on_stage};
use crate::support::{logged, until};

const SERVICE: &str = include_str!("datagrams.py");

/// How long an answer may take. What is lost is asked again.
const ANSWER: Duration = Duration::from_secs(20);

/// As many as a port serves at once.
const FLOWS: usize = 256;

/// Starts a machine that echoes datagrams at port 7.
fn start(node: &TestNode, image: &str, name: &str, more: &[&str]) -> Result<()> {
    let head = [
        "--name",
        name,
        "-p",
        "127.0.0.1::7/udp",
        "-p",
        "127.0.0.1::7",
        "-p",
        "127.0.0.1::9/udp",
    ];
    let tail = ["--entrypoint", "python3", image, "-c", SERVICE];
    node.start(head.iter().chain(more).chain(&tail))?;
    logged(node, name, "echo ready", 1)
}

fn place(node: &TestNode, machine: &str) -> Result<String> {
    node.hearth(["port", machine, "7/udp"]).ok()
}

fn client(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

fn ask(client: &UdpSocket, question: &[u8]) -> Result<Vec<u8>> {
    client.send(question)?;
    let mut answer = vec![0; 65_536];
    let count = client.recv(&mut answer).context("no answer")?;
    answer.truncate(count);
    Ok(answer)
}

/// Runs a test with an image that has Python.
fn with_python(test: impl FnOnce(&TestNode, &str) -> Result<()>) -> Result<()> {
    match debian_python() {
        Ok(image) => check(TestNode::ready(Driver::Qemu), |node| test(node, &image)),
        Err(error) => skip!("no image of Debian can be made here: {error:#}"),
    }
}

/// Returns how many sockets of the agent's talk to port 7, as the guest's kernel lists them.
fn flows(node: &TestNode, machine: &str) -> Result<usize> {
    let listed = node.exec([machine, "cat", "/proc/net/udp"]).ok()?;
    Ok(listed.matches(" 0100007F:0007 01").count())
}

#[test]
fn datagrams_come_and_go_as_they_were_sent() -> Result<()> {
    with_python(|node, image| {
        start(node, image, "m", &[])?;
        let address = place(node, "m")?;
        let listed = node.hearth(["port", "m"]).ok()?;
        ensure!(listed.contains(&format!("7/udp -> {address}")), "{listed}");
        ensure!(
            listed
                .lines()
                .filter(|line| line.starts_with("7/tcp -> "))
                .count()
                == 1,
            "{listed}"
        );
        ensure!(node.hearth(["ps"]).ok()?.contains(&format!("{address}->7/udp")));
        let first = client(&address)?;
        // Whole, however long, and also when there is nothing in them.
        for length in [0, 1, 1472, 9000, 65_507] {
            let sent: Vec<u8> = (0..length).map(|number| number as u8).collect();
            let answer = ask(&first, &sent)?;
            ensure!(answer == sent, "{length} bytes came back as {}", answer.len());
        }
        // Two that were sent one behind the other stay two.
        let second = client(&address)?;
        first.send(b"one")?;
        second.send(b"two")?;
        first.send(b"three")?;
        let mut answer = [0; 16];
        for (client, expected) in [(&second, "two"), (&first, "one"), (&first, "three")] {
            let count = client.recv(&mut answer)?;
            ensure!(&answer[..count] == expected.as_bytes(), "{expected}");
        }
        // The service tells clients apart, and each stays who it is.
        let (one, two) = (ask(&first, b"who")?, ask(&second, b"who")?);
        ensure!(one != two && ask(&first, b"who")? == one);
        ensure!(flows(node, "m")? == 2);
        // Many answers to one question.
        first.send(b"burst 20")?;
        for number in 0..20 {
            let mut answer = [0; 2048];
            let count = first.recv(&mut answer)?;
            let head = format!("{number} ");
            ensure!(answer.starts_with(head.as_bytes()) && count == head.len() + number);
        }
        nobody_listens_at_first(node)
    })
}

/// What is sent while nobody listens is lost, and the flow goes on.
fn nobody_listens_at_first(node: &TestNode) -> Result<()> {
    let early = client(&node.hearth(["port", "m", "9/udp"]).ok()?)?;
    early.send(b"early")?;
    let late = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.1', 9))\n\
                print('late', flush=True)\ns.sendto(b'at last', s.recvfrom(100)[1])";
    let service = node.exec(["m", "python3", "-c", late]).spawn()?;
    service.stdout.wait_for("late", e2e::DEADLINE)?;
    ensure!(ask(&early, b"again")? == b"at last");
    Ok(())
}

#[test]
fn datagrams_outlive_the_node_and_reach_forks_and_what_is_restored() -> Result<()> {
    with_python(|node, image| {
        start(node, image, "m", &[])?;
        let address = place(node, "m")?;
        let client_of_m = client(&address)?;
        ensure!(ask(&client_of_m, b"before")? == b"before");
        kill(node)?;
        ensure!(place(node, "m")? == address);
        ensure!(ask(&client_of_m, b"after")? == b"after");
        // Those of the node that died are gone.
        until("the dead node's flows are gone", || Ok(flows(node, "m")? == 1))?;
        node.hearth(["fork", "m", "--name", "child"]).ok()?;
        node.hearth(["snapshot", "create", "m", "-n", "one"]).ok()?;
        // The source goes on in the flow it had, or in a new one.
        ensure!(ask(&client_of_m, b"source")? == b"source");
        let of_child = place(node, "child-1")?;
        ensure!(of_child != address);
        ensure!(ask(&client(&of_child)?, b"child")? == b"child");
        node.hearth(["rm", "-f", "m"]).ok()?;
        node.hearth(["restore", "one", "--name", "copy"]).ok()?;
        ensure!(ask(&client(&place(node, "copy")?)?, b"copy")? == b"copy");
        node.hearth(["restart", "-t", "0", "copy"]).ok()?;
        logged(node, "copy", "echo ready", 1)?;
        ensure!(ask(&client(&place(node, "copy")?)?, b"anew")? == b"anew");
        node.hearth(["stop", "-t", "0", "copy"]).ok()?;
        ensure!(node.hearth(["port", "copy"]).ok()?.is_empty());
        // The second machine of an image is a clone.
        start(node, image, "clone", &[])?;
        ensure!(node.inspect("clone")?.template.is_some(), "it is no clone");
        ensure!(ask(&client(&place(node, "clone")?)?, b"clone")? == b"clone");
        Ok(())
    })
}

#[test]
fn datagrams_reach_machines_in_every_mode_of_a_network() -> Result<()> {
    let image = match (obstacle(), debian_python()) {
        (Some(reason), _) => return skip!("{reason}"),
        (_, Err(error)) => return skip!("no image of Debian can be made here: {error:#}"),
        (None, Ok(image)) => image,
    };
    on_stage(|node, stage| {
        for mode in ["none", "isolated", "filtered", "open"] {
            start(node, &image, mode, &["--network", mode])?;
            let address = place(node, mode)?;
            inside(&stage.host, || {
                ensure!(ask(&client(&address)?, mode.as_bytes())? == mode.as_bytes());
                Ok(())
            })?;
            node.hearth(["rm", "-f", mode]).ok()?;
        }
        Ok(())
    })
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() -> Result<()> {
    let image = match (obstacle(), debian_python()) {
        (Some(reason), _) => return skip!("{reason}"),
        (_, Err(error)) => return skip!("no image of Debian can be made here: {error:#}"),
        (None, Ok(image)) => image,
    };
    on_stage(|node, stage| {
        for line in [
            "address add 198.51.100.77/24 dev wan",
            "address add 2001:db8:1::77/64 dev wan nodad",
        ] {
            inside(&stage.host, || ip(line))?;
        }
        let ports = ["-p", "0.0.0.0::7/udp", "-p", "[::]::7/udp"];
        start(node, &image, "m", &ports)?;
        let listed = node.hearth(["port", "m"]).ok()?;
        let port = |head: &str| -> Result<u16> {
            let head = format!("7/udp -> {head}:");
            let number = listed.lines().find_map(|line| line.strip_prefix(&head));
            Ok(number.context(listed.clone())?.parse()?)
        };
        let (v4, both) = (port("0.0.0.0")?, port("[::]")?);
        // A socket that is connected takes answers of that address alone; that of the route is the first one.
        for (port, address) in [
            (v4, HOST),
            (v4, "198.51.100.77"),
            (both, "198.51.100.77"),
            (both, HOST_V6),
            (both, "2001:db8:1::77"),
        ] {
            let address: IpAddr = address.parse()?;
            inside(&stage.internet, || {
                let own: IpAddr = match address {
                    IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let client = UdpSocket::bind((own, 0))?;
                client.connect((address, port))?;
                client.set_read_timeout(Some(ANSWER))?;
                let answer = ask(&client, b"who are you").with_context(|| format!("{address}"))?;
                ensure!(answer == b"who are you", "{answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn a_flood_of_datagrams_and_of_clients_is_bounded() -> Result<()> {
    with_python(|node, image| {
        start(node, image, "m", &[])?;
        let address = place(node, "m")?;
        let friend = client(&address)?;
        ensure!(ask(&friend, b"hello")? == b"hello");
        let before = memory(node)?;
        let flood = client(&address)?;
        for _ in 0..30_000 {
            // Loopback takes what the node does not.
            flood.send(&[7; 1400])?;
        }
        ensure!(node.exec(["m", "echo", "here"]).ok()? == "here");
        ensure!(answered(&friend, b"still here")?);
        let grown = memory(node)?.saturating_sub(before);
        println!("42 MB of datagrams: the node has {} KiB more", grown);
        ensure!(grown < 16 << 10, "the node has {grown} KiB more");
        // One client more than there may be: whoever had no answer gives way, and who had one stays.
        let crowd: Vec<UdpSocket> = (0..FLOWS + 40).map(|_| client(&address)).collect::<Result<_>>()?;
        for client in &crowd {
            client.send(b"quiet")?;
        }
        ensure!(answered(&client(&address)?, b"one more")?);
        ensure!(answered(&friend, b"and I")?);
        let open = flows(node, "m")?;
        ensure!((3..=FLOWS).contains(&open), "{open} flows");
        Ok(())
    })
}

/// Asks until the answer comes: what was sent behind a flood may be lost.
fn answered(client: &UdpSocket, question: &[u8]) -> Result<bool> {
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut answer = [0; 2048];
    for _ in 0..20 {
        client.send(question)?;
        if let Ok(count) = client.recv(&mut answer) {
            return Ok(&answer[..count] == question);
        }
    }
    Ok(false)
}

/// Returns the node's resident memory in KiB.
fn memory(node: &TestNode) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.status()?.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?)
}

/// Takes the same number of both protocols: tests beside this one connect from numbers of either.
fn port_of_both() -> Result<(UdpSocket, TcpListener)> {
    loop {
        let datagrams = UdpSocket::bind("127.0.0.1:0")?;
        match TcpListener::bind(datagrams.local_addr()?) {
            Ok(stream) => return Ok((datagrams, stream)),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn ports_that_cannot_be_are_refused_and_ranges_are_bound() -> Result<()> {
    check(TestNode::ready(Driver::Qemu), |node| {
        let (_taken, other) = port_of_both()?;
        let number = other.local_addr()?.port();
        let refused = |port: &str, code, word: &str| -> Result<()> {
            node.run(["--rm", "-p", port, "busybox", "true"])
                .run()?
                .expect_code(code)?
                .complains(word)?;
            Ok(())
        };
        // Which it is, and what to do.
        let port = format!("127.0.0.1:{number}:80/udp");
        refused(&port, 125, &format!("80/udp on 127.0.0.1:{number}"))?;
        refused(&port, 125, "-p GUEST")?;
        refused("8000-8010:80", 125, "11 ports of the host and 1 of the machine")?;
        refused(
            "80-90:8000-8001",
            125,
            "11 ports of the host and 2 of the machine",
        )?;
        refused("1-2000", 125, "1024")?;
        refused("80/sctp", 125, "80/sctp")?;
        // The number alone is no conflict.
        drop(other);
        let both = format!("127.0.0.1:{number}:80/tcp");
        node.run(["--rm", "-p", &both, "busybox", "true"]).ok()?;
        node.start([
            "--name",
            "r",
            "-p",
            "127.0.0.1::3000-3002",
            "-p",
            "127.0.0.1::3000-3001/udp",
            "busybox",
            "sleep",
            "600",
        ])?;
        let listed = node.hearth(["port", "r"]).ok()?;
        for port in [
            "3000/tcp -> 127.0.0.1:",
            "3001/tcp",
            "3002/tcp",
            "3000/udp",
            "3001/udp",
        ] {
            ensure!(listed.contains(port), "{port} is not in {listed}");
        }
        ensure!(listed.lines().count() == 5, "{listed}");
        node.hearth(["port", "r", "3002/udp"])
            .run()?
            .expect_code(1)?
            .complains("3002/udp")?;
        Ok(())
    })
}
