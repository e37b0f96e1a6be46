//! One session: a process, a file operation or a connection, with its streams and its flow control in both directions.
//! [`crate::core`] owns all of them and is the only caller.
//!
//! ```text
//! Starting --report--> Running --process ended--> Draining --outputs ended--> over: RESULT
//!     `----failure-----------`--------------------------------------------> over: ERROR
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use hearth_guest_protocol::credit::WindowExceeded;
use hearth_guest_protocol::datagram::{DATAGRAM_MAX, PREFIX_LEN};
use hearth_guest_protocol::message::{CreditGrant, Failure, FailureCode, Outcome, Status, TerminalSize};
use hearth_guest_protocol::{Credit, Flags, Header, Kind, Window};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;

use crate::dial::{Connection, Progress};
use crate::limit::TimeLimit;
use crate::outbox::Outbox;
use crate::poller::{Part, Poller, Ready, Source};
use crate::report::{self, Received, Report};
use crate::spawn::Spawned;
use crate::stream::{Input, Output, Pulled, Sink};
use crate::sys::{self, Forked};
use crate::terminal;

/// What a session is about.
#[derive(Debug)]
pub(crate) enum Work {
    /// The workload.
    Main,
    /// A process beside it.
    Exec,
    /// A file operation.
    Files,
    /// A connection.
    Dial(Connection),
    /// A client of a UDP port.
    Datagrams,
}

/// What remains to be done with a session after it had something to do.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It goes on.
    Open,
    /// It is over; its last frame is in the outbox.
    Over,
}

/// Whether anybody on the host wants to hear of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The host does.
    Host,
    /// Nobody: what it says is dropped.
    Nobody,
}

/// One session.
pub(crate) struct Session {
    id: u32,
    work: Work,
    audience: Audience,
    process: Option<Forked>,
    pid: Option<Pid>,
    report: Option<OwnedFd>,
    started: bool,
    outcome: Option<Outcome>,
    terminal: Option<Rc<OwnedFd>>,
    /// A size that came before the terminal was there.
    size: Option<TerminalSize>,
    input: Input,
    /// Standard output, or that of a terminal or connection; and standard error; whose turn it is comes first.
    outputs: [Option<Output>; 2],
    credit: Credit,
    window: Window,
    /// Input that an earlier connection has paid for: it is held beyond the window, and not granted anew.
    carried: usize,
    limit: Option<TimeLimit>,
}

