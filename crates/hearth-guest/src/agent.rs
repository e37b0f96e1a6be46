//! The event loop: moves bytes between the channel and the core, in turns that are bounded, so that nothing waits long.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hearth_guest_protocol::Decoder;
use rustix::io::{Errno, read, write};
use rustix::net::{SocketFlags, accept_with};

use crate::boot::{self, BootError};
use crate::console;
use crate::core::Core;
use crate::poller::{Busy, Poller, Ready, Source};
use crate::port::Channel;
use crate::sys;

/// Reads of the channel in one turn, of at most 4 KiB each.
const READS: usize = 64;

/// Writes to the channel in one turn, of at most 32 KiB each.
const WRITES: usize = 8;

/// The agent as a whole.
pub(crate) struct Agent {
    poller: Poller,
    /// The stream to the host; none where hosts connect and none has.
    port: Option<OwnedFd>,
    /// Where hosts connect.
    listener: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    decoder: Decoder,
    children: OwnedFd,
    core: Core,
}

impl Agent {
    /// Makes the agent of an opened channel; `uptime` is the age of the guest at its first line.
    ///
    /// # Errors
    /// Returns [`BootError`] when there is no event loop to be had.
    pub(crate) fn new(channel: Channel, uptime: Duration) -> Result<Self, BootError> {
        let poller = Poller::new().map_err(io::Error::from)?;
        let children = sys::child_signals()?;
        let (port, listener) = match channel {
            Channel::Port(port) => (Some(port), None),
            Channel::Listener(listener) => (None, Some(listener)),
        };
        for (descriptor, source) in [(&port, Source::Channel), (&listener, Source::Listener)] {
            if let Some(descriptor) = descriptor {
                poller.add(descriptor, source).map_err(io::Error::from)?;
            }
        }
        poller.add(&children, Source::Children).map_err(io::Error::from)?;
        let core = Core::new(uptime, &poller).map_err(io::Error::from)?;
        Ok(Self {
            poller,
            readable: port.is_some(),
            writable: port.is_some(),
            port,
            listener,
            decoder: Decoder::new(),
            children,
            core,
        })
    }

    /// Runs for ever.
    pub(crate) fn run(&mut self) -> ! {
        let mut settled = false;
        loop {
            self.receive();
            self.send();
            if self.core.has_greeted() && !settled {
                boot::settle();
                settled = true;
            }
            self.core.discard();
            let busy = match self.can_receive() || self.can_send() || self.core.is_discarding() {
                true => Busy::Yes,
                false => Busy::No,
            };
            let mut has_come = false;
            for ready in self.poller.wait(busy) {
                // A host that has come is taken last: what is said in the same turn is said of the one before.
                has_come |= ready.source == Source::Listener;
                self.wake(ready);
            }
            if has_come {
                self.accept();
            }
        }
    }

    fn wake(&mut self, ready: Ready) {
        match ready.source {
            Source::Channel => {
                self.readable |= ready.read;
                self.writable |= ready.write;
                if ready.hung_up {
                    self.disconnected();
                }
            }
            Source::Listener => {}
            Source::Children => {
                let mut signal = [0; 128];
                while read(&self.children, &mut signal[..]).is_ok() {}
                self.core.reap(&self.poller);
            }
            Source::Timer => self.core.expired(),
            Source::Stillness => self.core.stood_still(),
            Source::Session(id, part) => self.core.wake(id, part, ready, &self.poller),
        }
    }

    /// Takes the hosts that have connected; the last one counts.
    fn accept(&mut self) {
        while let Some(Ok(connection)) = self
            .listener
            .as_ref()
            .map(|listener| accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC))
        {
            self.disconnected();
            match self.poller.add(&connection, Source::Channel) {
                Ok(()) => (self.readable, self.writable) = (true, true),
                Err(errno) => console::complain!("cannot watch a connection of the host: {errno}"),
            }
            self.port = Some(connection);
        }
    }

    /// The channel gives an end or an error: where hosts connect that one is gone, and the next one is waited for.
    fn broken(&mut self, what: &str, errno: Errno) {
        match self.listener {
            Some(_) => self.disconnected(),
            None => console::fatal(format_args!("cannot {what} the channel: {errno}")),
        }
    }

    /// The host is gone: what it had begun to say is void. A machine at rest waits as well: the next host is to hear how its
    /// workload ended, and what it printed last.
    fn disconnected(&mut self) {
        self.readable = false;
        self.writable = false;
        if self.listener.is_some() {
            // Closed, so that nothing of it is heard any more.
            self.port = None;
        }
        self.decoder.clear();
        self.core.disconnected();
    }

    fn can_receive(&self) -> bool {
        self.readable && !self.core.out.is_full()
    }

    fn can_send(&self) -> bool {
        self.writable && (!self.core.out.is_empty() || self.core.is_ready())
    }

    fn receive(&mut self) {
        for _ in 0..READS {
            self.decode();
            if !self.can_receive() {
                return;
            }
            let Some(port) = &self.port else {
                return;
            };
            match read(port, self.decoder.space()) {
                Ok(0) if self.listener.is_some() => self.disconnected(),
                Ok(0) | Err(Errno::AGAIN) => self.readable = false,
                Ok(count) => self.decoder.filled(count),
                Err(Errno::INTR) => {}
                Err(errno) => self.broken("read from", errno),
            }
        }
    }

    /// Hands over the frames that have come; none while the host must read first.
    fn decode(&mut self) {
        while !self.core.out.is_full() {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => self.core.handle(&frame, &self.poller),
                Ok(None) => return,
                Err(error) => {
                    self.core.out_of_step(&error);
                    self.decoder.resynchronise();
                }
            }
        }
    }

    fn send(&mut self) {
        for _ in 0..WRITES {
            while self.core.out.has_room() && self.core.pull() {}
            if !self.can_send() {
                return;
            }
            let Some(port) = &self.port else {
                return;
            };
            match write(port, self.core.out.unsent()) {
                Ok(count) => self.core.out.advance(count),
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(errno) => self.broken("write to", errno),
            }
        }
        self.core.advance();
    }
}
