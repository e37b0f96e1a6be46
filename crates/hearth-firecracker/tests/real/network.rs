//! A network interface, from a TAP of the host to the guest and back. Root only: it makes the TAP.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_firecracker::model::{
    Action, LoadSnapshot, MmdsConfiguration, MmdsVersion, NetworkInterface, NetworkInterfaceUpdate,
    NetworkOverride, RateLimiter, SnapshotKind, TokenBucket, VmState,
};

use crate::host::{LONG, MEMORY, STATE, Vmm, clone_of, skip_without_firecracker};

/// Bytes that the echo sends back in the test of limits.
const PAYLOAD: usize = 32 * 1024;

/// A TAP with an address; removed when dropped.
#[derive(Debug)]
struct Tap {
    name: String,
    host: Ipv4Addr,
    guest: Ipv4Addr,
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("no `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    Ok(())
}

impl Tap {
    /// Makes a TAP of this number; tests that run at once have others.
    fn new(number: u8) -> Result<Self> {
        let tap = Self {
            name: format!("hfc{}-{number}", std::process::id()),
            host: [172, 31, 200 + number, 1].into(),
            guest: [172, 31, 200 + number, 2].into(),
        };
        ip(&["tuntap", "add", &tap.name, "mode", "tap"])?;
        ip(&["address", "add", &format!("{}/30", tap.host), "dev", &tap.name])?;
        ip(&["link", "set", &tap.name, "up"])?;
        Ok(tap)
    }

    fn interface(&self) -> Result<NetworkInterface> {
        Ok(NetworkInterface {
            id: "eth0".parse()?,
            tap: self.name.clone(),
            guest_mac: Some("06:00:ac:1f:c8:02".into()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        })
    }

    /// Sends bytes to the guest's echo and reads them back; returns how long that took.
    async fn echo(&self, bytes: usize) -> Result<Duration> {
        let address = SocketAddr::from((self.guest, 7));
        let echoed = tokio::task::spawn_blocking(move || -> Result<Duration> {
            let mut stream = TcpStream::connect_timeout(&address, LONG)?;
            stream.set_read_timeout(Some(LONG))?;
            let sent: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
            let begin = std::time::Instant::now();
            let mut received = vec![0; bytes];
            // A piece at a time, less than what either side buffers.
            for (out, back) in sent.chunks(8192).zip(received.chunks_mut(8192)) {
                stream.write_all(out)?;
                stream.read_exact(back)?;
            }
            ensure!(sent == received, "the echo differs");
            Ok(begin.elapsed())
        });
        echoed.await?
    }

    /// Boots a guest with an interface, and gives it its address.
    async fn boot(&self, host: &crate::host::Host) -> Result<Vmm> {
        let vmm = host.start().await?;
        vmm.configure(&host.guest).await?;
        vmm.client.set_network_interface(&self.interface()?).await?;
        vmm.client
            .set_metadata_service(&MmdsConfiguration {
                version: MmdsVersion::V2,
                network_interfaces: vec!["eth0".parse()?],
                ipv4_address: None,
            })
            .await?;
        vmm.client.act(Action::InstanceStart).await?;
        let mut guest = vmm.settle().await?;
        let address = format!("{}/30", self.guest);
        let said = guest.run(&["network", &address]).await?;
        assert_eq!(said.value("mac")?, "06-00-ac-1f-c8-02");
        Ok(vmm)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.name]);
    }
}

/// Says why a TAP cannot be made here, and ends the test.
macro_rules! skip_without_tap {
    ($number:expr) => {
        match Tap::new($number) {
            Ok(tap) => tap,
            Err(error) => {
                println!(
                    "SKIPPED {}: no TAP: {error:#}",
                    std::thread::current().name().unwrap_or("?")
                );
                return Ok(());
            }
        }
    };
}

