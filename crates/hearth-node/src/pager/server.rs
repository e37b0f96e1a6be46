//! The one loop of a page server: who connects, who misses pages, who has ended.
//!
//! ```text
//! connection --message and userfaultfd--> machine --ends, or cannot be served: killed--> nothing of it
//! ```
//! Faults come before everything else; between two looks for them, one machine at a time gets some pages ahead.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::guard::Guard;
use super::handshake::{HandshakeError, MESSAGE_MAX, Memory};
use super::image::Image;
use super::machine::{Lost, Machine};
use super::recording::Learned;
use crate::host::fork;
use crate::host::page_faults::PageFaults;
use crate::host::peer::{self, Peer};
use crate::host::poller::Poller;

/// Machines at a time, and connections that have not said yet what they want.
const MACHINES_MAX: usize = 4096;
const GREETINGS_MAX: usize = 64;
/// How long a connection may take to say it.
const GREETING: Duration = Duration::from_secs(10);
/// How soon a fault that had to wait is tried again, when nothing else happens.
const AGAIN: Duration = Duration::from_millis(1);

/// What the poller tells: the two descriptors that are always there, then three for each peer.
const LISTENER: u64 = 0;
const GUARD: u64 = 1;
const FIRST_PEER: u64 = 1;
const KINDS: u64 = 4;
const CONNECTION: u64 = 0;
const PROCESS: u64 = 1;
const FAULTS: u64 = 2;

/// A connection that has not said everything.
struct Greeting {
    peer: Peer,
    since: Instant,
    message: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// Says why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it runs as user {0}, whose machines this pager does not serve")]
    User(u32),
    #[error("there are too many connections")]
    TooMany,
    #[error(transparent)]
    Message(#[from] HandshakeError),
    #[error("it sent {0} descriptors, and one userfaultfd is wanted")]
    Descriptors(usize),
    #[error("what it sent is no userfaultfd")]
    NoFaults,
    #[error("it went before it said what it wants")]
    Gone,
    #[error("it did not say in time what it wants")]
    Late,
    #[error("its connection broke")]
    Broken(#[from] io::Error),
}

/// A page server.
pub(super) struct Server {
    pub(super) image: Image,
    poller: Poller,
    listener: OwnedFd,
    guard: Guard,
    users: Vec<RangeInclusive<u32>>,
    learned: Learned,
    greetings: BTreeMap<u64, Greeting>,
    machines: BTreeMap<u64, Machine>,
    next: u64,
    idle: Duration,
    idle_since: Instant,
}

/// How a server behaves.
pub(super) struct Manners {
    pub(super) users: Vec<RangeInclusive<u32>>,
    pub(super) idle: Duration,
    pub(super) learned: Learned,
}

impl Server {
    /// Makes a server without machines.
    pub(super) fn new(image: Image, listener: OwnedFd, guard: Guard, manners: Manners) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER)?;
        poller.add(&guard, GUARD)?;
        Ok(Self {
            image,
            poller,
            listener,
            guard,
            users: manners.users,
            learned: manners.learned,
            greetings: BTreeMap::new(),
            machines: BTreeMap::new(),
            next: FIRST_PEER,
            idle: manners.idle,
            idle_since: Instant::now(),
        })
    }

    /// Serves until nobody wants anything any more, or the guard lets go.
    ///
    /// # Errors
    /// The kernel's, of what concerns no single machine.
    pub(super) fn run(&mut self) -> io::Result<()> {
        loop {
            for token in self.poller.wait(self.patience())? {
                if token == GUARD {
                    self.end();
                    return Ok(());
                }
                self.turn(token)?;
            }
            self.expire();
            self.go_ahead();
            if self
                .learned
                .deadline()
                .is_some_and(|deadline| deadline <= Instant::now())
            {
                self.finish_recording();
            }
            if self.is_idle() && self.idle_since.elapsed() >= self.idle {
                tracing::info!("no machine wants pages any more");
                return Ok(());
            }
        }
    }

