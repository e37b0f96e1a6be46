//! Where tests of networks take place: network namespaces of a test's own, one that stands for the host, in which its node lives, and one
//! for the internet with servers in it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{Driver, NO_STANDBYS, TestNode, check};
use rustix::net::sockopt::set_socket_linger;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::support::until;

/// A web server of the internet, and one that IPv6 leads to.
pub(crate) const WEB: &str = "203.0.113.10";
const WEB_OCTETS: [u8; 4] = [203, 0, 113, 10];
/// Another one, with the same ports.
pub(crate) const OTHER: &str = "203.0.113.20";
const OTHER_OCTETS: [u8; 4] = [203, 0, 113, 20];
pub(crate) const WEB_V6: &str = "2001:db8:2::10";
/// What is near the host, and not to be reached from a machine that is filtered.
pub(crate) const PRIVATE: &str = "10.9.8.7";
const PRIVATE_OCTETS: [u8; 4] = [10, 9, 8, 7];
pub(crate) const PRIVATE_V6: &str = "fd99::7";
/// The metadata services of clouds.
pub(crate) const METADATA: &str = "169.254.169.254";
pub(crate) const METADATA_V6: &str = "fd00:ec2::254";
/// The host itself.
pub(crate) const HOST: &str = "198.51.100.1";
pub(crate) const HOST_V6: &str = "2001:db8:1::1";

/// The ports that servers listen on, everywhere.
pub(crate) const PORTS: [u16; 6] = [22, 25, 80, 443, 8080, 9418];
/// Those that a filtered machine may talk to.
pub(crate) const ALLOWED: [u16; 4] = [22, 80, 443, 9418];

/// The first of the users that have nodes on stages: users that nobody has.
const FIRST_USER: u32 = 70_000;

/// What went over a connection.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

/// A host and an internet.
pub(crate) struct Stage {
    pub(crate) host: File,
    pub(crate) internet: File,
}

