//! A network interface that answers: ARP, ICMP echo, and TCP echo on port 7. By it others are asked, one at a time.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr};
use virtio_drivers::device::net::VirtIONet;

use crate::platform::Clock;
use crate::transport::{Identity, OneByOne};

/// Where bytes come back (RFC 862).
const ECHO_PORT: u16 = 7;

/// Connections at once, and what each may hold each way.
const CONNECTIONS: usize = 4;
const BUFFER: usize = 32 * 1024;

/// The metadata service.
const METADATA: (Ipv4Address, u16) = (Ipv4Address::new(169, 254, 169, 254), 80);

/// The guest's first port for asking others, and how long the metadata service and others may take.
const ASKING_PORT: u16 = 49_152;
const PATIENCE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(5);

/// What another is asked.
struct Question<'a> {
    service: (Ipv4Address, u16),
    text: &'a str,
    /// How long it may take.
    patience: Duration,
}

/// Frames that the host may put down: Firecracker gives none as long as there is no room for the largest packet, 64 KiB.
const QUEUE: usize = 64;

/// A frame of Ethernet with the header of virtio before it.
const FRAME: usize = 2048;
const MTU: usize = 1514;

type Card = VirtIONet<Identity, OneByOne, QUEUE>;

/// The interface; it says nothing before it has an address.
pub(crate) struct Network {
    card: Adapter,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<SocketHandle>,
    /// How often others were asked.
    asked: u16,
}

impl Network {
    /// Starts the device.
    ///
    /// # Errors
    /// Returns the device's.
    pub(crate) fn start(transport: OneByOne) -> virtio_drivers::Result<Self> {
        let card = VirtIONet::new(transport, FRAME)?;
        let config = Config::new(EthernetAddress(card.mac_address()).into());
        let mut card = Adapter(card);
        let interface = Interface::new(config, &mut card, Instant::ZERO);
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let connections = (0..CONNECTIONS)
            .map(|_| sockets.add(tcp::Socket::new(buffer(), buffer())))
            .collect();
        Ok(Self {
            card,
            interface,
            sockets,
            connections,
            asked: 0,
        })
    }

    /// Returns the card's address.
    pub(crate) fn mac(&self) -> EthernetAddress {
        EthernetAddress(self.card.0.mac_address())
    }

