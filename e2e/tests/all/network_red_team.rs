//! What root in a filtered machine forges, and who comes from outside: neither gets anywhere. What is sent is in `red_team.py`, which runs
//! in the machine; who hears what is asked of servers of the stage.

use std::fs::File;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, Driver, TestNode, debian_python, skip};

use crate::network::{SERVE, expected, reached};
use crate::stage::{ALLOWED, HOST, HOST_V6, PORTS, Stage, WEB, WEB_V6, inside, ip, obstacle, on_stage};

/// What is sent. Where the rules of its namespace are flushed, 18 of these messages arrive: they are well made. Python, since it takes raw sockets, and since every message is put together by hand.
const ATTACK: &str = include_str!("red_team.py");

/// The port that filtered machines may send datagrams to.
const PORT: u16 = 443;

/// The machine's gateway, as every guest sees it.
const GATEWAY: &str = "100.127.255.253";
const GATEWAY_V6: &str = "fd68:6561:7274:6800::1";

/// The hardware address that nobody has.
const FOREIGN_MAC: &str = "02:de:ad:be:ef:01";

/// Addresses of the internet that lead somewhere else where somebody translates them.
const SIDE_DOORS: [&str; 4] = [
    "64:ff9b::a09:807/128",
    "2002:a09:807::1/128",
    "2002:a09:807::/128",
    "10.9.8.9/32",
];

/// Counts what comes out of the host and is not the host's, or neither a connection nor a datagram.
const WATCH: &str = "table inet watch {
    chain seen {
        type filter hook prerouting priority -450; policy accept;
        iifname != \"wan\" accept
        ip saddr != 198.51.100.1 counter
        ip6 saddr != { 2001:db8:1::1, fe80::/10, :: } counter
        meta l4proto != { tcp, udp, icmp, icmpv6 } counter
    }
}";

/// Hears datagrams, wherever on the stage they arrive.
struct Ears(Receiver<String>);

