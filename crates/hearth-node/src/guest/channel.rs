//! The connection to a guest: greeting, requests, and the two tasks that carry frames.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_guest_protocol::message::{
    self, Configure, Dial, Failure, FileRequest, Hello, Launch, Processes, Role, Stats, Status, Stop,
    TimeLimit, World,
};
use hearth_guest_protocol::{
    CONTROL, Decoder, Flags, Frame, FrameError, GENERATION_DATAGRAMS, GENERATION_LAUNCH,
    GENERATION_PROCESSES, GENERATION_RESUME, GENERATION_TIME_LIMIT, GENERATIONS, Header, Kind,
    NoCommonGeneration, negotiate,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::activity::{Activity, Work};
use super::inbox::{End, Inbox};
use super::session::{Session, Stream};

/// The number of the workload's session, whatever was opened before: the next node goes on with it.
pub(super) const WORKLOAD: u32 = CONTROL + 1;

/// Messages that wait for the writer; usually a few KiB in all, 2 MiB of input, and 4 MiB for each of the largest launches.
pub(super) const WRITE_QUEUE: usize = 32;

/// Says why a guest cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The byte stream broke.
    #[error("the guest channel broke before the guest said hello")]
    Io(#[from] std::io::Error),
    /// The stream ended.
    #[error("the guest channel was closed before the guest said hello")]
    Closed,
    /// The guest's first frame is no greeting.
    #[error("the guest's greeting makes no sense")]
    Malformed,
    /// Host and guest are too far apart in age.
    #[error("the guest's agent is of another age: run `hearth setup`")]
    Generation(#[from] NoCommonGeneration),
}

/// Says why a request to the guest had no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The guest refused.
    #[error("the guest refused: {}", .0.message)]
    Refused(Failure),
    /// The connection broke.
    #[error("the connection to the guest broke")]
    ChannelLost,
    /// The guest did not answer in time.
    #[error("the guest did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The request is too long for the guest.
    #[error("the request is too large")]
    TooLong(#[from] message::MessageTooLong),
    /// The guest's agent is older than what was asked for.
    #[error("the agent in this machine is older than this node and cannot do that")]
    OlderAgent,
}

/// What a guest says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInfo {
    /// The agent's version.
    pub version: String,
    /// From the kernel's start to the agent's first line.
    pub boot: Duration,
    /// The generation both speak.
    pub generation: u16,
}

/// A guest that has said hello. Cloned freely; the connection ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Guest {
    pub(super) shared: Arc<Shared>,
    /// Whether what is done through this handle is a sign of life.
    counts: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) info: GuestInfo,
    /// Where frames go. Who renews the connection has it alone meanwhile, so that what is to be sent waits.
    pub(super) outgoing: Arc<RwLock<mpsc::Sender<Vec<u8>>>>,
    /// Guards the way of frames that must not wait and are few: grants (at most four per session and window) and closes (one per
    /// session).
    pub(super) urgent: Mutex<mpsc::UnboundedSender<Vec<u8>>>,
    /// Guards the tasks of the present connection.
    pub(super) carriers: Mutex<Option<Carriers>>,
    next_session: AtomicU32,
    /// Guards the sessions and the questions under way. The reader looks a session up per frame, owners add and remove
    /// theirs; no await happens under it.
    table: Mutex<Table>,
    pub(super) lost: watch::Sender<bool>,
    stop: CancellationToken,
    activity: Arc<Activity>,
    received: AtomicU64,
    /// The writer's task counts, which does not hold the rest.
    sent: Arc<AtomicU64>,
}

/// What has gone over a connection, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// From the guest.
    pub received: u64,
    /// To the guest.
    pub sent: u64,
}

/// The tasks that carry frames over one connection.
#[derive(Debug)]
pub(super) struct Carriers {
    pub(super) stop: CancellationToken,
    pub(super) tasks: [JoinHandle<()>; 2],
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) sessions: HashMap<u32, Arc<Inbox>>,
    /// Who waits for an answer on the control session, and to what; first come, first served.
    pub(super) waiting: VecDeque<(Kind, oneshot::Sender<Answer>)>,
}

/// The payload of an answer, or the guest's refusal.
pub(super) type Answer = Result<Vec<u8>, Failure>;