pub(crate) fn ip(arguments: &str) -> Result<()> {
    let said = Command::new("ip").args(arguments.split_whitespace()).output()?;
    ensure!(
        said.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

impl Stage {
    pub(crate) fn set() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let [host, internet] =
            ["host", "net"].map(|name| format!("hearth-{}-{number}-{name}", std::process::id()));
        let made = Self::furnish(&host, &internet);
        // The descriptors keep them.
        for name in [&host, &internet] {
            let _ = ip(&format!("netns del {name}"));
        }
        let stage = made?;
        stage.serve()?;
        Ok(stage)
    }

    fn furnish(host: &str, internet: &str) -> Result<Self> {
        ip(&format!("netns add {host}"))?;
        ip(&format!("netns add {internet}"))?;
        let lines = [
            format!("-n {host} link set lo up"),
            format!("-n {internet} link set lo up"),
            format!("-n {host} link add wan type veth peer name wan netns {internet}"),
            format!("-n {host} link set wan up"),
            format!("-n {internet} link set wan up"),
            format!("-n {host} address add {HOST}/24 dev wan"),
            format!("-n {internet} address add 198.51.100.2/24 dev wan"),
            format!("-n {host} address add {HOST_V6}/64 dev wan nodad"),
            format!("-n {internet} address add 2001:db8:1::2/64 dev wan nodad"),
            format!("-n {host} route add default via 198.51.100.2"),
            format!("-n {host} route add default via 2001:db8:1::2"),
        ];
        for line in &lines {
            ip(line)?;
        }
        for address in [WEB, OTHER, PRIVATE, METADATA] {
            ip(&format!("-n {internet} address add {address}/32 dev lo"))?;
        }
        for address in [WEB_V6, PRIVATE_V6, METADATA_V6] {
            ip(&format!("-n {internet} address add {address}/128 dev lo nodad"))?;
        }
        let open = |name: &str| File::open(format!("/run/netns/{name}"));
        Ok(Self {
            host: open(host)?,
            internet: open(internet)?,
        })
    }

    /// Starts servers in both, which end with the test's process: each says whom one talks to.
    fn serve(&self) -> Result<()> {
        for namespace in [&self.host, &self.internet] {
            let listeners = inside(namespace, || {
                let bind = |port: &u16| TcpListener::bind(("::", *port));
                Ok(PORTS.iter().map(bind).collect::<Result<Vec<_>, _>>()?)
            })?;
            for listener in listeners {
                std::thread::spawn(move || {
                    for mut stream in listener.incoming().flatten() {
                        let Ok(address) = stream.local_addr() else {
                            continue;
                        };
                        // In one piece: what several clients print at once is not to be mixed.
                        let said = format!("at {} {}\n", address.ip().to_canonical(), address.port());
                        let _ = stream.write_all(said.as_bytes());
                    }
                });
            }
        }
        let names = inside(&self.internet, || Ok(UdpSocket::bind("198.51.100.2:53")?))?;
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, client)) = names.recv_from(&mut question) {
                let _ = names.send_to(&answer(&question[..length]), client);
            }
        });
        Ok(())
    }

    /// Starts servers at port 7 of addresses of the internet, which send back what comes (RFC 862).
    pub(crate) fn echo(&self, addresses: &[&str]) -> Result<()> {
        let bind = |address: &&str| TcpListener::bind((*address, 7));
        let listeners = inside(&self.internet, || {
            Ok(addresses.iter().map(bind).collect::<Result<Vec<_>, _>>()?)
        })?;
        for listener in listeners {
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
                }
            });
        }
        Ok(())
    }

    /// Starts two servers of the web's address: port 9 takes what comes (RFC 863), port 19 gives so many bytes. Each tells how many
    /// were carried, and how long that took: from its first connection until all of it has arrived.
    pub(crate) fn count_and_pour(&self, poured: u64) -> Result<Receiver<Carried>> {
        let bind = |port| TcpListener::bind((WEB, port));
        let (takes, gives) = inside(&self.internet, || Ok((bind(9)?, bind(19)?)))?;
        let (told, carried) = channel();
        std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = takes.accept()?;
            let begun = Instant::now();
            let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
            let took = begun.elapsed();
            told.send(Carried { bytes, took })?;
            drop(stream);
            let (mut stream, _) = gives.accept()?;
            let begun = Instant::now();
            let bytes = std::io::copy(&mut std::io::repeat(0).take(poured), &mut stream)?;
            // Closing it waits until the other side has it.
            set_socket_linger(&stream, Some(Duration::from_secs(30)))?;
            drop(stream);
            let took = begun.elapsed();
            told.send(Carried { bytes, took })?;
            Ok(())
        });
        Ok(carried)
    }

    /// Runs a test on an ordinary user's node that lives on this host; `ready` makes it for such a user.
    pub(crate) fn play_for_user(
        &self,
        ready: impl FnOnce(u32) -> Result<TestNode>,
        test: impl Fn(&TestNode, &Self) -> Result<()> + Sync,
    ) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() % 400 * 16 + COUNT.fetch_add(1, Ordering::Relaxed) % 16;
        let uid = FIRST_USER + number;
        self.play(ready(uid), test)?;
        let left = || {
            let processes = std::fs::read_dir("/proc")?.flatten();
            // The directory of what nobody may look into is root's.
            let of_user = processes.filter(|entry| {
                let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                status.contains(&format!("Uid:\t{uid}\t"))
            });
            let lines = of_user.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
            Ok::<_, anyhow::Error>(
                lines
                    .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
                    .collect(),
            )
        };
        // Those of a network end behind the machine's monitor.
        let mut last: Vec<String> = Vec::new();
        let ended = until("all processes of the user have ended", || {
            last = left()?;
            Ok(last.is_empty())
        });
        ended.with_context(|| format!("{last:?}"))
    }

    /// Runs a test on a node that lives on this host: made ready outside, where packages can be fetched, it starts with the first verb,
    /// and so in there.
    pub(crate) fn play(
        &self,
        node: Result<TestNode>,
        test: impl Fn(&TestNode, &Self) -> Result<()> + Sync,
    ) -> Result<()> {
        inside(&self.host, || {
            check(node, |node| {
                let settings = format!("{NO_STANDBYS}[network]\nname-servers = [\"198.51.100.2\"]\n");
                std::fs::write(node.home().join("hearth.toml"), settings)?;
                test(node, self)
            })
        })?;
        let links = inside(&self.host, || {
            Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)
        })?;
        let left: Vec<&str> = links
            .lines()
            .filter(|line| {
                ["hearth", "hv", "hn", "hu", "hb"]
                    .iter()
                    .any(|name| line.trim_start().starts_with(name))
            })
            .collect();
        ensure!(left.is_empty(), "interfaces are left: {left:?}");
        let rules = inside(&self.host, || {
            Ok(Command::new("nft").args(["list", "ruleset"]).output()?.stdout)
        })?;
        ensure!(
            rules.is_empty(),
            "rules are left: {}",
            String::from_utf8_lossy(&rules)
        );
        Ok(())
    }
}

