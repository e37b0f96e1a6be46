//! The frame: header, checksum, and a decoder that survives what an earlier connection left behind.
//!
//! Layout, little endian:
//! ```text
//!  0  magic    "HRTH"
//!  4  kind     u8      [`Kind`]
//!  5  flags    u8      [`Flags`]
//!  6  zero     u16     must be zero
//!  8  session  u32
//! 12  length   u32     bytes of payload, at most MAX_PAYLOAD
//! 16  crc      u32     CRC-32 (ISO-HDLC, as in zlib) of bytes 0..16 and the payload
//! 20  payload
//! ```

use alloc::vec::Vec;

use crate::crc;

/// The length of a frame's header in bytes.
pub const HEADER_LEN: usize = 20;

/// The most payload that one frame carries, in bytes. Bounds what a peer can make us buffer.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const MAGIC: [u8; 4] = *b"HRTH";

/// What a frame is. The numbers are the wire's and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Either way, first: [`crate::message::Hello`].
    Hello = 1,
    /// To the guest: [`crate::message::Configure`].
    Configure = 2,
    /// To the guest, opens a session: [`crate::message::Execute`].
    Execute = 3,
    /// To the guest: raw bytes for a session's input; [`Flags::END`] ends it.
    Stdin = 4,
    /// To the host: raw bytes of a session's output; [`Flags::STDERR`], [`Flags::END`].
    Output = 5,
    /// To the guest: [`crate::message::TerminalSize`] of a session.
    Resize = 6,
    /// To the guest: [`crate::message::Signal`] for a session's processes.
    Signal = 7,
    /// To the host, closes a session: [`crate::message::Outcome`].
    Result = 8,
    /// To the host: [`crate::message::Status`].
    Status = 9,
    /// To the host, closes a session: [`crate::message::Failure`].
    Error = 10,
    /// To the guest: [`crate::message::Stop`]; the guest ends its processes and brings its disks to rest.
    Stop = 11,
    /// To the guest; the same bytes come back as [`Kind::Pong`].
    Ping = 12,
    /// To the host.
    Pong = 13,
    /// To the guest, opens a session: [`crate::message::FileRequest`].
    File = 14,
    /// To the guest, opens a session: [`crate::message::Dial`].
    Dial = 15,
    /// To the guest, empty; to the host: [`crate::message::Stats`].
    Stats = 16,
    /// Either way: [`crate::message::CreditGrant`], more bytes the sender of it can take in a session.
    Credit = 17,
    /// To the guest: the host has lost interest in a session; what runs in it is killed, and a connection reset. In generation 9 with
    /// [`Flags::END`]: it has had all that it wanted, and a connection is closed.
    Close = 18,
    /// To the guest, generation 2: raw bytes of a message that does not fit one frame, before the frame that ends it.
    Part = 19,
    /// To the guest, generation 2, opens a session: [`crate::message::Launch`].
    Launch = 20,
    /// To the guest, generation 2: the host has lost interest in a session; what runs in it goes on, and what it prints is
    /// dropped.
    Detach = 21,
    /// To the guest, generation 3: [`crate::message::Resume`]; first of all in a session that an earlier host has opened.
    Resume = 22,
    /// To the guest, generation 4: [`crate::message::Clock`].
    Clock = 23,
    /// Generation 4. To the guest, empty; to the host: [`crate::message::Processes`].
    Processes = 24,
    /// To the guest, generation 5: [`crate::message::Freeze`].
    Freeze = 25,
    /// To the guest, generation 5, empty: what stands still goes on.
    Thaw = 26,
    /// To the guest, generation 5: [`crate::message::Renew`].
    Renew = 27,
    /// To the guest, generation 6, before the launch in a session: [`crate::message::TimeLimit`].
    TimeLimit = 28,
    /// To the guest, generation 8, not answered: [`crate::message::HardwareAddress`].
    HardwareAddress = 29,
    /// To the guest, generation 9, opens a session: [`crate::message::Dial`] of a UDP port; [`crate::datagram`] says what goes over it.
    Datagrams = 30,
}