    /// Returns how long nothing has to be done unless something happens.
    fn patience(&self) -> Duration {
        if self.machines.values().any(Machine::is_ahead) {
            return Duration::ZERO;
        }
        if self.machines.values().any(Machine::has_waiting) {
            return AGAIN;
        }
        let greeting = self
            .greetings
            .values()
            .map(|greeting| greeting.since + GREETING)
            .min();
        let idle = self.is_idle().then(|| self.idle_since + self.idle);
        let next = [greeting, idle, self.learned.deadline()]
            .into_iter()
            .flatten()
            .min();
        next.map_or(Duration::from_secs(3600), |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    fn is_idle(&self) -> bool {
        self.machines.is_empty() && self.greetings.is_empty()
    }

    fn turn(&mut self, token: u64) -> io::Result<()> {
        if token == LISTENER {
            return self.accept();
        }
        let id = token / KINDS;
        match token % KINDS {
            CONNECTION => self.greet(id),
            PROCESS => self.forget(id, "has ended"),
            _ => self.serve(id),
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let peer = match peer::accept(&self.listener) {
            Ok(Some(peer)) => peer,
            Ok(None) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                return Ok(());
            }
        };
        if self.greetings.len() >= GREETINGS_MAX || self.machines.len() >= MACHINES_MAX {
            tracing::warn!(
                pid = peer.process.pid,
                "a connection is refused: {}",
                Refusal::TooMany
            );
            return Ok(());
        }
        let id = self.next;
        self.next += 1;
        self.poller.add(&peer, id * KINDS + CONNECTION)?;
        let greeting = Greeting {
            peer,
            since: Instant::now(),
            message: Vec::new(),
            descriptors: Vec::new(),
        };
        self.greetings.insert(id, greeting);
        Ok(())
    }

    /// Reads what a connection says; makes a machine of it when it is all said.
    fn greet(&mut self, id: u64) {
        let Some(mut greeting) = self.greetings.remove(&id) else {
            return;
        };
        match read(&mut greeting, &self.users, self.image.length()) {
            Ok(None) => {
                self.greetings.insert(id, greeting);
            }
            Ok(Some((memory, faults))) => self.begin(id, greeting.peer, memory, faults),
            Err(refusal) => self.refuse(greeting, &refusal),
        }
        self.idle_since = Instant::now();
    }

    /// Closes a connection. One that has sent a userfaultfd is a machine that waits for pages it will never get: it is killed.
    fn refuse(&self, greeting: Greeting, refusal: &Refusal) {
        let pid = greeting.peer.process.pid;
        let waits = greeting
            .descriptors
            .into_iter()
            .any(|descriptor| PageFaults::new(descriptor).is_ok_and(|faults| faults.is_some()));
        if waits {
            tracing::error!(
                pid,
                "a machine is killed, since its memory cannot be served: {}",
                chain(refusal)
            );
            kill(&greeting.peer);
        } else {
            tracing::warn!(pid, "a connection is refused: {}", chain(refusal));
        }
    }

    fn begin(&mut self, id: u64, peer: Peer, memory: Memory, faults: PageFaults) {
        let watched = self
            .poller
            .remove(&peer)
            .and_then(|()| self.guard.watch(&peer.process))
            .and_then(|()| self.poller.add(&peer.process, id * KINDS + PROCESS))
            .and_then(|()| self.poller.add(&faults, id * KINDS + FAULTS));
        let pid = peer.process.pid;
        if let Err(error) = watched {
            tracing::error!(pid, %error, "a machine is killed, since it cannot be watched");
            return kill(&peer);
        }
        let (size, page_size) = (memory.size(), memory.page_size());
        let mut machine = Machine::new(peer, faults, memory);
        if let Some(set) = self.learned.known() {
            machine.replay(Rc::clone(set));
        } else {
            self.learned.begin(id, page_size, Instant::now());
        }
        let ahead = machine.is_ahead();
        tracing::info!(
            pid,
            size,
            page_size,
            replay = ahead,
            "a machine's memory is served"
        );
        self.machines.insert(id, machine);
    }

    fn serve(&mut self, id: u64) {
        let Some(machine) = self.machines.get_mut(&id) else {
            return;
        };
        let learned = &mut self.learned;
        let served = machine.serve(&self.image, |offset| learned.touch(id, offset));
        if let Err(lost) = served {
            self.lose(id, &lost);
        }
    }

    /// Gives each machine that has something to get ahead of time some of it, and tries faults again that had to wait.
    fn go_ahead(&mut self) {
        let mut lost = Vec::new();
        for (id, machine) in &mut self.machines {
            let mut done = machine.go_ahead(&self.image);
            if machine.has_waiting() {
                done =
                    done.and_then(|()| machine.serve(&self.image, |offset| self.learned.touch(*id, offset)));
            }
            lost.extend(done.err().map(|lost| (*id, lost)));
        }
        for (id, why) in lost {
            self.lose(id, &why);
        }
    }

    fn lose(&mut self, id: u64, lost: &Lost) {
        // Its pidfd says it in a moment; until then its descriptor has nothing more to say.
        if let (Lost::Ended, Some(machine)) = (lost, self.machines.get(&id)) {
            // Removed already when this is not the first time.
            let _ = self.poller.remove(&machine.faults);
            return;
        }
        if let Some(machine) = self.machines.get(&id) {
            let pid = machine.peer.process.pid;
            tracing::error!(
                pid,
                "a machine is killed, since its memory cannot be served: {}",
                chain(lost)
            );
            kill(&machine.peer);
        }
        self.forget(id, "was killed");
    }

    /// Lets go of a machine: with its descriptors closed nothing of it is left here.
    fn forget(&mut self, id: u64, how: &str) {
        let Some(machine) = self.machines.remove(&id) else {
            return;
        };
        // The descriptions may be open elsewhere, and would be watched on.
        let _ = self.poller.remove(&machine.faults);
        let _ = self.poller.remove(&machine.peer.process);
        let counts = machine.counts;
        tracing::info!(
            pid = machine.peer.process.pid,
            faults = counts.faults,
            copied = counts.copied,
            zeroed = counts.zeroed,
            ahead = counts.ahead,
            removed = counts.removed,
            "a machine {how}"
        );
        if self.learned.is_of(id) {
            self.finish_recording();
        }
        self.idle_since = Instant::now();
    }

    /// Ends a recording, and has it kept.
    fn finish_recording(&mut self) {
        let Some(set) = self.learned.finish() else {
            return;
        };
        let kept = fork::memory_file("working-set").and_then(|mut file: File| {
            file.write_all(&set.encode(self.image.length()))?;
            self.guard.keep(&file)
        });
        match kept {
            Ok(()) => tracing::info!(pages = set.pages.len(), "the working set is recorded"),
            Err(error) => tracing::warn!(%error, "the working set cannot be kept"),
        }
    }

    /// Closes connections that say nothing.
    fn expire(&mut self) {
        let late = |greeting: &Greeting| greeting.since.elapsed() >= GREETING;
        let ids: Vec<_> = self
            .greetings
            .iter()
            .filter(|(_, greeting)| late(greeting))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(greeting) = self.greetings.remove(&id) {
                self.refuse(greeting, &Refusal::Late);
            }
            self.idle_since = Instant::now();
        }
    }

    /// The guard lets go: machines do not outlive their pages.
    fn end(&self) {
        for machine in self.machines.values() {
            tracing::error!(
                pid = machine.peer.process.pid,
                "a machine is killed, since its pager ends"
            );
            kill(&machine.peer);
        }
    }
}

/// Reads on; returns what was said when it is all there.
fn read(
    greeting: &mut Greeting,
    users: &[RangeInclusive<u32>],
    image_length: u64,
) -> Result<Option<(Memory, PageFaults)>, Refusal> {
    let mut buffer = [0; MESSAGE_MAX + 1];
    let Some(received) = greeting.peer.receive(&mut buffer)? else {
        return Ok(None);
    };
    if received.bytes == 0 {
        return Err(Refusal::Gone);
    }
    greeting.message.extend(&buffer[..received.bytes]);
    greeting.descriptors.extend(received.descriptors);
    // Not before its message: a machine that has sent its userfaultfd waits for pages, and must not be left to that.
    if !users.iter().any(|users| users.contains(&greeting.peer.uid)) {
        return Err(Refusal::User(greeting.peer.uid));
    }
    if greeting.descriptors.len() > 1 {
        return Err(Refusal::Descriptors(greeting.descriptors.len()));
    }
    let Some(memory) = Memory::parse(&greeting.message, image_length)? else {
        return Ok(None);
    };
    let descriptor = greeting.descriptors.pop().ok_or(Refusal::Descriptors(0))?;
    let faults = PageFaults::new(descriptor)?.ok_or(Refusal::NoFaults)?;
    Ok(Some((memory, faults)))
}

fn kill(peer: &Peer) {
    if let Err(error) = peer.process.kill() {
        tracing::error!(pid = peer.process.pid, %error, "cannot kill a machine");
    }
}

/// Writes an error with what is behind it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}