impl Session {
    /// Takes charge of a new process and has its descriptors watched.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn of_process(
        id: u32,
        work: Work,
        spawned: Spawned,
        input: Sink,
        poller: &Poller,
    ) -> Result<Self, Errno> {
        let Spawned {
            process,
            report,
            pipes,
        } = spawned;
        poller.add(&report, Source::Session(id, Part::Report))?;
        let sink = match pipes.input {
            Some(fd) => {
                poller.add(&fd, Source::Session(id, Part::Input))?;
                Sink::Pipe(Rc::new(fd))
            }
            None => input,
        };
        let open = |fd: Option<OwnedFd>, part, flags| -> Result<Option<Output>, Errno> {
            let Some(fd) = fd else { return Ok(None) };
            poller.add(&fd, Source::Session(id, part))?;
            Ok(Some(Output::new(Rc::new(fd), flags)))
        };
        let output = open(pipes.output, Part::Output, Flags::NONE)?;
        let error = open(pipes.error, Part::Error, Flags::STDERR)?;
        let mut session = Self::new(id, work, Input::new(sink));
        session.pid = Some(process.pid);
        session.process = Some(process);
        session.report = Some(report);
        session.outputs = [output, error];
        Ok(session)
    }

    /// Takes charge of a connection that is being made.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn of_connection(id: u32, connection: Connection, poller: &Poller) -> Result<Self, Errno> {
        poller.add(connection.socket(), Source::Session(id, Part::Both))?;
        Ok(Self::new(id, Work::Dial(connection), Input::new(Sink::Awaited)))
    }

    /// Takes charge of a socket that talks to a UDP port.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn of_datagrams(
        id: u32,
        socket: OwnedFd,
        poller: &Poller,
        out: &mut Outbox,
    ) -> Result<Self, Errno> {
        poller.add(&socket, Source::Session(id, Part::Both))?;
        let socket = Rc::new(socket);
        let input = Input::new(Sink::Datagrams(socket.clone()));
        let mut session = Self::new(id, Work::Datagrams, input);
        session.outputs[0] = Some(Output::datagrams(socket));
        session.start(out);
        Ok(session)
    }

    fn new(id: u32, work: Work, input: Input) -> Self {
        Self {
            id,
            work,
            audience: Audience::Host,
            process: None,
            pid: None,
            report: None,
            started: false,
            outcome: None,
            terminal: None,
            size: None,
            input,
            outputs: [None, None],
            credit: Credit::default(),
            window: Window::default(),
            carried: 0,
            limit: None,
        }
    }

    /// Ends its process, and all that this has made, once it has run for so long.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn limited(mut self, limit: Option<TimeLimit>, poller: &Poller) -> Result<Self, Errno> {
        if let Some(limit) = &limit {
            poller.add(limit.timer(), Source::Session(self.id, Part::Limit))?;
        }
        self.limit = limit;
        Ok(self)
    }

    fn expire(&mut self) {
        if let Some(limit) = &mut self.limit
            && limit.expire()
            && let Some(process) = &self.process
        {
            // What is left where it has no cgroup of its own.
            sys::kill(process.pid, libc::SIGKILL as u8);
            let _ = kill_process_group(process.pid, Signal::KILL);
        }
    }

    /// Has a connection be reset when it is dropped: its client did not finish.
    pub(crate) fn reset(&self) {
        if let Work::Dial(connection) = &self.work {
            connection.reset();
        }
    }

    /// Returns what it is about.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// Returns its process's id as long as the process is not reaped.
    pub(crate) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| process.pid)
    }

    /// Returns a handle to its process as long as the process is not reaped.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(|process| process.pidfd.as_fd())
    }

    /// Tells whether its process runs its program.
    pub(crate) fn is_started(&self) -> bool {
        self.started
    }

    /// Lets what runs in it go on without an audience; its input ends.
    pub(crate) fn let_go(&mut self) {
        self.audience = Audience::Nobody;
        self.input.close();
        self.outputs.iter_mut().flatten().for_each(Output::wake);
    }

    /// Tells whether it has something to drop.
    pub(crate) fn is_discarding(&self) -> bool {
        self.audience == Audience::Nobody && self.is_talkative()
    }

    /// Takes bytes of the host.
    ///
    /// # Errors
    /// Returns [`WindowExceeded`] when the host sent more than it was granted.
    pub(crate) fn take(
        &mut self,
        bytes: &[u8],
        flags: Flags,
        out: &mut Outbox,
    ) -> Result<(), WindowExceeded> {
        self.window.receive(bytes.len())?;
        let consumed = self.input.push(bytes);
        self.consumed(consumed, out);
        if flags.has(Flags::END) {
            self.input.end();
        }
        Ok(())
    }

    /// Takes a grant of the host.
    ///
    /// # Errors
    /// Returns [`WindowExceeded`] when the host granted more than it was sent.
    pub(crate) fn granted(&mut self, bytes: u32) -> Result<(), WindowExceeded> {
        self.credit.grant(bytes)
    }

    /// Takes note that `waiting` bytes of its output go again to a host that resumes it.
    pub(crate) fn resumed(&mut self, waiting: usize) {
        self.credit = Credit::default();
        self.credit.spend(waiting);
    }

    /// Sets the size of its terminal, now or when it is there.
    pub(crate) fn resize(&mut self, size: TerminalSize) {
        match &self.terminal {
            Some(terminal) => terminal::resize(terminal, size),
            None => self.size = Some(size),
        }
    }

    /// Takes note that a new connection begins, for which `kept` bytes of output already wait: both windows are full
    /// again. Input that a session could not get rid of over two connections is given up.
    pub(crate) fn reconnected(&mut self, kept: usize, out: &mut Outbox) {
        (self.credit, self.window) = (Credit::default(), Window::default());
        self.credit.spend(kept);
        if self.carried > 0 {
            self.input.close();
        }
        self.carried = self.input.held();
        if self.started {
            self.announce(out);
        }
    }

    /// Takes note of an event.
    pub(crate) fn wake(&mut self, part: Part, ready: Ready, poller: &Poller, out: &mut Outbox) -> Verdict {
        match part {
            Part::Report => return self.hear(poller, out),
            Part::Both if !self.started => return self.connect(poller, out),
            Part::Limit => self.expire(),
            Part::Input => {}
            // Both: which is which changes with every turn, and a read that gives nothing is cheap.
            Part::Output | Part::Error | Part::Both if ready.read => {
                self.outputs.iter_mut().flatten().for_each(Output::wake);
            }
            Part::Output | Part::Error | Part::Both => {}
        }
        if ready.write && matches!(part, Part::Input | Part::Both) {
            let consumed = self.input.resume();
            self.consumed(consumed, out);
        }
        Verdict::Open
    }

    /// Takes note that its process has been reaped.
    pub(crate) fn ended(&mut self, outcome: Outcome, poller: &Poller, out: &mut Outbox) -> Verdict {
        self.process = None;
        let timed_out = self.limit.as_ref().is_some_and(TimeLimit::is_over);
        self.outcome = Some(if timed_out { Outcome::TimedOut } else { outcome });
        if let Verdict::Over = self.hear(poller, out) {
            return Verdict::Over;
        }
        let dropped = self.input.close();
        self.consumed(dropped, out);
        self.outputs.iter_mut().flatten().for_each(Output::process_ended);
        Verdict::Open
    }

    /// Tells whether it has something for the host that may be sent now.
    pub(crate) fn is_ready(&self) -> bool {
        self.audience == Audience::Host && self.is_talkative()
    }

    /// Returns how many bytes may be taken from its outputs at once.
    fn room(&self) -> usize {
        const DATAGRAM: usize = PREFIX_LEN + DATAGRAM_MAX;
        let credit = self.credit.available();
        match (self.audience, &self.work) {
            // It comes whole, however long it is, or stays where it is, and what finds no place there is lost.
            (Audience::Host, Work::Datagrams) if credit < DATAGRAM => 0,
            (_, Work::Datagrams) => DATAGRAM,
            (Audience::Host, _) => Outbox::DATA_MAX.min(credit),
            (Audience::Nobody, _) => Outbox::DATA_MAX,
        }
    }

    fn is_talkative(&self) -> bool {
        let may_send = self.room() > 0;
        let readable = self
            .outputs
            .iter()
            .flatten()
            .any(|output| output.is_readable() && may_send);
        self.started && (readable || self.is_over())
    }

    /// Moves one frame's worth into the outbox, or drops it where nobody listens.
    pub(crate) fn pull(&mut self, out: &mut Outbox) -> Verdict {
        let length = self.room();
        for index in 0..self.outputs.len() {
            let Some(output) = self.outputs[index].as_mut().filter(|output| output.is_readable()) else {
                continue;
            };
            if length == 0 {
                break;
            }
            let header = Header::marked(Kind::Output, self.id, output.flags());
            match output.pull(out.space(length)) {
                Pulled::Bytes(count) => {
                    if self.audience == Audience::Host {
                        out.commit(header, count);
                        self.credit.spend(count);
                    }
                    // The other stream's turn comes first next time, so that none waits for the other's end.
                    self.outputs.swap(0, 1);
                    return Verdict::Open;
                }
                Pulled::Nothing => {}
                Pulled::End => self.close_output(index, out),
                Pulled::Broken(errno) => return self.broken(errno, out),
            }
        }
        if self.is_over() {
            self.finish(out)
        } else {
            Verdict::Open
        }
    }

    /// Tells whether everything there is to say has been said, but for the result.
    fn is_over(&self) -> bool {
        let ended = match self.work {
            Work::Dial(_) | Work::Datagrams => self.input.is_closed(),
            _ => self.outcome.is_some(),
        };
        ended && self.outputs.iter().all(Option::is_none)
    }

    fn finish(&mut self, out: &mut Outbox) -> Verdict {
        self.tell(Kind::Result, &self.outcome.unwrap_or(Outcome::Exited(0)), out);
        Verdict::Over
    }

    fn close_output(&mut self, index: usize, out: &mut Outbox) {
        if let Some(output) = self.outputs[index].take()
            && self.audience == Audience::Host
        {
            let flags = output.flags().with(Flags::END);
            out.bytes(Header::marked(Kind::Output, self.id, flags), b"");
        }
    }

    fn broken(&mut self, errno: Errno, out: &mut Outbox) -> Verdict {
        let what = match &self.work {
            Work::Dial(connection) => format!("the connection to port {} broke: {errno}", connection.port()),
            _ => format!("cannot read the output of the process: {errno}"),
        };
        self.fail(FailureCode::System, what, out)
    }

    fn fail(&self, code: FailureCode, message: String, out: &mut Outbox) -> Verdict {
        self.tell(Kind::Error, &Failure { code, message }, out);
        Verdict::Over
    }

    fn tell(&self, kind: Kind, message: &impl Serialize, out: &mut Outbox) {
        if self.audience == Audience::Host {
            out.message(kind, self.id, message);
        }
    }

    fn consumed(&mut self, bytes: usize, out: &mut Outbox) {
        let carried = bytes.min(self.carried);
        self.carried -= carried;
        if let Some(bytes) = self.window.consume(bytes - carried) {
            self.tell(Kind::Credit, &CreditGrant { bytes }, out);
        }
    }

    /// Takes what its process says before it executes its program.
    fn hear(&mut self, poller: &Poller, out: &mut Outbox) -> Verdict {
        while let Some(socket) = &self.report {
            match report::receive(socket) {
                Received::Nothing => return Verdict::Open,
                Received::Report(Report::Failed(failure), _) => {
                    return self.fail(failure.code, failure.message, out);
                }
                Received::Report(Report::Terminal, Some(master)) => {
                    if let Err(errno) = self.attach(master, poller, out) {
                        return self.fail(
                            FailureCode::System,
                            format!("cannot watch the terminal: {errno}"),
                            out,
                        );
                    }
                }
                Received::Report(Report::Opened, _) => self.start(out),
                // The latter was waited for when the process was made.
                Received::Report(Report::Terminal, None) | Received::Report(Report::Waiting, _) => {}
                Received::End => {
                    self.report = None;
                    if !self.started && !matches!(self.work, Work::Files) {
                        self.start(out);
                    }
                }
            }
        }
        Verdict::Open
    }

    fn start(&mut self, out: &mut Outbox) {
        self.started = true;
        if let Some(limit) = &self.limit {
            limit.begin();
        }
        self.announce(out);
    }

    fn announce(&self, out: &mut Outbox) {
        let status = match (&self.work, self.pid) {
            (Work::Main | Work::Exec, Some(pid)) => Status::Started {
                pid: pid.as_raw_nonzero().get().unsigned_abs(),
            },
            _ => Status::Opened,
        };
        self.tell(Kind::Status, &status, out);
    }

    fn attach(&mut self, master: OwnedFd, poller: &Poller, out: &mut Outbox) -> Result<(), Errno> {
        poller.add(&master, Source::Session(self.id, Part::Both))?;
        let master = Rc::new(master);
        if let Some(size) = self.size.take() {
            terminal::resize(&master, size);
        }
        self.outputs[0] = Some(Output::new(master.clone(), Flags::NONE));
        self.terminal = Some(master.clone());
        if !self.input.is_closed() {
            let consumed = self.input.open(Sink::Terminal(master));
            self.consumed(consumed, out);
        }
        Ok(())
    }

    /// Sees how far its connection is.
    fn connect(&mut self, poller: &Poller, out: &mut Outbox) -> Verdict {
        let Work::Dial(connection) = &mut self.work else {
            return Verdict::Open;
        };
        let socket = |connection: &Connection| connection.socket().clone();
        match connection.progress() {
            Progress::Underway => Verdict::Open,
            Progress::Connected => {
                let socket = socket(connection);
                self.outputs[0] = Some(Output::new(socket.clone(), Flags::NONE));
                self.start(out);
                let consumed = self.input.open(Sink::Connection(socket));
                self.consumed(consumed, out);
                Verdict::Open
            }
            Progress::Retrying => match poller.add(connection.socket(), Source::Session(self.id, Part::Both))
            {
                Ok(()) => Verdict::Open,
                Err(errno) => self.broken(errno, out),
            },
            Progress::Failed(errno) => {
                let code = match errno {
                    Errno::CONNREFUSED => FailureCode::ConnectionRefused,
                    _ => FailureCode::System,
                };
                let port = connection.port();
                self.fail(
                    code,
                    format!("cannot connect to port {port} in the guest: {errno}"),
                    out,
                )
            }
        }
    }
}
