//! Networks of an ordinary user's machines: they reach what root's do, and nothing of the host, though their packets leave by sockets
//! of it.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, TestNode, is_quiet};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::network::{MUTE, SERVE, SILENCE, default_and_forks, expected, modes, reached, reached_in};
use crate::network_policy::{CARRIED, RATE, changes, denials, names, networks, text};
use crate::node::kill;
use crate::stage::{
    ALLOWED, HOST, HOST_V6, PORTS, PRIVATE, Stage, WEB, WEB_V6, inside, ip, on_stage_for_user,
};
use crate::support::until;

#[test]
fn an_ordinary_users_machine_reaches_what_its_mode_says() -> Result<()> {
    on_stage_for_user(|node, _| modes(node))
}

#[test]
fn an_ordinary_users_machine_is_filtered_by_default_and_so_are_its_forks() -> Result<()> {
    on_stage_for_user(|node, _| default_and_forks(node))
}

#[test]
fn an_ordinary_users_policy_lets_out_names_and_networks() -> Result<()> {
    on_stage_for_user(|node, _| {
        names(node)?;
        node.hearth(["rm", "-f", "m"]).ok()?;
        networks(node)
    })
}

#[test]
fn an_ordinary_users_policy_changes_at_once() -> Result<()> {
    on_stage_for_user(changes)
}

/// What the kernel says of the queue of an interface.
pub(crate) struct Queue {
    pub(crate) rate: u64,
    pub(crate) burst: u64,
    pub(crate) bytes: u64,
    pub(crate) overlimits: u64,
}

/// Asks for the queue of an interface in a machine's namespace, see tc-tbf(8).
pub(crate) fn queue(monitor: Pid, interface: &str) -> Result<Queue> {
    let said = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", monitor.as_raw_nonzero()))
        .args(["tc", "-s", "-j", "qdisc", "show", "dev", interface])
        .output()?;
    let queues: Value = serde_json::from_slice(&said.stdout)?;
    let bucket = queues.as_array().and_then(|queues| {
        let mut queues = queues.iter();
        queues.find(|queue| queue["kind"] == "tbf")
    });
    let bucket = bucket.with_context(|| format!("{interface} has no rate: {queues}"))?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("{bucket}"));
    Ok(Queue {
        rate: number(&bucket["options"]["rate"])?,
        burst: number(&bucket["options"]["burst"])?,
        bytes: number(&bucket["bytes"])?,
        overlimits: number(&bucket["overlimits"])?,
    })
}

#[test]
fn an_ordinary_users_rate_is_not_exceeded() -> Result<()> {
    on_stage_for_user(|node, stage| {
        let carried = stage.count_and_pour(CARRIED)?;
        let flags = ["--name", "m", "--network", "open", "--net-rate", "10mbit"];
        node.start(flags.into_iter().chain(["busybox", "sleep", "3600"]))?;
        let monitor = monitor(node, "m")?;
        let sends = format!("head -c {CARRIED} /dev/zero | nc -w 60 {WEB} 9");
        // The guest's end stays open: pasta of Debian 12 closes too early otherwise.
        let receives = format!("{MUTE}nc -w 60 {WEB} 19 <&3 | wc -c");
        for (way, interface, script) in [("out", "uplink", sends), ("in", "tap0", receives)] {
            let was_quiet = is_quiet();
            let begun = Instant::now();
            let before = queue(monitor, interface)?;
            node.exec(["m", "sh", "-c", &script])
                .deadline(2 * DEADLINE)
                .ok()?;
            let after = queue(monitor, interface)?;
            let took = begun.elapsed().as_secs_f64();
            let there = carried.recv()?;
            ensure!(there.bytes == CARRIED, "{way}: {} bytes came", there.bytes);
            // What the kernel let through, headers and all, beside what it may: whoever is slow, and wherever.
            let passed = after.bytes - before.bytes;
            let room = RATE * took + after.burst as f64;
            println!("{way}: {passed} bytes in {took:.3} s, room for {room:.0}");
            ensure!(after.rate as f64 == RATE, "{way}: {} bytes a second", after.rate);
            ensure!(
                passed >= CARRIED && passed as f64 <= 1.02 * room,
                "{way}: {passed} bytes"
            );
            ensure!(after.overlimits > before.overlimits, "{way}: nothing had to wait");
            // Of what was to come, once: pasta sends much again when a queue drops something. Others' work makes it slower.
            let rate = CARRIED as f64 / took / RATE;
            println!("{way}: {rate:.3} of the rate");
            if was_quiet && is_quiet() {
                ensure!(rate >= 0.85, "{way}: {rate:.3} of the rate");
            }
        }
        Ok(())
    })
}