impl Kind {
    const ALL: [Self; 30] = [
        Self::Hello,
        Self::Configure,
        Self::Execute,
        Self::Stdin,
        Self::Output,
        Self::Resize,
        Self::Signal,
        Self::Result,
        Self::Status,
        Self::Error,
        Self::Stop,
        Self::Ping,
        Self::Pong,
        Self::File,
        Self::Dial,
        Self::Stats,
        Self::Credit,
        Self::Close,
        Self::Part,
        Self::Launch,
        Self::Detach,
        Self::Resume,
        Self::Clock,
        Self::Processes,
        Self::Freeze,
        Self::Thaw,
        Self::Renew,
        Self::TimeLimit,
        Self::HardwareAddress,
        Self::Datagrams,
    ];

    fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }
}

/// Marks on data frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    /// No mark.
    pub const NONE: Self = Self(0);
    /// The last bytes of this stream; there may be none.
    pub const END: Self = Self(1);
    /// The bytes are standard error's; without it, standard output's.
    pub const STDERR: Self = Self(2);
    /// A generation that knows more marks is a newer one; so unknown marks are an error.
    const KNOWN: u8 = 3;

    /// Returns both sets of marks together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Tells whether every mark of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What a frame says of itself, without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Marks, of data frames.
    pub flags: Flags,
    /// The session it belongs to; [`crate::CONTROL`] for the guest as a whole.
    pub session: u32,
}

impl Header {
    /// Makes a header without marks.
    pub const fn new(kind: Kind, session: u32) -> Self {
        Self {
            kind,
            flags: Flags::NONE,
            session,
        }
    }

    /// Makes a header with marks.
    pub const fn marked(kind: Kind, session: u32, flags: Flags) -> Self {
        Self { kind, flags, session }
    }

