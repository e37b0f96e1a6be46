//! Guests of machines that are not there, frame by frame.

use hearth_guest_protocol::message::{self, Hello, Launch, Outcome, Role, Status, Stop};
use hearth_guest_protocol::{CONTROL, Decoder, Flags, Header, Kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::vmm::fake::Guests;

/// A guest that runs what it is told: `exit` prints `hello` and exits with 3, everything else runs until it is stopped.
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    stops: mpsc::UnboundedSender<Stop>,
}

impl Peer {
    async fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some((frame.header, frame.payload.to_vec()));
            }
            match self.stream.read(self.decoder.space()).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.decoder.filled(count),
            }
        }
    }

    async fn send(&mut self, kind: Kind, session: u32, message: &impl serde::Serialize) {
        let mut frame = Vec::new();
        message::encode(kind, session, message, &mut frame).unwrap();
        // Fails when the machine was killed meanwhile.
        let _ = self.stream.write_all(&frame).await;
    }

    async fn print(&mut self, session: u32, bytes: &[u8]) {
        self.send_bytes(Kind::Output, session, bytes).await;
    }

    async fn send_bytes(&mut self, kind: Kind, session: u32, bytes: &[u8]) {
        let mut frame = Vec::new();
        Header::marked(kind, session, Flags::NONE).write(bytes, &mut frame);
        let _ = self.stream.write_all(&frame).await;
    }

    async fn play(mut self) {
        let mut workload = None;
        while let Some((header, payload)) = self.receive().await {
            match header.kind {
                Kind::Hello => {
                    let hello: Hello = message::decode(&payload).unwrap();
                    self.send(Kind::Hello, CONTROL, &hello).await;
                }
                Kind::Ping => self.send_bytes(Kind::Pong, header.session, &payload).await,
                Kind::Configure => self.send(Kind::Status, CONTROL, &Status::Ready).await,
                Kind::Freeze => self.send(Kind::Status, CONTROL, &Status::Frozen).await,
                Kind::Thaw => {
                    let thawed = Status::Thawed { was_frozen: true };
                    self.send(Kind::Status, CONTROL, &thawed).await;
                }
                Kind::Renew => self.send(Kind::Status, CONTROL, &Status::Renewed).await,
                Kind::Launch => {
                    let launch: Launch = message::decode(&payload).unwrap();
                    let session = header.session;
                    let started = Status::Started { pid: 2 };
                    self.send(Kind::Status, session, &started).await;
                    if launch.execute.role == Role::Rehearsal {
                        self.send(Kind::Result, session, &Outcome::Exited(0)).await;
                    } else if *launch.execute.arguments[0] == *b"exit" {
                        self.print(session, b"hello").await;
                        self.send(Kind::Result, session, &Outcome::Exited(3)).await;
                    } else {
                        workload = Some(session);
                    }
                }
                Kind::Stop => {
                    let stop: Stop = message::decode(&payload).unwrap();
                    let _ = self.stops.send(stop);
                    if let Some(session) = workload.take() {
                        let number = if stop.signal == 0 { 9 } else { stop.signal };
                        self.send(Kind::Result, session, &Outcome::Signaled(number)).await;
                    }
                    self.send(Kind::Status, CONTROL, &Status::Stopped).await;
                }
                _ => {}
            }
        }
    }
}

/// Plays the guest of every machine that is booted; `stops` hears how they are told to stop.
pub(super) async fn play(mut guests: Guests, stops: mpsc::UnboundedSender<Stop>) {
    while let Some(end) = guests.recv().await {
        let peer = Peer {
            stream: end.stream,
            decoder: Decoder::new(),
            stops: stops.clone(),
        };
        tokio::spawn(peer.play());
    }
}
