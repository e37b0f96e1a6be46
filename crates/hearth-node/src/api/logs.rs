//! What a workload printed, and the serial console.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use hearth_api::stream::{self as frames, Kind};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::Service;
use super::error::{ApiError, internal, invalid};
use super::progress::received;
use crate::guest::Stream;
use crate::host::watch::FileWatch;
use crate::machines::{LogReader, Machine, MachineError, Piece};

/// Pieces that wait for the client.
const QUEUE: usize = 16;
/// Pieces, and bytes of them, that are read in one go, off the runtime's threads.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Deserialize)]
pub(super) struct LogQuery {
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
    #[serde(default)]
    timestamps: bool,
    since: Option<String>,
    until: Option<String>,
}

/// What of a log is asked for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    follow: bool,
    tail: Option<usize>,
    timestamps: bool,
    span: Span,
}

/// A stretch of time, its ends included, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Span {
    since: u64,
    until: u64,
}

impl Span {
    fn holds(self, piece: &Piece) -> bool {
        (self.since..=self.until).contains(&piece.time_unix_ns)
    }

    /// Waits until it is over.
    async fn over(self) {
        let left = self.until.saturating_sub(now_unix_ns());
        tokio::time::sleep(Duration::from_nanos(left)).await;
    }

    fn is_over(self) -> bool {
        now_unix_ns() > self.until
    }
}

impl LogQuery {
    fn check(self) -> Result<Wanted, ApiError> {
        let time = |text: &str| {
            let time: Timestamp = text
                .parse()
                .map_err(|_| invalid(format!("{text:?} is no time as RFC 3339 has them")))?;
            Ok::<_, ApiError>(u64::try_from(time.as_nanosecond()).unwrap_or(0))
        };
        Ok(Wanted {
            follow: self.follow,
            tail: self.tail,
            timestamps: self.timestamps,
            span: Span {
                since: self.since.as_deref().map(time).transpose()?.unwrap_or(0),
                until: self.until.as_deref().map(time).transpose()?.unwrap_or(u64::MAX),
            },
        })
    }
}

pub(super) async fn logs(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let wanted = query.check()?;
    let machine = service.machines.find(&machine)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    service.tasks.spawn(async move {
        if let Err(error) = send_logs(machine, wanted, sender).await {
            tracing::error!(%error, "a log could not be read");
        }
    });
    Ok(Response::new(Body::from_stream(received(receiver))))
}

async fn send_logs(
    machine: Machine,
    wanted: Wanted,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), MachineError> {
    let mut lines = Lines {
        timestamps: wanted.timestamps,
        ..Lines::default()
    };
    let mut reader = machine.output()?;
    let mut tail = wanted.tail.map(|count| Tail {
        count,
        lines: VecDeque::new(),
    });
    loop {
        // Ask first, then read: what is written in between is found by the next turn.
        let alive = wanted.follow && !wanted.span.is_over() && machine.view().state.is_active();
        let watch = FileWatch::new(&machine.output_path()).ok();
        while let Some(pieces) = batch(&mut reader, &machine).await? {
            for piece in pieces {
                if piece.missed > 0 && sender.send(missed(piece.missed).into()).await.is_err() {
                    return Ok(());
                }
                if !wanted.span.holds(&piece) {
                    lines.pass_over(&piece);
                    continue;
                }
                let out = match &mut tail {
                    Some(tail) => tail.take(&mut lines, &piece),
                    None => lines.frames(&piece),
                };
                if !out.is_empty() && sender.send(out.into()).await.is_err() {
                    return Ok(());
                }
            }
        }
        for line in tail.take().map(|tail| tail.lines).unwrap_or_default() {
            if sender.send(line.into()).await.is_err() {
                return Ok(());
            }
        }
        if !alive {
            return Ok(());
        }
        tokio::select! {
            () = wait_for_more(&machine, watch, &sender) => {}
            () = wanted.span.over() => {}
        }
        if reader.is_none() {
            reader = machine.output()?;
        }
    }
}

