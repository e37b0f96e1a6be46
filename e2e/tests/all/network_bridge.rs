//! Machines that lead out by a bridge of the host's: with an address that is said, and with one that a server there gives (DHCP).

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;

use crate::network::{expected, reached};
use crate::node::kill;
use crate::stage::{ALLOWED, PRIVATE, Stage, WEB, WEB_V6, inside, ip, on_stage};
use crate::support::{settled, until};

fn start(node: &TestNode, name: &str, place: &str) -> Result<()> {
    let arguments = ["--name", name, "--network", place, "busybox", "sleep", "3600"];
    node.start(arguments).map(drop)
}

/// Makes a bridge of the host's that leads to the internet, and to nothing else.
fn lay_lan(stage: &Stage) -> Result<()> {
    let internet = format!("/proc/{}/fd/{}", std::process::id(), stage.internet.as_raw_fd());
    inside(&stage.host, || {
        ip("link add lan type bridge")?;
        ip("link set lan up")?;
        ip(&format!("link add port type veth peer name lan netns {internet}"))?;
        ip("link set port master lan up")
    })?;
    inside(&stage.internet, || {
        ip("link set lan up")?;
        ip("address add 192.168.50.1/24 dev lan")?;
        ip("address add fd50::1/64 dev lan nodad")
    })
}

/// Takes it away again. No machine has left anything at it by then.
fn take_lan_away(stage: &Stage) -> Result<()> {
    until("no machine is at the bridge", || {
        let said = inside(&stage.host, || {
            let listed = Command::new("ip")
                .args(["-o", "link", "show", "master", "lan"])
                .output()?;
            Ok(String::from_utf8(listed.stdout)?)
        })?;
        Ok(said.lines().count() == 1)
    })?;
    inside(&stage.host, || ip("link del lan"))
}

#[test]
fn a_machine_leads_out_by_a_bridge_of_the_hosts() -> Result<()> {
    on_stage(|node, stage| {
        lay_lan(stage)?;
        let place = "bridge=lan,ip=192.168.50.9/24,gateway=192.168.50.1,ip=fd50::9/64,gateway=fd50::1";
        start(node, "m", place)?;
        // There is no other way.
        inside(&stage.host, || ip("link set wan down"))?;
        assert_eq!(
            reached(node, "m", &[WEB, WEB_V6, PRIVATE])?,
            expected(&[WEB, WEB_V6], &ALLOWED)
        );
        node.hearth(["policy", "allow", "m", "192.168.50.1:25"]).ok()?;
        assert_eq!(
            reached(node, "m", &["192.168.50.1"])?,
            expected(&["192.168.50.1"], &[25])
        );
        node.hearth(["restart", "m"]).ok()?;
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        node.hearth(["fork", "m"])
            .run()?
            .expect_code(1)?
            .complains("the address on the bridge is that of the machine m")?;
        for (flags, words) in [
            (
                &["--network", "bridge=lan,ip=192.168.50.9/24"][..],
                "is that of the machine m",
            ),
            (
                &["--network", "bridge=wan,ip=192.168.50.8/24"],
                "there is no bridge \"wan\"",
            ),
            (
                &["--network", "bridge=lan,gateway=192.168.50.1"],
                "the gateway 192.168.50.1 is on none of the machine's networks",
            ),
            (
                &["--network", place, "--network", "none"],
                "for a machine that leads out",
            ),
        ] {
            let run = ["run"].iter().chain(flags).chain(&["busybox", "true"]);
            node.hearth(run).run()?.complains(words)?;
        }
        ensure!(node.machines()?.len() == 1, "a machine is left");
        node.hearth(["rm", "-f", "m"]).ok()?;
        take_lan_away(stage)
    })
}

/// A server of the internet's, which ends with this value.
struct Server(Child);