/// Sends an ICMP echo request and waits for its reply (RFC 792).
fn ping(guest: Ipv4Addr) -> Result<()> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(LONG))?;
    // Type 8, code 0, checksum, identifier, sequence number.
    let mut request = [8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum: u16 = !(0x0800 + 0x1234 + 0x0001);
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let address = SocketAddr::from((guest, 0));
    sendto(&socket, &request, SendFlags::empty(), &address)?;
    let mut packet = [0; 128];
    loop {
        let (length, _) = recv(&socket, &mut packet, RecvFlags::empty())?;
        // A raw socket sees every ICMP packet of the host, each with its header of IP, of 20 bytes.
        let is_from_guest = packet[12..16] == guest.octets();
        if is_from_guest && packet[20..length].starts_with(&[0, 0]) && packet[24..length] == request[4..] {
            return Ok(());
        }
    }
}

#[tokio::test]
async fn arp_ping_and_tcp_are_answered_and_the_interface_is_told_back() -> Result<()> {
    let host = skip_without_firecracker!();
    let tap = skip_without_tap!(0);
    let vmm = tap.boot(&host).await?;
    let told = vmm.client.vm_configuration().await?;
    assert_eq!(told.network_interfaces, [tap.interface()?]);
    assert_eq!(told.mmds_config.map(|mmds| mmds.version), Some(MmdsVersion::V2));
    tap.echo(4096).await?;
    ping(tap.guest)?;
    vmm.end().await
}

#[tokio::test]
async fn an_interface_is_as_slow_as_its_limit_until_that_is_taken_away() -> Result<()> {
    let host = skip_without_firecracker!();
    let tap = skip_without_tap!(1);
    let vmm = tap.boot(&host).await?;
    let limit = |bandwidth| {
        let id = "eth0".parse();
        let client = vmm.client.clone();
        async move {
            let update = NetworkInterfaceUpdate {
                id: id?,
                rx_rate_limiter: None,
                tx_rate_limiter: Some(RateLimiter {
                    bandwidth: Some(bandwidth),
                    ops: None,
                }),
            };
            client.update_network_interface(&update).await?;
            anyhow::Ok(())
        }
    };
    limit(TokenBucket::per_second(PAYLOAD as u64)).await?;
    let slow = tap.echo(PAYLOAD).await?;
    ensure!(
        slow >= Duration::from_millis(700),
        "{PAYLOAD} bytes at as many a second took {slow:?}"
    );
    let before = vmm.metrics().await?.network.tx_rate_limiter_throttled;
    ensure!(before > 0, "the limit was never hit");
    limit(TokenBucket::UNLIMITED).await?;
    let fast = tap.echo(PAYLOAD).await?;
    println!("echo of 32 KiB at 32 KiB/s: {slow:?}; without limit: {fast:?}");
    assert_eq!(vmm.metrics().await?.network.tx_rate_limiter_throttled, before);
    vmm.end().await
}

#[tokio::test]
async fn a_clone_has_another_tap_than_its_source() -> Result<()> {
    let host = skip_without_firecracker!();
    let (first, second) = (skip_without_tap!(2), skip_without_tap!(3));
    let source = first.boot(&host).await?;
    source.snapshot(SnapshotKind::Full, STATE, MEMORY).await?;
    let clone = host.start_in(clone_of(source.directory.path())?).await?;
    let mut load = LoadSnapshot::of_files(STATE, MEMORY);
    load.resume = false;
    load.network_overrides = vec![NetworkOverride {
        id: "eth0".parse()?,
        tap: second.name.clone(),
    }];
    clone.client.load_snapshot(&load).await?;
    clone.client.set_vm_state(VmState::Resumed).await?;
    // Both TAPs are in one network here, so the clone needs an address of its own.
    let mut guest = clone.greet().await?;
    guest.run(&["network", &format!("{}/30", second.guest)]).await?;
    second.echo(4096).await?;
    clone.end().await?;
    source.client.set_vm_state(VmState::Resumed).await?;
    first.echo(4096).await?;
    source.end().await
}
