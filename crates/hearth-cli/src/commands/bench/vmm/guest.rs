//! As much of the guest protocol as a measurement needs: hello, who it is, a workload that waits, a command.

use std::path::Path;
use std::time::Duration;

use hearth_firecracker::vsock;
use hearth_guest_protocol::message::{self, Configure, Execute, Hello, Outcome, Role, Status};
use hearth_guest_protocol::{CONTROL, Decoder, GENERATIONS, Kind, VSOCK_PORT};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::VmmError;

/// How long a guest has for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A guest that has said hello.
pub(super) struct Guest {
    stream: UnixStream,
    decoder: Decoder,
}

impl Guest {
    /// Connects and says hello: the first reply.
    pub(super) async fn greet(socket: &Path) -> Result<Self, VmmError> {
        let stream = vsock::connect(socket, VSOCK_PORT, ANSWER).await?;
        let mut guest = Self {
            stream,
            decoder: Decoder::new(),
        };
        let hello = Hello {
            oldest: *GENERATIONS.start(),
            newest: *GENERATIONS.end(),
            nonce: u64::from(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ns: 0,
        };
        guest.send(Kind::Hello, CONTROL, &hello).await?;
        guest.answer(Kind::Hello, CONTROL).await?;
        Ok(guest)
    }

    /// Tells a new guest who it is, and starts a workload that waits: commands run beside one.
    pub(super) async fn settle(&mut self) -> Result<(), VmmError> {
        let configure = Configure {
            hostname: "bench".to_owned(),
            image_device: String::new(),
            image_filesystem: String::new(),
            disk_device: String::new(),
            hosts: Default::default(),
            resolv_conf: Default::default(),
            clock_unix_ns: 1,
            entropy: [7; 32],
        };
        self.send(Kind::Configure, CONTROL, &configure).await?;
        while self.status().await? != Status::Ready {}
        self.execute(1, Role::Main, &["wait"]).await?;
        self.answer(Kind::Status, 1).await.map(drop)
    }

    /// Runs a command that must end well; what it prints is passed over.
    pub(super) async fn run(&mut self, session: u32, words: &[&str]) -> Result<(), VmmError> {
        self.execute(session, Role::Exec, words).await?;
        let result = self.answer(Kind::Result, session).await?;
        match message::decode(&result) {
            Ok(Outcome::Exited(0)) => Ok(()),
            _ => Err(VmmError::Guest),
        }
    }

    async fn execute(&mut self, session: u32, role: Role, words: &[&str]) -> Result<(), VmmError> {
        let request = Execute {
            role,
            arguments: words
                .iter()
                .map(|word| serde_bytes::ByteBuf::from(word.as_bytes()))
                .collect(),
            environment: Vec::new(),
            working_directory: Default::default(),
            user: String::new(),
            terminal: None,
            stdin: false,
        };
        self.send(Kind::Execute, session, &request).await
    }

    async fn status(&mut self) -> Result<Status, VmmError> {
        let status = self.answer(Kind::Status, CONTROL).await?;
        message::decode(&status).map_err(|_| VmmError::Guest)
    }

    async fn send<M: Serialize>(&mut self, kind: Kind, session: u32, said: &M) -> Result<(), VmmError> {
        let mut wire = Vec::new();
        message::encode(kind, session, said, &mut wire).map_err(|_| VmmError::Guest)?;
        self.stream.write_all(&wire).await.map_err(VmmError::Channel)
    }

    /// Waits for a frame, whatever comes before.
    async fn answer(&mut self, kind: Kind, session: u32) -> Result<Vec<u8>, VmmError> {
        loop {
            while let Some(frame) = self.decoder.next_frame().map_err(|_| VmmError::Guest)? {
                if frame.header.kind == Kind::Error {
                    return Err(VmmError::Guest);
                }
                if (frame.header.kind, frame.header.session) == (kind, session) {
                    return Ok(frame.payload.to_vec());
                }
            }
            let read = tokio::time::timeout(ANSWER, self.stream.read(self.decoder.space()));
            let count = read
                .await
                .map_err(|_| VmmError::Guest)?
                .map_err(VmmError::Channel)?;
            if count == 0 {
                return Err(VmmError::Guest);
            }
            self.decoder.filled(count);
        }
    }
}