impl Server {
    fn start(namespace: &File, command: &mut Command) -> Result<Self> {
        let child = inside(namespace, || {
            Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
        })?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts dnsmasq, which gives addresses and announces a network of IPv6, and writes down whom it has given which.
fn dnsmasq(stage: &Stage, leases: &Path) -> Result<Server> {
    let mut command = Command::new("dnsmasq");
    command
        .args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--user=root",
        ])
        .args(["--interface=lan", "--bind-interfaces", "--pid-file=", "--no-ping"])
        .args([
            "--dhcp-authoritative",
            "--enable-ra",
            "--dhcp-range=fd50::,ra-only,64",
        ])
        .arg("--dhcp-range=192.168.50.100,192.168.50.120,255.255.255.0,1h")
        .arg(format!("--dhcp-leasefile={}", leases.display()));
    Server::start(&stage.internet, &mut command)
}

/// Starts busybox's, which gives addresses of 192.168.50. from one to another for six seconds.
fn udhcpd(stage: &Stage, home: &Path, first: u8, last: u8) -> Result<Server> {
    let file = home.join(format!("udhcpd-{first}.conf"));
    let leases = home.join(format!("udhcpd-{first}.leases"));
    File::create(&leases)?;
    let settings = format!(
        "interface lan\nstart 192.168.50.{first}\nend 192.168.50.{last}\nmin_lease 1\noffer_time 1\n\
         lease_file {}\npidfile {}\noption subnet 255.255.255.0\noption router 192.168.50.1\noption lease 6\n",
        leases.display(),
        home.join("udhcpd.pid").display(),
    );
    std::fs::write(&file, settings)?;
    let mut command = Command::new("busybox");
    command.args(["udhcpd", "-f", "-a", "10"]).arg(file);
    Server::start(&stage.internet, &mut command)
}

/// Returns the address that a machine was given, without its prefix.
fn given(node: &TestNode, machine: &str) -> Result<Option<String>> {
    let address = node.inspect(machine)?.given_address;
    address
        .map(|address| {
            let plain = address.strip_suffix("/24");
            Ok(plain
                .with_context(|| format!("{address:?} is of another network"))?
                .to_owned())
        })
        .transpose()
}

fn has(node: &TestNode, machine: &str) -> Result<String> {
    given(node, machine)?.with_context(|| format!("{machine} has no address"))
}

#[test]
fn a_machine_is_given_its_address_on_a_bridge_of_the_hosts() -> Result<()> {
    if let Some(program) = e2e::missing_program(&["dnsmasq"]) {
        return e2e::skip!("{program} is not installed");
    }
    on_stage(|node, stage| {
        lay_lan(stage)?;
        let file = node.home().join("leases");
        let leases = || -> Result<Vec<String>> {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let of_v4 = text.lines().filter(|line| line.contains(" 192.168.50."));
            // When it ends, the card, and the address (lease.c of dnsmasq).
            let parts = of_v4.map(|line| {
                line.split_whitespace()
                    .skip(1)
                    .take(2)
                    .collect::<Vec<_>>()
                    .join(" ")
            });
            Ok(parts.collect())
        };
        let server = dnsmasq(stage, &file)?;
        start(node, "m", "bridge=lan")?;
        let of_m = has(node, "m")?;
        let listed = leases()?;
        ensure!(
            matches!(&listed[..], [one] if one.starts_with("02:00:00:") && one.ends_with(&format!(" {of_m}"))),
            "{listed:?}, and m has {of_m}"
        );
        // There is no other way. Routers announce themselves when they please.
        inside(&stage.host, || ip("link set wan down"))?;
        assert_eq!(reached(node, "m", &[WEB, PRIVATE])?, expected(&[WEB], &ALLOWED));
        settled(|| {
            let seen = reached(node, "m", &[WEB_V6])?;
            ensure!(seen == expected(&[WEB_V6], &ALLOWED), "{seen:?}");
            Ok(())
        })?;
        // A fork has its own, and the machine keeps what it has.
        let fork = node.hearth(["fork", "m"]).ok()?;
        let of_fork = has(node, &fork)?;
        ensure!(of_fork != of_m && has(node, "m")? == of_m, "{of_fork}, {of_m}");
        ensure!(leases()?.len() == 2, "{:?}", leases()?);
        assert_eq!(reached(node, &fork, &[WEB])?, expected(&[WEB], &ALLOWED));
        // What an ended machine had is given back, and its next start asks again.
        node.hearth(["stop", "m"]).ok()?;
        ensure!(given(node, "m")?.is_none());
        until("the address is given back", || Ok(leases()?.len() == 1))?;
        node.hearth(["start", "m"]).ok()?;
        assert_eq!(has(node, "m")?, of_m);
        // The next node goes on with it.
        kill(node)?;
        settled(|| {
            ensure!(has(node, "m")? == of_m && has(node, &fork)? == of_fork);
            Ok(())
        })?;
        ensure!(leases()?.len() == 2, "{:?}", leases()?);
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        node.hearth(["rm", "-f", "m", &fork]).ok()?;
        until("all addresses are given back", || Ok(leases()?.is_empty()))?;
        drop(server);
        node.hearth(["run", "--rm", "--network", "bridge=lan", "busybox", "true"])
            .run()?
            .complains("no DHCP server on the bridge \"lan\" has given an address within 20 s")?
            .complains("bridge=NAME,ip=ADDRESS/PREFIX")?;
        ensure!(node.machines()?.is_empty(), "a machine is left");
        take_lan_away(stage)
    })
}

