//! The client of QEMU's machine protocol: one task per connection, commands with ids and deadlines, events in a bounded queue.
//!
//! Called by the QEMU driver alone. The task owns the socket; callers talk to it over channels, so any number of commands
//! may be under way, and a caller that gives up leaves the connection whole.
//!
//! ```text
//!  execute() --request--> [task: socket, id -> caller] --line--> QEMU
//!           <--answer---          |                  <--line--
//!                                 `--events (broadcast, the oldest are dropped)
//! ```

pub mod message;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::host::unix_socket;

use self::message::{Answer, Command, Event, Message, NegotiateCapabilities, Refusal};

/// The longest line that QEMU may send, in bytes. Its answers to our commands are under a kilobyte.
const LINE_LIMIT: usize = 256 << 10;

/// How many commands may wait for the task.
const REQUESTS: usize = 16;

/// How many events a slow listener may be behind before it loses the oldest.
const EVENTS: usize = 64;

/// Says why a command was not carried out, or why it is not known whether it was.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no connection.
    #[error("cannot connect to QEMU's control socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// QEMU said no.
    #[error("QEMU refused `{command}`: {refusal}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class and words.
        refusal: Refusal,
    },
    /// No answer came in time. The command may still be carried out.
    #[error("QEMU did not answer `{command}` within {limit:?}")]
    Deadline {
        /// The command.
        command: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection ended before the answer.
    #[error("QEMU closed its control connection before it answered `{command}`")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// The arguments or the answer have a form that does not fit the command.
    #[error("`{command}` has arguments or an answer of the wrong form")]
    Form {
        /// The command.
        command: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A migration came to nothing.
    #[error("QEMU gave `{command}` up: {reason}")]
    Migration {
        /// The command that began it.
        command: &'static str,
        /// What QEMU says.
        reason: String,
    },
}

struct Request {
    id: u64,
    line: Vec<u8>,
    /// Goes with the line.
    descriptor: Option<OwnedFd>,
    answer: oneshot::Sender<Answer>,
}

/// A connection to one QEMU, past its negotiation. Dropping it closes the connection; QEMU runs on.
#[derive(Debug)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    /// Numbers commands; nothing else depends on it, so relaxed order is enough.
    next_id: std::sync::atomic::AtomicU64,
    events: broadcast::WeakSender<Event>,
    _task: AbortOnDropHandle<()>,
}

impl Client {
    /// Connects, and waits at most `limit` for QEMU's greeting and its assent.
    ///
    /// QEMU serves one connection at a time: while another client is connected, this waits in the socket's queue.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn connect(
        path: &Path,
        limit: Duration,
    ) -> Result<(Self, broadcast::Receiver<Event>), QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| QmpError::Connect {
                path: path.to_owned(),
                source,
            })?;
        let (read, write) = stream.into_split();
        let (events, listener) = broadcast::channel(EVENTS);
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let weak_events = events.downgrade();
        let connection = Connection {
            lines: BufReader::new(read),
            write,
            pending: HashMap::new(),
            events,
        };
        let client = Self {
            requests,
            next_id: std::sync::atomic::AtomicU64::new(1),
            events: weak_events,
            _task: AbortOnDropHandle::new(tokio::spawn(connection.run(inbox))),
        };
        // QEMU greets as soon as it has built the machine, and takes commands from its input afterwards: to send this one ahead
        // of the greeting saves a round trip.
        client.execute(&NegotiateCapabilities {}, limit).await?;
        Ok((client, listener))
    }

    /// Carries out one command, and waits at most `limit` for QEMU's answer.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn execute<C: Command>(&self, command: &C, limit: Duration) -> Result<C::Returns, QmpError> {
        self.send(command, None, limit).await
    }

    /// Carries out a command that comes with a descriptor.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn give<C: Command>(
        &self,
        command: &C,
        descriptor: OwnedFd,
        limit: Duration,
    ) -> Result<C::Returns, QmpError> {
        self.send(command, Some(descriptor), limit).await
    }

    async fn send<C: Command>(
        &self,
        command: &C,
        descriptor: Option<OwnedFd>,
        limit: Duration,
    ) -> Result<C::Returns, QmpError> {
        let form = |source| QmpError::Form {
            command: C::NAME,
            source,
        };
        let id = self.next_id.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let line = message::encode(command, id).map_err(form)?;
        let (answer, answered) = oneshot::channel();
        let closed = || QmpError::Closed { command: C::NAME };
        let exchange = async {
            let request = Request {
                id,
                line,
                descriptor,
                answer,
            };
            self.requests.send(request).await.map_err(|_| closed())?;
            answered.await.map_err(|_| closed())
        };
        let answer = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| QmpError::Deadline {
                command: C::NAME,
                limit,
            })??;
        match answer {
            Ok(value) => serde_json::from_value(value).map_err(form),
            Err(refusal) => Err(QmpError::Refused {
                command: C::NAME,
                refusal,
            }),
        }
    }

    /// Listens to events from now on; ended at once when the connection has ended.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        match self.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }
}

struct Connection {
    lines: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    pending: HashMap<u64, oneshot::Sender<Answer>>,
    events: broadcast::Sender<Event>,
}

impl Connection {
    /// Serves until QEMU or the client closes. What is pending then is dropped, which its callers see as [`QmpError::Closed`].
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut line = Vec::new();
        loop {
            tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => {
                        self.pending.retain(|_, caller| !caller.is_closed());
                        self.pending.insert(request.id, request.answer);
                        let written = match request.descriptor {
                            Some(descriptor) => unix_socket::write_with(&mut self.write, &request.line, &descriptor).await,
                            None => self.write.write_all(&request.line).await,
                        };
                        if written.is_err() {
                            return;
                        }
                    }
                    None => return,
                },
                more = read_line(&mut self.lines, &mut line) => match more {
                    Ok(true) => {
                        if let Err(error) = self.receive(&line) {
                            tracing::warn!(%error, "a line from QEMU is passed over");
                        }
                        line.clear();
                    }
                    Ok(false) => return,
                    Err(error) => {
                        tracing::warn!(%error, "the control connection to QEMU is lost");
                        return;
                    }
                },
            }
        }
    }

    fn receive(&mut self, line: &[u8]) -> Result<(), message::ParseError> {
        match message::parse(line)? {
            Message::Answer(Some(id), answer) => {
                if let Some(caller) = self.pending.remove(&id) {
                    // The caller may have given up at this very moment.
                    let _ = caller.send(answer);
                }
            }
            Message::Answer(None, Err(refusal)) => tracing::warn!(%refusal, "QEMU could not read a command"),
            Message::Event(event) => {
                // Nobody has to listen.
                let _ = self.events.send(event);
            }
            Message::Answer(None, Ok(_)) | Message::Greeting | Message::OtherEvent => {}
        }
        Ok(())
    }
}

/// Reads up to the end of a line. May be dropped and called again with the same buffer: what was read stays in it.
/// Returns false at the end of the stream.
async fn read_line(from: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let available = from.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let used = end.map_or(available.len(), |end| end + 1);
        if line.len() + used > LINE_LIMIT {
            let too_long = format!("a line is longer than {LINE_LIMIT} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, too_long));
        }
        line.extend_from_slice(&available[..used]);
        from.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests;
