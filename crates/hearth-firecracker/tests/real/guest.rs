//! The host's end of the guest protocol, as short as a test needs it.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hearth_firecracker::vsock;
use hearth_guest_protocol::message::{
    self, Configure, CreditGrant, Execute, Failure, FailureCode, Hello, Outcome, Role, Status,
};
use hearth_guest_protocol::{CONTROL, Credit, Decoder, Flags, GENERATIONS, Header, Kind, VSOCK_PORT, Window};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::LONG;

/// The most input of one frame.
const INPUT_MAX: usize = 32 * 1024;

/// A frame as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

/// What a command gave.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) outcome: Outcome,
    pub(crate) output: Vec<u8>,
    pub(crate) error: String,
}

impl Output {
    /// Returns a value of a line `name=value`.
    pub(crate) fn value(&self, name: &str) -> Result<String> {
        let text = std::str::from_utf8(&self.output)?;
        let values = text.lines().filter_map(|line| line.split_once('='));
        let found = values.into_iter().find(|(found, _)| *found == name);
        let (_, value) = found.with_context(|| format!("no {name} in {text}"))?;
        Ok(value.to_owned())
    }

    /// Returns a number of a line `name=value`.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        Ok(self.value(name)?.parse()?)
    }
}

/// A greeted guest.
#[derive(Debug)]
pub(crate) struct Guest {
    stream: UnixStream,
    decoder: Decoder,
    pub(crate) hello: Hello,
}

/// Sessions are numbered across connections: a guest that was restored still has those of before.
static NEXT: AtomicU32 = AtomicU32::new(1);

impl Guest {
    /// Connects and says hello.
    pub(crate) async fn greet(socket: &Path) -> Result<Self> {
        let stream = vsock::connect(socket, VSOCK_PORT, LONG).await?;
        let hello = Hello {
            oldest: *GENERATIONS.start(),
            newest: *GENERATIONS.end(),
            nonce: u64::from(std::process::id()) << 32 | 0x6865_6c6c,
            version: "test".into(),
            uptime_ns: 0,
        };
        let mut guest = Self {
            stream,
            decoder: Decoder::new(),
            hello: hello.clone(),
        };
        guest.send(Kind::Hello, CONTROL, &hello).await?;
        let answer = guest.receive().await?;
        ensure!(answer.header.kind == Kind::Hello, "the guest answers {answer:?}");
        guest.hello = message::decode(&answer.payload)?;
        ensure!(guest.hello.nonce == hello.nonce, "not an answer to this greeting");
        Ok(guest)
    }

    pub(crate) async fn send<M: Serialize>(&mut self, kind: Kind, session: u32, message: &M) -> Result<()> {
        let mut wire = Vec::new();
        message::encode(kind, session, message, &mut wire)?;
        self.write(&wire).await
    }

    pub(crate) async fn bytes(&mut self, header: Header, payload: &[u8]) -> Result<()> {
        let mut wire = Vec::new();
        header.write(payload, &mut wire);
        self.write(&wire).await
    }

    async fn write(&mut self, wire: &[u8]) -> Result<()> {
        tokio::time::timeout(LONG, self.stream.write_all(wire))
            .await
            .context("the guest takes nothing")??;
        Ok(())
    }

    /// Returns the next frame.
    pub(crate) async fn receive(&mut self) -> Result<Received> {
        self.receive_within(LONG).await
    }

