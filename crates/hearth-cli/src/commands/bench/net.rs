//! What networks cost: starts of machines that have one, beside those that have none, and what goes through one, beside what goes through
//! a TAP with nothing behind it; published ports beside the kernel's own way in.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use hearth_api::v1::NetworkMode;
use tokio::process::{Child, Command};

use super::BenchError;
use super::figures::{Report, Unit, rate};
use super::ports::{PORTS, Services, answers};
use super::subjects::{Bencher, Starts};
use crate::error::CliError;

/// Starts of each kind for each run of the bench, and those before that make templates and have namespaces made ready.
const STARTS: u32 = 3;
const WARM_UP: u32 = 3;
/// With and without a network: one of each stands by.
const KINDS: u32 = 2;

/// How often bytes are moved each way: what a second is like differs from the next one's.
const ROUNDS: u32 = 15;

/// The address of a guest's gateway, which nobody has where a network is isolated.
const GATEWAY: &str = "100.127.255.253";
/// The guest's own address.
const GUEST: &str = "100.127.255.254";
/// What stands for the internet, and the host's end of the way there (RFC 5737).
const INTERNET: &str = "203.0.113.2";
const HOST: &str = "203.0.113.1";

/// Ports there: reads so much, and answers; sends so much.
const SINK: u16 = 9;
const SOURCE: u16 = 8;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace of the bench's own with a way to the host. Goes with this value, and its servers with it.
struct Internet {
    name: String,
}

