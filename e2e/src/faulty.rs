//! A web server on the loopback that stands before a registry, or for one, and does what a test wants it to do wrong.
//!
//! One thread for each connection, one request for each connection. A rule decides for every request; what came and how much
//! was sent is noted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::DEADLINE;

/// A byte at a time, for a client with less patience than this.
const TRICKLE: Duration = Duration::from_millis(200);

/// A request, as far as tests look at it.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET` and the like.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Its headers, as they came.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// What the server does with a request.
#[derive(Debug)]
pub enum Act {
    /// Passes the registry's answer on.
    Forward,
    /// The same for a request without the header `Range`.
    ForwardAll,
    /// Passes so many bytes of the body on, and closes the connection.
    Cut(u64),
    /// Passes so many bytes of the body on, and then waits for [`Faulty::release`], or for the client to go away.
    Hold(u64),
    /// Passes the body on byte by byte, slowly.
    Trickle,
    /// Passes the body on with one bit of it changed.
    Damage,
    /// Answers by itself.
    Answer(Reply),
}

/// An answer of the server's own.
#[derive(Debug, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers besides `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// What came, and what became of it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The request.
    pub request: Request,
    /// The status of the answer; 0 while there is none.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub sent: u64,
    /// The connection is closed.
    pub ended: bool,
}

type Rule = Box<dyn FnMut(&Request) -> Act + Send>;

struct Shared {
    /// The registry's port; 0 when there is none.
    upstream: u16,
    rule: Mutex<Rule>,
    /// Guards what was seen; connections are threads of their own.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    /// How many came before those, and are forgotten.
    forgotten: usize,
    released: bool,
    closed: bool,
}

/// The server; it ends when this is dropped.
pub struct Faulty {
    port: u16,
    shared: Arc<Shared>,
}

impl Request {
    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Tells whether a blob is asked for.
    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }
}

impl Reply {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Gives it a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl Faulty {
    /// Starts a server before the registry on `upstream`; 0 is none.
    ///
    /// # Errors
    /// There is no port.
    pub fn start(upstream: u16, rule: impl FnMut(&Request) -> Act + Send + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port on the loopback")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream,
            rule: Mutex::new(Box::new(rule)),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.state().closed {
                    break;
                }
                let shared = Arc::clone(&serving);
                std::thread::spawn(move || serve(&shared, client));
            }
        });
        Ok(Self { port, shared })
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the full name of an image in it.
    pub fn name(&self, image: &str) -> String {
        format!("localhost:{}/{image}", self.port)
    }

    /// Decides in another way from now on.
    pub fn rule(&self, rule: impl FnMut(&Request) -> Act + Send + 'static) {
        *self.shared.rule.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(rule);
    }

    /// Lets everything go on that is held, now and later.
    pub fn release(&self) {
        self.shared.state().released = true;
        self.shared.changed.notify_all();
    }

    /// Returns everything that came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.forgotten += state.seen.len();
        state.seen.clear();
    }

    /// Returns what came so far and asked for blobs.
    pub fn blobs(&self) -> Vec<Seen> {
        let mut seen = self.seen();
        seen.retain(|seen| seen.request.is_blob());
        seen
    }

    /// Waits until what was seen is as wanted.
    ///
    /// # Errors
    /// The deadline passes before.
    pub fn wait_for(&self, wanted: impl Fn(&[Seen]) -> bool) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        let mut state = self.shared.state();
        while !wanted(&state.seen) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("the deadline passed; what came: {:#?}", state.seen);
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.released = true;
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that listens.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, at: usize, change: impl FnOnce(&mut Seen)) {
        let mut state = self.state();
        let at = at.checked_sub(state.forgotten);
        if let Some(seen) = at.and_then(|at| state.seen.get_mut(at)) {
            change(seen);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for the release; false when the client went away before.
    fn hold(&self, client: &TcpStream) -> bool {
        let _ = client.set_nonblocking(true);
        let mut state = self.state();
        while !state.released {
            let gone = matches!(client.peek(&mut [0]), Ok(0)) || client.take_error().ok().flatten().is_some();
            if gone {
                return false;
            }
            // The end of a connection wakes no condition variable.
            let waited = self.changed.wait_timeout(state, Duration::from_millis(20));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        client.set_nonblocking(false).is_ok()
    }
}

fn serve(shared: &Shared, mut client: TcpStream) {
    let Some(request) = read_request(&client) else {
        return;
    };
    let act = (shared.rule.lock().unwrap_or_else(PoisonError::into_inner))(&request);
    let at = {
        let mut state = shared.state();
        state.seen.push(Seen {
            request: request.clone(),
            status: 0,
            sent: 0,
            ended: false,
        });
        state.forgotten + state.seen.len() - 1
    };
    shared.changed.notify_all();
    // A client that goes away is what some tests are about.
    let _ = answer(shared, &mut client, &request, &act, at);
    shared.note(at, |seen| seen.ended = true);
}

fn read_request(client: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(client);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut request = Request {
        method,
        path,
        headers: read_headers(&mut reader)?,
        body: Vec::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok());
    request.body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn read_headers(reader: &mut impl BufRead) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Some(headers),
        }
    }
}

fn answer(
    shared: &Shared,
    client: &mut TcpStream,
    request: &Request,
    act: &Act,
    at: usize,
) -> std::io::Result<()> {
    if let Act::Answer(reply) = act {
        let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
        shared.note(at, |seen| seen.status = reply.status);
        client.write_all(head.as_bytes())?;
        client.write_all(&reply.body)?;
        shared.note(at, |seen| seen.sent = reply.body.len() as u64);
        return Ok(());
    }
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.upstream))?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in &request.headers {
        let range = name.eq_ignore_ascii_case("range") && matches!(act, Act::ForwardAll);
        if !range && !name.eq_ignore_ascii_case("connection") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    upstream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    upstream.write_all(&request.body)?;
    let mut answer = BufReader::new(upstream);
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|text| text.parse().ok());
    shared.note(at, |seen| seen.status = status.unwrap_or(0));
    client.write_all(line.as_bytes())?;
    for (name, value) in read_headers(&mut answer).unwrap_or_default() {
        client.write_all(format!("{name}: {value}\r\n").as_bytes())?;
    }
    client.write_all(b"\r\n")?;
    pass_on(shared, client, &mut answer, act, at)
}

fn pass_on(
    shared: &Shared,
    client: &mut TcpStream,
    body: &mut impl Read,
    act: &Act,
    at: usize,
) -> std::io::Result<()> {
    let mut sent = 0;
    let mut buffer = vec![0; if matches!(act, Act::Trickle) { 1 } else { 64 << 10 }];
    loop {
        let most = match act {
            Act::Cut(end) if sent == *end => return Ok(()),
            Act::Hold(end) if sent == *end => {
                if !shared.hold(client) {
                    return Ok(());
                }
                buffer.len()
            }
            Act::Cut(end) | Act::Hold(end) if sent < *end => buffer.len().min((end - sent) as usize),
            _ => buffer.len(),
        };
        let count = body.read(&mut buffer[..most])?;
        if count == 0 {
            return Ok(());
        }
        if sent == 0 && matches!(act, Act::Damage) {
            buffer[0] ^= 1;
        }
        client.write_all(&buffer[..count])?;
        sent += count as u64;
        shared.note(at, |seen| seen.sent = sent);
        if matches!(act, Act::Trickle) {
            // What the test is about is time.
            std::thread::sleep(TRICKLE);
        }
    }
}