impl GuestInfo {
    /// Tells whether the guest ends a process at its time limit by itself.
    pub fn knows_time_limit(&self) -> bool {
        self.generation >= GENERATION_TIME_LIMIT
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Guest {
    /// Greets the guest at the other end of a byte stream; then two tasks, joined by `tasks`, carry the frames until the
    /// stream breaks or the last handle is dropped. The caller sets the deadline.
    ///
    /// # Errors
    /// Returns [`ConnectError`] when there is no talking to this guest.
    pub async fn connect<R, W>(reader: R, writer: W, tasks: &TaskTracker) -> Result<Self, ConnectError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        Self::establish(reader, writer, tasks, Table::default(), WORKLOAD + 1).await
    }

    /// Greets a guest that an earlier node has set to work, as [`Guest::connect`] does. Returns the workload's session as
    /// well, where there is one: its output goes on behind the first `received` bytes. All other sessions of that node are
    /// ended, since whoever waited for them is gone. The caller sets the deadline.
    ///
    /// # Errors
    /// Returns [`ConnectError`] when there is no talking to this guest.
    pub async fn reconnect<R, W>(
        reader: R,
        writer: W,
        tasks: &TaskTracker,
        received: u64,
        deadline: Duration,
    ) -> Result<(Self, Option<Session>), ConnectError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let inbox = Arc::new(Inbox::behind(received));
        let mut table = Table::default();
        table.sessions.insert(WORKLOAD, Arc::clone(&inbox));
        // Far from the numbers that are in use: the guest tells those only now.
        let mut first = [0; 4];
        getrandom::fill(&mut first).map_err(|error| ConnectError::Io(std::io::Error::other(error)))?;
        let first = u32::from_le_bytes(first) >> 1 | 1 << 30;
        let guest = Self::establish(reader, writer, tasks, table, first).await?;
        // An older agent goes on from where the earlier node stopped to read.
        if guest.info().generation >= GENERATION_RESUME {
            let mut frame = Vec::new();
            message::encode(Kind::Resume, WORKLOAD, &message::Resume { received }, &mut frame)
                .map_err(|_| ConnectError::Malformed)?;
            guest.send(frame).await;
        }
        // What the guest tells a new connection stands before its next answer.
        guest.ping(deadline).await.map_err(|_| ConnectError::Closed)?;
        let session = Session::new(guest.clone(), WORKLOAD, Arc::clone(&inbox));
        Ok((guest, inbox.has_any().then_some(session)))
    }

