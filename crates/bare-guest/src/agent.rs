//! The guest protocol, kept as the agent of Linux guests keeps it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use core::ops::RangeInclusive;
use core::time::Duration;

use hearth_guest_protocol::message::{
    self, Configure, CreditGrant, Execute, Failure, FailureCode, Hello, Outcome, Role, Signal, Stats, Status,
    Stop,
};
use hearth_guest_protocol::{CONTROL, Decoder, Frame, Header, Kind, negotiate};

use crate::Machine;
use crate::command;
use crate::outbox::Outbox;
use crate::platform::println;
use crate::session::{Progress, Session};

/// The generations that this guest speaks: the first has all that it needs.
const SPOKEN: RangeInclusive<u16> = 1..=1;

/// The most sessions at once.
const SESSIONS_MAX: usize = 256;

/// A request that is refused, and why.
pub(crate) type Refusal = (FailureCode, String);

/// Who the host says this guest is. A clone is told anew.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity {
    /// The host name.
    pub(crate) hostname: String,
    /// Random bytes of the host.
    pub(crate) entropy: [u8; 32],
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
    /// The workload's session, once there is one; its outcome, once it has ended.
    main: Option<u32>,
    main_outcome: Option<Outcome>,
    stopping: Stopping,
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
            main: None,
            main_outcome: None,
            stopping: Stopping::No,
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
            Kind::Stdin => self.broken_off(session, |session, out| session.take(payload, flags, out)),
            Kind::Credit => {
                let grant: CreditGrant = read(payload)?;
                self.broken_off(session, |session, _| session.granted(grant.bytes));
            }
            Kind::Signal => self.signal(session, read(payload)?)?,
            Kind::Close => self.close(session),
            Kind::Stop => self.stop(read(payload)?, machine),
            Kind::Ping => self.out.bytes(Header::new(Kind::Pong, session), payload),
            Kind::Stats => self.out.message(Kind::Stats, session, &self.stats(machine)),
            // There is no terminal to have a size.
            Kind::Resize => {}
            // What later generations add is not for this guest, nor what a guest sends.
            other => {
                return Err((
                    FailureCode::BadRequest,
                    format!("this guest takes no {other:?} frames"),
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
            oldest: *SPOKEN.start(),
            newest: *SPOKEN.end(),
            nonce: hello.nonce,
            version: concat!("bare-guest ", env!("CARGO_PKG_VERSION")).into(),
            uptime_ns: u64::try_from(machine.clock.uptime().as_nanos()).unwrap_or(u64::MAX),
        };
        self.out.message(Kind::Hello, CONTROL, &answer);
        match negotiate(SPOKEN, hello.oldest..=hello.newest) {
            Ok(_) => self.greeted = true,
            Err(error) => self.refuse(CONTROL, (FailureCode::BadRequest, error.to_string())),
        }
        if self.identity.is_some() {
            self.out.message(Kind::Status, CONTROL, &Status::Ready);
        }
        for session in self.sessions.values_mut() {
            session.reconnected(&mut self.out);
        }
        if self.stopping == Stopping::Stopped {
            self.out.message(Kind::Status, CONTROL, &Status::Stopped);
        }
        // What was said to an earlier connection may not have been heard.
        if let (Some(id), Some(outcome)) = (self.main, self.main_outcome)
            && !self.sessions.contains_key(&id)
        {
            self.out.message(Kind::Result, id, &outcome);
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
            generation: 1,
        });
        self.out.message(Kind::Status, CONTROL, &Status::Ready);
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
            (Role::Exec, None) => "there is no workload yet",
            (Role::Exec, Some(_)) if self.main_outcome.is_some() => {
                return Err((FailureCode::WorkloadGone, "the workload is gone".into()));
            }
            _ => return Ok(()),
        };
        Err((FailureCode::BadRequest, refusal.into()))
    }

    fn execute(&mut self, id: u32, request: &Execute, machine: &mut Machine) -> Result<(), Refusal> {
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
        let session = Session::begin(id, request.role, work, said, &mut self.out);
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
        if self.main != Some(id) {
            self.sessions.remove(&id);
        }
    }

    fn stop(&mut self, request: Stop, machine: &Machine) {
        if self.stopping == Stopping::Stopped {
            return;
        }
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
            processes: self.sessions.len() as u32,
        }
    }

    /// Lets every session go on by one frame; tells whether any did.
    pub(crate) fn turn(&mut self, machine: &mut Machine) -> bool {
        let mut worked = false;
        if self.greeted {
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
            if let Some(session) = over.and_then(|id| self.sessions.remove(&id))
                && session.role == Role::Main
            {
                self.main_outcome = session.outcome();
            }
        }
        worked | self.come_to_rest(machine)
    }

    /// Ends a stop: kills what is left when its time is over, and says so once nothing is.
    fn come_to_rest(&mut self, machine: &mut Machine) -> bool {
        let Stopping::Until(deadline) = self.stopping else {
            return false;
        };
        if self.sessions.is_empty() {
            let flushed = machine.devices.blocks.iter_mut().map(|block| block.flush());
            if let Some(error) = flushed.filter_map(Result::err).last() {
                println!("bare-guest: a disk cannot be flushed: {error}");
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

fn read<M: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<M, Refusal> {
    message::decode(payload).map_err(|error| (FailureCode::BadRequest, error.to_string()))
}
