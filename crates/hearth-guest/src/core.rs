//! What the agent knows and decides: takes frames and events, keeps sessions, fills the outbox. [`crate::agent`] moves
//! the bytes and calls it.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use hearth_guest_protocol::message::{
    self, Clock, Configure, CreditGrant, Dial, Execute, Failure, FailureCode, FileRequest, Freeze, Hello,
    LAUNCH_MAX, Launch, Outcome, Renew, Resume, Role, Signal, Status, TerminalSize,
};
use hearth_guest_protocol::{CONTROL, Flags, Frame, GENERATION_RESUME, GENERATIONS, Header, Kind, negotiate};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use serde::de::DeserializeOwned;
use serde_bytes::ByteBuf;

use crate::console::complain;
use crate::dial::{self, Connection};
use crate::environment::{inherited, renewed};
use crate::limit::TimeLimit;
use crate::outbox::Outbox;
use crate::poller::{Part, Poller, Ready, Source};
use crate::session::{Session, Verdict, Work};
use crate::spawn::{Nursery, Place, SpawnError};
use crate::stillness::{Answers, Stillness};
use crate::stop::{DRAIN, Facts, Step, Stop, has_children};
use crate::stream::Sink;
use crate::timer::Timer;
use crate::waiting::Ahead;
use crate::{machine, network, processes, stats, stillness, sys};

/// The most sessions at once: connections to published ports, and processes beside the workload.
const SESSIONS_MAX: usize = 4096;

/// A request that is refused, and why.
type Refusal = (FailureCode, String);

/// The state of the agent.
pub(crate) struct Core {
    /// What waits for the channel.
    pub(crate) out: Outbox,
    uptime: Duration,
    greeted: bool,
    configured: bool,
    nursery: Nursery,
    /// The processes that were made ahead of their launches.
    ahead: Ahead,
    sessions: BTreeMap<u32, Session>,
    /// The beginnings of launches whose last frame has not come, by session; [`LAUNCH_MAX`] bytes in all.
    parts: BTreeMap<u32, Vec<u8>>,
    /// The time limits of launches that have not come, by session.
    limits: BTreeMap<u32, Duration>,
    /// The session that had its turn last.
    turn: u32,
    /// The workload's environment, which processes beside it inherit.
    environment: Vec<ByteBuf>,
    /// The workload's session, once there is one; its outcome, once it has ended.
    main: Option<u32>,
    main_outcome: Option<Outcome>,
    /// Whether the host has yet to say from where on it wants the workload's output.
    held: bool,
    /// Whether the host is to hear how the workload ended, whose session is over, once it has its output.
    untold: bool,
    stop: Stop,
    overdue: bool,
    /// Whether the agent has children that are not reaped.
    children: bool,
    timer: Timer,
    stillness: Stillness,
}