#[test]
fn an_ordinary_users_port_goes_by_the_machines_network() -> Result<()> {
    on_stage_for_user(|node, stage| {
        // Each client is told of the connections that there are, its own among them.
        let serve = "nc -ll -p 7 -e cat /proc/net/tcp /proc/net/tcp6";
        node.start([
            "--name",
            "m",
            "--network",
            "filtered",
            "-p",
            "127.0.0.1::7",
            "busybox",
            "sh",
            "-c",
            serve,
        ])?;
        let address = node.hearth(["port", "m", "7"]).ok()?;
        // 100.127.255.253 as the kernel prints it.
        until("a client comes from the gateway", || {
            let mut told = String::new();
            inside(&stage.host, || {
                Ok(TcpStream::connect(&address)?.read_to_string(&mut told)?)
            })
            .unwrap_or_default();
            Ok(told.contains("FDFF7F64"))
        })
    })
}

/// Addresses that lead to the host, or to its loopback, where somebody takes a packet for it.
const HOST_TOO: [&str; 3] = ["192.168.77.1", "10.64.0.1", "fd77::1"];

/// Sends datagrams from root in a machine, by every way that could lead to the host's loopback: headers put together by hand, since a
/// kernel sends none of these by itself.
const FORGE: &str = include_str!("network_rootless.py");

#[test]
fn an_ordinary_users_machine_reaches_neither_its_host_nor_other_machines() -> Result<()> {
    on_stage_for_user(|node, stage| {
        for line in [
            "link add lan type bridge",
            "link set lan up",
            "address add 192.168.77.1/24 dev lan",
            "address add 10.64.0.1/20 dev lan",
            "address add fd77::1/64 dev lan nodad",
        ] {
            inside(&stage.host, || ip(line))?;
        }
        let allow = ["--network", "open", "--allow", HOST];
        node.start(
            ["--name", "m"]
                .into_iter()
                .chain(allow)
                .chain(["busybox", "sh", "-c", SERVE]),
        )?;
        node.start([
            "--name",
            "other",
            "--network",
            "open",
            "busybox",
            "sh",
            "-c",
            SERVE,
        ])?;
        let host = [HOST, HOST_V6, "127.0.0.1", "::1"];
        let all: Vec<&str> = host.into_iter().chain(HOST_TOO).chain([WEB]).collect();
        assert_eq!(reached(node, "m", &all)?, expected(&[WEB], &PORTS));
        let told = denials(node, "m")?;
        let denial = told.iter().find(|denial| text(denial, "address") == HOST);
        let denial = denial.context("the host is not among what was refused")?;
        assert_eq!(
            (text(denial, "reason"), text(denial, "remedy")),
            ("it is the host itself", "")
        );
        // What becomes the host's while the machine runs is the host's, as soon as the node has heard of it.
        let silent = reached_in(node, "m", &["203.0.113.77"], SILENCE)?;
        assert_eq!(silent, Vec::<String>::new());
        inside(&stage.internet, || ip("address add 203.0.113.77/32 dev lo"))?;
        assert_eq!(
            reached(node, "m", &["203.0.113.77"])?,
            expected(&["203.0.113.77"], &PORTS)
        );
        inside(&stage.host, || ip("address add 203.0.113.77/32 dev lan"))?;
        until("a new address of the host is not reached", || {
            Ok(reached(node, "m", &["203.0.113.77"])?.is_empty())
        })?;
        // Other machines have the same addresses, and are elsewhere.
        for near in ["100.127.255.249", "100.127.255.250", "100.127.255.253"] {
            let said = node
                .exec(["m", "sh", "-c", &format!("nc -w 2 {near} 7 </dev/null; true")])
                .ok()?;
            ensure!(!said.contains("a machine"), "{near} answers");
        }
        Ok(())
    })
}

#[test]
fn what_root_forges_in_an_ordinary_users_machine_does_not_reach_the_hosts_loopback() -> Result<()> {
    let image = match e2e::debian_python() {
        Ok(image) => image,
        Err(error) => return e2e::skip!("no image with Python can be made: {error:#}"),
    };
    on_stage_for_user(|node, stage| {
        let hear = || -> Result<_> {
            let socket = UdpSocket::bind(("::", 99))?;
            socket.set_nonblocking(true)?;
            let listener = TcpListener::bind(("::", 99))?;
            listener.set_nonblocking(true)?;
            Ok((socket, listener))
        };
        let (datagrams, streams) = inside(&stage.host, hear)?;
        let (honest, _streams) = inside(&stage.internet, hear)?;
        let lent = node.lend(Path::new(
            image.trim_start_matches("oci:").trim_end_matches(":latest"),
        ))?;
        let image = format!("oci:{}:latest", lent.display());
        let flags = [
            "--name",
            "m",
            "--network",
            "open",
            "--entrypoint",
            "sleep",
            &image,
            "3600",
        ];
        node.start(flags)?;
        node.exec(["-i", "m", "python3", "-"]).stdin(FORGE).ok()?;
        let mut bytes = [0; 64];
        // The last that is sent is meant for the internet, and comes behind all the others.
        until("the honest datagram has come", || {
            Ok(honest.recv_from(&mut bytes).is_ok())
        })?;
        ensure!(
            datagrams.recv_from(&mut bytes).is_err(),
            "the host hears of a machine"
        );
        ensure!(streams.accept().is_err(), "the host takes a machine's connection");
        Ok(())
    })
}

