//! One session: a command that was executed, its input and its output.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use hearth_guest_protocol::credit::WindowExceeded;
use hearth_guest_protocol::message::{CreditGrant, Outcome, Role, Status};
use hearth_guest_protocol::{Credit, Flags, Header, Kind, Window};

use crate::memory::pattern;
use crate::outbox::{Outbox, Waiting};

/// Signals, as in signal(7).
const SIGKILL: u8 = 9;

/// The most output that one frame carries.
const DATA_MAX: usize = 32 * 1024;

/// What a session does.
#[derive(Debug)]
pub(crate) enum Work {
    /// Nothing any more, but for the output that is left.
    Done(Outcome),
    /// Nothing, until a signal ends it.
    Wait(Manners),
    /// Sends its input back, until that ends.
    Echo,
    /// Sends a pattern: so many words more, the next one being this.
    Produce {
        /// Words that are left.
        left: u64,
        /// The number of the next.
        next: u64,
    },
}

/// Which signals end a command that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manners {
    /// All.
    Obedient,
    /// SIGKILL only.
    Stubborn,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Workload, or a command beside it.
    pub(crate) role: Role,
    id: u32,
    work: Work,
    output: Waiting,
    error: Waiting,
    credit: Credit,
    window: Window,
    /// What was executed, for people.
    pub(crate) command: Vec<u8>,
    /// When its time is over, after the start.
    pub(crate) deadline: Option<Duration>,
    /// Whether the host has heard the last of it on this connection.
    told: bool,
    /// Whether nobody listens any more: what it says is dropped.
    unheard: bool,
    sent: Sent,
}

/// Output of the workload that was sent and that no host keeps yet.
#[derive(Debug, Default)]
struct Sent {
    /// Whether the host has yet to say from where on it wants it.
    held: bool,
    /// The number of the first byte of `pieces`, both streams counted together.
    begin: u64,
    pieces: VecDeque<(Flags, Vec<u8>)>,
    /// How many of the pieces are to be sent again; those come before anything new.
    again: usize,
}

impl Sent {
    /// Forgets bytes that a host keeps.
    fn forget(&mut self, mut bytes: usize) {
        self.begin += bytes as u64;
        while let Some((_, piece)) = self.pieces.front_mut().filter(|_| bytes > 0) {
            let count = bytes.min(piece.len());
            piece.drain(..count);
            bytes -= count;
            if piece.is_empty() {
                self.pieces.pop_front();
                self.again = self.again.min(self.pieces.len());
            }
        }
    }
}

impl Session {
    /// Begins a session and announces it; what the command has said already goes out as the host has room.
    pub(crate) fn begin(
        id: u32,
        role: Role,
        work: Work,
        [output, error]: [Vec<u8>; 2],
        command: Vec<u8>,
        out: &mut Outbox,
    ) -> Self {
        let session = Self {
            role,
            id,
            work,
            output: output.into(),
            error: error.into(),
            credit: Credit::default(),
            window: Window::default(),
            command,
            deadline: None,
            told: false,
            unheard: false,
            sent: Sent::default(),
        };
        session.announce(out);
        session
    }

    fn announce(&self, out: &mut Outbox) {
        // There are no processes; the session's number is one that no other has.
        out.message(Kind::Status, self.id, &Status::Started { pid: self.id });
    }

    /// Takes note of a new connection: both windows are full again, and the host hears what there is. A host that `resumes` says from
    /// where on it wants the workload's output.
    pub(crate) fn reconnected(&mut self, resumes: bool, out: &mut Outbox) {
        (self.credit, self.window) = (Credit::default(), Window::default());
        self.told = false;
        self.sent.held = resumes && self.role == Role::Main;
        if !self.sent.held {
            self.sent = Sent::default();
        }
        self.announce(out);
    }

    /// Sends the workload's output again from this byte on.
    pub(crate) fn resume(&mut self, received: u64) {
        let kept = received.saturating_sub(self.sent.begin);
        self.sent.forget(usize::try_from(kept).unwrap_or(usize::MAX));
        (self.sent.again, self.sent.held) = (self.sent.pieces.len(), false);
    }

    /// Goes on without an audience.
    pub(crate) fn let_go(&mut self) {
        self.unheard = true;
    }

    /// Tells whether it is over, and the host has heard so.
    pub(crate) fn is_over(&self) -> bool {
        self.told
    }

