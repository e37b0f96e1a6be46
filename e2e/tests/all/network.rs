//! Networks of machines: what they reach, what reaches them, and what is left of them. Everything takes place on a stage of the
//! test's own.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;
use hearth_api::v1::NetworkMode;
use rustix::process::{Pid, Signal, kill_process};

use crate::node::kill;
use crate::stage::{
    ALLOWED, HOST, HOST_V6, METADATA, METADATA_V6, PORTS, PRIVATE, PRIVATE_V6, Stage, WEB, WEB_V6,
    bridge_addresses, inside, on_stage,
};
use crate::support::stay;

/// How long a place may take to answer that is to be reached. What is refused is refused at once, so nobody waits that long for nothing.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long one is waited for whose packets are lost: nothing tells of those.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);

/// Begins a script that opens connections with [`hear`]: descriptor 3 stays open and says nothing. Pasta of Debian 12 keeps the end of a
/// connection to itself whose other end has said that it is done.
pub(crate) const MUTE: &str = "mkfifo /tmp/mute-$$ && exec 3<>/tmp/mute-$$ && rm /tmp/mute-$$; ";

/// Says how a connection to a place is opened that prints what comes, until that side ends it.
pub(crate) fn hear(place: &str, patience: Duration) -> String {
    let seconds = patience.as_secs();
    format!("timeout {seconds} nc -w {seconds} {place} <&3 2>/dev/null")
}

/// Tries each port of each destination from within a machine, all at once; returns those that answered, as in `203.0.113.10 80`.
pub(crate) fn reached(node: &TestNode, machine: &str, destinations: &[&str]) -> Result<Vec<String>> {
    reached_in(node, machine, destinations, PATIENCE)
}

/// Does so where packets are lost, and tells what has answered by then.
pub(crate) fn reached_in(
    node: &TestNode,
    machine: &str,
    destinations: &[&str],
    patience: Duration,
) -> Result<Vec<String>> {
    let tries = expected(destinations, &PORTS);
    let tries = tries.iter().map(|place| format!("{} & ", hear(place, patience)));
    let script = format!("{MUTE}{}wait", tries.collect::<String>());
    let said = node
        .exec([machine, "sh", "-c", &script])
        .deadline(2 * PATIENCE)
        .ok()?;
    let answers = said
        .lines()
        .filter_map(|line| Some(line.strip_prefix("at ")?.to_owned()));
    Ok(sorted(answers.collect()))
}

pub(crate) fn expected(destinations: &[&str], ports: &[u16]) -> Vec<String> {
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
    on_stage(|node, _| modes(node))
}

/// The matrix: 8 destinations, 6 ports, 4 modes.
pub(crate) fn modes(node: &TestNode) -> Result<()> {
    for mode in ["filtered", "open", "isolated", "none"] {
        node.start(["--name", mode, "--network", mode, "busybox", "sleep", "3600"])?;
    }
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
        let reached = reached_in(node, mode, &EVERYWHERE, SILENCE)?;
        assert_eq!(reached, Vec::<String>::new(), "{mode}");
    }
    names(node)
}

/// Names are answered by the gateway, whichever server is asked; where no way leads out, none are.
fn names(node: &TestNode) -> Result<()> {
    let ask = |machine: &str, server: &str, seconds: u32| {
        let script = format!("timeout {seconds} nslookup hearth.example {server}");
        node.exec([machine, "sh", "-c", &script]).run()
    };
    for server in ["", "203.0.113.99"] {
        let answer = ask("filtered", server, 60)?.success()?.text()?;
        ensure!(answer.contains(WEB), "{answer}");
    }
    let answer = ask("open", "", 60)?.success()?.text()?;
    ensure!(answer.contains(WEB), "{answer}");
    // Nobody listens there.
    node.start(["--name", "own", "--dns", HOST, "busybox", "sleep", "3600"])?;
    ensure!(ask("own", "", 10)?.code != 0, "the node's servers are asked");
    assert_eq!(reached(node, "own", &[WEB])?, expected(&[WEB], &ALLOWED));
    node.hearth(["run", "--network", "none", "--dns", HOST, "busybox", "true"])
        .run()?
        .expect_code(125)?
        .complains("--dns needs a network")?;
    for machine in ["isolated", "none"] {
        ensure!(ask(machine, "", 10)?.code != 0, "{machine} has names");
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
        let card = bridge_card(stage)?;
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
        assert_eq!(bridge_card(stage)?, card);
        Ok(())
    })
}

