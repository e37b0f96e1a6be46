//! A byte stream of whole, torn and senseless frames, however it is cut into reads, gives the same frames; each is in
//! the stream as it encodes anew; the decoder's buffer stays within its bound.
//!
//! The input is a script, since no mutation finds a checksum: pieces that are raw bytes, or a frame made well.

#![no_main]
#![forbid(unsafe_code)]

use hearth_guest_protocol::{Decoder, Flags, HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use libfuzzer_sys::fuzz_target;

const KINDS: [Kind; 30] = [
    Kind::Hello,
    Kind::Configure,
    Kind::Execute,
    Kind::Stdin,
    Kind::Output,
    Kind::Resize,
    Kind::Signal,
    Kind::Result,
    Kind::Status,
    Kind::Error,
    Kind::Stop,
    Kind::Ping,
    Kind::Pong,
    Kind::File,
    Kind::Dial,
    Kind::Stats,
    Kind::Credit,
    Kind::Close,
    Kind::Part,
    Kind::Launch,
    Kind::Detach,
    Kind::Resume,
    Kind::Clock,
    Kind::Processes,
    Kind::Freeze,
    Kind::Thaw,
    Kind::Renew,
    Kind::TimeLimit,
    Kind::HardwareAddress,
    Kind::Datagrams,
];

/// The decoder holds at most two largest frames.
const BUFFER_BOUND: usize = 2 * (HEADER_LEN + MAX_PAYLOAD);

/// Bytes of stream that one input may make: enough to wrap the decoder's buffer several times.
const STREAM_BOUND: usize = 8 * MAX_PAYLOAD;

type Owned = (Header, Vec<u8>);

fuzz_target!(|script: &[u8]| {
    let Some((cuts, script)) = script.split_at_checked(4) else {
        return;
    };
    let stream = stream(script);
    let cut = decode(&stream, cuts);
    let whole = decode(&stream, &[u8::MAX]);
    assert_eq!(cut, whole, "the frames depend on how the bytes arrive");
});

/// Makes the stream of a script.
fn stream(mut script: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let [operation, argument, rest @ ..] = script {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(*argument)));
        script = rest;
        if stream.len() > STREAM_BOUND {
            break;
        }
        match operation % 4 {
            0 => stream.extend_from_slice(bytes),
            1 => frame(*operation, bytes, &mut stream),
            2 => frame(
                *operation,
                &bytes.repeat(300)[..(bytes.len() * 300).min(MAX_PAYLOAD)],
                &mut stream,
            ),
            _ => torn(*operation, bytes, &mut stream),
        }
    }
    stream
}

fn frame(choice: u8, payload: &[u8], stream: &mut Vec<u8>) {
    let flags = [
        Flags::NONE,
        Flags::END,
        Flags::STDERR,
        Flags::STDERR.with(Flags::END),
    ];
    let kind = KINDS[usize::from(choice / 4) % KINDS.len()];
    let session = payload.first().map_or(0, |&byte| u32::from(byte) << 24 | 1);
    Header::marked(kind, session, flags[payload.len() % 4]).write(payload, stream);
}

/// A frame that ends early, as a connection does that breaks.
fn torn(choice: u8, payload: &[u8], stream: &mut Vec<u8>) {
    let mut whole = Vec::new();
    frame(choice, payload, &mut whole);
    whole.truncate(usize::from(choice));
    stream.append(&mut whole);
}

/// Decodes a stream in reads whose lengths follow `cuts`, and skips what is no frame.
fn decode(stream: &[u8], cuts: &[u8]) -> Vec<Owned> {
    let mut decoder = Decoder::new();
    let mut reader = Reader {
        stream,
        position: 0,
        in_step: true,
        frames: Vec::new(),
    };
    let mut unread = stream;
    for cut in cuts.iter().cycle() {
        if unread.is_empty() {
            break;
        }
        let space = decoder.space();
        assert!(
            !space.is_empty() && space.len() <= BUFFER_BOUND,
            "{} bytes of room",
            space.len()
        );
        // A largest cut is a read of whatever there is room for.
        let wanted = if *cut == u8::MAX {
            usize::MAX
        } else {
            usize::from(*cut) * 97 + 1
        };
        let (read, rest) = unread.split_at(unread.len().min(space.len()).min(wanted));
        space[..read.len()].copy_from_slice(read);
        decoder.filled(read.len());
        unread = rest;
        reader.drain(&mut decoder);
    }
    reader.frames
}

/// What came out of a decoder, and where in the stream it was.
struct Reader<'s> {
    stream: &'s [u8],
    /// Behind the last frame.
    position: usize,
    /// Whether nothing was skipped since.
    in_step: bool,
    frames: Vec<Owned>,
}

impl Reader<'_> {
    fn drain(&mut self, decoder: &mut Decoder) {
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => self.take(frame.header, frame.payload),
                Ok(None) => return,
                Err(error) => {
                    assert_eq!(decoder.next_frame(), Err(error), "an error stays");
                    decoder.resynchronise();
                    self.in_step = false;
                }
            }
        }
    }

    fn take(&mut self, header: Header, payload: &[u8]) {
        assert!(payload.len() <= MAX_PAYLOAD);
        let mut again = Vec::new();
        header.write(payload, &mut again);
        let ahead = &self.stream[self.position..];
        let at = if self.in_step {
            ahead.starts_with(&again).then_some(0)
        } else {
            ahead.windows(again.len()).position(|window| window == again)
        };
        self.position += at.expect("a frame is in the stream as it encodes anew") + again.len();
        self.in_step = true;
        self.frames.push((header, payload.to_vec()));
    }
}
