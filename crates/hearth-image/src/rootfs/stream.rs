//! The bytes of a layer: read and decompressed on a thread of their own, so that decompression overlaps with
//! reading the archive and writing the image.

use std::fs::File;
use std::io::{self, BufReader, Chain, Cursor, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use crate::digest::Hasher;
use crate::{Digest, Limits};

/// Bytes of one piece that passes between the threads.
const CHUNK: usize = 256 << 10;
/// Pieces under way; with [`CHUNK`] this bounds the memory of the pair at 2 MiB.
const DEPTH: usize = 8;

/// Compressed bytes: the first of what is left, which were looked at, and the rest.
type Input = Chain<Cursor<Vec<u8>>, BufReader<Counting<Box<dyn Read + Send>>>>;

/// Opens a blob, decompressed.
pub(crate) fn open_decompressed(path: &Path) -> io::Result<(Box<dyn Read + Send>, CountHandle)> {
    decompressed(Box::new(File::open(path)?))
}

/// Tells from the first bytes of an input whether it is compressed.
pub(crate) fn starts_compressed(input: &mut impl Read) -> io::Result<bool> {
    let mut start = Vec::new();
    input.take(4).read_to_end(&mut start)?;
    Ok(<[u8; 4]>::try_from(start).is_ok_and(|magic| Compression::of(magic).is_some()))
}

/// Decompresses an input; how, is told by its first bytes: media types are wrong in the wild often enough that
/// containerd looks at the bytes too.
pub(crate) fn decompressed(input: Box<dyn Read + Send>) -> io::Result<(Box<dyn Read + Send>, CountHandle)> {
    let count = CountHandle::default();
    let input = Counting {
        input,
        count: count.clone(),
    };
    let input = BufReader::with_capacity(CHUNK, input);
    let (input, magic) = look(Cursor::default().chain(input))?;
    let reader: Box<dyn Read + Send> = match Compression::of(magic) {
        Some(compression) => Box::new(Members {
            compression,
            current: Some(compression.begin(input)?),
        }),
        None => Box::new(input),
    };
    Ok((reader, count))
}

/// Looks at the next four bytes; zeros stand for what is behind the end.
fn look(input: Input) -> io::Result<(Input, [u8; 4])> {
    let (mut seen, mut rest) = input.into_inner();
    let mut start = Vec::with_capacity(4);
    (&mut seen).take(4).read_to_end(&mut start)?;
    (&mut rest).take(4 - start.len() as u64).read_to_end(&mut start)?;
    let mut magic = [0; 4];
    magic[..start.len()].copy_from_slice(&start);
    Ok((Cursor::new(start).chain(rest), magic))
}

/// How a blob is compressed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn of(magic: [u8; 4]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd] => Some(Self::Zstd),
            // A frame that carries metadata (zstd:chunked) may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Some(Self::Zstd),
            _ => None,
        }
    }

    fn begin(self, input: Input) -> io::Result<Member> {
        Ok(match self {
            Self::Gzip => Member::Gzip(Box::new(flate2::bufread::GzDecoder::new(input))),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(Limits::ZSTD_WINDOW_LOG)?;
                Member::Zstd(decoder.single_frame())
            }
        })
    }
}

/// A member of a gzip file (RFC 1952), or a frame of a zstd one (RFC 8878).
enum Member {
    Gzip(Box<flate2::bufread::GzDecoder<Input>>),
    Zstd(zstd::stream::read::Decoder<'static, Input>),
}

/// Reads one member after the other, and ends where none of the same kind follows: what is behind the last one is no
/// content, be it zeros that fill up a record or anything else. Go's readers refuse it, gzip(1) passes over it.
struct Members {
    compression: Compression,
    current: Option<Member>,
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = match &mut self.current {
                None => return Ok(0),
                Some(Member::Gzip(member)) => member.read(buffer)?,
                Some(Member::Zstd(frame)) => frame.read(buffer)?,
            };
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let (input, magic) = look(match self.current.take() {
                None => return Ok(0),
                Some(Member::Gzip(member)) => member.into_inner(),
                Some(Member::Zstd(frame)) => frame.finish(),
            })?;
            if Compression::of(magic) == Some(self.compression) {
                self.current = Some(self.compression.begin(input)?);
            }
        }
    }
}

/// Tells how many bytes of the compressed blob were read.
#[derive(Clone, Default)]
pub(crate) struct CountHandle(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl CountHandle {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct Counting<R> {
    input: R,
    count: CountHandle,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count
            .0
            .fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(count)
    }
}

/// The two ends of a stream between threads.
pub(crate) fn pipe() -> (ChunkWriter, ChunkReader) {
    let (full, chunks) = sync_channel(DEPTH);
    let (empty, recycled) = sync_channel(DEPTH);
    let reader = ChunkReader {
        chunks,
        empty,
        current: Vec::new(),
        at: 0,
    };
    (ChunkWriter { full, recycled }, reader)
}

/// The sending end.
pub(crate) struct ChunkWriter {
    full: SyncSender<io::Result<Vec<u8>>>,
    recycled: Receiver<Vec<u8>>,
}

impl ChunkWriter {
    /// Sends all that `input` gives, or its error; stops early when nobody listens any more. Returns the digest of all
    /// that was sent, if a hasher was given and the end was reached.
    pub(crate) fn pump(
        self,
        input: &mut dyn Read,
        mut hasher: Option<Hasher>,
        mut progress: impl FnMut(),
    ) -> Option<Digest> {
        loop {
            let mut chunk = self.recycled.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
            chunk.resize(CHUNK, 0);
            let read = read_full(input, &mut chunk);
            let end = match &read {
                Ok(count) => {
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&chunk[..*count]);
                    }
                    *count < CHUNK
                }
                Err(_) => {
                    hasher = None;
                    true
                }
            };
            let sent = self.full.send(read.map(|count| {
                chunk.truncate(count);
                chunk
            }));
            progress();
            if sent.is_err() {
                return None;
            }
            if end {
                return hasher.map(Hasher::finish);
            }
        }
    }
}

fn read_full(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The receiving end.
pub(crate) struct ChunkReader {
    chunks: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            // A closed channel is the end: the sender has sent its error, if it had one.
            let Ok(next) = self.chunks.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.current, next?);
            self.at = 0;
            match self.empty.try_send(used) {
                Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        let count = buffer.len().min(self.current.len() - self.at);
        buffer[..count].copy_from_slice(&self.current[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
