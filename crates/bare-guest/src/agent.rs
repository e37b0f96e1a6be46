//! The guest protocol, kept as the agent of Linux guests keeps it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use hearth_guest_protocol::message::{
    self, Clock, Configure, CreditGrant, Execute, Failure, FailureCode, Freeze, Hello, LAUNCH_MAX, Launch,
    Outcome, ProcessInfo, Processes, Renew, Resume, Role, Signal, Stats, Status, Stop, TimeLimit,
};
use hearth_guest_protocol::{
    CONTROL, Decoder, Frame, GENERATION_RESUME, GENERATIONS, Header, Kind, negotiate,
};

use crate::Machine;
use crate::command;
use crate::outbox::Outbox;
use crate::platform::println;
use crate::session::{Progress, Session};

/// The most sessions at once.
const SESSIONS_MAX: usize = 256;

/// A look at the clock comes with each tick, every 10 ms; between two that are so far apart the processor stood still, or was another's.
const AWAY: Duration = Duration::from_secs(1);

/// What is shown of a command, in bytes.
const COMMAND_MAX: usize = 200;

/// A request that is refused, and why.
pub(crate) type Refusal = (FailureCode, String);

/// Who the host says this guest is. A clone is told anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity {
    /// The host name.
    pub(crate) hostname: String,
    /// Random bytes of the host.
    pub(crate) entropy: [u8; 32],
    /// The machine's id, if a clone was given one.
    pub(crate) machine_id: Option<[u8; 16]>,
    /// How often it was told.
    pub(crate) generation: u32,
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    No,
    /// The workload is killed at this time after the start.
    Until(Duration),
    Stopped,
}

/// What the agent does with the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Keeps the protocol.
    Protocol,
    /// Sends every byte back.
    Echo,
}

/// The state of the agent.
pub(crate) struct Agent {
    manner: Manner,
    /// What waits for the stream.
    pub(crate) out: Outbox,
    /// Who this is, once the host has said so.
    pub(crate) identity: Option<Identity>,
    /// Taken out while its frames are handled: they lie in its buffer.
    decoder: Option<Decoder>,
    greeted: bool,
    sessions: BTreeMap<u32, Session>,
    /// The beginnings of launches whose last frame has not come, by session; [`LAUNCH_MAX`] bytes in all.
    parts: BTreeMap<u32, Vec<u8>>,
    /// The time limits of launches that have not come, by session.
    limits: BTreeMap<u32, Duration>,
    /// The workload's session, once there is one; its outcome, once it has ended.
    main: Option<u32>,
    main_outcome: Option<Outcome>,
    stopping: Stopping,
    /// Until when, after the start, every command stands still.
    still_until: Option<Duration>,
    /// When that was last looked at.
    looked: Duration,
    resets: u64,
}

impl Agent {
    /// Makes the state of an agent that has just started.
    pub(crate) fn new(manner: Manner) -> Self {
        Self {
            manner,
            out: Outbox::default(),
            identity: None,
            decoder: Some(Decoder::new()),
            greeted: false,
            sessions: BTreeMap::new(),
            parts: BTreeMap::new(),
            limits: BTreeMap::new(),
            main: None,
            main_outcome: None,
            stopping: Stopping::No,
            still_until: None,
            looked: Duration::ZERO,
            resets: 0,
        }
    }

    /// Returns how often the host said that every connection is gone.
    pub(crate) fn resets(&self) -> u64 {
        self.resets
    }

    /// Takes note that the host has said so.
    pub(crate) fn reset(&mut self) {
        self.resets += 1;
    }

    /// Takes note of a new stream.
    pub(crate) fn connected(&mut self) {
        self.disconnected();
    }

    /// Takes note that the stream is gone; whoever comes next must greet first.
    pub(crate) fn disconnected(&mut self) {
        self.greeted = false;
        self.parts.clear();
        self.limits.clear();
        if let Some(decoder) = &mut self.decoder {
            decoder.clear();
        }
        self.out.clear();
    }