/// Returns the hardware address of the bridge, which machines know.
fn bridge_card(stage: &Stage) -> Result<String> {
    let said = inside(&stage.host, || {
        Ok(Command::new("ip")
            .args(["-o", "link", "show", "type", "bridge"])
            .output()?
            .stdout)
    })?;
    let said = String::from_utf8(said)?;
    let mut words = said.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).context(said.clone())?.to_owned())
}

#[test]
fn who_names_no_network_is_filtered_and_the_record_says_so() -> Result<()> {
    on_stage(|node, _| default_and_forks(node))
}

/// The default is recorded; forks, restarts and the next node keep it.
pub(crate) fn default_and_forks(node: &TestNode) -> Result<()> {
    let sleep = ["busybox", "sleep", "3600"];
    node.start(["--name", "m"].into_iter().chain(sleep))?;
    node.start(["--name", "apart", "--network", "none"].into_iter().chain(sleep))?;
    node.hearth(["fork", "m", "--name", "twin"]).ok()?;
    kill(node)?;
    node.hearth(["restart", "m"]).ok()?;
    for (name, mode) in [
        ("m", NetworkMode::Filtered),
        ("twin-1", NetworkMode::Filtered),
        ("apart", NetworkMode::None),
    ] {
        assert_eq!(node.inspect(name)?.spec.network, Some(mode), "{name}");
        let (places, patience) = match mode {
            NetworkMode::None => (vec![], SILENCE),
            _ => (expected(&[WEB, WEB_V6], &ALLOWED), PATIENCE),
        };
        assert_eq!(reached_in(node, name, &EVERYWHERE, patience)?, places, "{name}");
    }
    let reasons = ["m", "apart"].map(|name| Ok(node.inspect(name)?.network_reason));
    let [of_m, of_apart]: [Result<Option<String>>; 2] = reasons;
    ensure!(
        of_m?.is_some() && of_apart?.is_none(),
        "inspect says why, where nobody asked"
    );
    // So does code that runs once.
    let script = format!("{MUTE}{}; true", hear(&format!("{WEB} 80"), PATIENCE));
    let told = node
        .hearth(["execute", "--image", "busybox", "--cmd", "sh", "-c", &script])
        .ok()?;
    ensure!(told.contains("at 203.0.113.10 80"), "{told}");
    Ok(())
}

/// What every machine of a test serves.
pub(crate) const SERVE: &str = "nc -ll -p 7 -e echo a machine & exec sleep 3600";

#[test]
fn a_network_outlives_its_node_and_names_come_back_with_the_next() -> Result<()> {
    on_stage(|node, stage| {
        node.start(["--name", "m", "--network", "filtered", "busybox", "sleep", "3600"])?;
        let before = bridge_addresses(stage)?;
        kill(node)?;
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        let answer = node
            .exec(["m", "timeout", "60", "nslookup", "hearth.example"])
            .ok()?;
        ensure!(answer.contains(WEB), "{answer}");
        stay(node, "other")?;
        node.start(["--name", "n", "--network", "filtered", "busybox", "sleep", "3600"])?;
        assert_eq!(reached(node, "n", &[WEB])?, expected(&[WEB], &ALLOWED));
        assert_eq!(bridge_addresses(stage)?, before);
        // A machine whose rules somebody has flushed, or an older node has made, gets those of the next node.
        let monitor = node.inspect("n")?.state.pid.context("it has no monitor")?;
        kill(node)?;
        let namespace = format!("--net=/proc/{monitor}/ns/net");
        let flushed = Command::new("nsenter")
            .args([namespace.as_str(), "nft", "delete", "table", "inet", "hearth"])
            .status()?;
        ensure!(flushed.success());
        assert_eq!(reached(node, "n", &[WEB, PRIVATE])?, expected(&[WEB], &ALLOWED));
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