pub(crate) fn monitor(node: &TestNode, machine: &str) -> Result<Pid> {
    let pid = node.inspect(machine)?.state.pid.context("it has no monitor")?;
    Pid::from_raw(i32::try_from(pid)?).context("a monitor has a process id")
}

/// Finds the processes of a node's user whose program is called so.
pub(crate) fn processes(node: &TestNode, program: &str) -> Result<Vec<Pid>> {
    processes_where(node, |line| {
        let word = line.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(word).ends_with(program)
    })
}

/// Finds those whose first argument is this.
pub(crate) fn processes_with(node: &TestNode, argument: &str) -> Result<Vec<Pid>> {
    processes_where(node, |line| {
        line.split(|&byte| byte == 0).nth(1) == Some(argument.as_bytes())
    })
}

fn processes_where(node: &TestNode, is_meant: impl Fn(&[u8]) -> bool) -> Result<Vec<Pid>> {
    let uid = node.home().metadata()?.uid();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // Its directory is root's, since nobody may look into it.
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let runs_as = status
            .lines()
            .any(|line| line.starts_with(&format!("Uid:\t{uid}\t")));
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if runs_as && is_meant(&line) {
            found.extend(number.and_then(Pid::from_raw));
        }
    }
    Ok(found)
}

#[test]
fn an_ordinary_users_network_outlives_its_node_and_ends_with_its_machine() -> Result<()> {
    on_stage_for_user(|node, _| {
        let places = || expected(&[WEB, WEB_V6], &ALLOWED);
        let all = [WEB, WEB_V6, PRIVATE, HOST];
        for name in ["m", "n"] {
            node.start([
                "--name",
                name,
                "--network",
                "filtered",
                "busybox",
                "sleep",
                "3600",
            ])?;
        }
        let [first, second] = [monitor(node, "m")?, monitor(node, "n")?];
        // A pasta that ends is started anew.
        for pasta in processes(node, "pasta")? {
            kill_process(pasta, Signal::KILL)?;
        }
        until("the machines have their ways out again", || {
            Ok(reached(node, "m", &all)? == places())
        })?;
        kill(node)?;
        until("those of machines are left alone", || {
            Ok(processes(node, "pasta")?.len() == 2)
        })?;
        kill_process(second, Signal::KILL)?;
        until("one has ended with its machine", || {
            Ok(processes(node, "pasta")?.len() == 1)
        })?;
        ensure!(PathBuf::from(format!("/proc/{}", first.as_raw_nonzero())).exists());
        // The next node takes over what is there, and gives what is not.
        assert_eq!(reached(node, "m", &all)?, places());
        // It watches over what it has taken over.
        for pasta in processes(node, "pasta")? {
            kill_process(pasta, Signal::KILL)?;
        }
        until("the machine has its way out again", || {
            Ok(reached(node, "m", &all)? == places())
        })?;
        kill(node)?;
        for pasta in processes(node, "pasta")? {
            kill_process(pasta, Signal::KILL)?;
        }
        until("no pasta is left", || Ok(processes(node, "pasta")?.is_empty()))?;
        assert_eq!(reached(node, "m", &all)?, places());
        let answer = node
            .exec(["m", "timeout", "60", "nslookup", "hearth.example"])
            .ok()?;
        ensure!(answer.contains(WEB), "{answer}");
        Ok(())
    })
}

#[test]
fn what_an_ordinary_users_network_lacks_is_said() -> Result<()> {
    on_stage_for_user(|node, stage: &Stage| {
        inside(&stage.host, || ip("route del default"))?;
        inside(&stage.host, || ip("-6 route del default"))?;
        let refused = node.run(["--network", "filtered", "busybox", "true"]).run()?;
        refused.expect_code(125)?.complains("no way out")?;
        // Who asks for none gets none.
        node.run(["--rm", "busybox", "true"]).ok()?;
        Ok(())
    })
}
