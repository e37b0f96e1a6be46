//! Networks of machines: who reaches whom there, by which names, and what happens to both while nodes die and machines come and go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;
use hearth_api::v1;
use rustix::process::{Signal, kill_process};

use crate::network::{SILENCE, expected, reached, reached_in};
use crate::network_rootless::processes_with;
use crate::node::kill;
use crate::stage::{ALLOWED, Stage, WEB, bridge_addresses, inside, on_stage, on_stage_for_user};
use crate::support::until;

/// Starts a machine on networks, which says its name to whoever connects to its port 7.
fn start(node: &TestNode, name: &str, flags: &[&str]) -> Result<()> {
    let serve = format!("nc -ll -p 7 -e echo this is {name} & exec sleep 3600");
    let arguments = ["--name", name].into_iter().chain(flags.iter().copied());
    let arguments = arguments.chain(["busybox", "sh", "-c", serve.as_str()]);
    node.start(arguments).map(drop)
}

/// Connects from within a machine, and returns what is said there; nothing where nobody answers.
fn hears(node: &TestNode, machine: &str, host: &str) -> Result<String> {
    let script = format!("nc -w 5 {host} 7 </dev/null 2>/dev/null; true");
    let said = node.exec([machine, "sh", "-c", &script]).ok()?;
    Ok(said.trim().to_owned())
}

fn network(node: &TestNode, name: &str) -> Result<v1::Network> {
    Ok(serde_json::from_str(
        &node.hearth(["network", "inspect", name]).ok()?,
    )?)
}

/// Returns the addresses of a machine on a network, that of IPv4 first.
pub(crate) fn addresses(node: &TestNode, of: &str, machine: &str) -> Result<Vec<String>> {
    let members = network(node, of)?.machines;
    let member = members.into_iter().find(|member| member.name == machine);
    Ok(member
        .with_context(|| format!("{machine} is not on {of}"))?
        .addresses)
}

fn create(node: &TestNode, names: &[&str]) -> Result<()> {
    for name in names {
        node.hearth(["network", "create", name]).ok()?;
    }
    Ok(())
}

#[test]
fn machines_of_one_network_reach_each_other_and_nobody_else_does() -> Result<()> {
    on_stage(|node, stage| pairs(node, stage, || bridge_addresses(stage)))
}

#[test]
fn an_ordinary_users_machines_of_one_network_reach_each_other_and_nobody_else_does() -> Result<()> {
    on_stage_for_user(|node, stage| pairs(node, stage, || Ok(Vec::new())))
}

