//! What the gateway's name server adds to an answer, measured where both ways are the host's: no guest is in it.

use std::fs::File;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::is_quiet;

use crate::stage::{inside, on_stage};
use crate::support::seconds;

/// Questions each way, one after the other.
const QUESTIONS: u16 = 300;

/// What may be added where nothing else runs, at the median.
const ADDED: Duration = Duration::from_millis(2);

/// Asks for the address of `hearth.example` (RFC 1035, 4.1).
fn question(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(b"\x06hearth\x07example\0\0\x01\0\x01");
    message
}

/// A socket in a namespace that talks to a server.
fn client(namespace: &File, server: &str) -> Result<UdpSocket> {
    inside(namespace, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(seconds(5)))?;
        Ok(socket)
    })
}

fn ask(socket: &UdpSocket, id: u16) -> Result<Duration> {
    let (begun, mut answer) = (Instant::now(), [0; 512]);
    socket.send(&question(id))?;
    let length = socket.recv(&mut answer).context("nobody answers")?;
    let took = begun.elapsed();
    ensure!(
        length > 12 && answer[..2] == id.to_be_bytes() && answer[7] == 1,
        "{answer:?}"
    );
    Ok(took)
}

#[test]
fn the_gateway_adds_little_to_an_answer() -> Result<()> {
    on_stage(|node, stage| {
        node.start(["--name", "m", "--network", "filtered", "busybox", "sleep", "3600"])?;
        let pid = node.inspect("m")?.state.pid.context("it has no monitor")?;
        let machine = File::open(format!("/proc/{pid}/ns/net"))?;
        let (gateway, upstream) = (
            client(&machine, "100.127.255.253")?,
            client(&stage.host, "198.51.100.2")?,
        );
        let was_quiet = is_quiet();
        let (mut by_gateway, mut direct) = (Vec::new(), Vec::new());
        for id in 1..=QUESTIONS {
            by_gateway.push(ask(&gateway, id)?);
            direct.push(ask(&upstream, id)?);
        }
        by_gateway.sort();
        direct.sort();
        let at = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100];
        for (way, times) in [("by the gateway", &by_gateway), ("of the upstream", &direct)] {
            println!(
                "answers {way}: p50 {:.0?}, p99 {:.0?}",
                at(times, 50),
                at(times, 99)
            );
        }
        let added = at(&by_gateway, 50).saturating_sub(at(&direct, 50));
        if was_quiet && is_quiet() {
            ensure!(added <= ADDED, "the gateway adds {added:.1?}");
        }
        Ok(())
    })
}
