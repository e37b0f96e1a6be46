//! The two ends of a session's streams inside the guest: [`Input`] takes what the host sends, [`Output`] gives what a
//! process, terminal or connection says. Both never block and hold at most what flow control lets them.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use hearth_guest_protocol::Flags;
use hearth_guest_protocol::datagram::{self, PREFIX_LEN};
use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::net::{Shutdown, shutdown};

use crate::terminal;

/// What an input leads to, and so how its end is told.
#[derive(Debug)]
pub(crate) enum Sink {
    /// It is not open yet; what comes is kept for it.
    Awaited,
    /// A pipe: closed at the end.
    Pipe(Rc<OwnedFd>),
    /// A terminal: its end-of-file character is typed at the end.
    Terminal(Rc<OwnedFd>),
    /// A connection: shut down for writing at the end.
    Connection(Rc<OwnedFd>),
    /// A socket that takes datagrams, each as it comes or not at all.
    Datagrams(Rc<OwnedFd>),
    /// Nobody reads (any more): what comes is dropped.
    Closed,
}

/// The way of bytes from the host to a process or connection.
#[derive(Debug)]
pub(crate) struct Input {
    sink: Sink,
    pending: Vec<u8>,
    /// What of `pending` is already written.
    written: usize,
    ended: bool,
    /// Whether a write may be tried: none has been refused since the last event.
    writable: bool,
}

impl Input {
    /// Makes an input that leads to `sink`.
    pub(crate) fn new(sink: Sink) -> Self {
        Self {
            sink,
            pending: Vec::new(),
            written: 0,
            ended: false,
            writable: true,
        }
    }

    /// Takes bytes; returns how many are consumed at once.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> usize {
        match &self.sink {
            Sink::Closed => return bytes.len(),
            Sink::Datagrams(socket) => {
                send_each(socket, bytes);
                return bytes.len();
            }
            Sink::Awaited | Sink::Pipe(_) | Sink::Terminal(_) | Sink::Connection(_) => {}
        }
        let written = match self.pending.is_empty() {
            true => self.write(bytes),
            false => 0,
        };
        self.pending.extend_from_slice(&bytes[written..]);
        written
    }

    /// Takes note that nothing more comes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        self.finish();
    }

    /// Opens an awaited input; returns how many of the kept bytes are consumed.
    pub(crate) fn open(&mut self, sink: Sink) -> usize {
        self.sink = sink;
        self.resume()
    }

    /// Writes what waits, after an event; returns how many bytes are consumed.
    pub(crate) fn resume(&mut self) -> usize {
        self.writable = true;
        let pending = std::mem::take(&mut self.pending);
        let written = self.write(&pending[self.written..]);
        self.written += written;
        if self.written < pending.len() {
            self.pending = pending;
        } else {
            self.written = 0;
        }
        self.finish();
        written
    }

    /// Drops what waits and what will come; returns how many bytes that frees.
    pub(crate) fn close(&mut self) -> usize {
        self.sink = Sink::Closed;
        let dropped = self.held();
        (self.pending, self.written) = (Vec::new(), 0);
        dropped
    }

    /// Returns how many bytes wait.
    pub(crate) fn held(&self) -> usize {
        self.pending.len() - self.written
    }

    /// Tells whether nothing leads on from here.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.sink, Sink::Closed)
    }

    /// Writes as much as goes; everything counts as written when nobody reads any more.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let (Sink::Pipe(fd) | Sink::Terminal(fd) | Sink::Connection(fd)) = &self.sink else {
            return 0;
        };
        let mut written = 0;
        while self.writable && written < bytes.len() {
            match retry_on_intr(|| write(fd, &bytes[written..])) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => {
                    self.sink = Sink::Closed;
                    return bytes.len();
                }
            }
        }
        written
    }

    fn finish(&mut self) {
        if !self.ended || !self.pending.is_empty() || matches!(self.sink, Sink::Awaited) {
            return;
        }
        match std::mem::replace(&mut self.sink, Sink::Closed) {
            Sink::Terminal(fd) => terminal::type_end_of_file(&fd),
            // What is already broken has ended as well.
            Sink::Connection(fd) => {
                let _ = shutdown(&fd, Shutdown::Write);
            }
            Sink::Pipe(_) | Sink::Datagrams(_) | Sink::Awaited | Sink::Closed => {}
        }
    }
}