/// Who reaches whom; `bridge` tells the addresses of the node's bridge, where it has one.
fn pairs(node: &TestNode, stage: &Stage, bridge: impl Fn() -> Result<Vec<Ipv4Addr>>) -> Result<()> {
    create(node, &["red", "blue"])?;
    start(node, "a", &["--network", "red"])?;
    start(node, "b", &["--network", "red", "--policy", "locked"])?;
    start(node, "c", &["--network", "blue"])?;
    start(
        node,
        "both",
        &["--network", "red", "--network", "blue", "--network", "open"],
    )?;
    start(node, "apart", &["--network", "open"])?;
    start(node, "wary", &["--network", "red", "--deny", "b"])?;
    let members = |of: &str| -> Result<Vec<String>> {
        let members = network(node, of)?.machines;
        Ok(members.into_iter().map(|member| member.name).collect())
    };
    assert_eq!(members("red")?, ["a", "b", "both", "wary"]);
    // Asks and is asked, hears its own name, and what it hears.
    let pairs = [
        ("a", "b", true),
        ("b", "a", true),
        ("b", "b.red", true),
        ("a", "both.red", true),
        ("both", "a", true),
        ("both", "c", true),
        ("c", "both", true),
        ("a", "c", false),
        ("b", "c", false),
        ("c", "a", false),
        ("apart", "a", false),
        ("a", "apart", false),
        ("a", "both.blue", false),
        ("wary", "a", true),
        ("wary", "b", false),
    ];
    for (from, to, is_heard) in pairs {
        let name = to.split('.').next().unwrap_or(to);
        let words = if is_heard {
            format!("this is {name}")
        } else {
            String::new()
        };
        assert_eq!(hears(node, from, to)?, words, "{from} to {to}");
    }
    // So it is told, too.
    let check = |machine: &str, to: &str| node.hearth(["policy", "check", machine, to]).run();
    check("b", "a:7")?.expect_code(0)?;
    check("b", "c:7")?.expect_code(1)?;
    check("wary", "b:7")?.expect_code(1)?;
    by_address(node, stage, &bridge()?)?;
    // A server of names among them is asked, and not the gateway in its place.
    node.exec(["-d", "b", "nc", "-ll", "-p", "53", "-e", "echo", "names of b"])
        .ok()?;
    let script = "until nc 127.0.0.1 53 </dev/null; do sleep 0.1; done";
    node.exec(["b", "sh", "-c", script]).ok()?;
    let of_b = addresses(node, "red", "b")?;
    for address in &of_b {
        let script = format!("timeout 10 nc -w 5 {address} 53 </dev/null; true");
        let said = node.exec(["a", "sh", "-c", &script]).ok()?;
        ensure!(said.contains("names of b"), "{address}: {said}");
    }
    // Who is locked reaches nothing else, and the others the internet as ever.
    assert_eq!(reached(node, "b", &[WEB])?, Vec::<String>::new());
    assert_eq!(reached(node, "a", &[WEB])?, expected(&[WEB], &ALLOWED));
    let pinged = node.exec(["a", "ping", "-c", "1", "-W", "5", "b"]).ok()?;
    ensure!(pinged.contains("1 packets received"), "{pinged}");
    datagrams(node)
}

/// By whichever address it is asked, a machine answers those on its network alone; the host is not on it.
fn by_address(node: &TestNode, stage: &Stage, bridge: &[Ipv4Addr]) -> Result<()> {
    let of_b = addresses(node, "red", "b")?;
    ensure!(of_b.len() == 2, "{of_b:?}");
    let uplinks: Vec<String> = bridge
        .iter()
        .flat_map(|bridge| (1..10).map(move |step| (u32::from(*bridge) + step).to_be_bytes()))
        .map(|octets| IpAddr::from(octets).to_string())
        .collect();
    for address in &of_b {
        assert_eq!(hears(node, "a", address)?, "this is b", "{address}");
        for stranger in ["c", "apart"] {
            assert_eq!(hears(node, stranger, address)?, "", "{stranger} to {address}");
        }
        let place = SocketAddr::new(address.parse()?, 7);
        let host = inside(&stage.host, || {
            Ok(TcpStream::connect_timeout(&place, Duration::from_secs(2)).is_ok())
        })?;
        ensure!(!host, "the host reaches {address}");
    }
    for uplink in uplinks.iter().take(8) {
        let script = format!("nc -w 1 {uplink} 7 </dev/null 2>/dev/null; true");
        let said = node.exec(["a", "sh", "-c", &script]).ok()?;
        ensure!(!said.contains("this is"), "{uplink} answers: {said}");
    }
    Ok(())
}

/// Datagrams go both ways: at the third hop the machine itself says that nobody takes them, by its address on the network.
fn datagrams(node: &TestNode) -> Result<()> {
    let address = &addresses(node, "red", "b")?[0];
    let trace = [
        "a",
        "traceroute",
        "-n",
        "-q",
        "1",
        "-w",
        "3",
        "-m",
        "6",
        address.as_str(),
    ];
    let said = node.exec(trace).ok()?;
    let hops: Vec<&str> = said.lines().skip(1).collect();
    let last = hops.last().context("there are no hops")?;
    ensure!(hops.len() == 3 && last.contains(address.as_str()), "{said}");
    Ok(())
}

#[test]
fn a_machine_joins_and_leaves_while_it_runs_and_keeps_its_place_when_nodes_die() -> Result<()> {
    on_stage(|node, _| joins_and_leaves(node))
}

