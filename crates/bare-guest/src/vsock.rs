//! vsock with one stream: the host connects, and whoever connects last is the host.
//!
//! A driver of our own over the queues of `virtio-drivers`: its socket driver waits in a loop for every packet it sends,
//! and Firecracker drops what is under way when it takes a snapshot, so that a restored guest would wait for good. It
//! also gives the event queue no buffers, so that the reset which Firecracker sends then would go unheard.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use hearth_guest_protocol::VSOCK_PORT;
use virtio_drivers::Result;
use virtio_drivers::device::common::Feature;
use virtio_drivers::queue::{OwningQueue, VirtQueue};
use virtio_drivers::transport::Transport;

use crate::outbox::Outbox;
use crate::transport::{Identity, OneByOne};

const RECEIVE: u16 = 0;
const SEND: u16 = 1;
const EVENTS: u16 = 2;

/// Packets that the host may put down before the guest looks.
const RECEIVE_BUFFERS: usize = 16;
const RECEIVE_BUFFER: usize = 16 * 1024;
const EVENT_BUFFERS: usize = 4;
const EVENT: usize = 4;

/// The most payload of one packet that is sent: Firecracker takes 64 KiB at most, header and all.
const PAYLOAD_MAX: usize = 32 * 1024;

/// What the host may have under way to us; bytes are taken in as they come, so this bounds nothing but the device.
const OUR_BUFFER: u32 = 256 * 1024;

/// Control packets that may wait; a host that asks for more is not answered.
const ANSWERS_MAX: usize = 64;

const STREAM: u16 = 1;
const HOST: u64 = 2;

/// The header of a packet (virtio 1.2, section 5.10.6), little endian.
const HEADER: usize = 44;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    fn from_wire(number: u16) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    fn to_wire(self) -> u16 {
        self as u16 + 1
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    /// The host's port and ours.
    host_port: u32,
    our_port: u32,
    length: u32,
    operation: Operation,
    buffer: u32,
    forwarded: u32,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some(Self {
            host_port: word(16),
            our_port: word(20),
            length: word(24),
            operation: Operation::from_wire(u16::from_le_bytes([bytes[30], bytes[31]]))?,
            buffer: word(36),
            forwarded: word(40),
        })
    }

    fn write(&self, cid: u64, packet: &mut Vec<u8>) {
        packet.extend(cid.to_le_bytes());
        packet.extend(HOST.to_le_bytes());
        packet.extend(self.our_port.to_le_bytes());
        packet.extend(self.host_port.to_le_bytes());
        packet.extend(self.length.to_le_bytes());
        packet.extend(STREAM.to_le_bytes());
        packet.extend(self.operation.to_wire().to_le_bytes());
        packet.extend(0_u32.to_le_bytes());
        packet.extend(self.buffer.to_le_bytes());
        packet.extend(self.forwarded.to_le_bytes());
    }
}

/// The stream, while there is one.
#[derive(Debug)]
struct Stream {
    host_port: u32,
    /// Bytes taken in, and how many of them the host has heard of.
    received: u32,
    told: u32,
    /// Bytes sent, and what the host said of its buffer.
    sent: u32,
    buffer: u32,
    forwarded: u32,
    asked: bool,
}

impl Stream {
    fn room(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.forwarded);
        self.buffer.saturating_sub(under_way) as usize
    }
}

/// What the host did.
#[derive(Debug)]
pub(crate) enum Happening<'a> {
    /// The host said that every connection is gone, as it does when a snapshot is taken.
    Reset,
    /// A stream begins; there is no other any more.
    Opened,
    /// The stream is gone.
    Closed,
    /// Bytes of the stream.
    Bytes(&'a [u8]),
}

