//! Published UDP ports: a flow for each client, whose datagrams go over a session of the guest channel.
//!
//! ```text
//! client --UDP--> socket of the port --DATAGRAMS--> agent --UDP--> 127.0.0.1:port in the guest
//! ```
//! The agent has a socket for each flow, so that the service tells clients apart and answers each. What finds the queue to the guest full is
//! lost, as on any network; so is what a client sends that would be one flow too many.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hearth_guest_protocol::datagram::{DATAGRAM_MAX, datagrams};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, Id, JoinSet};

use super::ports::BREATH;
use crate::guest::{Guest, Input, Session, SessionEvent};
use crate::host::datagram::{Asked, Datagrams, Received};

/// How long a flow lasts in which nobody says anything: one that the guest has not answered, and one that it has.
const PATIENCE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(180)];

/// The most flows of a port. Each is a session of the guest's, which has 4096 in all, and a socket there.
const FLOWS_MAX: usize = 256;

/// The most datagrams of a client that wait for the guest.
const QUEUE: usize = 256;

/// The most bytes that wait at a port for the guest.
const QUEUE_BYTES: usize = 1 << 20;

/// What a datagram costs of them beside its own length, so that empty ones are not for nothing.
const OVERHEAD: usize = 64;

/// Something a client sent, and its share of what may wait.
#[derive(Debug)]
struct Datagram {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Who asks, and which of the host's addresses where the port is at several: answers leave by that.
type Client = (SocketAddr, Option<Asked>);

/// A client, and the task that talks to the guest for it.
#[derive(Debug)]
struct Flow {
    waiting: mpsc::Sender<Datagram>,
    pulse: Arc<Pulse>,
    task: AbortHandle,
}

/// When a flow was last heard of.
#[derive(Debug)]
struct Pulse {
    began: Instant,
    /// Milliseconds from then on.
    last: AtomicU64,
    answered: AtomicBool,
    patience: [Duration; 2],
}

/// A port as it is served.
struct Port {
    socket: Arc<Datagrams>,
    number: u16,
    guest: Guest,
    flows: HashMap<Client, Flow>,
    tasks: JoinSet<()>,
    room: Arc<Semaphore>,
}

/// Serves a port until this is dropped, which ends its flows, too.
pub(super) async fn serve(socket: Datagrams, number: u16, guest: Guest) {
    let mut port = Port {
        socket: Arc::new(socket),
        number,
        guest,
        flows: HashMap::new(),
        tasks: JoinSet::new(),
        room: Arc::new(Semaphore::new(QUEUE_BYTES)),
    };
    // One more, by which one that is too long is known: IPv6 has some.
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        tokio::select! {
            received = port.socket.receive(&mut buffer) => match received {
                Ok(Received { bytes, client, asked }) if bytes <= DATAGRAM_MAX => {
                    port.take(&buffer[..bytes], (client, asked));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(port = number, %error, "a datagram was not received");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(over) = port.tasks.join_next_with_id() => {
                port.forget(over.map_or_else(|error| error.id(), |(id, ())| id));
            }
        }
    }
}

impl Port {
    /// Hands a datagram on, or drops it.
    fn take(&mut self, bytes: &[u8], client: Client) {
        let cost = u32::try_from(bytes.len() + OVERHEAD).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(cost) else {
            return;
        };
        let mut datagram = Datagram {
            bytes: bytes.to_vec(),
            _room: room,
        };
        if let Some(flow) = self.flows.get(&client) {
            flow.pulse.beat();
            match flow.waiting.try_send(datagram) {
                Ok(()) | Err(TrySendError::Full(_)) => return,
                // It has ended in this moment.
                Err(TrySendError::Closed(unsent)) => datagram = unsent,
            }
            self.flows.remove(&client);
        }
        self.open(datagram, client);
    }

    /// Begins a flow, if there may be one more.
    fn open(&mut self, first: Datagram, client: Client) {
        if self.flows.len() >= FLOWS_MAX && !self.make_room() {
            tracing::debug!(port = self.number, client = %client.0, "one flow too many: a datagram is dropped");
            return;
        }
        let (waiting, queue) = mpsc::channel(QUEUE);
        // There is room: it is new.
        let _ = waiting.try_send(first);
        let pulse = Arc::new(Pulse::new(PATIENCE));
        let carrier = Carrier {
            client,
            socket: Arc::clone(&self.socket),
            pulse: Arc::clone(&pulse),
        };
        let task = self
            .tasks
            .spawn(carrier.carry(self.guest.clone(), self.number, queue));
        self.flows.insert(client, Flow { waiting, pulse, task });
    }

    /// Ends the flow that has waited longest for a first answer; false when each has had one.
    fn make_room(&mut self) -> bool {
        let unanswered = self.flows.iter().filter(|(_, flow)| !flow.pulse.is_answered());
        let Some((&client, _)) = unanswered.min_by_key(|(_, flow)| flow.pulse.last()) else {
            return false;
        };
        if let Some(flow) = self.flows.remove(&client) {
            flow.task.abort();
        }
        true
    }

    fn forget(&mut self, task: Id) {
        self.flows.retain(|_, flow| flow.task.id() != task);
    }
}

impl Pulse {
    fn new(patience: [Duration; 2]) -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            answered: AtomicBool::new(false),
            patience,
        }
    }

    fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Notes an answer of the guest.
    fn answer(&self) {
        self.beat();
        self.answered.store(true, Ordering::Relaxed);
    }

    fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Returns when nobody has said anything for too long.
    async fn stop(&self) {
        loop {
            let over = self.last() + self.patience[usize::from(self.is_answered())];
            if over <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(over.into()).await;
        }
    }
}

/// The work of one flow.
struct Carrier {
    client: Client,
    socket: Arc<Datagrams>,
    pulse: Arc<Pulse>,
}

impl Carrier {
    /// Carries datagrams both ways until the flow ends. Dropping the session tells the guest.
    async fn carry(self, guest: Guest, port: u16, queue: mpsc::Receiver<Datagram>) {
        let flow = async {
            let mut session = match guest.datagrams(port).await {
                Ok(session) => session,
                Err(error) => return tracing::warn!(port, %error, "datagrams for the machine are lost"),
            };
            let input = session.input();
            tokio::select! {
                () = self.down(&mut session) => {}
                () = up(queue, input) => {}
            }
        };
        tokio::select! {
            () = flow => {}
            () = self.pulse.stop() => {}
        }
    }

    /// Carries what the guest sends, until the session is over.
    async fn down(&self, session: &mut Session) {
        loop {
            match session.next().await {
                SessionEvent::Output(_, bytes) => {
                    for datagram in datagrams(&bytes) {
                        self.pulse.answer();
                        // One that cannot be sent is lost.
                        let (client, asked) = self.client;
                        let _ = self.socket.answer(datagram, client, asked).await;
                    }
                }
                SessionEvent::Started { .. } | SessionEvent::OutputEnded(_) => {}
                SessionEvent::Ended(_) | SessionEvent::Failed(_) | SessionEvent::ChannelLost => return,
            }
        }
    }
}

/// Carries what the client sends. Returns when the session is over.
async fn up(mut queue: mpsc::Receiver<Datagram>, input: Input) {
    while let Some(datagram) = queue.recv().await {
        if !input.send_datagram(&datagram.bytes).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_flow_without_an_answer_ends_sooner_than_one_that_had_one() {
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(3600));
        let pulse = Pulse::new([short, long]);
        pulse.stop().await;
        let pulse = Pulse::new([short, long]);
        pulse.answer();
        let waited = tokio::time::timeout(5 * short, pulse.stop()).await;
        assert!(waited.is_err());
        let pulse = Pulse::new([long, short]);
        pulse.answer();
        pulse.stop().await;
        assert!(pulse.last().elapsed() >= short);
    }
}
