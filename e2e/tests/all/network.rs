//! Networks of machines: what they reach, what reaches them, and what is left of them. Everything takes place in network namespaces
//! of the test's own: one for the node, which stands for the host, and one for the internet.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use e2e::{Driver, TestNode, check};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::node::kill;
use crate::support::stay;

/// A web server of the internet, and one that IPv6 leads to.
const WEB: &str = "203.0.113.10";
const WEB_OCTETS: [u8; 4] = [203, 0, 113, 10];
const WEB_V6: &str = "2001:db8:2::10";
/// What is near the host, and not to be reached from a machine that is filtered.
const PRIVATE: &str = "10.9.8.7";
const PRIVATE_V6: &str = "fd99::7";
/// The metadata services of clouds.
const METADATA: &str = "169.254.169.254";
const METADATA_V6: &str = "fd00:ec2::254";
/// The host itself.
const HOST: &str = "198.51.100.1";
const HOST_V6: &str = "2001:db8:1::1";

/// The ports that servers listen on, everywhere.
const PORTS: [u16; 6] = [22, 25, 80, 443, 8080, 9418];
/// Those that a filtered machine may talk to.
const ALLOWED: [u16; 4] = [22, 80, 443, 9418];

/// A host and an internet.
struct Stage {
    host: File,
    internet: File,
}

fn ip(arguments: &str) -> Result<()> {
    let said = Command::new("ip").args(arguments.split_whitespace()).output()?;
    ensure!(
        said.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

impl Stage {
    fn set() -> Result<Self> {
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
        for address in [WEB, PRIVATE, METADATA] {
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
                        let _ = writeln!(stream, "at {} {}", address.ip().to_canonical(), address.port());
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

    /// Runs a test on a node that lives on this host.
    fn play(&self, test: impl Fn(&TestNode, &Self) -> Result<()> + Sync) -> Result<()> {
        // Made ready outside, where packages can be fetched; the node starts with the first verb, and so in there.
        let node = TestNode::ready(Driver::Qemu);
        inside(&self.host, || {
            check(node, |node| {
                let settings = "[network]\nname-servers = [\"198.51.100.2\"]\n";
                std::fs::write(node.home().join("hearth.toml"), settings)?;
                test(node, self)
            })
        })?;
        let links = inside(&self.host, || {
            Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?)
        })?;
        let left: Vec<&str> = links
            .lines()
            .filter(|line| line.contains("hearth") || line.contains("hv"))
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
fn inside<T: Send>(namespace: &File, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
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

/// Answers every question for an IPv4 address with that of the web server, and every other one with nothing (RFC 1035, 4.1).
fn answer(question: &[u8]) -> Vec<u8> {
    let end = question[12..]
        .iter()
        .position(|&byte| byte == 0)
        .map_or(question.len(), |at| 12 + at + 5);
    let asks_v4 = question.get(end - 4..end - 2) == Some(&[0, 1]);
    let mut answer = question[..end].to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, u8::from(asks_v4), 0, 0, 0, 0]);
    if asks_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(WEB_OCTETS);
    }
    answer
}

/// Only root makes namespaces with a way out.
fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root gives machines a network".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun does not open: {error}"));
    }
    e2e::missing_program(&["ip", "nft"]).map(|program| format!("{program} is not installed"))
}

/// Runs a test on a node that lives on a host of its own, or says why it cannot.
fn on_stage(test: impl Fn(&TestNode, &Stage) -> Result<()> + Sync) -> Result<()> {
    match obstacle() {
        Some(reason) => e2e::skip!("{reason}"),
        None => Stage::set()?.play(test),
    }
}

/// Tries each port of each destination from within a machine, all at once; returns those that answered, as in `203.0.113.10 80`.
fn reached(node: &TestNode, machine: &str, destinations: &[&str]) -> Result<Vec<String>> {
    let tries = expected(destinations, &PORTS);
    let tries = tries
        .iter()
        .map(|place| format!("nc -w 5 {place} </dev/null 2>/dev/null & "));
    let script: String = tries.collect();
    let said = node.exec([machine, "sh", "-c", &format!("{script} wait")]).ok()?;
    let answers = said
        .lines()
        .filter_map(|line| Some(line.strip_prefix("at ")?.to_owned()));
    Ok(sorted(answers.collect()))
}

fn expected(destinations: &[&str], ports: &[u16]) -> Vec<String> {
    let pairs = destinations
        .iter()
        .flat_map(|to| ports.iter().map(move |port| format!("{to} {port}")));
    sorted(pairs.collect())
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort_unstable();
    lines
}

const EVERYWHERE: [&str; 8] = [
    WEB,
    WEB_V6,
    PRIVATE,
    PRIVATE_V6,
    METADATA,
    METADATA_V6,
    HOST,
    HOST_V6,
];