impl Internet {
    async fn make(name: String) -> Result<Self, BenchError> {
        let internet = Self { name };
        let name = &internet.name;
        let lines = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name eth0 netns {name}"),
            format!("address add {HOST}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} address add {INTERNET}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} link set lo up"),
        ];
        for line in &lines {
            run("ip", &words(line)).await?;
        }
        Ok(internet)
    }

    fn place(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Internet {
    /// Half made, some of it is not there. A service that still sends would keep the namespace, and with it the way there.
    fn drop(&mut self) {
        let call = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(program).args(arguments).output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            )
        };
        let inside = call("ip", &["netns", "pids", &self.name]);
        let inside: Vec<_> = inside.split_whitespace().collect();
        if !inside.is_empty() {
            call("kill", &[&["-KILL"], &inside[..]].concat());
        }
        call("ip", &["link", "del", &self.name]);
        call("ip", &["netns", "del", &self.name]);
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// Runs a program of the host to its end, and returns what it says.
async fn run(program: &str, arguments: &[&str]) -> Result<String, BenchError> {
    let line = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().await;
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(BenchError::Verb {
            line,
            status: output.status,
            words: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
        Err(source) => Err(BenchError::Program { line, source }),
    }
}

/// Starts the two services in a network namespace; they end with what is returned.
fn serve(namespace: &str, size: u64) -> Result<Vec<Child>, BenchError> {
    let blocks = size >> 16;
    let services = [
        (SINK, format!("head -c {size} >/dev/null; echo")),
        (
            SOURCE,
            format!("exec dd if=/dev/zero bs=65536 count={blocks} 2>/dev/null"),
        ),
    ];
    let start = |(port, service): (u16, String)| {
        let mut server = Command::new("nsenter");
        server.arg(format!("--net={namespace}"));
        server.args(["busybox", "nc", "-ll", "-p", &port.to_string()]);
        server.args(["-e", "sh", "-c", &service]);
        server.kill_on_drop(true).stdin(Stdio::null()).spawn()
    };
    let started: Result<_, _> = services.into_iter().map(start).collect();
    started.map_err(|source| BenchError::Program {
        line: "nsenter busybox nc".to_owned(),
        source,
    })
}

/// A machine, and where its servers are.
struct Way {
    machine: String,
    server: &'static str,
}

impl Bencher<'_> {
    /// Tells whether machines that do not say get a network here.
    pub(super) async fn has_network(&self) -> Result<bool, CliError> {
        let name = self.idle("asked", self.memory).await?;
        let machine = self.node.call(async |client| client.inspect(&name).await).await?;
        self.node
            .call(async |client| client.remove(&name, true).await)
            .await?;
        Ok(machine.spec.network == Some(NetworkMode::Filtered))
    }

    /// Starts with and without a network, in turn, and bytes through one.
    pub(super) async fn net(&self, report: &mut Report) -> Result<(), CliError> {
        self.net_starts(report).await?;
        self.net_bytes(report).await?;
        self.net_ports(report).await
    }

    /// Published ports, in turn with the kernel's translation of addresses (DNAT) to the same services. Machines let nothing in by it, so
    /// this one's rules are opened for that.
    async fn net_ports(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("published");
        let published = self.serve_in(&name, &["--network", "open"]).await?;
        let machine = self.node.call(async |client| client.inspect(&name).await).await?;
        let entry = format!("--net=/proc/{}/ns/net", machine.state.pid.unwrap_or_default());
        let ports = PORTS.map(|port| port.to_string()).join(",");
        let lines = [
            "add table ip bench".to_owned(),
            "add chain ip bench in { type nat hook prerouting priority -101 ; }".to_owned(),
            format!("add rule ip bench in iifname uplink tcp dport {{ {ports} }} dnat to {GUEST}"),
            "insert rule inet hearth forward iifname uplink oifname tap0 accept".to_owned(),
        ];
        for line in &lines {
            let arguments = [&entry as &str, "nft"].into_iter().chain(words(line));
            run("nsenter", &arguments.collect::<Vec<_>>()).await?;
        }
        let show = format!("{entry} ip -4 -o address show dev uplink");
        let shown = run("nsenter", &words(&show)).await?;
        let mut parts = shown.split_whitespace();
        let address = parts.find_map(|word| word.split_once('/')?.0.parse().ok());
        let translated = Services::at(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()));
        let measured = async {
            answers(translated).await?;
            self.compare(report, ["net: port", "DNAT"], published, translated)
                .await
        };
        Ok(measured.await.map_err(BenchError::Port)?)
    }

    async fn net_starts(&self, report: &mut Report) -> Result<(), CliError> {
        let (mut with, mut without) = (Starts::default(), Starts::default());
        for turn in 0..WARM_UP + self.runs * STARTS {
            if turn == WARM_UP {
                (with, without) = (Starts::default(), Starts::default());
            }
            self.stood_by(KINDS).await?;
            self.start(turn, &["--network", "filtered"], &mut with).await?;
            self.stood_by(KINDS).await?;
            self.start(turn, &["--network", "none"], &mut without).await?;
        }
        let unit = Unit::Milliseconds;
        let (with_times, without_times) = (with.times(), without.times());
        report.add_against(
            "net: run true, filtered",
            unit,
            with_times,
            "--network none",
            without_times,
        );
        let pairs = with_times.iter().zip(without_times);
        let added: Vec<f64> = pairs.map(|(with, without)| with - without).collect();
        report.add("net: added to a run", unit, &added);
        report.add("net: stage network", unit, with.stage("network"));
        Ok(())
    }

    async fn net_bytes(&self, report: &mut Report) -> Result<(), CliError> {
        let size = self.size >> 16 << 16;
        let internet = Internet::make(format!("hb{}", std::process::id())).await?;
        let (routed, bare) = (self.networked("open").await?, self.networked("isolated").await?);
        let machine = self.node.call(async |client| client.inspect(&bare).await).await?;
        let namespace = format!("/proc/{}/ns/net", machine.state.pid.unwrap_or_default());
        let give = format!("--net={namespace} ip address add {GATEWAY}/30 dev tap0");
        run("nsenter", &words(&give)).await?;
        let _servers = [serve(&internet.place(), size)?, serve(&namespace, size)?];
        let ways = [(routed, INTERNET), (bare, GATEWAY)].map(|(machine, server)| Way { machine, server });
        for way in &ways {
            self.until_served(way).await?;
        }
        // The programs have the socket themselves: what nc passes on goes in pieces of a kibibyte.
        let zeros = format!("dd if=/dev/zero bs=65536 count={} 2>/dev/null", size >> 16);
        let out = format!("nc SERVER {SINK} -e sh -c '{zeros}; read end'");
        let into = format!("nc SERVER {SOURCE} -e dd of=/dev/null bs=65536 2>/dev/null");
        let directions = [
            ("net: guest to the internet", out),
            ("net: internet to the guest", into),
        ];
        for (name, script) in &directions {
            let mut rates = [Vec::new(), Vec::new()];
            for turn in 0..ROUNDS as usize {
                // Neither has what comes behind the other for good.
                for index in [turn % 2, (turn + 1) % 2] {
                    let took = self.transfer(&ways[index], script).await?;
                    rates[index].push(rate(size, took));
                }
            }
            let [routed, bare] = &rates;
            report.add_against(name, Unit::MegabytesPerSecond, routed, "a TAP alone", bare);
        }
        Ok(())
    }

    async fn transfer(&self, way: &Way, script: &str) -> Result<Duration, BenchError> {
        let script = script.replace("SERVER", way.server);
        self.machines
            .time(&["exec", &way.machine, "sh", "-c", &script])
            .await
    }

    async fn networked(&self, mode: &str) -> Result<String, BenchError> {
        let name = self.machines.name(mode);
        let mut arguments = self.machines.run_arguments(&name, self.memory);
        arguments.extend(["--network", mode, "--detach", self.image, "sleep", "86400"].map(str::to_owned));
        self.machines.time(&arguments).await?;
        Ok(name)
    }

    /// Waits until the servers listen, and a machine gets to them.
    async fn until_served(&self, way: &Way) -> Result<(), BenchError> {
        let begun = Instant::now();
        let script = format!("nc -w 5 {} {SINK} </dev/null", way.server);
        let arguments = ["exec", &way.machine, "sh", "-c", &script];
        loop {
            match self.machines.time(&arguments).await {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