/// Does something in a namespace; what it starts stays there.
pub(crate) fn inside<T: Send>(namespace: &File, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // The runner's reports name threads after tests.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::scope(|scope| {
        let entered = std::thread::Builder::new().name(name).spawn_scoped(scope, || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            act()
        })?;
        match entered.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Answers every question for an IPv4 address with that of the web server, and every other one with nothing (RFC 1035, 4.1). Names that
/// begin with `other` lead to another server, those with `inner` to a private one, and `alias.example` stands for `denied.example`.
fn answer(question: &[u8]) -> Vec<u8> {
    let end = question[12..]
        .iter()
        .position(|&byte| byte == 0)
        .map_or(question.len(), |at| 12 + at + 5);
    let asks_v4 = question.get(end - 4..end - 2) == Some(&[0, 1]);
    let name = &question[13..end];
    let alias: &[u8] = match name.starts_with(b"alias") {
        true => b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x10\x06denied\x07example\0",
        false => b"",
    };
    let address = match name {
        [b'o', b't', b'h', b'e', b'r', ..] => OTHER_OCTETS,
        [b'i', b'n', b'n', b'e', b'r', ..] => PRIVATE_OCTETS,
        _ => WEB_OCTETS,
    };
    let count = u8::from(asks_v4) + u8::from(!alias.is_empty());
    let mut answer = question[..end].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, count, 0, 0, 0, 0]);
    answer.extend(alias);
    if asks_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}

/// Only root makes namespaces with a way out.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root gives machines a network".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun does not open: {error}"));
    }
    e2e::missing_program(&["ip", "nft"]).map(|program| format!("{program} is not installed"))
}

/// An ordinary user's machines need more.
pub(crate) fn obstacle_for_user() -> Option<String> {
    let missing = || e2e::missing_program(&["pasta", "setpriv", "unshare"]);
    obstacle().or_else(|| missing().map(|program| format!("{program} is not installed")))
}

/// Runs a test on an ordinary user's node that lives on a host of its own, or says why it cannot.
pub(crate) fn on_stage_for_user(test: impl Fn(&TestNode, &Stage) -> Result<()> + Sync) -> Result<()> {
    match obstacle_for_user() {
        Some(reason) => e2e::skip!("{reason}"),
        None => Stage::set()?.play_for_user(|uid| TestNode::ready_for(Driver::Qemu, uid), test),
    }
}

/// Runs a test on a node that lives on a host of its own, or says why it cannot.
pub(crate) fn on_stage(test: impl Fn(&TestNode, &Stage) -> Result<()> + Sync) -> Result<()> {
    match obstacle() {
        Some(reason) => e2e::skip!("{reason}"),
        None => Stage::set()?.play(TestNode::ready(Driver::Qemu), test),
    }
}

pub(crate) fn bridge_addresses(stage: &Stage) -> Result<Vec<Ipv4Addr>> {
    let said = inside(&stage.host, || {
        Ok(Command::new("ip").args(["-o", "-4", "address"]).output()?.stdout)
    })?;
    let said = String::from_utf8(said)?;
    let of_bridge = said.lines().filter(|line| line.contains("hearth"));
    let addresses: Vec<Ipv4Addr> = of_bridge
        .filter_map(|line| {
            line.split_whitespace()
                .find_map(|word| word.split_once('/')?.0.parse().ok())
        })
        .collect();
    ensure!(!addresses.is_empty(), "there is no bridge: {said}");
    Ok(addresses)
}