    /// Returns how it ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        match self.work {
            Work::Done(outcome) => Some(outcome),
            _ => None,
        }
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
        if let Work::Echo = self.work {
            self.output.end().extend_from_slice(bytes);
            if flags.has(Flags::END) {
                self.work = Work::Done(Outcome::Exited(0));
            }
        } else {
            self.consumed(bytes.len(), out);
        }
        Ok(())
    }

    fn consumed(&mut self, bytes: usize, out: &mut Outbox) {
        if let Some(bytes) = self.window.consume(bytes) {
            out.message(Kind::Credit, self.id, &CreditGrant { bytes });
        }
    }

    /// Takes a grant of the host.
    ///
    /// # Errors
    /// Returns [`WindowExceeded`] when the host granted more than it was sent.
    pub(crate) fn granted(&mut self, bytes: u32) -> Result<(), WindowExceeded> {
        if self.role == Role::Main {
            self.sent.forget(bytes as usize);
        }
        self.credit.grant(bytes)
    }

    /// Ends it, unless it is one that does not listen.
    pub(crate) fn signal(&mut self, number: u8) {
        let deaf = matches!(self.work, Work::Wait(Manners::Stubborn)) && number != SIGKILL;
        if !deaf && self.outcome().is_none() {
            self.work = Work::Done(Outcome::Signaled(number));
        }
    }

    /// Ends it if its time is over.
    pub(crate) fn expire(&mut self, now: Duration) {
        if self.deadline.is_some_and(|deadline| now >= deadline) && self.outcome().is_none() {
            self.work = Work::Done(Outcome::TimedOut);
        }
    }

    /// Ends it as SIGKILL does.
    pub(crate) fn kill(&mut self) {
        self.signal(SIGKILL);
    }

    /// Moves one frame's worth into the outbox; tells whether there was any, and whether that was the last.
    pub(crate) fn turn(&mut self, out: &mut Outbox) -> Progress {
        if out.is_full() || self.told || self.sent.held {
            return Progress::None;
        }
        if self.sent.again > 0 {
            return self.send_again(out);
        }
        self.produce();
        if self.unheard {
            return self.drop_output();
        }
        let streams = [(Flags::NONE, &mut self.output), (Flags::STDERR, &mut self.error)];
        let waiting = streams.into_iter().find(|(_, stream)| !stream.bytes().is_empty());
        if let Some((flags, stream)) = waiting {
            let length = stream.bytes().len().min(DATA_MAX).min(self.credit.available());
            if length == 0 {
                return Progress::None;
            }
            let header = Header::marked(Kind::Output, self.id, flags);
            let piece = &stream.bytes()[..length];
            out.bytes(header, piece);
            if self.role == Role::Main {
                self.sent.pieces.push_back((flags, piece.to_vec()));
            }
            stream.advance(length);
            self.credit.spend(length);
            // What an echo sends is input that it got rid of.
            self.consumed(length, out);
            return Progress::Some;
        }
        match self.outcome() {
            Some(outcome) => {
                for flags in [Flags::NONE, Flags::STDERR] {
                    let header = Header::marked(Kind::Output, self.id, flags.with(Flags::END));
                    out.bytes(header, b"");
                }
                out.message(Kind::Result, self.id, &outcome);
                self.told = true;
                Progress::Over
            }
            None => Progress::None,
        }
    }

    fn send_again(&mut self, out: &mut Outbox) -> Progress {
        let next = self.sent.pieces.len() - self.sent.again;
        let (flags, piece) = &self.sent.pieces[next];
        // It was sent within a window, and windows are full again; only so much of it is in one piece as was granted.
        if self.credit.available() < piece.len() {
            return Progress::None;
        }
        out.bytes(Header::marked(Kind::Output, self.id, *flags), piece);
        self.credit.spend(piece.len());
        self.sent.again -= 1;
        Progress::Some
    }

    fn drop_output(&mut self) -> Progress {
        let dropped = self.output.bytes().len() + self.error.bytes().len();
        (self.output, self.error) = (Waiting::default(), Waiting::default());
        match self.outcome() {
            Some(_) => {
                self.told = true;
                Progress::Over
            }
            None if dropped > 0 => Progress::Some,
            None => Progress::None,
        }
    }

    fn produce(&mut self) {
        let Work::Produce { left, next } = &mut self.work else {
            return;
        };
        while *left > 0 && self.output.bytes().len() < DATA_MAX {
            let word = pattern(0, *next).to_le_bytes();
            self.output.end().extend_from_slice(&word);
            (*left, *next) = (*left - 1, *next + 1);
        }
        if *left == 0 {
            self.work = Work::Done(Outcome::Exited(0));
        }
    }
}

/// What a session's turn gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing to do.
    None,
    /// A frame.
    Some,
    /// The last frame.
    Over,
}