    async fn establish<R, W>(
        reader: R,
        writer: W,
        tasks: &TaskTracker,
        table: Table,
        next_session: u32,
    ) -> Result<Self, ConnectError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (mut reader, mut writer, mut decoder) = (reader, writer, Decoder::new());
        let info = greet(&mut reader, &mut writer, &mut decoder).await?;
        let (outgoing, queue) = mpsc::channel(WRITE_QUEUE);
        let (urgent, urgent_queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            info,
            outgoing: Arc::new(RwLock::new(outgoing)),
            urgent: Mutex::new(urgent),
            carriers: Mutex::new(None),
            next_session: AtomicU32::new(next_session),
            table: Mutex::new(table),
            lost: watch::Sender::new(false),
            stop: CancellationToken::new(),
            activity: Arc::default(),
            received: AtomicU64::new(0),
            sent: Arc::default(),
        });
        shared.carry((reader, decoder), (writer, queue, urgent_queue), tasks);
        Ok(Self { shared, counts: true })
    }

    /// Returns a handle for probes of the node: what is done through it is no sign of life.
    #[must_use]
    pub fn unseen(&self) -> Self {
        Self {
            counts: false,
            ..self.clone()
        }
    }

    /// Returns when it was last busy.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.shared.activity
    }

    /// Notes a sign of life.
    pub(super) fn touch(&self) {
        if self.counts {
            self.shared.activity.touch();
        }
    }

    /// Begins something that keeps the guest busy.
    pub(super) fn work(&self) -> Option<Work> {
        self.counts.then(|| self.shared.activity.work())
    }

    /// Lists the processes of the workload and those beside it.
    ///
    /// # Errors
    /// Returns [`RequestError`]; [`RequestError::OlderAgent`] when the guest does not know how.
    pub async fn processes(&self, deadline: Duration) -> Result<Processes, RequestError> {
        if self.shared.info.generation < GENERATION_PROCESSES {
            return Err(RequestError::OlderAgent);
        }
        self.ask(Kind::Processes, &(), deadline).await
    }

    /// Returns what the guest says of itself.
    pub fn info(&self) -> &GuestInfo {
        &self.shared.info
    }

    /// Returns how many bytes of the workload's output were taken from its session, over all connections.
    pub fn taken_of_workload(&self) -> u64 {
        let inbox = self.shared.table().sessions.get(&WORKLOAD).cloned();
        inbox.map_or(0, |inbox| inbox.taken())
    }

    /// Returns what has gone over this connection.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            received: self.shared.received.load(Ordering::Relaxed),
            sent: self.shared.sent.load(Ordering::Relaxed),
        }
    }

    /// Waits until the connection breaks.
    pub async fn lost(&self) {
        // The sender lives in `shared`, which this handle keeps.
        let _ = self.shared.lost.subscribe().wait_for(|&lost| lost).await;
    }

    /// Makes the booted guest this machine.
    ///
    /// # Errors
    /// Returns [`RequestError`], with the guest's words where it could not mount its disks.
    pub async fn configure(&self, configure: &Configure, deadline: Duration) -> Result<(), RequestError> {
        self.status(Kind::Configure, configure, deadline).await.map(drop)
    }

    /// Ends the workload and brings the disks to rest.
    ///
    /// # Errors
    /// Returns [`RequestError`].
    pub async fn stop(&self, stop: Stop, deadline: Duration) -> Result<(), RequestError> {
        self.status(Kind::Stop, &stop, deadline).await.map(drop)
    }

    pub(super) async fn status(
        &self,
        kind: Kind,
        request: &impl Serialize,
        deadline: Duration,
    ) -> Result<Status, RequestError> {
        self.ask(kind, request, deadline).await
    }

    /// Returns what the guest uses.
    ///
    /// # Errors
    /// Returns [`RequestError`].
    pub async fn stats(&self, deadline: Duration) -> Result<Stats, RequestError> {
        self.ask(Kind::Stats, &(), deadline).await
    }

    /// Sends a ping and waits for its echo.
    ///
    /// # Errors
    /// Returns [`RequestError`].
    pub async fn ping(&self, deadline: Duration) -> Result<(), RequestError> {
        self.ask(Kind::Ping, &(), deadline).await
    }

    /// Starts a process.
    ///
    /// # Errors
    /// Returns [`RequestError`] when the request cannot be sent; what the guest says of it comes as the session's events.
    pub async fn launch(&self, launch: &Launch) -> Result<Session, RequestError> {
        self.launch_within(launch, None).await
    }

    /// Starts a process that may run for so long, where the guest can see to that; see [`GuestInfo::knows_time_limit`].
    ///
    /// # Errors
    /// As [`Guest::launch`].
    pub async fn launch_within(
        &self,
        launch: &Launch,
        limit: Option<Duration>,
    ) -> Result<Session, RequestError> {
        let is_workload = launch.execute.role == Role::Main;
        let id = if is_workload {
            WORKLOAD
        } else {
            self.unused_session()
        };
        let mut frames = Vec::new();
        if let Some(limit) = limit.filter(|_| self.shared.info.knows_time_limit()) {
            let after_ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            message::encode(Kind::TimeLimit, id, &TimeLimit { after_ms }, &mut frames)?;
        }
        if self.knows_launch() {
            message::encode_launch(id, launch, &mut frames)?;
        } else if launch.world == World::default() && launch.limits.is_empty() && launch.groups.is_empty() {
            message::encode(Kind::Execute, id, &launch.execute, &mut frames)?;
        } else {
            return Err(RequestError::OlderAgent);
        }
        let session = self.open(id, frames).await?;
        // The workload itself is idle while it says nothing.
        Ok(if is_workload { session } else { session.working() })
    }

    /// Tells whether the guest knows what came with generation 2: long launches, and letting go of what runs.
    pub fn knows_launch(&self) -> bool {
        self.shared.info.generation >= GENERATION_LAUNCH
    }

    /// Reads or writes files.
    ///
    /// # Errors
    /// As [`Guest::launch`].
    pub async fn file(&self, request: &FileRequest) -> Result<Session, RequestError> {
        Ok(self.open_with(Kind::File, request).await?.working())
    }

    /// Connects to a TCP port on the guest's loopback.
    ///
    /// # Errors
    /// As [`Guest::launch`].
    pub async fn dial(&self, port: u16) -> Result<Session, RequestError> {
        self.touch();
        self.open_with(Kind::Dial, &Dial { port }).await
    }

    /// Talks to a UDP port on the guest's loopback. The session is to be used with [`crate::guest::Input::send_datagram`], and its output
    /// is datagrams.
    ///
    /// # Errors
    /// As [`Guest::launch`]; [`RequestError::OlderAgent`] when the guest does not know how.
    pub async fn datagrams(&self, port: u16) -> Result<Session, RequestError> {
        if self.shared.info.generation < GENERATION_DATAGRAMS {
            return Err(RequestError::OlderAgent);
        }
        self.touch();
        self.open_with(Kind::Datagrams, &Dial { port }).await
    }

    fn unused_session(&self) -> u32 {
        self.shared.next_session.fetch_add(1, Ordering::Relaxed)
    }

    async fn open_with(&self, kind: Kind, request: &impl Serialize) -> Result<Session, RequestError> {
        let id = self.unused_session();
        let mut frame = Vec::new();
        message::encode(kind, id, request, &mut frame)?;
        self.open(id, frame).await
    }

    /// Opens a session by what asks for it: whole frames, queued as one, so that nothing comes between them.
    async fn open(&self, id: u32, frames: Vec<u8>) -> Result<Session, RequestError> {
        let inbox = Arc::new(Inbox::default());
        self.shared.table().sessions.insert(id, Arc::clone(&inbox));
        let session = Session::new(self.clone(), id, inbox);
        if self.send(frames).await {
            Ok(session)
        } else {
            Err(RequestError::ChannelLost)
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        kind: Kind,
        request: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, RequestError> {
        let mut frame = Vec::new();
        message::encode(kind, CONTROL, request, &mut frame)?;
        let exchange = async {
            let outgoing = self.outgoing().await.ok_or(RequestError::ChannelLost)?;
            let (sender, receiver) = oneshot::channel();
            self.shared.table().waiting.push_back((kind, sender));
            if outgoing.send(frame).await.is_err() {
                return Err(RequestError::ChannelLost);
            }
            receiver
                .await
                .map_err(|_| RequestError::ChannelLost)?
                .map_err(RequestError::Refused)
        };
        let payload = tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| RequestError::Timeout(deadline))??;
        message::decode(&payload).map_err(|_| RequestError::ChannelLost)
    }

    /// Queues a frame; waits for room, and for a connection that is being renewed. Returns false when the connection is lost.
    pub(super) async fn send(&self, frame: Vec<u8>) -> bool {
        self.send_if(frame, || true).await
    }

    /// Queues a frame if it is still due once there is a connection.
    pub(super) async fn send_if(&self, frame: Vec<u8>, is_due: impl Fn() -> bool) -> bool {
        match self.outgoing().await {
            Some(outgoing) if is_due() => outgoing.send(frame).await.is_ok(),
            _ => false,
        }
    }

    async fn outgoing(&self) -> Option<mpsc::Sender<Vec<u8>>> {
        let outgoing = self.shared.outgoing.read().await.clone();
        (!*self.shared.lost.borrow()).then_some(outgoing)
    }

    pub(super) fn grant(&self, session: u32, bytes: u32) {
        let mut frame = Vec::new();
        if message::encode(Kind::Credit, session, &message::CreditGrant { bytes }, &mut frame).is_ok() {
            self.shared.send_urgently(frame);
        }
    }

    /// Lets go of a session; what runs in it goes on.
    pub(super) fn detach(&self, session: u32) -> Result<(), RequestError> {
        if !self.knows_launch() {
            return Err(RequestError::OlderAgent);
        }
        if self.shared.table().sessions.remove(&session).is_some() {
            self.shared.tell(Kind::Detach, session);
        }
        Ok(())
    }

    /// Closes a session of which nothing more is wanted.
    pub(super) fn part(&self, session: u32) {
        if self.shared.table().sessions.remove(&session).is_some() {
            let mut frame = Vec::new();
            Header::marked(Kind::Close, session, Flags::END).write(&[], &mut frame);
            self.shared.send_urgently(frame);
        }
    }

    pub(super) fn close(&self, session: u32) {
        if self.shared.table().sessions.remove(&session).is_some() {
            self.shared.tell(Kind::Close, session);
        }
    }
}

