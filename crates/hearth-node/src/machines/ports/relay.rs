//! One connection to a published port that goes by the machine's network: between two sockets, with ends and resets as they come.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::guest::Guest;

/// Bytes that are taken at a time.
const BUFFER: usize = 64 << 10;

/// A client, and the service that it talks to. Where this is dropped before both have ended, both hear of a reset: what was to come
/// never will.
#[derive(Debug)]
pub(super) struct Relay {
    client: TcpStream,
    service: TcpStream,
    is_over: bool,
}

impl Drop for Relay {
    fn drop(&mut self) {
        if !self.is_over {
            // Fails only on a connection that is gone.
            let _ = self.client.set_zero_linger();
            let _ = self.service.set_zero_linger();
        }
    }
}

impl Relay {
    pub(super) const fn new(client: TcpStream, service: TcpStream) -> Self {
        Self {
            client,
            service,
            is_over: false,
        }
    }

    /// Carries it to its end. That it is there, and each piece of it, is a sign of life of the guest.
    pub(super) async fn carry(mut self, guest: &Guest) {
        guest.activity().touch();
        let carried = exchange(&mut self.client, &mut self.service, guest).await;
        self.is_over = carried.is_ok();
    }
}

/// Carries both ways until both have ended. Whoever vanishes after its own end is noticed, too, while the other has nothing to say.
async fn exchange(client: &mut TcpStream, service: &mut TcpStream, guest: &Guest) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_service, to_service) = service.split();
    let up = pass(from_client, to_service, guest);
    let down = pass(from_service, to_client, guest);
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut up => tokio::select! {
            gone = vanished(ended?) => gone,
            ended = &mut down => ended.map(drop),
        },
        ended = &mut down => tokio::select! {
            gone = vanished(ended?) => gone,
            ended = &mut up => ended.map(drop),
        },
    }
}

/// Carries one way to its end, which it passes on; returns the side that has ended.
async fn pass<'a>(mut from: ReadHalf<'a>, mut to: WriteHalf<'_>, guest: &Guest) -> io::Result<ReadHalf<'a>> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            to.shutdown().await?;
            return Ok(from);
        }
        guest.activity().touch();
        to.write_all(&buffer[..count]).await?;
    }
}

/// Waits until the other end of a connection is gone.
async fn vanished(half: ReadHalf<'_>) -> io::Result<()> {
    half.ready(Interest::ERROR).await?;
    Err(io::ErrorKind::ConnectionReset.into())
}