    pub(crate) async fn receive_within(&mut self, limit: Duration) -> Result<Received> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Received {
                    header: frame.header,
                    payload: frame.payload.to_vec(),
                });
            }
            let read = self.stream.read(self.decoder.space());
            let count = tokio::time::timeout(limit, read)
                .await
                .context("the guest says nothing")??;
            ensure!(count > 0, "the guest has closed the connection");
            self.decoder.filled(count);
        }
    }

    /// Waits for the end of the connection, whatever comes before.
    pub(crate) async fn closed(mut self) -> Result<()> {
        loop {
            if let Err(error) = self.receive().await {
                let text = error.to_string();
                ensure!(
                    text.contains("closed the connection") || text.contains("reset"),
                    "{text}"
                );
                return Ok(());
            }
        }
    }

    /// Waits for a status of the control session.
    pub(crate) async fn status(&mut self) -> Result<Status> {
        loop {
            let frame = self.receive().await?;
            if frame.header.kind == Kind::Status && frame.header.session == CONTROL {
                return Ok(message::decode(&frame.payload)?);
            }
        }
    }

    /// Says who the guest is.
    pub(crate) async fn configure(&mut self, hostname: &str) -> Result<()> {
        let configure = Configure {
            hostname: hostname.into(),
            image_device: String::new(),
            image_filesystem: String::new(),
            disk_device: String::new(),
            hosts: Default::default(),
            resolv_conf: Default::default(),
            clock_unix_ns: 1_700_000_000_000_000_000,
            entropy: [7; 32],
        };
        self.send(Kind::Configure, CONTROL, &configure).await?;
        let status = self.status().await?;
        ensure!(status == Status::Ready, "{status:?}");
        Ok(())
    }

    /// Starts the workload; returns its session.
    pub(crate) async fn workload(&mut self, command: &[&str]) -> Result<u32> {
        let session = self.execute(Role::Main, command).await?;
        let frame = self.receive().await?;
        ensure!(frame.header.kind == Kind::Status, "{frame:?}");
        Ok(session)
    }

    /// Asks for a command, and waits for nothing.
    pub(crate) async fn execute(&mut self, role: Role, command: &[&str]) -> Result<u32> {
        let session = NEXT.fetch_add(1, Ordering::Relaxed);
        let request = Execute {
            role,
            arguments: command
                .iter()
                .map(|word| serde_bytes::ByteBuf::from(word.as_bytes()))
                .collect(),
            environment: Vec::new(),
            working_directory: Default::default(),
            user: String::new(),
            terminal: None,
            stdin: true,
        };
        self.send(Kind::Execute, session, &request).await?;
        Ok(session)
    }

    /// Runs a command beside the workload that must end well; returns what it said.
    pub(crate) async fn run(&mut self, command: &[&str]) -> Result<Output> {
        let output = self.run_with(command, b"").await?;
        ensure!(
            output.outcome == Outcome::Exited(0),
            "{command:?}: {} {}",
            output.outcome.exit_code(),
            output.error
        );
        Ok(output)
    }

    /// Runs a command beside the workload, with input.
    pub(crate) async fn run_with(&mut self, command: &[&str], input: &[u8]) -> Result<Output> {
        match self.try_run(command, input).await? {
            Ok(output) => Ok(output),
            Err(failure) => bail!("{command:?}: {failure:?}"),
        }
    }

    /// Runs a command; the guest may refuse it.
    pub(crate) async fn try_run(
        &mut self,
        command: &[&str],
        mut input: &[u8],
    ) -> Result<Result<Output, Failure>> {
        let session = self.execute(Role::Exec, command).await?;
        let (mut credit, mut window) = (Credit::default(), Window::default());
        let (mut output, mut error, mut ended) = (Vec::new(), Vec::new(), false);
        loop {
            while !ended && (input.is_empty() || credit.available() > 0) {
                let count = input.len().min(INPUT_MAX).min(credit.available());
                let (chunk, rest) = input.split_at(count);
                ended = rest.is_empty();
                let flags = if ended { Flags::END } else { Flags::NONE };
                self.bytes(Header::marked(Kind::Stdin, session, flags), chunk)
                    .await?;
                credit.spend(count);
                input = rest;
            }
            let Received { header, payload } = self.receive().await?;
            if header.session == CONTROL && header.kind == Kind::Error {
                bail!("{:?}", message::decode::<Failure>(&payload)?);
            }
            if header.session != session {
                continue;
            }
            match header.kind {
                Kind::Output => {
                    window.receive(payload.len())?;
                    let stream = if header.flags.has(Flags::STDERR) {
                        &mut error
                    } else {
                        &mut output
                    };
                    stream.extend_from_slice(&payload);
                    if let Some(bytes) = window.consume(payload.len()) {
                        self.send(Kind::Credit, session, &CreditGrant { bytes }).await?;
                    }
                }
                Kind::Credit => credit.grant(message::decode::<CreditGrant>(&payload)?.bytes)?,
                Kind::Result => {
                    return Ok(Ok(Output {
                        outcome: message::decode(&payload)?,
                        output,
                        error: String::from_utf8(error)?,
                    }));
                }
                Kind::Error => return Ok(Err(message::decode(&payload)?)),
                Kind::Status => {}
                other => bail!("a guest sends no {other:?} there"),
            }
        }
    }

    /// Expects that a command is refused.
    pub(crate) async fn refused(&mut self, command: &[&str]) -> Result<FailureCode> {
        match self.try_run(command, b"").await? {
            Err(failure) => Ok(failure.code),
            Ok(output) => bail!("{command:?} was not refused: {output:?}"),
        }
    }
}