#[test]
fn an_ordinary_users_machine_joins_and_leaves_while_it_runs_and_keeps_its_place_when_nodes_die() -> Result<()>
{
    on_stage_for_user(|node, _| joins_and_leaves(node))
}

fn joins_and_leaves(node: &TestNode) -> Result<()> {
    create(node, &["red"])?;
    start(node, "a", &["--network", "red"])?;
    start(node, "b", &["--network", "filtered"])?;
    assert_eq!(hears(node, "a", "b")?, "");
    node.hearth(["network", "connect", "red", "b"]).ok()?;
    assert_eq!(hears(node, "a", "b")?, "this is b");
    assert_eq!(hears(node, "b", "a")?, "this is a");
    let place = addresses(node, "red", "b")?;
    // A fork is another machine, with a place of its own, and hears by its own name.
    node.hearth(["fork", "b", "--name", "twin"]).ok()?;
    assert_eq!(hears(node, "a", "twin-1")?, "this is b");
    ensure!(addresses(node, "red", "twin-1")? != place, "two have one address");
    kill(node)?;
    // No node lives now; what is under way goes on, by address.
    assert_eq!(hears(node, "a", "b")?, "this is b");
    assert_eq!(addresses(node, "red", "b")?, place);
    node.hearth(["restart", "b"]).ok()?;
    node.exec([
        "b",
        "sh",
        "-c",
        "until nc 127.0.0.1 7 </dev/null; do sleep 0.1; done",
    ])
    .ok()?;
    assert_eq!(hears(node, "a", "b")?, "this is b");
    assert_eq!(addresses(node, "red", "b")?, place);
    node.hearth(["rename", "b", "bee"]).ok()?;
    assert_eq!(hears(node, "a", "bee")?, "this is b");
    assert_eq!(hears(node, "a", "b")?, "");
    node.hearth(["network", "rm", "red"])
        .run()?
        .expect_code(1)?
        .complains("the network red is in use by a, bee, twin-1")?;
    node.hearth(["network", "disconnect", "red", "bee"]).ok()?;
    for from_to in [["a", "bee"], ["bee", "a"], ["bee", place[0].as_str()]] {
        assert_eq!(hears(node, from_to[0], from_to[1])?, "", "{from_to:?}");
    }
    assert_eq!(reached(node, "bee", &[WEB])?, expected(&[WEB], &ALLOWED));
    node.hearth(["rm", "-f", "a", "twin-1"]).ok()?;
    node.hearth(["network", "rm", "red"]).ok()?;
    let left = node.hearth(["network", "ls", "-q"]).ok()?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn an_ordinary_users_machines_are_connected_anew_when_a_switch_dies() -> Result<()> {
    on_stage_for_user(|node, _| {
        create(node, &["red"])?;
        start(node, "a", &["--network", "red"])?;
        start(node, "b", &["--network", "red"])?;
        assert_eq!(hears(node, "a", "b")?, "this is b");
        let switches = || processes_with(node, "switch");
        for round in 0..2 {
            let [switch] = switches()?[..] else {
                anyhow::bail!("there is not one switch: {:?}", switches()?);
            };
            let status = std::fs::read_to_string(format!("/proc/{switch}/status"))?;
            ensure!(
                status.contains("Seccomp:\t2") && status.contains("CapPrm:\t0000000000000000"),
                "{status}"
            );
            kill_process(switch, Signal::KILL)?;
            until("the machines hear each other again", || {
                Ok(hears(node, "a", "b")? == "this is b")
            })?;
            ensure!(switches()?.len() == 1 && !switches()?.contains(&switch));
            if round == 0 {
                // The next node watches over what it finds.
                kill(node)?;
                assert_eq!(hears(node, "a", "b")?, "this is b");
            }
        }
        node.hearth(["rm", "-f", "a", "b"]).ok()?;
        until("the switch ends with the last machine", || {
            Ok(switches()?.is_empty())
        })
    })
}

#[test]
fn a_policy_changes_and_connections_to_other_machines_go_on() -> Result<()> {
    on_stage(|node, _| goes_on(node))
}

#[test]
fn an_ordinary_users_policy_changes_and_connections_to_other_machines_go_on() -> Result<()> {
    on_stage_for_user(|node, _| goes_on(node))
}

fn goes_on(node: &TestNode) -> Result<()> {
    create(node, &["red"])?;
    start(node, "a", &["--network", "red"])?;
    start(node, "b", &["--network", "red"])?;
    let hold = "mkfifo /tmp/in; exec 3<>/tmp/in; nc b 8 <&3 >/tmp/out";
    node.exec(["-d", "b", "sh", "-c", "nc -l -p 8 -e cat"]).ok()?;
    node.exec(["-d", "a", "sh", "-c", hold]).ok()?;
    let echoes = |word: &str| {
        let script = format!(
            "echo {word} >/tmp/in; for i in $(seq 50); do grep -q {word} /tmp/out && exit 0; sleep 0.1; done; exit 1"
        );
        node.exec(["a", "sh", "-c", &script]).run()
    };
    // The pipe is there once the other side has been started.
    node.exec(["a", "sh", "-c", "until test -p /tmp/in; do sleep 0.1; done"])
        .ok()?;
    ensure!(echoes("before")?.code == 0, "nothing comes back");
    node.hearth(["policy", "set", "a", "--policy", "locked"]).ok()?;
    ensure!(echoes("after")?.code == 0, "the connection was cut");
    let ranges = network(node, "red")?.subnets;
    let denied = ranges.iter().flat_map(|range| ["--deny", range]);
    let set = ["policy", "set", "a", "--policy", "locked"].into_iter();
    node.hearth(set.chain(denied)).ok()?;
    ensure!(echoes("never")?.code != 0, "the connection goes on");
    assert_eq!(hears(node, "a", &addresses(node, "red", "b")?[0])?, "");
    Ok(())
}

#[test]
fn packets_are_as_long_as_the_network_has_them() -> Result<()> {
    on_stage(|node, stage| {
        let create = [
            "network",
            "create",
            "--mtu",
            "1280",
            "--subnet",
            "192.168.77.0/24",
            "slim",
        ];
        node.hearth(create).ok()?;
        start(node, "a", &["--network", "slim"])?;
        start(node, "b", &["--network", "slim"])?;
        assert_eq!(addresses(node, "slim", "a")?[0], "192.168.77.2");
        let links = inside(&stage.host, || {
            Ok(Command::new("ip").args(["-o", "link"]).output()?.stdout)
        })?;
        let links = String::from_utf8(links)?;
        let slim = links.lines().filter(|line| line.contains(": hu"));
        ensure!(
            slim.clone().count() == 2 && slim.clone().all(|line| line.contains("mtu 1280")),
            "{links}"
        );
        // The guests' own interfaces take 1500.
        node.exec([
            "-d",
            "b",
            "sh",
            "-c",
            "nc -l -p 8 -e sh -c 'cat >/tmp/got; mv /tmp/got /tmp/all'",
        ])
        .ok()?;
        let send = "for i in $(seq 20); do dd if=/dev/zero bs=1024 count=512 2>/dev/null | nc -w 5 b 8 && break; sleep 0.2; done";
        node.exec(["a", "sh", "-c", send]).ok()?;
        let length = node
            .exec([
                "b",
                "sh",
                "-c",
                "until test -f /tmp/all; do sleep 0.1; done; wc -c </tmp/all",
            ])
            .ok()?;
        assert_eq!(length.trim(), "524288");
        Ok(())
    })
}

#[test]
fn the_doctor_finds_rules_of_others_that_keep_machines_in() -> Result<()> {
    on_stage(|node, stage| {
        let nft = |line: &str| {
            inside(&stage.host, || {
                let done = Command::new("nft").args(line.split_whitespace()).status()?;
                ensure!(done.success(), "nft {line}");
                Ok(())
            })
        };
        let state = || -> Result<v1::DoctorState> {
            let said = node.hearth(["doctor", "--json"]).run()?.text()?;
            let report: v1::DoctorReport = serde_json::from_str(&said)?;
            let check = report.checks.into_iter().find(|check| check.name == "forwarding");
            Ok(check.context("nobody looked")?.state)
        };
        start(node, "m", &["--network", "filtered"])?;
        assert_eq!(state()?, v1::DoctorState::Ok);
        nft("add table ip filter")?;
        nft("add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }")?;
        assert_eq!(reached_in(node, "m", &[WEB], SILENCE)?, Vec::<String>::new());
        assert_eq!(state()?, v1::DoctorState::Warning);
        // What it advises helps.
        nft("insert rule ip filter FORWARD iifname { \"hearth*\", \"hn*\" } accept")?;
        nft("insert rule ip filter FORWARD oifname { \"hearth*\", \"hn*\" } accept")?;
        assert_eq!(state()?, v1::DoctorState::Ok);
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        nft("delete table ip filter")
    })
}

/// A pool has a network that is there, for as long as it is a pool.
fn of_pools(node: &TestNode) -> Result<()> {
    let create = |network: &str| {
        let flags = ["--image", "busybox", "-m", "80m", "--min", "0", "--max", "1"];
        let head = ["pool", "create", "p", "--network", network];
        node.hearth(head.iter().chain(&flags)).run()
    };
    create("nope")?
        .expect_code(1)?
        .complains("there is no network \"nope\"")?
        .complains("hearth network create")?;
    ensure!(
        node.hearth(["pool", "ls", "--json"]).ok()? == "[]",
        "a pool is left"
    );
    create("red")?.success()?;
    node.hearth(["network", "rm", "red"])
        .run()?
        .expect_code(1)?
        .complains("the network red is that of the machines of p")?
        .complains("hearth pool rm")?;
    node.hearth(["pool", "rm", "p"]).ok().map(drop)
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() -> Result<()> {
    on_stage(|node, _| {
        create(node, &["red"])?;
        let refused = [
            (
                &["network", "create", "red"][..],
                "there is a network red already",
            ),
            (
                &["network", "create", "filtered"],
                "cannot be the name of a network",
            ),
            (&["network", "create", "../x"], "cannot be the name of a network"),
            (
                &["network", "create", "--subnet", "8.8.8.0/24", "x"],
                "8.8.8.0/24 is not private",
            ),
            (
                &["network", "create", "--subnet", "10.1.2.3/24", "x"],
                "10.1.2.0/24 is the network",
            ),
            (
                &["network", "create", "--mtu", "100", "x"],
                "packets of 100 bytes",
            ),
            (&["network", "inspect", "x"], "there is no network \"x\""),
            (&["network", "rm", "x"], "there is no network \"x\""),
            (&["network", "connect", "red", "x"], "no machine \"x\""),
        ];
        for (arguments, words) in refused {
            node.hearth(arguments).run()?.expect_code(1)?.complains(words)?;
        }
        let range = network(node, "red")?.subnets[0].clone();
        node.hearth(["network", "create", "--subnet", &range, "x"])
            .run()?
            .expect_code(1)?
            .complains("overlaps the network red")?;
        let runs = [
            (&["--network", "x"][..], "there is no network \"x\""),
            (
                &["--network", "red", "--network", "none"],
                "needs 'filtered' or 'open'",
            ),
            (
                &["--network", "red", "--network", "red"],
                "the network red is named twice",
            ),
            (&["--network", "open", "--network", "none"], "two were given"),
        ];
        for (flags, words) in runs {
            let run = ["run"].iter().chain(flags).chain(&["busybox", "true"]);
            node.hearth(run).run()?.expect_code(125)?.complains(words)?;
        }
        ensure!(node.machines()?.is_empty(), "a machine is left");
        ensure!(network(node, "red")?.machines.is_empty(), "a place is taken");
        of_pools(node)?;
        node.start(["--name", "m", "--network", "isolated", "busybox", "sleep", "3600"])?;
        node.hearth(["network", "connect", "red", "m"])
            .run()?
            .expect_code(1)?
            .complains("needs 'filtered' or 'open'")?;
        ensure!(network(node, "red")?.machines.is_empty(), "a place is taken");
        Ok(())
    })
}