    /// Returns the header's bytes for this payload, which must not be longer than [`MAX_PAYLOAD`].
    pub fn encode(&self, payload: &[u8]) -> [u8; HEADER_LEN] {
        debug_assert!(payload.len() <= MAX_PAYLOAD);
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags.0;
        bytes[8..12].copy_from_slice(&self.session.to_le_bytes());
        bytes[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        let crc = checksum(&bytes[..16], payload);
        bytes[16..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Appends the whole frame to `out`.
    pub fn write(&self, payload: &[u8], out: &mut Vec<u8>) {
        out.reserve(HEADER_LEN + payload.len());
        out.extend_from_slice(&self.encode(payload));
        out.extend_from_slice(payload);
    }
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc::update(crc::update(0, head), payload)
}

/// One frame, its payload still in the decoder's buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the frame is.
    pub header: Header,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Says why the bytes at the head of the stream are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream is out of step: no magic where a frame must start.
    #[error("no frame starts here: the stream is out of step")]
    Magic,
    /// The kind is none that this generation knows.
    #[error("frame kind {0} is unknown")]
    Kind(u8),
    /// A mark or a reserved bit is set that this generation does not know.
    #[error("reserved bits are set in a frame header")]
    Reserved,
    /// The length is beyond the bound.
    #[error("a frame of {0} bytes is longer than the bound of {MAX_PAYLOAD}")]
    TooLong(u32),
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch in a frame of {length} bytes: {found:#010x} instead of {expected:#010x}")]
    Checksum {
        /// Bytes of payload.
        length: u32,
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
}

/// Cuts a byte stream into frames. Holds at most one largest frame and one read.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Unread bytes are `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Twice the largest frame, so that bytes are moved to the front once per frame at most.
    const CAPACITY: usize = 2 * (HEADER_LEN + MAX_PAYLOAD);

    /// Makes a decoder that has seen nothing.
    pub fn new() -> Self {
        Self {
            buffer: alloc::vec![0; Self::CAPACITY],
            start: 0,
            end: 0,
        }
    }

    /// Returns room to read into: never empty as long as [`Decoder::next_frame`] was called until it gave `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > Self::CAPACITY / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.buffer[self.end..]
    }

    /// Takes note that `count` bytes were read into [`Decoder::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// Returns the next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// Returns why the bytes are not a frame; they stay, and every further call says the same until
    /// [`Decoder::resynchronise`] or [`Decoder::clear`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let unread = &self.buffer[self.start..self.end];
        let Some((header, length)) = parse(unread)? else {
            return Ok(None);
        };
        let begin = self.start + HEADER_LEN;
        self.start = begin + length;
        Ok(Some(Frame {
            header,
            payload: &self.buffer[begin..self.start],
        }))
    }

    /// Skips at least one byte, up to the next place where a frame could start.
    pub fn resynchronise(&mut self) {
        let unread = &self.buffer[self.start..self.end];
        let next = (1..unread.len()).find(|&at| could_be_magic(&unread[at..]));
        self.start = next.map_or(self.end, |at| self.start + at);
    }

    /// Forgets what was read: the stream has been opened anew.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}

fn could_be_magic(bytes: &[u8]) -> bool {
    let length = bytes.len().min(MAGIC.len());
    bytes[..length] == MAGIC[..length]
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads one frame's header and checks its payload; `None` when bytes are missing.
fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, FrameError> {
    if !could_be_magic(bytes) {
        return Err(FrameError::Magic);
    }
    if bytes.len() < HEADER_LEN {
        return Ok(None);
    }
    let kind = Kind::from_wire(bytes[4]).ok_or(FrameError::Kind(bytes[4]))?;
    if bytes[5] & !Flags::KNOWN != 0 || bytes[6] != 0 || bytes[7] != 0 {
        return Err(FrameError::Reserved);
    }
    let length = word(bytes, 12);
    if length as usize > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length));
    }
    let Some(payload) = bytes.get(HEADER_LEN..HEADER_LEN + length as usize) else {
        return Ok(None);
    };
    let (expected, found) = (word(bytes, 16), checksum(&bytes[..16], payload));
    if expected != found {
        return Err(FrameError::Checksum {
            length,
            expected,
            found,
        });
    }
    let header = Header {
        kind,
        flags: Flags(bytes[5]),
        session: word(bytes, 8),
    };
    Ok(Some((header, payload.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(decoder: &mut Decoder, bytes: &[u8]) {
        decoder.space()[..bytes.len()].copy_from_slice(bytes);
        decoder.filled(bytes.len());
    }

    #[test]
    fn golden_bytes_of_an_output_frame() {
        let mut wire = Vec::new();
        Header::marked(Kind::Output, 7, Flags::STDERR.with(Flags::END)).write(b"hi\n", &mut wire);
        let expected = [
            b'H', b'R', b'T', b'H', 5, 3, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 0xec, 0xfa, 0x32, 0x2e, b'h', b'i',
            b'\n',
        ];
        assert_eq!(wire, expected);
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_bytes_arrive() {
        let mut wire = Vec::new();
        Header::new(Kind::Ping, 0).write(b"", &mut wire);
        Header::new(Kind::Stdin, 3).write(&[0xa5; MAX_PAYLOAD], &mut wire);
        Header::new(Kind::Close, 9).write(b"x", &mut wire);
        for step in [1, 7, 4096, 60_000] {
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                feed(&mut decoder, piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.header.kind, frame.header.session, frame.payload.len()));
                }
            }
            assert_eq!(
                seen,
                [
                    (Kind::Ping, 0, 0),
                    (Kind::Stdin, 3, MAX_PAYLOAD),
                    (Kind::Close, 9, 1)
                ],
                "{step}"
            );
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let mut wire = Vec::new();
        Header::new(Kind::Output, 1).write(b"payload", &mut wire);
        for bit in 0..wire.len() * 8 {
            let mut broken = wire.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new();
            feed(&mut decoder, &broken);
            assert!(!matches!(decoder.next_frame(), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_it_is_read() {
        let mut bytes = Header::new(Kind::Output, 1).encode(b"");
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::new();
        feed(&mut decoder, &bytes);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(u32::MAX)));
    }

    #[test]
    fn the_rest_of_a_torn_frame_is_skipped() {
        let mut torn = Vec::new();
        Header::new(Kind::Output, 1).write(b"HRTH and HR then nothing", &mut torn);
        let mut wire = torn[11..].to_vec();
        Header::new(Kind::Hello, 0).write(b"again", &mut wire);
        let mut decoder = Decoder::new();
        feed(&mut decoder, &wire);
        let payload = loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => break frame.payload.to_vec(),
                Ok(None) => panic!("the whole frame is there"),
                Err(_) => decoder.resynchronise(),
            }
        };
        assert_eq!(payload, b"again");
    }
}
