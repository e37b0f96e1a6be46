//! How the host reaches a port of the guest: Firecracker's socket, and a line that says which port.
//!
//! ```text
//! host -> Firecracker   CONNECT 1024\n
//! Firecracker -> host   OK 1073741824\n      (the host's own port)
//! ```
//!
//! From then on the stream is the guest's. When nobody listens in the guest, Firecracker closes the connection without a
//! word. Before the guest has its driver up the answer waits, so that a first connection needs no second try.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::socket;

/// The longest answer: `OK 4294967295\n`.
const ANSWER_MAX: usize = 14;

/// Says why a port of the guest was not reached.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Firecracker does not listen.
    #[error("nobody answers on {}", socket.display())]
    Connect {
        /// The socket of the vsock device.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke during the handshake.
    #[error("the connection to vsock port {port} broke")]
    Broken {
        /// The guest's port.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing in the guest listens on the port.
    #[error("nothing in the guest listens on vsock port {port}")]
    NobodyListens {
        /// The guest's port.
        port: u32,
    },
    /// The answer is not Firecracker's.
    #[error("not an answer of Firecracker to a connection to vsock port {port}: {answer:?}")]
    Malformed {
        /// The guest's port.
        port: u32,
        /// What came.
        answer: String,
    },
    /// There was no answer in time: the guest does not run, or has no vsock driver yet.
    #[error("vsock port {port} did not answer within {limit:?}")]
    Deadline {
        /// The guest's port.
        port: u32,
        /// The time that it had.
        limit: Duration,
    },
}

/// Connects to a port of the guest. As with [`crate::Client::new`], the socket's name must not be a link, and its path may be long.
///
/// # Errors
/// Returns [`VsockError`].
pub async fn connect(socket: &Path, port: u32, deadline: Duration) -> Result<UnixStream, VsockError> {
    match tokio::time::timeout(deadline, handshake(socket, port)).await {
        Ok(connected) => connected,
        Err(_) => Err(VsockError::Deadline {
            port,
            limit: deadline,
        }),
    }
}

async fn handshake(path: &Path, port: u32) -> Result<UnixStream, VsockError> {
    let connected = socket::connect(path).await;
    let mut stream = connected.map_err(|source| VsockError::Connect {
        socket: path.to_owned(),
        source,
    })?;
    let broken = |source: io::Error| match source.kind() {
        // Firecracker closes with our request unread, or closes.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => VsockError::NobodyListens { port },
        _ => VsockError::Broken { port, source },
    };
    let request = format!("CONNECT {port}\n");
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    // Byte by byte: what follows the line is the guest's already.
    while answer.len() < ANSWER_MAX && !answer.ends_with(b"\n") {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(end) if end.kind() == io::ErrorKind::UnexpectedEof && answer.is_empty() => {
                return Err(VsockError::NobodyListens { port });
            }
            Err(source) => return Err(broken(source)),
        }
    }
    match is_good(&answer) {
        true => Ok(stream),
        false => Err(VsockError::Malformed {
            port,
            answer: String::from_utf8_lossy(&answer).into_owned(),
        }),
    }
}

fn is_good(answer: &[u8]) -> bool {
    let line = std::str::from_utf8(answer)
        .ok()
        .and_then(|text| text.strip_suffix('\n'));
    let host_port = line.and_then(|line| line.strip_prefix("OK "));
    host_port.is_some_and(|port| port.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    /// Answers one connection with these bytes and closes it.
    async fn against(answer: &[u8]) -> Result<(Vec<u8>, String), VsockError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let firecracker = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; b"CONNECT 52\n".len()];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let host = async {
            let mut rest = Vec::new();
            let mut stream = connect(&path, 52, LONG).await?;
            stream.read_to_end(&mut rest).await.unwrap();
            Ok(rest)
        };
        let (rest, request) = tokio::join!(host, firecracker);
        rest.map(|rest| (rest, request))
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_left_to_the_caller() {
        let (rest, request) = against(b"OK 1073741824\nHRTH").await.unwrap();
        assert_eq!((&*rest, &*request), (&b"HRTH"[..], "CONNECT 52\n"));
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_means_that_nobody_listens() {
        let refused = against(b"").await.unwrap_err();
        assert!(
            matches!(refused, VsockError::NobodyListens { port: 52 }),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn an_answer_that_is_none_is_refused_and_never_read_beyond_its_bound() {
        for answer in [
            &b"NO 12\n"[..],
            b"OK \n",
            b"OK x\n",
            b"OK 123456789012345678901234567890\n",
            b"\xff\n",
        ] {
            let refused = against(answer).await.unwrap_err();
            assert!(matches!(refused, VsockError::Malformed { .. }), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_guest_that_does_not_answer_costs_the_deadline_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let late = connect(&path, 52, Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(late, VsockError::Deadline { port: 52, .. }), "{late}");
    }
}