impl Ears {
    fn open(stage: &Stage) -> Result<Self> {
        let (tell, heard) = channel();
        for namespace in [&stage.host, &stage.internet] {
            let socket = inside(namespace, || Ok(UdpSocket::bind(("::", PORT))?))?;
            let tell = tell.clone();
            std::thread::spawn(move || {
                let mut bytes = [0; 512];
                while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                    if tell
                        .send(String::from_utf8_lossy(&bytes[..length]).into_owned())
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
        Ok(Self(heard))
    }

    /// Returns all that was heard until a word came.
    fn until(&self, last: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        while all.last().is_none_or(|word| word != last) {
            let word = self.0.recv_timeout(DEADLINE);
            all.push(word.with_context(|| format!("{last:?} did not come behind {all:?}"))?);
        }
        Ok(all)
    }
}

/// Returns what a program of the host says in a namespace.
fn told(namespace: &File, line: &str) -> Result<String> {
    inside(namespace, || {
        let mut words = line.split(' ');
        let said = Command::new(words.next().unwrap_or_default())
            .args(words)
            .output()?;
        ensure!(
            said.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&said.stderr)
        );
        Ok(String::from_utf8(said.stdout)?)
    })
}

fn namespace(node: &TestNode, machine: &str) -> Result<File> {
    let pid = node.inspect(machine)?.state.pid.context("it has no monitor")?;
    Ok(File::open(format!("/proc/{pid}/ns/net"))?)
}

/// Returns the first global address of each family of some interface.
fn addresses(namespace: &File, of: &str) -> Result<[String; 2]> {
    let address = |family: &str| {
        let said = told(namespace, &format!("ip -o -{family} address show scope global"))?;
        let mut lines = said.lines().filter(|line| line.contains(of));
        let address = lines.find_map(|line| line.split_whitespace().nth(3)?.split('/').next());
        Ok::<_, anyhow::Error>(address.context(said.clone())?.to_owned())
    };
    Ok([address("4")?, address("6")?])
}

/// How a namespace looks that nobody is to have changed: addresses and routes. The host's ends of links come by themselves, for the
/// next machines, and every address is tentative first.
fn looks(namespace: &File) -> Result<String> {
    let lines = ["ip -o address", "ip route", "ip -6 route"];
    let all: Result<Vec<_>> = lines.iter().map(|line| told(namespace, line)).collect();
    let all = all?.concat().replace("tentative ", "");
    let stays = all.lines().filter(|line| !line.contains(" hv"));
    Ok(stays.collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_root_forges_in_a_machine_gets_nowhere() -> Result<()> {
    if let Some(reason) = obstacle() {
        return skip!("{reason}");
    }
    match debian_python() {
        Ok(image) => Stage::set()?.play(TestNode::ready(Driver::Qemu), |node, stage| {
            attack(node, stage, &image)
        }),
        Err(error) => skip!("no image with Python can be made: {error:#}"),
    }
}

fn attack(node: &TestNode, stage: &Stage, image: &str) -> Result<()> {
    for address in SIDE_DOORS {
        inside(&stage.internet, || ip(&format!("address add {address} dev lo")))?;
    }
    inside(&stage.internet, || {
        let set = Command::new("nft").arg(WATCH).status()?;
        ensure!(set.success(), "the internet is not watched");
        Ok(())
    })?;
    let ears = Ears::open(stage)?;
    let network = ["--network", "filtered"];
    let serve = ["busybox", "sh", "-c", SERVE];
    node.start(
        ["--name", "victim", "-p", "7070:7"]
            .into_iter()
            .chain(network)
            .chain(serve),
    )?;
    let sleep = ["--entrypoint", "sleep", image, "3600"];
    node.start(["--name", "attacker"].into_iter().chain(network).chain(sleep))?;
    let spaces = [namespace(node, "attacker")?, namespace(node, "victim")?];
    let [bridge, bridge_v6] = addresses(&stage.host, "hearth")?;
    let [victim, victim_v6] = addresses(&spaces[1], "uplink")?;
    let looked = || -> Result<Vec<String>> {
        [&spaces[0], &spaces[1], &stage.host]
            .map(looks)
            .into_iter()
            .collect()
    };
    let before = looked()?;

    let script = [
        "-i", "attacker", "python3", "-", &bridge, &victim, &bridge_v6, &victim_v6,
    ];
    // It tries thousands of ports.
    let said = node.exec(script).stdin(ATTACK).deadline(5 * DEADLINE).ok()?;

    // Whoever is asked for names, the gateway answers. Nothing else does.
    let near = [
        GATEWAY, &bridge, HOST, &victim, GATEWAY_V6, &bridge_v6, HOST_V6, &victim_v6,
    ];
    let open: Vec<_> = near.iter().map(|place| format!("open {place} 53")).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), open);
    let heard = ears.until("honest 6 last")?;
    let meant = [
        "honest 4 first",
        "honest 6 first",
        "honest 4 behind lies",
        "honest 6 behind lies",
        "of another card 4",
        "of another card 6",
        "honest 4 last",
        "honest 6 last",
    ];
    assert_eq!(heard, meant);
    let watched = told(&stage.internet, "nft list table inet watch")?;
    assert_eq!(watched.matches("counter packets 0 ").count(), 3, "{watched}");
    assert_eq!(looked()?, before);
    let own = told(&spaces[0], "ip neigh show dev tap0")?;
    for table in ["ip neigh", "bridge fdb"] {
        let told = told(&stage.host, table)?;
        ensure!(!told.contains(FOREIGN_MAC), "{told}");
        let macs = own.split_whitespace().filter(|word| word.len() == 17);
        let seen: Vec<_> = macs.filter(|mac| told.contains(mac)).collect();
        ensure!(seen.is_empty(), "{seen:?} of {own} in {told}");
    }
    assert_eq!(
        reached(node, "victim", &[WEB, WEB_V6])?,
        expected(&[WEB, WEB_V6], &ALLOWED)
    );
    Ok(())
}

#[test]
fn nobody_comes_to_a_machine_from_outside() -> Result<()> {
    on_stage(|node, stage| {
        let serve = ["busybox", "sh", "-c", SERVE];
        for mode in ["filtered", "open"] {
            node.start(["--name", mode, "--network", mode].into_iter().chain(serve))?;
        }
        // The neighbours of the host know the way to its machines.
        for line in [
            format!("route add 10.64.0.0/10 via {HOST}"),
            format!("route add fd68:7200::/32 via {HOST_V6}"),
        ] {
            inside(&stage.internet, || ip(&line))?;
        }
        for machine in ["filtered", "open"] {
            let near = node
                .exec([machine, "sh", "-c", "nc 127.0.0.1 7 </dev/null"])
                .ok()?;
            ensure!(near.contains("a machine"), "it serves nobody: {near}");
            for address in addresses(&namespace(node, machine)?, "uplink")? {
                for from in [&stage.host, &stage.internet] {
                    let answered = answering(from, &address)?;
                    assert_eq!(answered, Vec::<u16>::new(), "{machine} at {address}");
                }
            }
        }
        Ok(())
    })
}

/// Returns the ports of an address that take a connection, of those that the guest, the gateway and the stage serve.
fn answering(from: &File, address: &str) -> Result<Vec<u16>> {
    let ports = PORTS.iter().copied().chain([7, 53]);
    inside(from, || {
        let tries: Vec<_> = ports
            .map(|port| {
                let place = (address.parse::<std::net::IpAddr>(), port);
                (place.1, place.0.map(|ip| std::net::SocketAddr::new(ip, port)))
            })
            .collect();
        let mut answered = Vec::new();
        for (port, place) in tries {
            if TcpStream::connect_timeout(&place?, Duration::from_millis(300)).is_ok() {
                answered.push(port);
            }
        }
        Ok(answered)
    })
}
