//! Frames on an upgraded connection (`Upgrade: hearth-stream`) and in log answers: several byte streams and a few words
//! on one connection.
//!
//! ```text
//! 0  kind    u8   [`Kind`]
//! 1  zero    3 bytes
//! 4  length  u32, big endian, at most MAX_PAYLOAD
//! 8  payload
//! ```

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The name of this protocol in HTTP's Upgrade header.
pub const UPGRADE: &str = "hearth-stream";

/// The most payload that one frame carries, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The length of a frame's header, in bytes.
pub const HEADER_LEN: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the node: bytes for standard input.
    Stdin = 0,
    /// To the client: bytes of standard output, or of the terminal.
    Stdout = 1,
    /// To the client: bytes of standard error.
    Stderr = 2,
    /// To the node: standard input has ended; no payload.
    StdinEnd = 3,
    /// To the node: the terminal's size; rows and columns, two big-endian u16.
    Resize = 4,
    /// To the node: a signal's number, one byte.
    Signal = 5,
    /// To the client, last: JSON of [`crate::v1::ExitStatus`].
    Exit = 6,
    /// To the client, last: JSON of [`crate::v1::ErrorBody`].
    Error = 7,
    /// To the client, first: the process runs; no payload.
    Started = 8,
    /// To the node: this client leaves, and the process goes on; no payload. The node ends the stream with exit code 0.
    Detach = 9,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::StdinEnd,
        Self::Resize,
        Self::Signal,
        Self::Exit,
        Self::Error,
        Self::Started,
        Self::Detach,
    ];
}

/// Says why a stream of frames cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The peer does not speak this protocol.
    #[error("frame kind {kind} of {length} bytes is not of this protocol")]
    Malformed {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: u32,
    },
}

/// Returns the header of a frame with so much payload.
pub fn header(kind: Kind, length: usize) -> [u8; HEADER_LEN] {
    debug_assert!(length <= MAX_PAYLOAD);
    let length = (length as u32).to_be_bytes();
    [kind as u8, 0, 0, 0, length[0], length[1], length[2], length[3]]
}

/// Writes one frame; the caller flushes.
///
/// # Errors
/// Returns the connection's error.
pub async fn write(out: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) -> std::io::Result<()> {
    for (index, piece) in payload.chunks(MAX_PAYLOAD).enumerate() {
        debug_assert!(index == 0 || matches!(kind, Kind::Stdin | Kind::Stdout | Kind::Stderr));
        out.write_all(&header(kind, piece.len())).await?;
        out.write_all(piece).await?;
    }
    if payload.is_empty() {
        out.write_all(&header(kind, 0)).await?;
    }
    Ok(())
}

/// Reads one frame into `payload`, which is cleared first; `None` when the stream ends between two frames.
///
/// # Errors
/// Returns [`StreamError`] when the connection breaks or the peer speaks another protocol.
pub async fn read(
    input: &mut (impl AsyncRead + Unpin),
    payload: &mut Vec<u8>,
) -> Result<Option<Kind>, StreamError> {
    payload.clear();
    let mut head = [0; HEADER_LEN];
    if input.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let kind = Kind::ALL.get(usize::from(head[0])).copied();
    let Some(kind) = kind.filter(|_| length as usize <= MAX_PAYLOAD) else {
        return Err(StreamError::Malformed {
            kind: head[0],
            length,
        });
    };
    payload.resize(length as usize, 0);
    input.read_exact(payload).await?;
    Ok(Some(kind))
}

/// Returns the payload of a [`Kind::Resize`] frame.
pub fn resize_payload(rows: u16, columns: u16) -> [u8; 4] {
    let (rows, columns) = (rows.to_be_bytes(), columns.to_be_bytes());
    [rows[0], rows[1], columns[0], columns[1]]
}

/// Reads the payload of a [`Kind::Resize`] frame: rows and columns.
pub fn parse_resize(payload: &[u8]) -> Option<(u16, u16)> {
    let &[r0, r1, c0, c1] = payload else { return None };
    Some((u16::from_be_bytes([r0, r1]), u16::from_be_bytes([c0, c1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in() {
        let mut wire = Vec::new();
        write(&mut wire, Kind::Started, b"").await.unwrap();
        write(&mut wire, Kind::Stdout, &vec![7; MAX_PAYLOAD + 1])
            .await
            .unwrap();
        write(&mut wire, Kind::Resize, &resize_payload(24, 80))
            .await
            .unwrap();
        let (mut input, mut payload, mut seen) = (wire.as_slice(), Vec::new(), Vec::new());
        while let Some(kind) = read(&mut input, &mut payload).await.unwrap() {
            seen.push((kind, payload.len()));
        }
        assert_eq!(
            seen,
            [
                (Kind::Started, 0),
                (Kind::Stdout, MAX_PAYLOAD),
                (Kind::Stdout, 1),
                (Kind::Resize, 4)
            ]
        );
        assert_eq!(parse_resize(&resize_payload(24, 80)), Some((24, 80)));
        assert_eq!(parse_resize(b"123"), None);
    }

    #[tokio::test]
    async fn a_foreign_protocol_is_refused_before_its_length_is_believed() {
        for wire in [&b"\x01\0\0\0\xff\xff\xff\xffxx"[..], b"\x2a\0\0\0\0\0\0\x01x"] {
            let mut input = wire;
            assert!(matches!(
                read(&mut input, &mut Vec::new()).await,
                Err(StreamError::Malformed { .. })
            ));
        }
    }

    #[tokio::test]
    async fn a_frame_that_breaks_off_is_an_error() {
        let mut input = &b"\x01\0\0\0\0\0\0\x05abc"[..];
        assert!(matches!(
            read(&mut input, &mut Vec::new()).await,
            Err(StreamError::Io(_))
        ));
    }
}