impl Shared {
    /// Spawns the two tasks of a connection.
    pub(super) fn carry<R, W>(
        self: &Arc<Self>,
        (reader, decoder): (R, Decoder),
        (writer, queue, urgent): (W, mpsc::Receiver<Vec<u8>>, mpsc::UnboundedReceiver<Vec<u8>>),
        tasks: &TaskTracker,
    ) where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let stop = self.stop.child_token();
        let (weak, sent) = (Arc::downgrade(self), Arc::clone(&self.sent));
        let writing = write_frames(writer, queue, urgent, sent);
        let writing = stop.clone().run_until_cancelled_owned(writing);
        let reading = stop.clone().run_until_cancelled_owned(async move {
            let cause = read_frames(reader, decoder, &weak).await;
            if let Some(shared) = weak.upgrade() {
                tracing::debug!(%cause, "guest channel lost");
                shared.lose();
            }
        });
        let carriers = [
            tasks.spawn(async { writing.await.unwrap_or_default() }),
            tasks.spawn(async { reading.await.unwrap_or_default() }),
        ];
        *self.carriers.lock().unwrap_or_else(PoisonError::into_inner) = Some(Carriers {
            stop,
            tasks: carriers,
        });
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Every update is one call on a collection: a panic elsewhere leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lose(&self) {
        self.lost.send_replace(true);
        let table = std::mem::take(&mut *self.table());
        table
            .sessions
            .values()
            .for_each(|inbox| inbox.end(End::ChannelLost));
    }