#[test]
fn what_a_machine_reaches_is_what_its_mode_says() -> Result<()> {
    on_stage(|node, _| {
        for mode in ["filtered", "open", "isolated", "none"] {
            node.start(["--name", mode, "--network", mode, "busybox", "sleep", "3600"])?;
        }
        // 8 destinations, 6 ports, 4 modes.
        assert_eq!(
            reached(node, "filtered", &EVERYWHERE)?,
            expected(&[WEB, WEB_V6], &ALLOWED)
        );
        let all_but_the_host = [WEB, WEB_V6, PRIVATE, PRIVATE_V6];
        assert_eq!(
            reached(node, "open", &EVERYWHERE)?,
            expected(&all_but_the_host, &PORTS)
        );
        for mode in ["isolated", "none"] {
            assert_eq!(reached(node, mode, &EVERYWHERE)?, Vec::<String>::new(), "{mode}");
        }
        names(node)
    })
}

/// Names are answered by the gateway, whichever server is asked; where no way leads out, none are.
fn names(node: &TestNode) -> Result<()> {
    let ask = |machine: &str, server: &str| {
        let script = format!("timeout 10 nslookup hearth.example {server}");
        node.exec([machine, "sh", "-c", &script]).run()
    };
    for server in ["", "203.0.113.99"] {
        let answer = ask("filtered", server)?.success()?.text()?;
        ensure!(answer.contains(WEB), "{answer}");
    }
    let answer = ask("open", "")?.success()?.text()?;
    ensure!(answer.contains(WEB), "{answer}");
    for machine in ["isolated", "none"] {
        ensure!(ask(machine, "")?.code != 0, "{machine} has names");
    }
    Ok(())
}

#[test]
fn machines_do_not_see_each_other_and_clones_have_the_same_network() -> Result<()> {
    on_stage(|node, stage| {
        for name in ["a", "b", "c"] {
            node.start(["--name", name, "--network", "open", "busybox", "sh", "-c", SERVE])?;
        }
        ensure!(node.inspect("c")?.template.is_some(), "the third is no clone");
        let bridge = bridge_addresses(stage)?;
        for name in ["a", "b", "c"] {
            assert_eq!(reached(node, name, &[WEB])?, expected(&[WEB], &PORTS), "{name}");
            let inside = node.exec([name, "ip", "-o", "address", "show", "eth0"]).ok()?;
            ensure!(inside.contains("100.127.255.254/30"), "{inside}");
        }
        // The next addresses behind the bridge's are those of machines.
        for address in bridge {
            let [x, y, z, last] = address.octets();
            for more in 0..5 {
                let other = Ipv4Addr::new(x, y, z, last + more).to_string();
                let said = node
                    .exec(["a", "sh", "-c", &format!("nc -w 2 {other} 7 </dev/null; true")])
                    .ok()?;
                ensure!(!said.contains("a machine"), "{other} answers");
            }
        }
        node.hearth(["rm", "-f", "a", "b"]).ok()?;
        assert_eq!(reached(node, "c", &[WEB])?, expected(&[WEB], &PORTS));
        Ok(())
    })
}

/// What every machine of a test serves.
const SERVE: &str = "nc -ll -p 7 -e echo a machine & exec sleep 3600";

fn bridge_addresses(stage: &Stage) -> Result<Vec<Ipv4Addr>> {
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

#[test]
fn a_network_outlives_its_node_and_names_come_back_with_the_next() -> Result<()> {
    on_stage(|node, stage| {
        node.start(["--name", "m", "--network", "filtered", "busybox", "sleep", "3600"])?;
        let before = bridge_addresses(stage)?;
        kill(node)?;
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        let answer = node
            .exec(["m", "timeout", "10", "nslookup", "hearth.example"])
            .ok()?;
        ensure!(answer.contains(WEB), "{answer}");
        stay(node, "other")?;
        node.start(["--name", "n", "--network", "filtered", "busybox", "sleep", "3600"])?;
        assert_eq!(reached(node, "n", &[WEB])?, expected(&[WEB], &ALLOWED));
        assert_eq!(bridge_addresses(stage)?, before);
        Ok(())
    })
}

#[test]
fn what_a_dead_node_left_goes_with_the_next() -> Result<()> {
    on_stage(|node, stage| {
        node.start(["--name", "m", "--network", "open", "busybox", "sleep", "3600"])?;
        let monitor = node.inspect("m")?.state.pid.context("it has no monitor")?;
        kill(node)?;
        let monitor = Pid::from_raw(i32::try_from(monitor)?).context("a monitor has a process id")?;
        kill_process(monitor, Signal::KILL)?;
        ensure!(!bridge_addresses(stage)?.is_empty());
        // The next node finds no machine that has a network. What is left behind it fails the test.
        ensure!(node.inspect("m")?.state.pid.is_none(), "its monitor was killed");
        Ok(())
    })
}

#[test]
fn a_snapshot_goes_on_in_a_network_of_its_own() -> Result<()> {
    on_stage(|node, _| {
        node.start(["--name", "m", "--network", "filtered", "busybox", "sleep", "3600"])?;
        node.hearth(["fork", "m", "-n", "2", "--name", "f"]).ok()?;
        let machines = node.machines()?;
        let names: Vec<_> = machines.iter().map(|machine| machine.name.clone()).collect();
        ensure!(names.len() == 3, "{names:?}");
        for name in names {
            assert_eq!(
                reached(node, &name, &[WEB, WEB_V6, PRIVATE])?,
                expected(&[WEB, WEB_V6], &ALLOWED),
                "{name}"
            );
        }
        Ok(())
    })
}