#[test]
fn an_address_that_was_given_is_kept_for_as_long_as_its_server_gives_it() -> Result<()> {
    on_stage(|node, stage| {
        lay_lan(stage)?;
        let home: PathBuf = node.home().to_owned();
        let server = udhcpd(stage, &home, 100, 110)?;
        start(node, "m", "bridge=lan")?;
        inside(&stage.host, || ip("link set wan down"))?;
        let first = has(node, "m")?;
        let seconds = || -> Result<u64> {
            let pid = node.inspect("m")?.state.pid.context("it has no monitor")?;
            let listed = Command::new("nsenter")
                .args([
                    "-t",
                    &pid.to_string(),
                    "-n",
                    "ip",
                    "-o",
                    "-4",
                    "address",
                    "show",
                    "uplink",
                ])
                .output()?;
            let said = String::from_utf8(listed.stdout)?;
            let left = said
                .split("valid_lft ")
                .nth(1)
                .and_then(|rest| rest.split("sec").next());
            Ok(left.with_context(|| said.clone())?.parse()?)
        };
        // It is renewed when half of its time is over: never is less left than that, give or take the second that it is asked in.
        let mut times = Vec::new();
        for _ in 0..40 {
            times.push(seconds()?);
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
        ensure!(times.iter().all(|left| (1..=6).contains(left)), "{times:?}");
        let renewals = times.windows(2).filter(|pair| pair[1] > pair[0]).count();
        ensure!(renewals >= 2, "{times:?}");
        assert_eq!(has(node, "m")?, first);
        // Another server refuses what it has not given, and gives another.
        drop(server);
        let server = udhcpd(stage, &home, 130, 140)?;
        until("the machine has another address", || {
            let now = given(node, "m")?;
            Ok(now.is_some_and(|now| now.starts_with("192.168.50.13") || now == "192.168.50.140"))
        })?;
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        // Nobody renews it: it ends, and with it the way out.
        drop(server);
        until("the address ends", || Ok(given(node, "m")?.is_none()))?;
        ensure!(seconds().is_err(), "the kernel has an address still");
        assert_eq!(reached(node, "m", &[WEB])?, Vec::<String>::new());
        let _server = udhcpd(stage, &home, 100, 110)?;
        until("the machine has an address again", || {
            Ok(given(node, "m")?.is_some())
        })?;
        assert_eq!(reached(node, "m", &[WEB])?, expected(&[WEB], &ALLOWED));
        node.hearth(["rm", "-f", "m"]).ok()?;
        take_lan_away(stage)
    })
}