impl Core {
    /// Makes the state of an agent that has just started.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new(uptime: Duration, poller: &Poller) -> Result<Self, Errno> {
        let timer = Timer::new()?;
        poller.add(&timer, Source::Timer)?;
        Ok(Self {
            out: Outbox::new(),
            uptime,
            greeted: false,
            configured: false,
            nursery: Nursery::new()?,
            ahead: Ahead::default(),
            sessions: BTreeMap::new(),
            parts: BTreeMap::new(),
            limits: BTreeMap::new(),
            turn: 0,
            environment: Vec::new(),
            main: None,
            main_outcome: None,
            held: false,
            untold: false,
            stop: Stop::Running,
            overdue: false,
            children: false,
            timer,
            stillness: Stillness::new(poller)?,
        })
    }

    /// Tells whether the machine has come to rest.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop == Stop::Stopped
    }

    /// Tells whether a host has said hello and was answered.
    pub(crate) fn has_greeted(&self) -> bool {
        self.greeted
    }

    /// Takes note that the host is gone; whoever comes next must greet first.
    pub(crate) fn disconnected(&mut self) {
        self.greeted = false;
        self.parts.clear();
        self.limits.clear();
        self.stillness.disconnected();
    }

    /// Takes note that the stream is out of step, which a host that has greeted should hear.
    pub(crate) fn out_of_step(&mut self, error: &dyn std::error::Error) {
        if self.greeted {
            complain!("{error}");
            self.refuse(CONTROL, (FailureCode::BadRequest, error.to_string()));
        }
    }

    /// Takes a frame of the host.
    pub(crate) fn handle(&mut self, frame: &Frame<'_>, poller: &Poller) {
        let session = frame.header.session;
        if !self.greeted && frame.header.kind != Kind::Hello {
            return;
        }
        if let Err(refusal) = self.dispatch(frame, poller) {
            self.refuse(session, refusal);
        }
    }

    fn dispatch(&mut self, frame: &Frame<'_>, poller: &Poller) -> Result<(), Refusal> {
        let (Header { kind, session, flags }, payload) = (frame.header, frame.payload);
        match kind {
            Kind::Hello => self.greet(&read(payload)?),
            Kind::Configure => self.configure(&read(payload)?)?,
            Kind::Execute => {
                let execute: Execute = read(payload)?;
                self.launch(session, execute.into(), poller)?;
            }
            Kind::Part => self.take_part(session, payload)?,
            Kind::TimeLimit => self.take_limit(session, read(payload)?)?,
            Kind::Launch => {
                let mut whole = self.parts.remove(&session).unwrap_or_default();
                whole.extend_from_slice(payload);
                self.launch(session, read(&whole)?, poller)?;
            }
            Kind::File => self.files(session, &read(payload)?, poller)?,
            Kind::Dial => self.dial(session, read(payload)?, poller)?,
            Kind::Datagrams => self.datagrams(session, read(payload)?, poller)?,
            Kind::Stdin => self.broken_off(session, |session, out| session.take(payload, flags, out)),
            Kind::Resume => self.resume(session, read(payload)?),
            Kind::Credit => {
                let grant: CreditGrant = read(payload)?;
                if self.main == Some(session) {
                    self.out.backlog().kept(grant.bytes as usize);
                }
                self.broken_off(session, |session, _| session.granted(grant.bytes));
            }
            Kind::Resize => {
                let size: TerminalSize = read(payload)?;
                self.sessions
                    .entry(session)
                    .and_modify(|session| session.resize(size));
            }
            Kind::Signal => self.signal(session, read(payload)?)?,
            Kind::Close => self.close(session, flags),
            Kind::Detach => self.detach(session),
            Kind::Stop => self.stop(read(payload)?),
            Kind::Ping => self.out.bytes(Header::new(Kind::Pong, session), payload),
            Kind::Stats => self.out.message(Kind::Stats, session, &stats::read()),
            Kind::Processes => self.out.message(Kind::Processes, session, &processes::read()),
            Kind::Clock => {
                let clock: Clock = read(payload)?;
                machine::set_clock(clock.unix_ns)
                    .map_err(|error| (FailureCode::System, format!("cannot set the clock: {error}")))?;
            }
            Kind::Freeze => self.freeze(read(payload)?)?,
            Kind::Thaw => {
                let was_frozen = self.thaw();
                self.out
                    .message(Kind::Status, CONTROL, &Status::Thawed { was_frozen });
            }
            Kind::Renew => self.renew(&read(payload)?)?,
            Kind::HardwareAddress => network::set_hardware_address(read(payload)?),
            Kind::Output | Kind::Result | Kind::Status | Kind::Error | Kind::Pong => {
                return Err((
                    FailureCode::BadRequest,
                    format!("a guest takes no {kind:?} frames"),
                ));
            }
        }
        Ok(())
    }

    /// Lets the machine stand still; the answer follows when it does.
    fn freeze(&mut self, request: Freeze) -> Result<(), Refusal> {
        if !self.configured || !self.stop.is_running() {
            let message = "a machine that is starting or stopping cannot stand still".to_owned();
            return Err((FailureCode::BadRequest, message));
        }
        if self.stillness.freeze(request)? {
            self.out.message(Kind::Status, CONTROL, &Status::Frozen);
        }
        self.children = true;
        Ok(())
    }

    /// Makes this another machine: one that stands still, or that has no workload yet, so that nobody sees it change.
    fn renew(&mut self, request: &Renew) -> Result<(), Refusal> {
        let is_new = self.configured && self.main.is_none() && self.stop.is_running();
        if is_new && self.stillness.is_moving() {
            stillness::become_machine(request, None)?;
        } else {
            let workload = self.main.and_then(|main| self.sessions.get(&main)?.pidfd());
            self.stillness.renew(request, workload)?;
            self.environment = renewed(&self.environment, &request.environment);
        }
        self.out.message(Kind::Status, CONTROL, &Status::Renewed);
        Ok(())
    }

    /// Lets the machine go on; tells whether it stood still until now.
    fn thaw(&mut self) -> bool {
        let thawed = self.stillness.thaw();
        self.tell_frozen(&thawed.answers);
        thawed.was_frozen
    }

    /// Tells those who asked whether the machine stands still.
    fn tell_frozen(&mut self, answers: &Answers) {
        for _ in 0..answers.count {
            match &answers.said {
                Ok(()) => self.out.message(Kind::Status, CONTROL, &Status::Frozen),
                Err(refusal) => self.refuse(CONTROL, refusal.clone()),
            }
        }
    }

    /// Takes note that the machine has stood still for as long as it may.
    pub(crate) fn stood_still(&mut self) {
        self.stillness.expired();
    }

    fn refuse(&mut self, session: u32, (code, message): Refusal) {
        self.out.message(Kind::Error, session, &Failure { code, message });
    }

    /// Answers the host's greeting, and tells it what there is: a host that was restarted knows nothing.
    fn greet(&mut self, hello: &Hello) {
        self.stillness.disconnected();
        let common = negotiate(GENERATIONS, hello.oldest..=hello.newest);
        let resuming = self
            .main
            .filter(|_| common.as_ref().is_ok_and(|&it| it >= GENERATION_RESUME));
        let kept = self.out.restart(resuming);
        let behind = self.out.len();
        let answer = Hello {
            oldest: *GENERATIONS.start(),
            newest: *GENERATIONS.end(),
            nonce: hello.nonce,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_ns: u64::try_from(self.uptime.as_nanos()).unwrap_or(u64::MAX),
        };
        self.out.message(Kind::Hello, CONTROL, &answer);
        match common {
            Ok(_) => self.greeted = true,
            Err(error) => self.refuse(CONTROL, (FailureCode::BadRequest, error.to_string())),
        }
        if self.configured {
            self.out.message(Kind::Status, CONTROL, &Status::Ready);
        }
        for (id, session) in &mut self.sessions {
            session.reconnected(kept.data.get(id).copied().unwrap_or(0), &mut self.out);
        }
        if self.is_stopped() {
            self.out.message(Kind::Status, CONTROL, &Status::Stopped);
        }
        self.out.bring_forward(behind);
        (self.held, self.untold) = (resuming.is_some(), false);
        // What was said to an earlier connection may not have been heard.
        if let (Some(id), Some(outcome)) = (self.main, self.main_outcome)
            && !self.sessions.contains_key(&id)
            && !kept.ended.contains(&id)
        {
            if self.held {
                self.out.message(Kind::Status, id, &Status::Opened);
            } else {
                self.out.message(Kind::Result, id, &outcome);
            }
        }
    }

    /// Sends the workload's output again from where on the host wants it, and then how it ended, if it has.
    fn resume(&mut self, id: u32, request: Resume) {
        if self.main != Some(id) || !self.held {
            return;
        }
        let waiting = self.out.backlog().resume(request.received);
        match self.sessions.get_mut(&id) {
            Some(session) => session.resumed(waiting),
            None => self.untold = self.main_outcome.is_some(),
        }
        self.held = false;
    }

    fn configure(&mut self, request: &Configure) -> Result<(), Refusal> {
        if self.configured {
            return Err((FailureCode::BadRequest, "the guest is configured already".into()));
        }
        machine::configure(request).map_err(|error| (error.code(), error.to_string()))?;
        self.configured = true;
        self.ahead = Ahead::make(&self.nursery);
        self.children = true;
        self.out.message(Kind::Status, CONTROL, &Status::Ready);
        Ok(())
    }

    /// Makes sure that a new session may be opened under this number.
    fn admit(&mut self, id: u32) -> Result<(), Refusal> {
        let refusal = match () {
            () if id == CONTROL => "session 0 is no session",
            () if !self.configured => "the guest is not configured",
            () if !self.stop.is_running() => "the machine is stopping",
            () if self.sessions.len() >= SESSIONS_MAX => "there are too many sessions",
            () => return Ok(()),
        };
        Err((FailureCode::BadRequest, refusal.into()))
    }

    /// Tells whether a number is in use; the host hears of it on the control session, as an error on the session itself
    /// would end the one that uses it.
    fn is_taken(&mut self, id: u32) -> bool {
        let taken = self.sessions.contains_key(&id);
        if taken {
            self.refuse(
                CONTROL,
                (FailureCode::BadRequest, format!("session {id} is in use")),
            );
        }
        taken
    }

    /// Keeps the beginning of a launch. Of one that is too long nothing is kept, so that its end makes no sense.
    fn take_part(&mut self, id: u32, bytes: &[u8]) -> Result<(), Refusal> {
        let kept: usize = self.parts.values().map(Vec::len).sum();
        if kept + bytes.len() > LAUNCH_MAX {
            self.parts.remove(&id);
            return Err((
                FailureCode::BadRequest,
                format!("more than {LAUNCH_MAX} bytes of arguments and environment"),
            ));
        }
        self.parts.entry(id).or_default().extend_from_slice(bytes);
        Ok(())
    }

    /// Keeps the time limit of a launch that follows.
    fn take_limit(&mut self, id: u32, limit: message::TimeLimit) -> Result<(), Refusal> {
        if self.limits.len() >= SESSIONS_MAX {
            let message = "there are too many sessions".to_owned();
            return Err((FailureCode::BadRequest, message));
        }
        let after = Duration::from_millis(u64::from(limit.after_ms));
        self.limits.insert(id, after);
        Ok(())
    }

    fn launch(&mut self, id: u32, mut request: Launch, poller: &Poller) -> Result<(), Refusal> {
        let limit = self.limits.remove(&id);
        if self.is_taken(id) {
            return Ok(());
        }
        self.admit(id)?;
        let limit = limit.map(|after| TimeLimit::new(id, after)).transpose();
        let limit = limit.map_err(|errno| {
            (
                FailureCode::System,
                format!("cannot limit the session's time: {errno}"),
            )
        })?;
        let made_ahead = match (&limit, self.main) {
            (None, None) => self.ahead.launch(&request),
            // With a limit it needs a cgroup of its own.
            _ => None,
        };
        let role = request.execute.role;
        let (work, place) = match (role, self.main) {
            (Role::Main, None) => (Work::Main, Place::New),
            (Role::Rehearsal, None) => (Work::Exec, Place::New),
            (Role::Main | Role::Rehearsal, Some(_)) => {
                return Err((
                    FailureCode::BadRequest,
                    "there has been a workload already".into(),
                ));
            }
            (Role::Exec, None) => return Err((FailureCode::BadRequest, "there is no workload yet".into())),
            (Role::Exec, Some(main)) => (Work::Exec, Place::Beside(self.workload(main)?)),
        };
        let execute = &mut request.execute;
        if matches!(work, Work::Exec) {
            execute.environment = inherited(&self.environment, &execute.environment);
        }
        let awaits_terminal = execute.stdin && execute.terminal.is_some();
        let spawned = match made_ahead {
            Some(spawned) => spawned,
            None => {
                let spawned = self.nursery.launch(&request, place, limit.as_ref());
                spawned.map_err(refusal)?
            }
        };
        self.children = true;
        if matches!(work, Work::Main) {
            self.main = Some(id);
            self.out.keep(id);
            self.environment = request.execute.environment;
        }
        let input = match awaits_terminal {
            true => Sink::Awaited,
            false => Sink::Closed,
        };
        let session = Session::of_process(id, work, spawned, input, poller);
        self.keep(id, session.and_then(|session| session.limited(limit, poller)))
    }

    /// Returns a handle to the workload, which must run its program by now.
    fn workload(&self, main: u32) -> Result<std::os::fd::BorrowedFd<'_>, Refusal> {
        let session = self.sessions.get(&main);
        let running = session.and_then(|session| Some((session.is_started(), session.pidfd()?)));
        match running {
            Some((true, pidfd)) => Ok(pidfd),
            Some((false, _)) => Err((FailureCode::BadRequest, "the workload is not started yet".into())),
            None => Err(refusal(SpawnError::WorkloadGone)),
        }
    }

    fn files(&mut self, id: u32, request: &FileRequest, poller: &Poller) -> Result<(), Refusal> {
        if self.is_taken(id) {
            return Ok(());
        }
        self.admit(id)?;
        // Before the workload runs and after it is gone its root is there all the same.
        let workload = self.main.and_then(|main| self.workload(main).ok());
        let spawned = self.nursery.files(request, workload).map_err(refusal)?;
        self.children = true;
        self.keep(
            id,
            Session::of_process(id, Work::Files, spawned, Sink::Closed, poller),
        )
    }

    fn dial(&mut self, id: u32, request: Dial, poller: &Poller) -> Result<(), Refusal> {
        if self.is_taken(id) {
            return Ok(());
        }
        self.admit(id)?;
        let connection = Connection::start(request.port).map_err(|errno| {
            (
                FailureCode::System,
                format!("cannot connect to port {}: {errno}", request.port),
            )
        })?;
        self.keep(id, Session::of_connection(id, connection, poller))
    }

    fn datagrams(&mut self, id: u32, request: Dial, poller: &Poller) -> Result<(), Refusal> {
        if self.is_taken(id) {
            return Ok(());
        }
        self.admit(id)?;
        let socket = dial::datagrams(request.port).map_err(|errno| {
            let message = format!("cannot talk to UDP port {}: {errno}", request.port);
            (FailureCode::System, message)
        })?;
        let session = Session::of_datagrams(id, socket, poller, &mut self.out);
        self.keep(id, session)
    }

    fn keep(&mut self, id: u32, session: Result<Session, Errno>) -> Result<(), Refusal> {
        let session =
            session.map_err(|errno| (FailureCode::System, format!("cannot watch the session: {errno}")))?;
        self.sessions.insert(id, session);
        Ok(())
    }

    /// Does something in which the host can break flow control; a session in which it did is ended.
    fn broken_off<E: std::error::Error>(
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
            self.abandon(id);
        }
    }

    fn signal(&mut self, id: u32, signal: Signal) -> Result<(), Refusal> {
        if !(1..=64).contains(&signal.number) {
            return Err((
                FailureCode::BadRequest,
                format!("there is no signal {}", signal.number),
            ));
        }
        if let Some(pid) = self.sessions.get(&id).and_then(Session::pid) {
            sys::kill(pid, signal.number);
        }
        Ok(())
    }

    /// Lets what runs in a session go on without an audience.
    fn detach(&mut self, id: u32) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.let_go();
        }
    }

    /// Ends a session that the host has lost interest in; from the workload it has merely looked away.
    fn close(&mut self, id: u32, flags: Flags) {
        self.parts.remove(&id);
        self.limits.remove(&id);
        if self.main != Some(id) {
            if let Some(session) = self.sessions.get(&id).filter(|_| !flags.has(Flags::END)) {
                session.reset();
            }
            self.abandon(id);
        }
    }

    /// Forgets a session and kills what runs in it: the group, which a process leads since its start.
    fn abandon(&mut self, id: u32) {
        if let Some(session) = self.sessions.remove(&id)
            && let Some(pid) = session.pid()
        {
            sys::kill(pid, libc::SIGKILL as u8);
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }

    /// Takes an event of a session.
    pub(crate) fn wake(&mut self, id: u32, part: Part, ready: Ready, poller: &Poller) {
        if let Some(session) = self.sessions.get_mut(&id)
            && let Verdict::Over = session.wake(part, ready, poller, &mut self.out)
        {
            self.over(id);
        }
    }

    /// Forgets a session that has said its last.
    fn over(&mut self, id: u32) {
        if let Some(session) = self.sessions.remove(&id)
            && self.main == Some(id)
            && !session.is_started()
        {
            // A workload that could not be started was none: the host may try again.
            self.main = None;
        }
    }

    /// Reaps children that ended.
    pub(crate) fn reap(&mut self, poller: &Poller) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.ended(pid, status, poller),
                Ok(None) => break,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.children = false;
                    break;
                }
            }
        }
        self.advance();
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus, poller: &Poller) {
        let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
        if let Some(answers) = self.stillness.ended(pid, code) {
            return self.tell_frozen(&answers);
        }
        let mut sessions = self.sessions.iter_mut();
        // A child of a session that was closed, or an orphan of the agent's own.
        let Some((&id, session)) = sessions.find(|(_, session)| session.pid() == Some(pid)) else {
            return;
        };
        let outcome = outcome(status);
        if self.main == Some(id) {
            self.main_outcome = Some(outcome);
        }
        if let Verdict::Over = session.ended(outcome, poller, &mut self.out) {
            self.over(id);
        }
    }

    /// Tells whether a session has something to say that may be sent now.
    pub(crate) fn is_ready(&self) -> bool {
        let behind = self.untold || self.out.is_behind();
        (behind && !self.held)
            || self
                .sessions
                .iter()
                .any(|(&id, session)| self.may_speak(id, session))
    }

    /// Tells whether a session has something to say, and its turn may come.
    fn may_speak(&self, id: u32, session: &Session) -> bool {
        session.is_ready() && !(self.held && self.main == Some(id))
    }

    /// Moves what the next session has to say into the outbox; false when none has anything that may be sent.
    pub(crate) fn pull(&mut self) -> bool {
        if !self.held && self.catch_up() {
            return true;
        }
        let behind = self.sessions.range((Excluded(self.turn), Unbounded));
        let mut in_turn = behind.chain(self.sessions.range(..=self.turn));
        let Some((&id, _)) = in_turn.find(|&(&id, session)| self.may_speak(id, session)) else {
            return false;
        };
        self.turn = id;
        if let Some(session) = self.sessions.get_mut(&id)
            && let Verdict::Over = session.pull(&mut self.out)
        {
            self.over(id);
        }
        true
    }

    /// Tells whether a session has something to say that nobody wants to hear.
    pub(crate) fn is_discarding(&self) -> bool {
        self.sessions.values().any(Session::is_discarding)
    }

    /// Drops what such sessions say, whether or not the host reads: a bounded piece of each.
    pub(crate) fn discard(&mut self) {
        let talkative = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_discarding());
        let ids: Vec<u32> = talkative.map(|(&id, _)| id).collect();
        for id in ids {
            if let Some(session) = self.sessions.get_mut(&id)
                && let Verdict::Over = session.pull(&mut self.out)
            {
                self.over(id);
            }
        }
    }

    /// Moves into the outbox what a host that resumes must hear before anything new; false when there is nothing.
    fn catch_up(&mut self) -> bool {
        if self.out.send_again() {
            return true;
        }
        let outcome = self.main.zip(self.main_outcome);
        match outcome.filter(|_| std::mem::take(&mut self.untold)) {
            Some((id, outcome)) => self.out.message(Kind::Result, id, &outcome),
            None => return false,
        }
        true
    }

    fn stop(&mut self, request: message::Stop) {
        let workload = self.main.and_then(|main| self.sessions.get(&main)?.pid());
        // Who stands still hears no signal, and its disk does not come to rest.
        self.thaw();
        if self.is_stopped() {
            // Asked by a host that came after the answer.
            return self.out.message(Kind::Status, CONTROL, &Status::Stopped);
        }
        if !self.stop.is_running() {
            // Asked again: a host in a hurry.
            self.overdue |= self.stop == Stop::Asked && request.signal == 0;
            return self.advance();
        }
        self.stop = Stop::Asked;
        match workload {
            Some(pid) if (1..=64).contains(&request.signal) => {
                sys::kill(pid, request.signal);
                self.timer.set(Duration::from_millis(u64::from(request.grace_ms)));
            }
            _ => self.overdue = true,
        }
        self.advance();
    }

    /// Takes note that the deadline of a stop has passed.
    pub(crate) fn expired(&mut self) {
        if self.timer.take_end() {
            self.overdue = true;
            self.advance();
        }
    }

    /// Goes on with a stop as far as it can.
    pub(crate) fn advance(&mut self) {
        if self.stop.is_running() || self.is_stopped() {
            return;
        }
        loop {
            let mut processes = self
                .sessions
                .values()
                .filter(|session| !matches!(session.work(), Work::Dial(_) | Work::Datagrams));
            let facts = Facts {
                workload: self
                    .main
                    .is_some_and(|main| self.sessions.get(&main).and_then(Session::pid).is_some()),
                children: self.children,
                sessions: processes.next().is_some(),
                overdue: self.overdue,
            };
            match self.stop.step(facts) {
                Step::Wait => return,
                Step::Kill => self.kill_all(),
                Step::Rest => self.rest(),
                Step::Drain => {
                    self.overdue = false;
                    self.timer.set(DRAIN);
                }
                Step::Tell => self.out.message(Kind::Status, CONTROL, &Status::Stopped),
            }
            self.children = has_children();
        }
    }

    /// Kills every process there is: the workload takes along all of its namespace.
    fn kill_all(&mut self) {
        self.ahead = Ahead::default();
        for pid in self.sessions.values().filter_map(Session::pid) {
            sys::kill(pid, libc::SIGKILL as u8);
        }
    }

    fn rest(&mut self) {
        if self.sessions.is_empty() {
            // Nobody waits for the agent meanwhile, and to make a process takes longer than to bring a clean disk to rest.
            machine::rest();
        } else {
            machine::rest_aside();
        }
    }
}

fn refusal(error: SpawnError) -> Refusal {
    (error.code(), error.to_string())
}

fn read<M: DeserializeOwned>(payload: &[u8]) -> Result<M, Refusal> {
    message::decode(payload).map_err(|error| (FailureCode::BadRequest, error.to_string()))
}

fn outcome(status: WaitStatus) -> Outcome {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Outcome::Exited(code as u8),
        (None, signal) => Outcome::Signaled(signal.unwrap_or(0) as u8),
    }
}