    /// Takes bytes of the stream.
    pub(crate) fn received(&mut self, mut bytes: &[u8], machine: &mut Machine) {
        if self.manner == Manner::Echo {
            return self.out.raw(bytes);
        }
        let Some(mut decoder) = self.decoder.take() else {
            return;
        };
        while !bytes.is_empty() {
            let space = decoder.space();
            let count = space.len().min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            decoder.filled(count);
            bytes = &bytes[count..];
            self.frames(&mut decoder, machine);
        }
        self.decoder = Some(decoder);
    }

    fn frames(&mut self, decoder: &mut Decoder, machine: &mut Machine) {
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => self.handle(&frame, machine),
                Ok(None) => return,
                Err(error) => {
                    if self.greeted {
                        println!("bare-guest: {error}");
                        self.refuse(CONTROL, (FailureCode::BadRequest, error.to_string()));
                    }
                    decoder.resynchronise();
                }
            }
        }
    }

    fn handle(&mut self, frame: &Frame<'_>, machine: &mut Machine) {
        let session = frame.header.session;
        if !self.greeted && frame.header.kind != Kind::Hello {
            return;
        }
        if let Err(refusal) = self.dispatch(frame, machine) {
            self.refuse(session, refusal);
        }
    }

    fn dispatch(&mut self, frame: &Frame<'_>, machine: &mut Machine) -> Result<(), Refusal> {
        let (Header { kind, session, flags }, payload) = (frame.header, frame.payload);
        match kind {
            Kind::Hello => self.greet(&read(payload)?, machine),
            Kind::Configure => self.configure(&read(payload)?, machine)?,
            Kind::Execute => self.execute(session, &read(payload)?, machine)?,
            Kind::Part => self.take_part(session, payload)?,
            Kind::TimeLimit => self.take_limit(session, read(payload)?)?,
            Kind::Launch => {
                let mut whole = self.parts.remove(&session).unwrap_or_default();
                whole.extend_from_slice(payload);
                // There is no world to see, and nothing that limits would be imposed on.
                let launch: Launch = read(&whole)?;
                self.execute(session, &launch.execute, machine)?;
            }
            Kind::Resume => {
                let request: Resume = read(payload)?;
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.resume(request.received);
                }
            }
            Kind::Stdin => self.broken_off(session, |session, out| session.take(payload, flags, out)),
            Kind::Credit => {
                let grant: CreditGrant = read(payload)?;
                self.broken_off(session, |session, _| session.granted(grant.bytes));
            }
            Kind::Signal => self.signal(session, read(payload)?)?,
            Kind::Close => self.close(session),
            Kind::Detach => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.let_go();
                }
            }
            Kind::Stop => self.stop(read(payload)?, machine),
            Kind::Ping => self.out.bytes(Header::new(Kind::Pong, session), payload),
            Kind::Stats => self.out.message(Kind::Stats, session, &self.stats(machine)),
            Kind::Processes => self.out.message(Kind::Processes, session, &self.processes()),
            Kind::Clock => {
                let clock: Clock = read(payload)?;
                machine.clock.set(Duration::from_nanos(clock.unix_ns));
            }
            Kind::Freeze => self.freeze(read(payload)?, machine)?,
            Kind::Thaw => {
                let was_frozen = self.is_still(machine);
                self.still_until = None;
                self.out
                    .message(Kind::Status, CONTROL, &Status::Thawed { was_frozen });
            }
            Kind::Renew => self.renew(read(payload)?, machine)?,
            // Its interface has the address that the device says.
            Kind::HardwareAddress => {}
            // There is no terminal to have a size.
            Kind::Resize => {}
            // There are no files, and nothing listens on a loopback; the rest is what a guest sends.
            Kind::File
            | Kind::Dial
            | Kind::Datagrams
            | Kind::Output
            | Kind::Result
            | Kind::Status
            | Kind::Error
            | Kind::Pong => {
                return Err((
                    FailureCode::BadRequest,
                    format!("this guest takes no {kind:?} frames"),
                ));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, session: u32, (code, message): Refusal) {
        self.out.message(Kind::Error, session, &Failure { code, message });
    }

    fn greet(&mut self, hello: &Hello, machine: &Machine) {
        // What was said before belongs to an earlier talk.
        self.out.clear();
        let answer = Hello {
            oldest: *GENERATIONS.start(),
            newest: *GENERATIONS.end(),
            nonce: hello.nonce,
            version: concat!("bare-guest ", env!("CARGO_PKG_VERSION")).into(),
            uptime_ns: u64::try_from(machine.clock.uptime().as_nanos()).unwrap_or(u64::MAX),
        };
        self.out.message(Kind::Hello, CONTROL, &answer);
        let common = negotiate(GENERATIONS, hello.oldest..=hello.newest);
        let resumes = common.as_ref().is_ok_and(|&it| it >= GENERATION_RESUME);
        match common {
            Ok(_) => self.greeted = true,
            Err(error) => self.refuse(CONTROL, (FailureCode::BadRequest, error.to_string())),
        }
        if self.identity.is_some() {
            self.out.message(Kind::Status, CONTROL, &Status::Ready);
        }
        for session in self.sessions.values_mut() {
            session.reconnected(resumes, &mut self.out);
        }
        if self.stopping == Stopping::Stopped {
            self.out.message(Kind::Status, CONTROL, &Status::Stopped);
        }
    }

    fn configure(&mut self, request: &Configure, machine: &mut Machine) -> Result<(), Refusal> {
        if self.identity.is_some() {
            return Err((FailureCode::BadRequest, "the guest is configured already".into()));
        }
        machine.clock.set(Duration::from_nanos(request.clock_unix_ns));
        self.identity = Some(Identity {
            hostname: request.hostname.clone(),
            entropy: request.entropy,
            machine_id: None,
            generation: 1,
        });
        self.out.message(Kind::Status, CONTROL, &Status::Ready);
        Ok(())
    }

    /// Lets every command stand still, and writes the drives out.
    fn freeze(&mut self, request: Freeze, machine: &mut Machine) -> Result<(), Refusal> {
        if self.identity.is_none() || self.stopping != Stopping::No {
            let message = "a machine that is starting or stopping cannot stand still";
            return Err((FailureCode::BadRequest, message.into()));
        }
        flush(machine).map_err(|error| (FailureCode::System, error))?;
        let at_most = Duration::from_millis(request.at_most_ms.into());
        self.looked = machine.clock.uptime();
        self.still_until = Some(self.looked + at_most);
        self.out.message(Kind::Status, CONTROL, &Status::Frozen);
        Ok(())
    }

    /// Tells whether commands stand still; their time may be over. The time that a snapshot lay does not count, by which a restore sets KVM's
    /// clock forward.
    fn is_still(&mut self, machine: &Machine) -> bool {
        let now = machine.clock.uptime();
        let away = now.saturating_sub(self.looked);
        self.looked = now;
        if away > AWAY {
            self.still_until = self.still_until.map(|until| until + away);
        }
        self.still_until.is_some_and(|until| now < until)
    }

    /// Is another machine from now on.
    fn renew(&mut self, request: Renew, machine: &mut Machine) -> Result<(), Refusal> {
        let is_new = self.identity.is_some() && self.main.is_none();
        if !is_new && !self.is_still(machine) {
            let message = "the machine does not stand still any more";
            return Err((FailureCode::BadRequest, message.into()));
        }
        machine.clock.set(Duration::from_nanos(request.clock_unix_ns));
        let before = self.identity.take().unwrap_or_default();
        self.identity = Some(Identity {
            hostname: request.hostname,
            entropy: request.entropy,
            machine_id: request.machine_id.or(before.machine_id),
            generation: before.generation + 1,
        });
        self.out.message(Kind::Status, CONTROL, &Status::Renewed);
        Ok(())
    }

    /// Keeps the beginning of a launch. Of one that is too long nothing is kept, so that its end makes no sense.
    fn take_part(&mut self, id: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let kept: usize = self.parts.values().map(Vec::len).sum();
        if kept + bytes.len() > LAUNCH_MAX {
            self.parts.remove(&id);
            let message = format!("more than {LAUNCH_MAX} bytes of arguments and environment");
            return Err((FailureCode::BadRequest, message));
        }
        self.parts.entry(id).or_default().extend_from_slice(bytes);
        Ok(())
    }

    /// Makes sure that a new session may be opened under this number.
    fn admit(&self, id: u32, role: Role) -> Result<(), Refusal> {
        let refusal = match (role, self.main) {
            _ if id == CONTROL => "session 0 is no session",
            _ if self.identity.is_none() => "the guest is not configured",
            _ if self.stopping != Stopping::No => "the machine is stopping",
            _ if self.sessions.len() >= SESSIONS_MAX => "there are too many sessions",
            (Role::Main, Some(_)) => "there has been a workload already",
            (Role::Rehearsal, _) => "this guest rehearses nothing",
            (Role::Exec, None) => "there is no workload yet",
            (Role::Exec, Some(_)) if self.main_outcome.is_some() => {
                return Err((FailureCode::WorkloadGone, "the workload is gone".into()));
            }
            _ => return Ok(()),
        };
        Err((FailureCode::BadRequest, refusal.into()))
    }

    /// Keeps the time limit of a launch that follows.
    fn take_limit(&mut self, id: u32, limit: TimeLimit) -> Result<(), Refusal> {
        if self.limits.len() >= SESSIONS_MAX {
            return Err((FailureCode::BadRequest, "there are too many sessions".into()));
        }
        self.limits
            .insert(id, Duration::from_millis(limit.after_ms.into()));
        Ok(())
    }

    fn execute(&mut self, id: u32, request: &Execute, machine: &mut Machine) -> Result<(), Refusal> {
        let limit = self.limits.remove(&id);
        if self.sessions.contains_key(&id) {
            // An error on the session itself would end the one that uses the number.
            self.refuse(
                CONTROL,
                (FailureCode::BadRequest, format!("session {id} is in use")),
            );
            return Ok(());
        }
        self.admit(id, request.role)?;
        let (work, said) = command::run(&request.arguments, self, machine)?;
        if request.role == Role::Main {
            self.main = Some(id);
        }
        let words: Vec<&[u8]> = request.arguments.iter().map(|word| &word[..]).collect();
        let command = words.join(&b' ');
        let mut session = Session::begin(id, request.role, work, said, command, &mut self.out);
        session.deadline = limit.map(|after| machine.clock.uptime() + after);
        self.sessions.insert(id, session);
        Ok(())
    }

    /// Does something in which the host can break flow control; a session in which it did is ended.
    fn broken_off<E: core::error::Error>(
        &mut self,
        id: u32,
        act: impl FnOnce(&mut Session, &mut Outbox) -> Result<(), E>,
    ) {
        // A session that has just ended may still be sent to.
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Err(error) = act(session, &mut self.out) {
            self.refuse(id, (FailureCode::BadRequest, error.to_string()));
            self.sessions.remove(&id);
        }
    }

    fn signal(&mut self, id: u32, signal: Signal) -> Result<(), Refusal> {
        if !(1..=64).contains(&signal.number) {
            let message = format!("there is no signal {}", signal.number);
            return Err((FailureCode::BadRequest, message));
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.signal(signal.number);
        }
        Ok(())
    }

    /// Ends a session that the host has lost interest in; from the workload it has merely looked away.
    fn close(&mut self, id: u32) {
        self.parts.remove(&id);
        self.limits.remove(&id);
        if self.main != Some(id) {
            self.sessions.remove(&id);
        }
    }

    fn stop(&mut self, request: Stop, machine: &Machine) {
        if self.stopping == Stopping::Stopped {
            // Asked by a host that came after the answer.
            return self.out.message(Kind::Status, CONTROL, &Status::Stopped);
        }
        // Who stands still hears no signal.
        self.still_until = None;
        let grace = Duration::from_millis(request.grace_ms.into());
        self.stopping = Stopping::Until(machine.clock.uptime() + grace);
        for session in self.sessions.values_mut() {
            match (session.role, request.signal) {
                (Role::Main, 1..) => session.signal(request.signal),
                _ => session.kill(),
            }
        }
    }

    fn stats(&self, machine: &Machine) -> Stats {
        Stats {
            cpu_ns: 0,
            memory_total: machine.pages.len() as u64,
            memory_available: machine.pages.len() as u64,
            disk_total: machine
                .devices
                .blocks
                .iter()
                .map(|block| block.capacity() * 512)
                .sum(),
            disk_free: 0,
            processes: self.alive().count() as u32,
        }
    }

    /// Returns the sessions that have not ended.
    fn alive(&self) -> impl Iterator<Item = (&u32, &Session)> {
        self.sessions.iter().filter(|(_, session)| !session.is_over())
    }

    fn processes(&self) -> Processes {
        let as_process = |(&id, session): (&u32, &Session)| ProcessInfo {
            pid: id,
            parent: 0,
            uid: 0,
            state: b'S',
            cpu_ms: 0,
            memory: 0,
            command: session
                .command
                .iter()
                .copied()
                .take(COMMAND_MAX)
                .collect::<Vec<u8>>()
                .into(),
        };
        Processes {
            total: self.alive().count() as u32,
            processes: self.alive().map(as_process).collect(),
        }
    }

    /// Lets every session go on by one frame; tells whether any did.
    pub(crate) fn turn(&mut self, machine: &mut Machine) -> bool {
        let mut worked = false;
        let is_still = self.is_still(machine);
        if !is_still {
            self.still_until = None;
        }
        if !is_still {
            let now = machine.clock.uptime();
            self.sessions.values_mut().for_each(|session| session.expire(now));
        }
        if self.greeted && !is_still {
            let Self { sessions, out, .. } = self;
            let mut over = None;
            for (id, session) in sessions.iter_mut() {
                match session.turn(out) {
                    Progress::None => continue,
                    Progress::Some => {}
                    Progress::Over => over = Some(*id),
                }
                worked = true;
            }
            // The workload's stays: a later host is to hear its last.
            match over {
                Some(id) if self.main == Some(id) => {
                    self.main_outcome = self.sessions.get(&id).and_then(Session::outcome);
                }
                Some(id) => drop(self.sessions.remove(&id)),
                None => {}
            }
        }
        worked | self.come_to_rest(machine)
    }

    /// Ends a stop: kills what is left when its time is over, and says so once nothing is.
    fn come_to_rest(&mut self, machine: &mut Machine) -> bool {
        let Stopping::Until(deadline) = self.stopping else {
            return false;
        };
        if self.alive().next().is_none() {
            if let Err(error) = flush(machine) {
                println!("bare-guest: {error}");
            }
            self.stopping = Stopping::Stopped;
            self.out.message(Kind::Status, CONTROL, &Status::Stopped);
            return true;
        }
        if machine.clock.uptime() >= deadline {
            self.sessions.values_mut().for_each(Session::kill);
        }
        false
    }
}

fn flush(machine: &mut Machine) -> Result<(), String> {
    let flushed = machine.devices.blocks.iter_mut().map(|block| block.flush());
    match flushed.filter_map(Result::err).last() {
        Some(error) => Err(format!("a disk cannot be flushed: {error}")),
        None => Ok(()),
    }
}

fn read<M: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<M, Refusal> {
    message::decode(payload).map_err(|error| (FailureCode::BadRequest, error.to_string()))
}