    /// Fails only when the connection is lost: then credit is worth nothing, and every session is closed already.
    fn send_urgently(&self, frame: Vec<u8>) {
        let urgent = self.urgent.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = urgent.send(frame);
    }

    fn tell(&self, kind: Kind, session: u32) {
        let mut frame = Vec::new();
        if message::encode(kind, session, &(), &mut frame).is_ok() {
            self.send_urgently(frame);
        }
    }

    fn take_frame(&self, frame: &Frame<'_>) -> Result<(), BadFrame> {
        if frame.header.session == CONTROL {
            return self.take_control(frame);
        }
        // A session that was closed here may still be answered for: what comes late is dropped. One that is only now
        // announced belonged to an earlier node.
        let Some(inbox) = self.table().sessions.get(&frame.header.session).cloned() else {
            if frame.header.kind == Kind::Status {
                self.tell(Kind::Close, frame.header.session);
            }
            return Ok(());
        };
        let end = match frame.header.kind {
            Kind::Output => {
                let stream = if frame.header.flags.has(Flags::STDERR) {
                    Stream::Stderr
                } else {
                    Stream::Stdout
                };
                inbox.push(stream, frame.payload).map_err(BadFrame::Window)?;
                if frame.header.flags.has(Flags::END) {
                    inbox.push_end(stream);
                }
                return Ok(());
            }
            Kind::Credit => {
                let grant: message::CreditGrant = decode(frame)?;
                return inbox.grant(grant.bytes).map_err(BadFrame::Window);
            }
            Kind::Status => {
                match decode(frame)? {
                    Status::Started { pid } => inbox.open(pid),
                    Status::Opened => inbox.open(0),
                    Status::Ready
                    | Status::Stopped
                    | Status::Frozen
                    | Status::Thawed { .. }
                    | Status::Renewed => return Err(BadFrame::OutOfPlace(Kind::Status)),
                }
                return Ok(());
            }
            Kind::Result => End::Outcome(decode(frame)?),
            Kind::Error => End::Failure(decode(frame)?),
            other => return Err(BadFrame::OutOfPlace(other)),
        };
        // The guest has closed it: from here on its number means nothing to the guest.
        self.table().sessions.remove(&frame.header.session);
        inbox.end(end);
        Ok(())
    }

    fn take_control(&self, frame: &Frame<'_>) -> Result<(), BadFrame> {
        let kind = frame.header.kind;
        let status = match kind {
            Kind::Status => Some(decode(frame)?),
            _ => None,
        };
        let answer = if kind == Kind::Error {
            Err(decode(frame)?)
        } else {
            Ok(frame.payload.to_vec())
        };
        let mut table = self.table();
        // A refusal answers the oldest question: the guest takes control requests in order.
        let place = table
            .waiting
            .iter()
            .position(|(request, _)| answers(*request, kind, status.as_ref()) || kind == Kind::Error);
        let waiting = place.and_then(|place| table.waiting.remove(place));
        drop(table);
        if let Some((_, sender)) = waiting {
            // Nobody waits any more when the deadline has passed.
            let _ = sender.send(answer);
        }
        Ok(())
    }
}