/// Sends the datagrams of a frame. One that finds no room, or nobody who listens, is lost, as on any network.
fn send_each(socket: &OwnedFd, bytes: &[u8]) {
    for datagram in datagram::datagrams(bytes) {
        // An error that came of an earlier datagram is told first, and this one not sent.
        if matches!(retry_on_intr(|| write(socket, datagram)), Err(Errno::CONNREFUSED)) {
            let _ = retry_on_intr(|| write(socket, datagram));
        }
    }
}

/// What came of an attempt to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// So many bytes.
    Bytes(usize),
    /// None now.
    Nothing,
    /// None ever again.
    End,
    /// None ever again, because it broke.
    Broken(Errno),
}

/// The way of bytes from a process or connection to the host.
#[derive(Debug)]
pub(crate) struct Output {
    source: Rc<OwnedFd>,
    flags: Flags,
    readable: bool,
    /// After the process ended: how many bytes are still its own. Others may hold the same pipe and go on for ever.
    left: Option<usize>,
    unit: Unit,
}

/// What an output consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Datagrams,
}

impl Output {
    /// Makes an output of `source`, whose frames carry `flags`.
    pub(crate) fn new(source: Rc<OwnedFd>, flags: Flags) -> Self {
        Self {
            source,
            flags,
            readable: true,
            left: None,
            unit: Unit::Bytes,
        }
    }

    /// Makes an output of a socket's datagrams.
    pub(crate) fn datagrams(source: Rc<OwnedFd>) -> Self {
        Self {
            unit: Unit::Datagrams,
            ..Self::new(source, Flags::NONE)
        }
    }

    /// Returns the marks of its frames.
    pub(crate) fn flags(&self) -> Flags {
        self.flags
    }

    /// Takes note of an event.
    pub(crate) fn wake(&mut self) {
        self.readable = true;
    }

    /// Tells whether reading may give something.
    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Takes note that its process has ended: what is left in it comes out, then it ends.
    pub(crate) fn process_ended(&mut self) {
        // A terminal hands its last bytes over while it is read, so it cannot tell their number; its buffers are smaller.
        const TERMINAL_MAX: usize = 128 * 1024;
        let queued = rustix::io::ioctl_fionread(&self.source).unwrap_or(0);
        let queued = usize::try_from(queued).unwrap_or(usize::MAX);
        self.left = Some(if terminal::is_master(&self.source) {
            TERMINAL_MAX
        } else {
            queued
        });
        self.readable = true;
    }

    /// Reads into `space`.
    pub(crate) fn pull(&mut self, space: &mut [u8]) -> Pulled {
        if self.unit == Unit::Datagrams {
            return self.pull_datagram(space);
        }
        let length = space.len().min(self.left.unwrap_or(usize::MAX));
        if length == 0 {
            return Pulled::End;
        }
        match retry_on_intr(|| read(&self.source, &mut space[..length])) {
            // What a terminal says when the last process has closed it.
            Ok(0) | Err(Errno::IO) => Pulled::End,
            Ok(count) => {
                self.left = self.left.map(|left| left - count);
                Pulled::Bytes(count)
            }
            Err(Errno::AGAIN) if self.left.is_some() => Pulled::End,
            Err(Errno::AGAIN) => {
                self.readable = false;
                Pulled::Nothing
            }
            Err(errno) => Pulled::Broken(errno),
        }
    }