/// Waits until the file has grown, the machine has ended or the client has gone.
async fn wait_for_more(machine: &Machine, watch: Option<FileWatch>, sender: &mpsc::Sender<Bytes>) {
    let written = async {
        match &watch {
            Some(watch) => drop(watch.changed().await),
            // No file yet: the workload has not run.
            None => machine.started().await,
        }
    };
    tokio::select! {
        () = written => {}
        _ = machine.ended() => {}
        () = sender.closed() => {}
    }
}

/// Reads the next pieces; `None` at the end.
async fn batch(
    reader: &mut Option<LogReader>,
    machine: &Machine,
) -> Result<Option<Vec<Piece>>, MachineError> {
    let Some(mut taken) = reader.take() else {
        return Ok(None);
    };
    let read = tokio::task::spawn_blocking(move || {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while pieces.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some(piece) = taken.next_piece()?
        {
            bytes += piece.bytes.len();
            pieces.push(piece);
        }
        Ok((taken, pieces))
    });
    let failed = |source| MachineError::Read {
        path: machine.output_path(),
        source,
    };
    let (taken, pieces) = read
        .await
        .map_err(std::io::Error::other)
        .flatten()
        .map_err(failed)?;
    *reader = Some(taken);
    Ok((!pieces.is_empty()).then_some(pieces))
}

/// Divides output into lines, to mark each with its time.
#[derive(Debug, Default)]
struct Lines {
    timestamps: bool,
    /// Whether the last byte of each stream was inside a line.
    inside: [bool; 2],
}

impl Lines {
    /// Returns a piece as frames.
    fn frames(&mut self, piece: &Piece) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.bytes.len() + frames::HEADER_LEN);
        self.each_line(piece, |line| push_frame(&mut out, piece.stream, line));
        out
    }

    /// Takes note of output that is not shown: a line that began in it and goes on is shown without its beginning, as a line.
    fn pass_over(&mut self, piece: &Piece) {
        self.inside[usize::from(piece.stream == Stream::Stderr)] = false;
    }

    /// Calls back with each line or part of one; with its time before it where a line begins.
    fn each_line(&mut self, piece: &Piece, mut take: impl FnMut(&[u8])) {
        if !self.timestamps {
            return take(&piece.bytes);
        }
        let inside = &mut self.inside[usize::from(piece.stream == Stream::Stderr)];
        for line in piece.bytes.split_inclusive(|&byte| byte == b'\n') {
            let mut marked = if *inside {
                Vec::new()
            } else {
                timestamp(piece.time_unix_ns)
            };
            marked.extend_from_slice(line);
            *inside = !line.ends_with(b"\n");
            take(&marked);
        }
    }
}

/// Says, as the workload's standard error, that the log was rotated faster than this client has read it.
fn missed(bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let words = format!("hearth: {bytes} bytes of the log were rotated away before they were read\n");
    push_frame(&mut out, Stream::Stderr, words.as_bytes());
    out
}

fn now_unix_ns() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0)
}

fn timestamp(time_unix_ns: u64) -> Vec<u8> {
    let time = Timestamp::from_nanosecond(i128::from(time_unix_ns)).unwrap_or_default();
    format!("{time:.9} ").into_bytes()
}

fn push_frame(out: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    let kind = if stream == Stream::Stdout {
        Kind::Stdout
    } else {
        Kind::Stderr
    };
    for part in bytes.chunks(frames::MAX_PAYLOAD) {
        out.extend_from_slice(&frames::header(kind, part.len()));
        out.extend_from_slice(part);
    }
}

/// The last lines, as frames.
#[derive(Debug)]
struct Tail {
    count: usize,
    lines: VecDeque<Vec<u8>>,
}

