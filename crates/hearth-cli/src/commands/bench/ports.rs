//! Published ports, beside a plain TCP relay on the host, or the kernel's own way: what a connection costs, and what goes through one.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::BenchError;
use super::figures::{Report, Unit, milliseconds, rate};
use super::subjects::{Bencher, TRANSFERS};
use crate::error::CliError;

/// Ports of the machine: echoes; sends zeros; reads until the end, and answers.
const ECHO: u16 = 7;
const SOURCE: u16 = 8;
const SINK: u16 = 9;
/// Round trips and connections for each run of the bench.
const ROUNDS: u32 = 20;
const BUFFER: usize = 64 << 10;

/// Where the three services are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Services {
    echo: SocketAddr,
    source: SocketAddr,
    sink: SocketAddr,
}

impl Services {
    /// Returns those of a machine at an address of its own.
    pub(super) fn at(address: IpAddr) -> Self {
        Self {
            echo: (address, ECHO).into(),
            source: (address, SOURCE).into(),
            sink: (address, SINK).into(),
        }
    }
}

/// The ports of the services in a machine.
pub(super) const PORTS: [u16; 3] = [ECHO, SOURCE, SINK];

impl Bencher<'_> {
    /// What comes through published ports, in turn with a relay of this process before services of this process.
    pub(super) async fn ports(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("ports");
        let machine = self.serve_in(&name, &[]).await?;
        let size = self.size >> 16 << 16;
        let mut tasks = JoinSet::new();
        let measured = async {
            let relay = serve(&mut tasks, size).await?;
            answers(machine).await?;
            self.compare(report, ["port", "a TCP relay"], machine, relay)
                .await
        };
        measured.await.map_err(BenchError::Port)?;
        Ok(())
    }

    /// Starts the services in a machine, and returns where they are published.
    pub(super) async fn serve_in(&self, name: &str, flags: &[&str]) -> Result<Services, CliError> {
        let blocks = self.size >> 16;
        let mut arguments = self.machines.run_arguments(name, self.memory);
        arguments.extend(flags.iter().map(ToString::to_string));
        for port in PORTS {
            arguments.extend(["--publish".to_owned(), format!("127.0.0.1::{port}")]);
        }
        let script = format!(
            "nc -ll -p {ECHO} -e cat & nc -ll -p {SOURCE} -e dd if=/dev/zero bs=65536 count={blocks} & \
             nc -ll -p {SINK} -e sh -c 'cat >/dev/null; echo' & wait"
        );
        arguments.extend(["--detach", self.image, "sh", "-c", &script].map(str::to_owned));
        self.machines.time(&arguments).await?;
        let machine = self.node.call(async |client| client.inspect(name).await).await?;
        let published = |guest: u16| {
            let port = machine.ports.iter().find(|port| port.guest == guest);
            SocketAddr::from(([127, 0, 0, 1], port.map_or(0, |port| port.host)))
        };
        Ok(Services {
            echo: published(ECHO),
            source: published(SOURCE),
            sink: published(SINK),
        })
    }

    /// Measures published ports in turn with another way, under a name, with what that way is called.
    pub(super) async fn compare(
        &self,
        report: &mut Report,
        [name, against]: [&str; 2],
        machine: Services,
        relay: Services,
    ) -> std::io::Result<()> {
        let size = self.size >> 16 << 16;
        let row = |what: &str| format!("{name}: {what}");
        let (mut trips, mut own) = (Vec::new(), Vec::new());
        let mut streams = [connect(machine.echo).await?, connect(relay.echo).await?];
        for _ in 0..self.runs * ROUNDS {
            trips.push(milliseconds(round_trip(&mut streams[0]).await?));
            own.push(milliseconds(round_trip(&mut streams[1]).await?));
        }
        drop(streams);
        report.add_against(&row("round trip"), Unit::Milliseconds, &trips, against, &own);
        let (mut times, mut own) = (Vec::new(), Vec::new());
        for _ in 0..self.runs * ROUNDS {
            times.push(milliseconds(connection(machine.echo).await?));
            own.push(milliseconds(connection(relay.echo).await?));
        }
        report.add_against(&row("connection"), Unit::Milliseconds, &times, against, &own);
        let unit = Unit::MegabytesPerSecond;
        let (mut out, mut own) = (Vec::new(), Vec::new());
        for _ in 0..TRANSFERS {
            out.push(rate(size, receive(machine.source, size).await?));
            own.push(rate(size, receive(relay.source, size).await?));
        }
        report.add_against(&row("guest to host"), unit, &out, against, &own);
        let (mut into, mut own) = (Vec::new(), Vec::new());
        for _ in 0..TRANSFERS {
            into.push(rate(size, send(machine.sink, size).await?));
            own.push(rate(size, send(relay.sink, size).await?));
        }
        report.add_against(&row("host to guest"), unit, &into, against, &own);
        Ok(())
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Waits until the service in the guest answers: it is started beside the others.
pub(super) async fn answers(services: Services) -> std::io::Result<()> {
    let answered = async {
        while connection(services.echo).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let answered = tokio::time::timeout(Duration::from_secs(60), answered).await;
    answered.map_err(|_| std::io::ErrorKind::TimedOut.into())
}

async fn round_trip(stream: &mut TcpStream) -> std::io::Result<Duration> {
    let begun = Instant::now();
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0]).await?;
    Ok(begun.elapsed())
}

