//! The host's side of the channel, as small as a test needs it: one thread, blocking, everything granted anew at once.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hearth_guest_protocol::message::{
    Configure, Execute, Failure, FileRequest, Hello, Outcome, Role, Status, TerminalSize, decode, encode,
};
use hearth_guest_protocol::{Credit, Decoder, Flags, Header, Kind, Window};
use serde_bytes::ByteBuf;

use crate::machine::PATIENCE;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Result(Outcome),
    Failure(Failure),
}

/// What has come on a session.
#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Bytes of output, counted also where they are not kept.
    pub(crate) received: u64,
    pub(crate) ended_streams: usize,
    pub(crate) status: Option<Status>,
    pub(crate) end: Option<End>,
    pub(crate) window: Window,
    pub(crate) credit: Credit,
}

pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    next: u32,
    pub(crate) sessions: BTreeMap<u32, Session>,
    pub(crate) control: Vec<(Kind, Vec<u8>)>,
    /// Whether output is kept and credit is given back.
    pub(crate) keeps: bool,
    pub(crate) grants: bool,
}

pub(crate) fn hello() -> Hello {
    Hello {
        oldest: 1,
        newest: 1,
        nonce: 0x1234_5678_9abc_def0,
        version: "test".into(),
        uptime_ns: 0,
    }
}

pub(crate) fn configure() -> Configure {
    Configure {
        hostname: "box".into(),
        image_device: "/dev/vda".into(),
        image_filesystem: "erofs".into(),
        disk_device: "/dev/vdb".into(),
        hosts: ByteBuf::from(*b"127.0.0.1 localhost box\n"),
        resolv_conf: ByteBuf::from(*b"nameserver 192.0.2.1\n"),
        clock_unix_ns: 1_700_000_000_000_000_000,
        entropy: [7; 32],
    }
}

/// A process of these arguments, with pipes and the least of an environment.
pub(crate) fn command(role: Role, arguments: &[&str]) -> Execute {
    Execute {
        role,
        arguments: arguments
            .iter()
            .map(|argument| ByteBuf::from(argument.as_bytes()))
            .collect(),
        environment: vec![ByteBuf::from(*b"PATH=/bin")],
        working_directory: ByteBuf::new(),
        user: String::new(),
        terminal: None,
        stdin: false,
    }
}

pub(crate) fn shell(script: &str) -> Execute {
    command(Role::Exec, &["sh", "-c", script])
}

pub(crate) const SIZE: TerminalSize = TerminalSize {
    rows: 40,
    columns: 132,
};