impl Tail {
    /// Takes a piece in; nothing goes out before the end is known.
    fn take(&mut self, lines: &mut Lines, piece: &Piece) -> Vec<u8> {
        for line in piece.bytes.split_inclusive(|&byte| byte == b'\n') {
            let goes_on = lines.inside[usize::from(piece.stream == Stream::Stderr)];
            let part = Piece {
                bytes: line.to_vec(),
                ..piece.clone()
            };
            let framed = lines.frames(&part);
            lines.inside[usize::from(piece.stream == Stream::Stderr)] = !line.ends_with(b"\n");
            match self.lines.back_mut().filter(|_| goes_on) {
                Some(last) => last.extend_from_slice(&framed),
                None => self.lines.push_back(framed),
            }
            while self.lines.len() > self.count {
                self.lines.pop_front();
            }
        }
        Vec::new()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ConsoleQuery {
    #[serde(default)]
    follow: bool,
}

pub(super) async fn console(
    State(service): State<Service>,
    Path(machine): Path<String>,
    query: Result<Query<ConsoleQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query?;
    let machine = service.machines.find(&machine)?;
    let path = machine.console_path();
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Response::new(Body::empty()));
        }
        Err(source) => return Err(internal(&MachineError::Read { path, source })),
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    service
        .tasks
        .spawn(send_console(machine, file, path, query.follow, sender));
    Ok(Response::new(Body::from_stream(received(receiver))))
}

async fn send_console(
    machine: Machine,
    mut file: tokio::fs::File,
    path: PathBuf,
    follow: bool,
    sender: mpsc::Sender<Bytes>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let alive = follow && machine.view().state.is_active();
        let watch = FileWatch::new(&path).ok();
        while let Ok(count @ 1..) = file.read(&mut buffer).await {
            if sender
                .send(Bytes::copy_from_slice(&buffer[..count]))
                .await
                .is_err()
            {
                return;
            }
        }
        if !alive {
            return;
        }
        wait_for_more(&machine, watch, &sender).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: Stream, bytes: &[u8]) -> Piece {
        Piece {
            time_unix_ns: 1_500_000_000,
            stream,
            bytes: bytes.to_vec(),
            missed: 0,
        }
    }

    fn text(framed: &[u8]) -> String {
        let (mut rest, mut out) = (framed, String::new());
        while rest.len() >= frames::HEADER_LEN {
            let length = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
            out += &String::from_utf8_lossy(&rest[frames::HEADER_LEN..frames::HEADER_LEN + length]);
            rest = &rest[frames::HEADER_LEN + length..];
        }
        out
    }

    #[test]
    fn each_line_has_its_time_once_even_when_it_comes_in_parts() {
        let mut lines = Lines {
            timestamps: true,
            ..Lines::default()
        };
        let mut out = text(&lines.frames(&piece(Stream::Stdout, b"one\ntw")));
        out += &text(&lines.frames(&piece(Stream::Stderr, b"err\n")));
        out += &text(&lines.frames(&piece(Stream::Stdout, b"o\n")));
        let time = "1970-01-01T00:00:01.500000000Z ";
        assert_eq!(out, format!("{time}one\n{time}tw{time}err\no\n"));
    }

    #[test]
    fn a_span_has_its_ends_and_open_ends_have_everything() {
        let span = |since: Option<&str>, until: Option<&str>| {
            let query = LogQuery {
                follow: false,
                tail: None,
                timestamps: false,
                since: since.map(str::to_owned),
                until: until.map(str::to_owned),
            };
            query.check().map(|wanted| wanted.span)
        };
        let piece = piece(Stream::Stdout, b"x");
        let holds = |since, until| span(since, until).unwrap().holds(&piece);
        assert!(holds(None, None));
        assert!(holds(
            Some("1970-01-01T00:00:01.5Z"),
            Some("1970-01-01T01:00:01.5+01:00")
        ));
        assert!(!holds(Some("1970-01-01T00:00:01.500000001Z"), None));
        assert!(!holds(None, Some("1970-01-01T00:00:01Z")));
        assert!(span(Some("yesterday"), None).is_err());
        assert!(span(None, None).is_ok_and(|span| !span.is_over()));
    }

    #[test]
    fn the_tail_counts_lines_not_pieces() {
        let (mut lines, mut tail) = (
            Lines::default(),
            Tail {
                count: 2,
                lines: VecDeque::new(),
            },
        );
        for bytes in [&b"1\n2\n3"[..], b"3\n", b"4"] {
            tail.take(&mut lines, &piece(Stream::Stdout, bytes));
        }
        let out: String = tail.lines.iter().map(|line| text(line)).collect();
        assert_eq!(out, "33\n4");
    }
}
