//! The name server that a machine sees at its gateway: it passes questions on to those of the host, and answers back, as far as the
//! machine's policy has it.
//!
//! Its sockets are in the machine's namespace, those to the host's servers in the node's own: so a guest reaches names, and not the
//! network that the servers are in. Serves while the node lives.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hearth_guest_protocol::network::{GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6};
use hearth_machine::MachineId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::address::has_v6;
use super::guard::{Answerable, Guard};
use super::question::{Asking, Question};
use super::user::{Found, UserNetworks};

/// The port of the domain name system.
const PORT: u16 = 53;
/// The length of a message's header: shorter ones are none (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// The longest message, as over TCP (RFC 1035, 4.2.2).
const LONGEST: usize = 65_535;
/// How long one server may take for an answer before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a conversation over TCP may wait for its next question.
const IDLE: Duration = Duration::from_secs(10);
/// How long nobody is accepted after one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Questions of one machine that are under way at once; what comes beyond that is dropped, as by any busy server.
const AT_ONCE: usize = 128;
/// The error code of a server that cannot answer (RFC 1035, 4.1.1: SERVFAIL).
const SERVER_FAILURE: u8 = 2;
/// Where the host keeps its servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A name server of one machine. Ends with this value.
#[derive(Debug)]
pub(super) struct NameServer {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Who answers for names: the machines of a machine's networks, and these servers, as far as its policy has it.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) servers: Servers,
    pub(super) guard: Arc<Guard>,
    /// Who asks.
    pub(super) machine: MachineId,
    pub(super) users: Arc<UserNetworks>,
}

/// Whom to ask.
#[derive(Debug, Clone)]
pub(super) enum Servers {
    /// These.
    Set(Arc<[IpAddr]>),
    /// Those of the host, as they are at the time.
    Host,
}

impl Servers {
    fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Set(servers) => servers.to_vec(),
            Self::Host => parse(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
        }
    }
}

/// Reads the servers out of a `resolv.conf`, see resolv.conf(5). One with a zone is left out: it is of a link of the host's.
fn parse(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(str::split_ascii_whitespace);
    lines
        .filter_map(|mut words| match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => address.parse().ok(),
            _ => None,
        })
        .collect()
}

/// The sockets that a machine's questions come by.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: Vec<std::net::UdpSocket>,
    tcp: Vec<std::net::TcpListener>,
}