impl Client {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::new(),
            next: 1,
            sessions: BTreeMap::new(),
            control: Vec::new(),
            keeps: true,
            grants: true,
        }
    }

    /// Greets; returns the guest's answer.
    pub(crate) fn greet(&mut self) -> Hello {
        self.message(Kind::Hello, 0, &hello());
        self.control_until(Kind::Hello)
    }

    /// Greets and configures.
    pub(crate) fn ready(&mut self) {
        self.greet();
        self.message(Kind::Configure, 0, &configure());
        assert_eq!(self.control_until::<Status>(Kind::Status), Status::Ready);
    }

    /// Greets, configures, and starts a workload that stays.
    pub(crate) fn with_workload(&mut self) -> u32 {
        self.ready();
        let main = self.open(Kind::Execute, &command(Role::Main, &["sleep", "100000"]));
        self.until(main, |session| session.status.is_some() || session.end.is_some());
        assert!(
            matches!(self.sessions[&main].status, Some(Status::Started { .. })),
            "{:?}",
            self.sessions[&main]
        );
        main
    }

    pub(crate) fn message<M: serde::Serialize>(&mut self, kind: Kind, session: u32, message: &M) {
        let mut frame = Vec::new();
        encode(kind, session, message, &mut frame).unwrap();
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn raw(&mut self, header: Header, payload: &[u8]) {
        let mut frame = Vec::new();
        header.write(payload, &mut frame);
        self.stream.write_all(&frame).unwrap();
    }

    /// Opens a session.
    pub(crate) fn open<M: serde::Serialize>(&mut self, kind: Kind, message: &M) -> u32 {
        let session = self.next;
        self.next += 1;
        self.sessions.insert(session, Session::default());
        self.message(kind, session, message);
        session
    }

    /// Sends input as credit allows.
    pub(crate) fn send(&mut self, session: u32, mut bytes: &[u8], end: bool) {
        while !bytes.is_empty() {
            self.until(session, |session| {
                session.credit.available() > 0 || session.end.is_some()
            });
            let state = self.sessions.get_mut(&session).unwrap();
            if state.end.is_some() {
                return;
            }
            let length = bytes.len().min(state.credit.available()).min(64 * 1024);
            state.credit.spend(length);
            self.raw(Header::new(Kind::Stdin, session), &bytes[..length]);
            bytes = &bytes[length..];
        }
        if end {
            self.raw(Header::marked(Kind::Stdin, session, Flags::END), b"");
        }
    }

    /// Reads until `done`.
    pub(crate) fn until(&mut self, session: u32, done: impl Fn(&Session) -> bool) {
        while !self.sessions.get(&session).is_some_and(&done) {
            self.step();
        }
    }

    /// Reads until the session is over, and returns what came of it.
    pub(crate) fn finish(&mut self, session: u32) -> Session {
        self.until(session, |session| session.end.is_some());
        self.sessions.remove(&session).unwrap()
    }

    /// Runs a process to its end.
    pub(crate) fn run(&mut self, request: &Execute) -> Session {
        let session = self.open(Kind::Execute, request);
        self.finish(session)
    }

    /// Does a file operation to its end.
    pub(crate) fn files(&mut self, request: &FileRequest, input: &[u8]) -> Session {
        let session = self.open(Kind::File, request);
        if matches!(request, FileRequest::Put { .. }) {
            self.send(session, input, true);
        }
        self.finish(session)
    }

    /// Reads until a control frame of this kind comes.
    pub(crate) fn control_until<M: serde::de::DeserializeOwned>(&mut self, kind: Kind) -> M {
        decode(&self.control_bytes(kind)).unwrap()
    }

    pub(crate) fn control_bytes(&mut self, kind: Kind) -> Vec<u8> {
        loop {
            if let Some(at) = self.control.iter().position(|frame| frame.0 == kind) {
                return self.control.remove(at).1;
            }
            if let Some(frame) = self.control.iter().find(|frame| frame.0 == Kind::Error) {
                panic!("{:?}", decode::<Failure>(&frame.1));
            }
            self.step();
        }
    }

    /// Reads for a while, and returns whether anything came.
    pub(crate) fn hears_something_within(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        self.stream.set_read_timeout(Some(time)).unwrap();
        let mut buffer = [0];
        let heard = loop {
            match rustix::net::recv(&self.stream, &mut buffer[..], rustix::net::RecvFlags::PEEK) {
                Ok((count, _)) => break count > 0,
                Err(_) if Instant::now() > deadline => break false,
                Err(_) => {}
            }
        };
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        heard
    }

    /// Reads once and takes the frames that came.
    pub(crate) fn step(&mut self) {
        let count = match self.stream.read(self.decoder.space()) {
            Ok(0) => panic!("the guest is gone"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => panic!("nothing comes: {error}"),
        };
        self.decoder.filled(count);
        let mut grants = Vec::new();
        loop {
            let frame = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => {
                    self.decoder.resynchronise();
                    continue;
                }
            };
            let (header, payload) = (frame.header, frame.payload);
            if header.session == 0 {
                self.control.push((header.kind, payload.to_vec()));
                continue;
            }
            let session = self.sessions.entry(header.session).or_default();
            session.take(header, payload, self.keeps);
            if header.kind == Kind::Output {
                session.window.receive(payload.len()).unwrap();
                if self.grants
                    && let Some(bytes) = session.window.consume(payload.len())
                {
                    grants.push((header.session, bytes));
                }
            }
        }
        for (session, bytes) in grants {
            let grant = hearth_guest_protocol::message::CreditGrant { bytes };
            self.message(Kind::Credit, session, &grant);
        }
    }
}

impl Session {
    fn take(&mut self, header: Header, payload: &[u8], keeps: bool) {
        assert!(self.end.is_none(), "{header:?} after the end");
        match header.kind {
            Kind::Output => {
                assert!(self.status.is_some(), "output before the start");
                self.received += payload.len() as u64;
                self.ended_streams += usize::from(header.flags.has(Flags::END));
                let stream = match header.flags.has(Flags::STDERR) {
                    true => &mut self.stderr,
                    false => &mut self.stdout,
                };
                if keeps {
                    stream.extend_from_slice(payload);
                }
            }
            Kind::Status => self.status = Some(decode(payload).unwrap()),
            Kind::Result => self.end = Some(End::Result(decode(payload).unwrap())),
            Kind::Error => self.end = Some(End::Failure(decode(payload).unwrap())),
            Kind::Credit => {
                let grant: hearth_guest_protocol::message::CreditGrant = decode(payload).unwrap();
                self.credit.grant(grant.bytes).unwrap();
            }
            other => panic!("{other:?} on a session"),
        }
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn outcome(&self) -> Outcome {
        match &self.end {
            Some(End::Result(outcome)) => *outcome,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failure(&self) -> &Failure {
        match &self.end {
            Some(End::Failure(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}