/// The device.
pub(crate) struct Vsock {
    transport: OneByOne,
    receive: OwningQueue<Identity, RECEIVE_BUFFERS, RECEIVE_BUFFER>,
    send: VirtQueue<Identity, 4>,
    events: OwningQueue<Identity, EVENT_BUFFERS, EVENT>,
    cid: u64,
    stream: Option<Stream>,
    /// Whether no connection was made since the host said that all are gone.
    is_after_reset: bool,
    answers: VecDeque<Header>,
    /// The packet that came last.
    packet_in: Vec<u8>,
    /// The packet that the device has, if it has one.
    packet: Vec<u8>,
    under_way: Option<u16>,
}

impl Vsock {
    /// Starts the device.
    ///
    /// # Errors
    /// Returns the device's.
    pub(crate) fn start(mut transport: OneByOne) -> Result<Self> {
        transport.begin_init(Feature::VERSION_1);
        let cid = read_cid(&transport)?;
        let receive = VirtQueue::new(&mut transport, RECEIVE, false, false)?;
        let send = VirtQueue::new(&mut transport, SEND, false, false)?;
        let events = VirtQueue::new(&mut transport, EVENTS, false, false)?;
        let (receive, events) = (OwningQueue::new(receive)?, OwningQueue::new(events)?);
        transport.finish_init();
        transport.notify(RECEIVE);
        transport.notify(EVENTS);
        Ok(Self {
            transport,
            receive,
            send,
            events,
            cid,
            stream: None,
            is_after_reset: false,
            answers: VecDeque::new(),
            packet_in: Vec::with_capacity(RECEIVE_BUFFER),
            packet: Vec::with_capacity(HEADER + PAYLOAD_MAX),
            under_way: None,
        })
    }

