//! Published ports: TCP and UDP of the host, carried to what listens in the guest.
//!
//! ```text
//! client --TCP--> listener (of one life) --+--[`WayIn`]--> the guest's interface: service at 0.0.0.0:port
//!                                          `--DIAL--> agent --TCP--> 127.0.0.1:port in the guest
//! ```
//! Where the machine has a network and the service listens at its interface, a connection goes there: the guest's kernel carries it, and no agent.
//! Where it refuses, as for services on the loopback, and where there is no network, it goes over the guest channel.
//!
//! UDP is in [`super::datagrams`]. Each direction ends by itself (half-close). A connection that the guest refuses or resets is reset, as the
//! guest's own would be, and the guest's when the client vanishes: whoever has not ended did not finish.

mod relay;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hearth_machine::{PublishedPort, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::relay::Relay;
use super::datagrams;
use crate::guest::{Guest, Input, Session, SessionEvent};
use crate::host::datagram::Datagrams;
use crate::network::WayIn;

/// Bytes that are read from a client at a time.
const BUFFER: usize = 32 << 10;

/// How long nobody is let in after the host had no descriptors left.
pub(super) const BREATH: Duration = Duration::from_millis(100);

/// Says why a port is not published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish port {}/{} on {}", port.guest, port.transport, SocketAddr::new(port.address, port.host))]
pub struct PortError {
    port: PublishedPort,
    #[source]
    source: io::Error,
}

/// Ports that are bound and not served yet: clients wait.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<(Listener, PublishedPort)>);

/// Where clients of one port come.
#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Udp(Datagrams),
}

impl Listener {
    async fn bind(port: PublishedPort) -> io::Result<Self> {
        match port.transport {
            Transport::Tcp => TcpListener::bind((port.address, port.host)).await.map(Self::Tcp),
            Transport::Udp => Datagrams::bind(port.address, port.host).await.map(Self::Udp),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Udp(socket) => socket.local_addr(),
        }
    }
}

impl Listeners {
    /// Binds every port.
    ///
    /// # Errors
    /// Returns [`PortError`] for the first one that cannot be had; none is bound then.
    pub(super) async fn bind(ports: &[PublishedPort]) -> Result<Self, PortError> {
        let mut bound = Vec::new();
        for &port in ports {
            let failed = |source| PortError { port, source };
            let listener = Listener::bind(port).await.map_err(failed)?;
            let host = listener.local_addr().map_err(failed)?.port();
            bound.push((listener, PublishedPort { host, ..port }));
        }
        Ok(Self(bound))
    }

    /// Returns the ports, with the host's as they are.
    pub(super) fn ports(&self) -> Vec<PublishedPort> {
        self.0.iter().map(|(_, port)| *port).collect()
    }

    /// Serves them until the returned guard is dropped, which ends their connections, too.
    pub(super) fn serve(self, guest: &Guest, way_in: Option<WayIn>, tasks: &TaskTracker) -> DropGuard {
        let stop = CancellationToken::new();
        let way_in = way_in.map(Arc::new);
        for (listener, port) in self.0 {
            let (guest, ended) = (guest.clone(), stop.clone());
            match listener {
                Listener::Tcp(listener) => {
                    let goal = Goal {
                        port: port.guest,
                        guest,
                        way_in: way_in.clone(),
                    };
                    let serving = accept(listener, goal, tasks.clone(), stop.clone());
                    tasks.spawn(ended.run_until_cancelled_owned(serving));
                }
                Listener::Udp(socket) => {
                    let serving = datagrams::serve(socket, port.guest, guest);
                    tasks.spawn(ended.run_until_cancelled_owned(serving));
                }
            }
        }
        stop.drop_guard()
    }
}

/// Where clients of one port want to go.
#[derive(Debug, Clone)]
struct Goal {
    port: u16,
    guest: Guest,
    /// By the machine's network, where it has one.
    way_in: Option<Arc<WayIn>>,
}

async fn accept(listener: TcpListener, goal: Goal, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let relay = relay(stream, goal.clone());
                tasks.spawn(stop.clone().run_until_cancelled_owned(relay));
            }
            Err(error) => {
                tracing::warn!(port = goal.port, %error, "a connection was not accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// Carries one connection to its end.
async fn relay(stream: TcpStream, Goal { port, guest, way_in }: Goal) {
    // Small answers of a protocol must not wait for more; it fails only on a connection that is gone.
    let _ = stream.set_nodelay(true);
    if let Some(way_in) = way_in
        && let Some(service) = way_in.connect(port).await
    {
        return Relay::new(stream, service).carry(&guest).await;
    }
    let Ok(mut session) = guest.dial(port).await else {
        return;
    };
    if !matches!(session.next().await, SessionEvent::Started { .. }) {
        // Closed with a reset instead of an end of file.
        let _ = stream.set_zero_linger();
        return;
    }
    let (reader, writer) = stream.into_split();
    let input = session.input();
    tokio::select! {
        () = down(&mut session, writer) => {}
        // The client is gone: dropping the session tells the guest.
        _ = up(reader, input) => {}
    }
}

/// Carries what the client sends. Returns when the client is gone; its end of file alone is passed on, and an error waited for.
async fn up(mut reader: OwnedReadHalf, input: Input) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = reader.read(&mut buffer).await?;
        if count == 0 {
            input.end().await;
            reader.ready(Interest::ERROR).await?;
            return Ok(());
        }
        if !input.send(&buffer[..count]).await {
            return std::future::pending().await;
        }
    }
}

/// Carries what the guest sends, until its connection has ended both ways.
async fn down(session: &mut Session, mut writer: OwnedWriteHalf) {
    loop {
        let written = match session.next().await {
            SessionEvent::Output(_, bytes) => writer.write_all(&bytes).await,
            SessionEvent::OutputEnded(_) => writer.shutdown().await,
            SessionEvent::Started { .. } => Ok(()),
            SessionEvent::Ended(_) => return,
            SessionEvent::Failed(_) | SessionEvent::ChannelLost => {
                let _ = writer.as_ref().set_zero_linger();
                return writer.forget();
            }
        };
        if written.is_err() {
            return;
        }
    }
}