    /// Reads one datagram, with its length before it.
    fn pull_datagram(&mut self, space: &mut [u8]) -> Pulled {
        let Some((prefix, space)) = space.split_first_chunk_mut::<PREFIX_LEN>() else {
            return Pulled::Nothing;
        };
        loop {
            match retry_on_intr(|| read(&self.source, &mut *space)) {
                Ok(count) => {
                    if let Some(length) = datagram::prefix(count) {
                        *prefix = length;
                        return Pulled::Bytes(PREFIX_LEN + count);
                    }
                }
                // Nobody listened when something was sent; somebody may next time.
                Err(Errno::CONNREFUSED) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Pulled::Nothing;
                }
                Err(errno) => return Pulled::Broken(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pipe() -> (OwnedFd, Rc<OwnedFd>) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (reader, Rc::new(writer))
    }

    fn read_all(fd: &OwnedFd) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = read(fd, &mut buffer[..]) {
            bytes.extend_from_slice(&buffer[..count]);
        }
        bytes
    }

    #[test]
    fn what_a_full_pipe_refuses_is_kept_and_follows_in_order() {
        let (reader, writer) = pipe();
        let mut input = Input::new(Sink::Pipe(writer));
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut consumed = input.push(&bytes[..150_000]);
        consumed += input.push(&bytes[150_000..]);
        assert_eq!(input.held() + consumed, bytes.len());
        input.end();
        let mut seen = Vec::new();
        while seen.len() < bytes.len() {
            seen.extend(read_all(&reader));
            consumed += input.resume();
        }
        assert_eq!((consumed, input.is_closed()), (bytes.len(), true));
        assert!(seen == bytes);
    }

    #[test]
    fn input_that_nobody_reads_is_dropped_and_still_consumed() {
        let (reader, writer) = pipe();
        let mut input = Input::new(Sink::Pipe(writer));
        drop(reader);
        assert_eq!(input.push(b"nobody"), 6);
        assert!(input.is_closed());
        assert_eq!(input.push(b"cares"), 5);
    }

    #[test]
    fn input_for_a_terminal_that_is_not_there_yet_is_kept() {
        let mut input = Input::new(Sink::Awaited);
        assert_eq!(input.push(b"early"), 0);
        input.end();
        let (reader, writer) = pipe();
        assert_eq!(input.open(Sink::Pipe(writer)), 5);
        assert_eq!(read_all(&reader), b"early");
        assert!(input.is_closed());
    }

    #[test]
    fn datagrams_keep_their_borders_and_outlive_that_nobody_listens() {
        use std::net::UdpSocket;
        let service = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = service.local_addr().unwrap().port();
        let socket = Rc::new(crate::dial::datagrams(port).unwrap());
        let mut input = Input::new(Sink::Datagrams(socket.clone()));
        let mut output = Output::datagrams(socket);
        assert_eq!(input.push(b"\x03\0one\0\0\x05\0three\x09\0torn"), 20);
        let mut space = [0; 64];
        let mut receive = || {
            let (count, client) = service.recv_from(&mut space).unwrap();
            (space[..count].to_vec(), client)
        };
        assert_eq!(receive().0, b"one");
        assert_eq!(receive().0, b"");
        let (last, client) = receive();
        assert_eq!(last, b"three");
        service.send_to(b"", client).unwrap();
        service.send_to(b"answer", client).unwrap();
        let mut space = [0; 64];
        assert_eq!(output.pull(&mut space), Pulled::Bytes(2));
        assert_eq!(space[..2], [0, 0]);
        assert_eq!(output.pull(&mut space), Pulled::Bytes(8));
        assert_eq!(&space[..8], b"\x06\0answer");
        assert_eq!(output.pull(&mut space), Pulled::Nothing);
        drop(service);
        input.push(b"\x01\0x");
        output.wake();
        assert_eq!(output.pull(&mut space), Pulled::Nothing);
        let service = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        input.push(b"\x05\0again");
        assert_eq!(service.recv(&mut space).unwrap(), 5);
    }

    #[test]
    fn output_of_a_process_that_ended_is_read_to_what_it_wrote_and_no_further() {
        let (reader, writer) = pipe();
        let mut output = Output::new(Rc::new(reader), Flags::NONE);
        write(&writer, b"its own").unwrap();
        output.process_ended();
        write(&writer, b"of somebody who holds the same pipe").unwrap();
        let mut space = [0; 64];
        assert_eq!(output.pull(&mut space), Pulled::Bytes(7));
        assert_eq!(output.pull(&mut space), Pulled::End);
    }
}