/// A connection from its beginning over one byte both ways to its end.
async fn connection(echo: SocketAddr) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = connect(echo).await?;
    round_trip(&mut stream).await?;
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(begun.elapsed())
}

async fn receive(source: SocketAddr, size: u64) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = connect(source).await?;
    let mut buffer = vec![0; BUFFER];
    let mut received = 0;
    while received < size {
        match stream.read(&mut buffer).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => received += count as u64,
        }
    }
    Ok(begun.elapsed())
}

/// Sends, and waits until the other end has read it all.
async fn send(sink: SocketAddr, size: u64) -> std::io::Result<Duration> {
    let begun = Instant::now();
    let mut stream = connect(sink).await?;
    let buffer = vec![0; BUFFER];
    for _ in 0..size / BUFFER as u64 {
        stream.write_all(&buffer).await?;
    }
    stream.shutdown().await?;
    stream.read_exact(&mut [0]).await?;
    Ok(begun.elapsed())
}

/// Serves the three services, each behind a relay; returns where the relays are.
async fn serve(tasks: &mut JoinSet<()>, size: u64) -> std::io::Result<Services> {
    let echo = listen(tasks, |mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await?;
        writer.shutdown().await
    });
    let echo = echo.await?;
    let source = listen(tasks, move |mut stream| async move {
        let buffer = vec![0; BUFFER];
        for _ in 0..size / BUFFER as u64 {
            stream.write_all(&buffer).await?;
        }
        stream.shutdown().await
    });
    let source = source.await?;
    let sink = listen(tasks, |mut stream| async move {
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        stream.write_all(b"\n").await
    });
    let sink = sink.await?;
    Ok(Services {
        echo: relay(tasks, echo).await?,
        source: relay(tasks, source).await?,
        sink: relay(tasks, sink).await?,
    })
}

async fn relay(tasks: &mut JoinSet<()>, to: SocketAddr) -> std::io::Result<SocketAddr> {
    let relayed = listen(tasks, move |mut stream| async move {
        let mut onward = connect(to).await?;
        tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut onward, BUFFER, BUFFER)
            .await
            .map(drop)
    });
    relayed.await
}

/// Accepts connections until the set of tasks is dropped.
async fn listen<F>(
    tasks: &mut JoinSet<()>,
    talk: impl Fn(TcpStream) -> F + Send + 'static,
) -> std::io::Result<SocketAddr>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tasks.spawn(async move {
        let mut talks = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            // Without it the client would notice that its bytes do not come.
            let _ = stream.set_nodelay(true);
            talks.spawn(talk(stream));
            while talks.try_join_next().is_some() {}
        }
    });
    Ok(address)
}
