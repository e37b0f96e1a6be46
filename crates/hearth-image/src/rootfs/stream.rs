//! The bytes of a layer: read and decompressed on a thread of their own, so that decompression overlaps with
//! reading the archive and writing the image.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Bytes of one piece that passes between the threads.
const CHUNK: usize = 256 << 10;
/// Pieces under way; with [`CHUNK`] this bounds the memory of the pair at 2 MiB.
const DEPTH: usize = 8;

/// Opens a blob and tells how it is compressed by its first bytes: media types are wrong in the wild often enough
/// that containerd looks at the bytes too.
pub(crate) fn open_decompressed(path: &Path) -> io::Result<(Box<dyn Read + Send>, CountHandle)> {
    let count = CountHandle::default();
    let file = Counting {
        input: File::open(path)?,
        count: count.clone(),
    };
    let mut input = BufReader::with_capacity(CHUNK, file);
    let magic = input.fill_buf()?;
    let reader: Box<dyn Read + Send> = if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(input))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_zstd(magic) {
        Box::new(zstd::stream::read::Decoder::with_buffer(input)?)
    } else {
        Box::new(input)
    };
    Ok((reader, count))
}

/// Zstandard frames that carry metadata (zstd:chunked) may come first.
fn is_skippable_zstd(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
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
    /// Sends all that `input` gives, or its error; stops early when nobody listens any more.
    pub(crate) fn pump(self, input: &mut dyn Read, mut progress: impl FnMut()) {
        loop {
            let mut chunk = self.recycled.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
            chunk.resize(CHUNK, 0);
            let read = read_full(input, &mut chunk);
            let end = match &read {
                Ok(count) => *count < CHUNK,
                Err(_) => true,
            };
            let sent = self.full.send(read.map(|count| {
                chunk.truncate(count);
                chunk
            }));
            progress();
            if end || sent.is_err() {
                return;
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