    /// Gives the interface its only address, and a way to all others.
    pub(crate) fn set_address(&mut self, address: Ipv4Cidr, gateway: Option<Ipv4Address>) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // One fits.
            let _ = addresses.push(IpCidr::Ipv4(address));
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            // There is room for one.
            let _ = routes.add_default_ipv4_route(gateway);
        }
    }

    /// Says something to a service and returns as many bytes as that has; without a word, all that is said until the other side ends.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) fn reach(
        &mut self,
        service: (Ipv4Address, u16),
        text: &str,
        clock: &Clock,
    ) -> Result<Vec<u8>, String> {
        let is_whole = |answer: &[u8]| !text.is_empty() && answer.len() >= text.len();
        let question = Question {
            service,
            text,
            patience: SILENCE,
        };
        let answer = self.ask(&question, is_whole, clock)?;
        match answer.is_empty() {
            true => Err("nobody answers".into()),
            false => Ok(answer),
        }
    }

    /// Sends a request to the metadata service, and returns the body of its answer.
    ///
    /// # Errors
    /// There is no answer, or one that refuses.
    pub(crate) fn ask_metadata(&mut self, request: &str, clock: &Clock) -> Result<String, String> {
        let question = Question {
            service: METADATA,
            text: request,
            patience: PATIENCE,
        };
        let answer = self.ask(&question, is_whole, clock)?;
        let answer = String::from_utf8(answer).map_err(|_| "the answer is no text")?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer has no end")?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.into()),
            _ => Err(format!("refused: {head}: {body}")),
        }
    }

    /// Opens a connection, says something, and returns what is answered until that is whole or the other side ends.
    fn ask(
        &mut self,
        question: &Question<'_>,
        is_whole: impl Fn(&[u8]) -> bool,
        clock: &Clock,
    ) -> Result<Vec<u8>, String> {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        // Another port each time: the service may still know the last one.
        self.asked = self.asked.wrapping_add(1) % (u16::MAX - ASKING_PORT);
        let answer = self.converse(handle, question, is_whole, clock);
        self.sockets.remove(handle);
        answer
    }

    fn converse(
        &mut self,
        handle: SocketHandle,
        question: &Question<'_>,
        is_whole: impl Fn(&[u8]) -> bool,
        clock: &Clock,
    ) -> Result<Vec<u8>, String> {
        let port = ASKING_PORT + self.asked;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket
            .connect(context, question.service, port)
            .map_err(|error| format!("{error:?}"))?;
        let (mut sent, mut answer) = (0, Vec::new());
        let deadline = clock.uptime() + question.patience;
        while clock.uptime() < deadline {
            self.turn(clock.uptime());
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_send() {
                sent += socket.send_slice(&question.text.as_bytes()[sent..]).unwrap_or(0);
            }
            while socket.can_recv() {
                let taken = socket.recv(|bytes| {
                    answer.extend_from_slice(bytes);
                    (bytes.len(), ())
                });
                if taken.is_err() {
                    break;
                }
            }
            let has_ended = !socket.is_active() || socket.state() == tcp::State::CloseWait;
            if is_whole(&answer) || has_ended {
                socket.abort();
                self.turn(clock.uptime());
                return Ok(answer);
            }
        }
        let (address, port) = question.service;
        Err(format!("{address}:{port} does not answer"))
    }

    /// Answers what came; tells whether anything did.
    pub(crate) fn turn(&mut self, uptime: Duration) -> bool {
        if self.interface.ip_addrs().is_empty() {
            return false;
        }
        let now = Instant::from_micros(i64::try_from(uptime.as_micros()).unwrap_or(i64::MAX));
        let polled = self.interface.poll(now, &mut self.card, &mut self.sockets);
        for handle in &self.connections {
            echo(self.sockets.get_mut(*handle));
        }
        polled == PollResult::SocketStateChanged
    }
}

/// Tells whether an answer of HTTP has as many bytes as it says.
fn is_whole(answer: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(answer) else {
        return false;
    };
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then_some(value.trim().parse::<usize>().ok()?)
    });
    length.is_some_and(|length| body.len() >= length)
}

fn echo(socket: &mut tcp::Socket<'_>) {
    if !socket.is_open() {
        // A closed socket that has a port can be told to listen.
        let _ = socket.listen(ECHO_PORT);
    }
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let moved = socket.recv(|bytes| {
            let count = bytes.len().min(room);
            (count, bytes[..count].to_vec())
        });
        match moved {
            Ok(bytes) if !bytes.is_empty() => {
                // There is room, as was just seen.
                let _ = socket.send_slice(&bytes);
            }
            _ => break,
        }
    }
    if !socket.may_recv() && socket.may_send() && socket.state() == tcp::State::CloseWait {
        socket.close();
    }
}

/// The card as `smoltcp` sees it.
struct Adapter(Card);

struct Received(Vec<u8>);

struct Transmit<'a>(&'a mut Card);

impl phy::Device for Adapter {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.0.receive().ok()?;
        let packet = frame.packet().to_vec();
        // The buffer came from this queue, so it has room for it.
        let _ = self.0.recycle_rx_buffer(frame);
        Some((Received(packet), Transmit(&mut self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        self.0.can_send().then_some(Transmit(&mut self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, act: F) -> R {
        act(&self.0)
    }
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, act: F) -> R {
        let mut frame = self.0.new_tx_buffer(length);
        let result = act(frame.packet_mut());
        // A frame that is lost is sent again by whoever misses it.
        let _ = self.0.send(frame);
        result
    }
}