/// Tells whether a frame is what a request is answered by. A guest also says unasked how far it is, to whoever greets it.
fn answers(request: Kind, kind: Kind, status: Option<&Status>) -> bool {
    match (request, status) {
        (Kind::Ping, _) => kind == Kind::Pong,
        (Kind::Configure, Some(status)) => *status == Status::Ready,
        (Kind::Freeze, Some(status)) => *status == Status::Frozen,
        (Kind::Thaw, Some(status)) => matches!(status, Status::Thawed { .. }),
        (Kind::Renew, Some(status)) => *status == Status::Renewed,
        (Kind::Stop, Some(status)) => *status == Status::Stopped,
        _ => kind == request,
    }
}

/// Why the reader gave a connection up.
#[derive(Debug, thiserror::Error)]
enum BadFrame {
    #[error("the stream ended")]
    Ended,
    #[error("the last handle is gone")]
    Unwanted,
    #[error("read failed: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Window(hearth_guest_protocol::credit::WindowExceeded),
    #[error("a malformed {0:?} message")]
    Malformed(Kind),
    #[error("a {0:?} frame where there must be none")]
    OutOfPlace(Kind),
}

fn decode<T: DeserializeOwned>(frame: &Frame<'_>) -> Result<T, BadFrame> {
    message::decode(frame.payload).map_err(|_| BadFrame::Malformed(frame.header.kind))
}

pub(super) async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    decoder: &mut Decoder,
) -> Result<GuestInfo, ConnectError> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| ConnectError::Io(std::io::Error::other(error)))?;
    let nonce = u64::from_le_bytes(nonce);
    let hello = Hello {
        oldest: *GENERATIONS.start(),
        newest: *GENERATIONS.end(),
        nonce,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ns: 0,
    };
    let mut frame = Vec::new();
    message::encode(Kind::Hello, CONTROL, &hello, &mut frame).map_err(|_| ConnectError::Malformed)?;
    writer.write_all(&frame).await?;
    writer.flush().await?;
    loop {
        match decoder.next_frame() {
            Ok(Some(frame)) if frame.header.kind == Kind::Hello => {
                let theirs: Hello = message::decode(frame.payload).map_err(|_| ConnectError::Malformed)?;
                if theirs.nonce == nonce {
                    let generation = negotiate(GENERATIONS, theirs.oldest..=theirs.newest)?;
                    let boot = Duration::from_nanos(theirs.uptime_ns);
                    return Ok(GuestInfo {
                        version: theirs.version,
                        boot,
                        generation,
                    });
                }
            }
            // Left over from an earlier connection.
            Ok(Some(_)) => {}
            Err(_) => decoder.resynchronise(),
            Ok(None) => {
                let count = reader.read(decoder.space()).await?;
                if count == 0 {
                    return Err(ConnectError::Closed);
                }
                decoder.filled(count);
            }
        }
    }
}

async fn read_frames(
    mut reader: impl AsyncRead + Unpin,
    mut decoder: Decoder,
    shared: &std::sync::Weak<Shared>,
) -> BadFrame {
    let mut received = 0;
    loop {
        let Some(shared) = shared.upgrade() else {
            return BadFrame::Unwanted;
        };
        let taken = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Err(bad) = shared.take_frame(&frame) {
                        break Err(bad);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        if let Err(bad) = taken {
            return bad;
        }
        // Not held while waiting: the last handle's drop must end this task.
        shared
            .received
            .fetch_add(std::mem::take(&mut received), Ordering::Relaxed);
        drop(shared);
        match reader.read(decoder.space()).await {
            Ok(0) => return BadFrame::Ended,
            Ok(count) => {
                decoder.filled(count);
                received = count as u64;
            }
            Err(error) => return error.into(),
        }
    }
}

async fn write_frames(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut urgent: mpsc::UnboundedReceiver<Vec<u8>>,
    sent: Arc<AtomicU64>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = urgent.recv() => frame,
            Some(frame) = queue.recv() => frame,
            else => return,
        };
        if writer.write_all(&frame).await.is_err() {
            return; // The reader sees the same break and tells everybody.
        }
        sent.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }
}