impl Sockets {
    /// Opens them in the namespace that this thread is in.
    pub(super) fn open() -> io::Result<Self> {
        let v6 = has_v6().then_some(IpAddr::from(GATEWAY_V6));
        let addresses = [IpAddr::from(GATEWAY_V4)].into_iter().chain(v6);
        let addresses: Vec<SocketAddr> = addresses.map(|address| (address, PORT).into()).collect();
        let udp = addresses.iter().map(|address| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let tcp = addresses.iter().map(|address| {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        Ok(Self {
            udp: udp.collect::<io::Result<_>>()?,
            tcp: tcp.collect::<io::Result<_>>()?,
        })
    }
}

impl NameServer {
    /// Starts one.
    ///
    /// # Errors
    /// When there are too many open files.
    pub(super) fn start(sockets: Sockets, authority: &Authority) -> io::Result<Self> {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = Vec::new();
        for socket in sockets.udp {
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            let task = serve_datagrams(socket, authority.clone(), Arc::clone(&permits));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        for listener in sockets.tcp {
            let listener = TcpListener::from_std(listener)?;
            let task = serve_streams(listener, authority.clone(), Arc::clone(&permits));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(task)));
        }
        Ok(Self { _tasks: tasks })
    }
}

/// How a question came, and is passed on.
#[derive(Debug, Clone, Copy)]
enum Way {
    Datagram,
    Stream,
}

impl Authority {
    /// Answers a question.
    async fn reply(&self, bytes: &[u8], way: Way) -> Vec<u8> {
        let Some(question) = Question::read(bytes) else {
            return failure(bytes);
        };
        if let Some(addresses) = self.machine_named(&question.about) {
            return match self.guard.denies(&question.about) {
                true => question.refused(),
                false => question.answered(&addresses),
            };
        }
        if self.guard.ask(&question.about) == Answerable::No {
            return question.refused();
        }
        if question.asks_for_hints() && self.guard.hides_hints() {
            return question.empty();
        }
        let Some(answer) = self.ask_all(bytes, way).await else {
            return failure(bytes);
        };
        let Some(told) = question.told(&answer) else {
            return failure(bytes);
        };
        match self.guard.answer(&question.about, &told) {
            Answerable::Yes => answer,
            Answerable::No => question.refused(),
        }
    }

    /// Returns the addresses of a machine on one of the asking machine's networks.
    fn machine_named(&self, asked: &Asking) -> Option<Vec<IpAddr>> {
        let Asking::Name(name) = asked else {
            return None;
        };
        Some(match self.users.resolve(self.machine, name)? {
            Found::Oneself => vec![GUEST_V4.into(), GUEST_V6.into()],
            Found::Others(addresses) => addresses,
        })
    }

    async fn ask_all(&self, question: &[u8], way: Way) -> Option<Vec<u8>> {
        for server in self.servers.addresses() {
            let asked = async {
                match way {
                    Way::Datagram => ask(question, server).await,
                    Way::Stream => ask_by_stream(question, server).await,
                }
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a name server does not answer"),
            }
        }
        None
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, authority: Authority, permits: Arc<Semaphore>) {
    let mut under_way = tokio::task::JoinSet::new();
    let mut question = vec![0; LONGEST];
    loop {
        while under_way.try_join_next().is_some() {}
        // Errors are of single datagrams: a port that nobody listens on any more.
        let Ok((length, client)) = socket.recv_from(&mut question).await else {
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        if !is_question(&question[..length]) {
            continue;
        }
        let question = question[..length].to_vec();
        let (socket, authority) = (Arc::clone(&socket), authority.clone());
        under_way.spawn(async move {
            let answer = authority.reply(&question, Way::Datagram).await;
            let _ = socket.send_to(&answer, client).await;
            drop(permit);
        });
    }
}

/// Tells whether a message is long enough to be one, and asks (RFC 1035, 4.1.1: QR).
fn is_question(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & 0x80 == 0
}

/// Makes the answer that nobody could answer: the question's header and its question, with the code.
fn failure(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[3] = answer[3] & 0x70 | 0x80 | SERVER_FAILURE;
    answer
}

/// Asks one server from a port of its own, which the kernel chooses at random: so answers are hard to forge (RFC 5452).
async fn ask(question: &[u8], server: IpAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect((server, PORT)).await?;
    socket.send(question).await?;
    let mut answer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= HEADER && answer[..2] == question[..2] && answer[2] & 0x80 != 0 {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn serve_streams(listener: TcpListener, authority: Authority, permits: Arc<Semaphore>) {
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        while under_way.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // One that cannot be accepted has gone, or there are too many open files: nothing tells when there are fewer.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        let authority = authority.clone();
        under_way.spawn(async move {
            if let Err(error) = converse(stream, &authority).await {
                tracing::debug!(%error, "a conversation with a name server broke off");
            }
            drop(permit);
        });
    }
}

/// Answers questions one after the other, each with its length in front (RFC 1035, 4.2.2).
async fn converse(mut client: TcpStream, authority: &Authority) -> io::Result<()> {
    while let Some(question) = message(&mut client).await? {
        if !is_question(&question) {
            return Ok(());
        }
        let answer = authority.reply(&question, Way::Stream).await;
        send(&mut client, &answer).await?;
    }
    Ok(())
}

async fn ask_by_stream(question: &[u8], server: IpAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((server, PORT)).await?;
    send(&mut stream, question).await?;
    let answer = message(&mut stream).await?;
    answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed: Vec<u8> = length
        .to_be_bytes()
        .into_iter()
        .chain(message.iter().copied())
        .collect();
    stream.write_all(&framed).await
}

/// Reads one message; none when the other side has ended, or says nothing for long.
async fn message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let Ok(length) = tokio::time::timeout(IDLE, stream.read_u16()).await else {
        return Ok(None);
    };
    let length = match length {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    let read = tokio::time::timeout(IDLE, stream.read_exact(&mut message)).await;
    read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_the_resolver_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.2\n nameserver\t2001:db8::3 # here\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.4\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.2".parse().unwrap(), "2001:db8::3".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn a_question_that_nobody_answers_comes_back_as_a_failure() {
        let question = [0x12, 0x34, 0x01, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!(is_question(&question));
        let answer = failure(&question);
        assert_eq!(answer[..2], question[..2]);
        assert_eq!(answer[2..4], [0x81, 0x92]);
        assert!(!is_question(&answer) && !is_question(&question[..11]));
    }
}