    /// Takes what the host sent, if anything.
    pub(crate) fn receive(&mut self, hear: &mut impl FnMut(Happening<'_>)) -> bool {
        let mut worked = false;
        loop {
            self.packet_in.clear();
            let packet_in = &mut self.packet_in;
            let came = self.receive.poll(&mut self.transport, |packet| {
                packet_in.extend_from_slice(packet);
                Ok(Some(()))
            });
            // Looked at behind the packet and taken before it: a packet of after a restore never comes before the event
            // of the snapshot, which would end the connection that the packet begins.
            worked |= self.events(hear);
            match came {
                Ok(Some(())) => self.take(hear),
                _ => return worked,
            }
            worked = true;
        }
    }

    /// There is one event only: all connections are gone, and so is what was under way.
    fn events(&mut self, hear: &mut impl FnMut(Happening<'_>)) -> bool {
        let mut worked = false;
        while let Ok(Some(())) = self.events.poll(&mut self.transport, |_| Ok(Some(()))) {
            hear(Happening::Reset);
            self.cid = read_cid(&self.transport).unwrap_or(self.cid);
            self.answers.clear();
            self.is_after_reset = true;
            self.transport.notify(SEND);
            if self.stream.take().is_some() {
                hear(Happening::Closed);
            }
            worked = true;
        }
        worked
    }

    /// Takes the packet that came last.
    fn take(&mut self, hear: &mut impl FnMut(Happening<'_>)) {
        let Some(header) = Header::read(&self.packet_in) else {
            return;
        };
        if header.operation == Operation::Request {
            return self.requested(header, hear);
        }
        let ours =
            |stream: &&mut Stream| stream.host_port == header.host_port && header.our_port == VSOCK_PORT;
        let Some(stream) = self.stream.as_mut().filter(ours) else {
            // What came before a snapshot gets no answer behind it: the host gives its ports anew, and the answer would
            // end the first connection after a restore.
            if header.operation != Operation::Reset && !self.is_after_reset {
                self.answer(header, Operation::Reset);
            }
            return;
        };
        (stream.buffer, stream.forwarded) = (header.buffer, header.forwarded);
        match header.operation {
            Operation::Data => {
                let Some(bytes) = self.packet_in.get(HEADER..HEADER + header.length as usize) else {
                    return;
                };
                stream.received = stream.received.wrapping_add(header.length);
                hear(Happening::Bytes(bytes));
            }
            Operation::CreditUpdate => stream.asked = false,
            // As if a quarter of the buffer had come: the next packet tells.
            Operation::CreditRequest => stream.told = stream.received.wrapping_sub(OUR_BUFFER / 4),
            Operation::Reset | Operation::Shutdown => {
                if header.operation == Operation::Shutdown {
                    self.answer(header, Operation::Reset);
                }
                self.stream = None;
                hear(Happening::Closed);
            }
            Operation::Request | Operation::Response => {}
        }
    }

    /// Accepts a connection, and ends the one there was.
    fn requested(&mut self, header: Header, hear: &mut impl FnMut(Happening<'_>)) {
        if header.our_port != VSOCK_PORT {
            return self.answer(header, Operation::Reset);
        }
        if let Some(old) = self.stream.take() {
            hear(Happening::Closed);
            // One with the same ports is one of before a snapshot: nobody has it any more.
            if old.host_port != header.host_port {
                let header = Header {
                    host_port: old.host_port,
                    ..header
                };
                self.answer(header, Operation::Reset);
            }
        }
        self.is_after_reset = false;
        self.stream = Some(Stream {
            host_port: header.host_port,
            received: 0,
            told: 0,
            sent: 0,
            buffer: header.buffer,
            forwarded: header.forwarded,
            asked: false,
        });
        self.answer(header, Operation::Response);
        hear(Happening::Opened);
    }

    fn answer(&mut self, to: Header, operation: Operation) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(Header {
                length: 0,
                operation,
                buffer: OUR_BUFFER,
                forwarded: 0,
                ..to
            });
        }
    }

    /// Sends what there is to send, as far as the host has room.
    pub(crate) fn send(&mut self, out: &mut Outbox) -> bool {
        let mut worked = false;
        while self.is_free() && self.fill(out) {
            // SAFETY: the packet is not touched until the device has given it back, see `is_free`.
            match unsafe { self.send.add(&[&self.packet], &mut []) } {
                Ok(token) => self.under_way = Some(token),
                Err(_) => return worked,
            }
            self.transport.notify(SEND);
            worked = true;
        }
        worked
    }

    /// Tells whether the packet is ours to fill.
    fn is_free(&mut self) -> bool {
        let Some(token) = self.under_way else { return true };
        // SAFETY: the packet is the one that was added with this token, and it has not changed.
        if unsafe { self.send.pop_used(token, &[&self.packet], &mut []) }.is_err() {
            return false;
        }
        self.under_way = None;
        true
    }

    /// Puts the next packet together; false when there is none to send.
    fn fill(&mut self, out: &mut Outbox) -> bool {
        self.packet.clear();
        if let Some(answer) = self.answers.pop_front() {
            answer.write(self.cid, &mut self.packet);
            return true;
        }
        let Some(stream) = &mut self.stream else {
            return false;
        };
        let mut header = Header {
            host_port: stream.host_port,
            our_port: VSOCK_PORT,
            length: 0,
            operation: Operation::Data,
            buffer: OUR_BUFFER,
            forwarded: stream.received,
        };
        let waiting = out.unsent();
        let length = waiting.len().min(PAYLOAD_MAX).min(stream.room());
        if length > 0 {
            header.length = length as u32;
            header.write(self.cid, &mut self.packet);
            self.packet.extend_from_slice(&waiting[..length]);
            out.advance(length);
            stream.sent = stream.sent.wrapping_add(length as u32);
        } else if !waiting.is_empty() && !stream.asked {
            stream.asked = true;
            header.operation = Operation::CreditRequest;
            header.write(self.cid, &mut self.packet);
        } else if stream.received.wrapping_sub(stream.told) >= OUR_BUFFER / 4 {
            header.operation = Operation::CreditUpdate;
            header.write(self.cid, &mut self.packet);
        } else {
            return false;
        }
        // Every packet tells how far we are.
        stream.told = stream.received;
        true
    }
}

fn read_cid(transport: &OneByOne) -> Result<u64> {
    let low: u32 = transport.read_config_space(0)?;
    let high: u32 = transport.read_config_space(4)?;
    Ok(u64::from(high) << 32 | u64::from(low))
}
