//! The event loop's wait: which descriptor belongs to what, and what the kernel has to say of it. Edge-triggered: an
//! event says once that something changed; who gets it remembers so until a call would block.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

/// A part of a session that has a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What the host sends.
    Input,
    /// Standard output.
    Output,
    /// Standard error.
    Error,
    /// Input and output in one: a terminal or a connection.
    Both,
    /// What a child says of itself before it executes its program.
    Report,
    /// The end of its time.
    Limit,
}

/// What an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The channel to the host.
    Channel,
    /// Children that ended.
    Children,
    /// The deadline of a stop.
    Timer,
    /// The end of the time in which the machine stands still.
    Stillness,
    /// A host that comes, where each one connects.
    Listener,
    /// A descriptor of a session.
    Session(u32, Part),
}

impl Source {
    fn to_token(self) -> u64 {
        let (kind, session) = match self {
            Self::Channel => (0, 0),
            Self::Children => (1, 0),
            Self::Timer => (2, 0),
            Self::Session(id, Part::Input) => (3, id),
            Self::Session(id, Part::Output) => (4, id),
            Self::Session(id, Part::Error) => (5, id),
            Self::Session(id, Part::Both) => (6, id),
            Self::Session(id, Part::Report) => (7, id),
            Self::Listener => (8, 0),
            Self::Stillness => (9, 0),
            Self::Session(id, Part::Limit) => (10, id),
        };
        (kind << 32) | u64::from(session)
    }

    fn from_token(token: u64) -> Self {
        let id = token as u32;
        match token >> 32 {
            0 => Self::Channel,
            1 => Self::Children,
            2 => Self::Timer,
            3 => Self::Session(id, Part::Input),
            4 => Self::Session(id, Part::Output),
            5 => Self::Session(id, Part::Error),
            6 => Self::Session(id, Part::Both),
            7 => Self::Session(id, Part::Report),
            9 => Self::Stillness,
            10 => Self::Session(id, Part::Limit),
            _ => Self::Listener,
        }
    }
}

/// What may be done now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// Whose it is.
    pub(crate) source: Source,
    /// Reading gives bytes, an end or an error.
    pub(crate) read: bool,
    /// Writing takes bytes or gives an error.
    pub(crate) write: bool,
    /// The other side is gone.
    pub(crate) hung_up: bool,
}

/// Waits for all descriptors of the agent.
pub(crate) struct Poller {
    epoll: OwnedFd,
    events: [Event; Self::BATCH],
}

impl Poller {
    const BATCH: usize = 32;

    /// Makes a poller of nothing.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn new() -> Result<Self, Errno> {
        let none = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: [none; Self::BATCH],
        })
    }

    /// Watches a descriptor until it is closed.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub(crate) fn add(&self, fd: impl AsFd, source: Source) -> Result<(), Errno> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, fd, EventData::new_u64(source.to_token()), flags)
    }

    /// Waits for events, or only looks for them when there is other work to do.
    pub(crate) fn wait(&mut self, busy: Busy) -> impl Iterator<Item = Ready> + use<> {
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = (busy == Busy::Yes).then_some(&none);
        let count = epoll::wait(&self.epoll, &mut self.events[..], timeout).unwrap_or(0);
        let events = self.events;
        events.into_iter().take(count).map(|event| {
            let (flags, data) = (event.flags, event.data);
            let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Ready {
                source: Source::from_token(data.u64()),
                read: broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
                write: broken || flags.contains(EventFlags::OUT),
                hung_up: flags.contains(EventFlags::HUP),
            }
        })
    }
}

/// Whether there is work besides waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// Only look.
    Yes,
    /// Wait as long as it takes.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_kernel() {
        let parts = [
            Part::Input,
            Part::Output,
            Part::Error,
            Part::Both,
            Part::Report,
            Part::Limit,
        ];
        let sessions = parts.map(|part| Source::Session(u32::MAX, part));
        for source in [
            Source::Channel,
            Source::Children,
            Source::Timer,
            Source::Stillness,
        ]
        .into_iter()
        .chain(sessions)
        {
            assert_eq!(Source::from_token(source.to_token()), source);
        }
    }
}
