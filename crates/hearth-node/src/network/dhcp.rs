//! The messages of DHCP between a client and a server, RFC 2131 and RFC 2132.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, DhcpOptions, Flags, Message, MessageType, Opcode, OptionCode, SERVER_PORT,
    borrowed,
};
use dhcproto::{Encodable as _, Encoder};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hearth_machine::Uplink;
use ipnet::Ipv4Net;

use crate::host::packet_socket::Card;

/// The port that answers come to.
pub(super) const PORT: u16 = CLIENT_PORT;
/// How many routers a packet may pass.
const HOPS: u8 = 64;
/// The options of an answer that are read: others may be anything.
const READ: [OptionCode; 7] = [
    OptionCode::MessageType,
    OptionCode::SubnetMask,
    OptionCode::Router,
    OptionCode::ServerIdentifier,
    OptionCode::AddressLeaseTime,
    OptionCode::Renewal,
    OptionCode::Rebinding,
];
/// The time of a lease that does not end (RFC 2131, 3.3).
const FOR_EVER: u32 = u32::MAX;

/// An address for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    /// The address, on its network.
    pub(super) address: Ipv4Net,
    /// Who passes on what is for others.
    pub(super) gateway: Option<Ipv4Addr>,
    /// Who has given it.
    pub(super) server: Ipv4Addr,
    /// How long it is given for; absent where that is for ever.
    pub(super) term: Option<Term>,
}

/// The times of a lease, from when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    /// When its server is asked for more.
    pub(super) renew: Duration,
    /// When all servers are.
    pub(super) rebind: Duration,
    /// When it ends.
    pub(super) end: Duration,
}

impl Term {
    /// Returns those of a lease of so many seconds; what the server says of the first two counts where it can be.
    fn new(seconds: u32, renew: Option<u32>, rebind: Option<u32>) -> Self {
        let end = Duration::from_secs(seconds.into());
        let within = |said: Option<u32>, most: Duration, otherwise: Duration| {
            let said = said.map(|seconds| Duration::from_secs(seconds.into()));
            said.filter(|said| *said <= most && !said.is_zero())
                .unwrap_or(otherwise.min(most))
        };
        // RFC 2131, 4.4.5.
        let rebind = within(rebind, end, end * 7 / 8);
        let renew = within(renew, rebind, end / 2);
        Self { renew, rebind, end }
    }
}

/// What a client says (RFC 2131, 4.3.2 and table 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whoever has an address may offer it.
    Discover,
    /// It takes the address that a server has offered.
    Select { address: Ipv4Addr, server: Ipv4Addr },
    /// It wants the address that it had before.
    Reboot(Ipv4Addr),
    /// It wants the address that it has for longer.
    Renew(Ipv4Addr),
    /// It needs the address no more.
    Release { address: Ipv4Addr, server: Ipv4Addr },
}

impl Ask {
    fn kind(self) -> MessageType {
        match self {
            Self::Discover => MessageType::Discover,
            Self::Select { .. } | Self::Reboot(_) | Self::Renew(_) => MessageType::Request,
            Self::Release { .. } => MessageType::Release,
        }
    }

    /// Returns the address that the client has, which its server can send to.
    fn has(self) -> Option<Ipv4Addr> {
        match self {
            Self::Renew(address) | Self::Release { address, .. } => Some(address),
            Self::Discover | Self::Select { .. } | Self::Reboot(_) => None,
        }
    }

    fn wants(self) -> Option<Ipv4Addr> {
        match self {
            Self::Select { address, .. } | Self::Reboot(address) => Some(address),
            Self::Discover | Self::Renew(_) | Self::Release { .. } => None,
        }
    }

    fn server(self) -> Option<Ipv4Addr> {
        match self {
            Self::Select { server, .. } | Self::Release { server, .. } => Some(server),
            Self::Discover | Self::Reboot(_) | Self::Renew(_) => None,
        }
    }

    /// Writes the packet that says it: `number` is what its answers name, `to` a server, or all.
    pub(super) fn packet(self, number: u32, card: Card, to: Ipv4Addr) -> io::Result<Vec<u8>> {
        let nobody = Ipv4Addr::UNSPECIFIED;
        let has = self.has();
        let mut message = Message::new_with_id(number, has.unwrap_or(nobody), nobody, nobody, nobody, &card);
        if has.is_none() {
            // Nobody could send to it alone.
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(self.kind()));
        if let Some(address) = self.wants() {
            options.insert(DhcpOption::RequestedIpAddress(address));
        }
        if let Some(server) = self.server() {
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        if self.kind() != MessageType::Release {
            options.insert(DhcpOption::ParameterRequestList(vec![
                OptionCode::SubnetMask,
                OptionCode::Router,
                OptionCode::AddressLeaseTime,
                OptionCode::Renewal,
                OptionCode::Rebinding,
            ]));
        }
        let mut payload = Vec::new();
        message
            .encode(&mut Encoder::new(&mut payload))
            .map_err(io::Error::other)?;
        let from = has.unwrap_or(nobody);
        let packet = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS).udp(CLIENT_PORT, SERVER_PORT);
        let mut bytes = Vec::with_capacity(packet.size(payload.len()));
        packet.write(&mut bytes, &payload).map_err(io::Error::other)?;
        Ok(bytes)
    }
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// This could be had.
    Offer(Lease),
    /// This is the client's.
    Given(Lease),
    /// The client cannot have what it wants.
    Refused,
}

/// Reads the packet of a server that answers this question of this client: nothing where it does not, or where it gives what no machine
/// can have. Anybody on the link may have made it.
pub(super) fn read(packet: &[u8], number: u32, card: Card) -> Option<Answer> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Udp(datagram))) = (sliced.net, sliced.transport)
    else {
        return None;
    };
    if (datagram.source_port(), datagram.destination_port()) != (SERVER_PORT, CLIENT_PORT) {
        return None;
    }
    let message = borrowed::Message::new(datagram.payload()).ok()?;
    // A client's address may be said to be longer than there is room for.
    let is_clients = usize::from(message.hlen()) == card.len() && message.chaddr() == card;
    if message.opcode() != Opcode::BootReply || message.xid() != number || !is_clients {
        return None;
    }
    let mut options = DhcpOptions::new();
    for option in message.opts().filter(|option| READ.contains(&option.code())) {
        options.insert(option.into_option().ok()?);
    }
    match options.msg_type()? {
        MessageType::Offer => lease(message.yiaddr(), &options).map(Answer::Offer),
        MessageType::Ack => lease(message.yiaddr(), &options).map(Answer::Given),
        MessageType::Nak => Some(Answer::Refused),
        _ => None,
    }
}

/// Reads what is given.
fn lease(given: Ipv4Addr, options: &DhcpOptions) -> Option<Lease> {
    let address = |code| match options.get(code)? {
        DhcpOption::SubnetMask(address) | DhcpOption::ServerIdentifier(address) => Some(*address),
        DhcpOption::Router(routers) => routers.first().copied(),
        _ => None,
    };
    let seconds = |code| match options.get(code)? {
        DhcpOption::AddressLeaseTime(seconds)
        | DhcpOption::Renewal(seconds)
        | DhcpOption::Rebinding(seconds) => Some(*seconds),
        _ => None,
    };
    let mask = address(OptionCode::SubnetMask)?;
    let network = Ipv4Net::with_netmask(given, mask).ok()?;
    let gateway = address(OptionCode::Router);
    let term = match seconds(OptionCode::AddressLeaseTime)? {
        0 => return None,
        FOR_EVER => None,
        end => Some(Term::new(
            end,
            seconds(OptionCode::Renewal),
            seconds(OptionCode::Rebinding),
        )),
    };
    // What is said of a machine's address counts for one that is given, too.
    let gateways = gateway.into_iter().map(Into::into).collect();
    Uplink::new("given".to_owned(), vec![network.into()], gateways).ok()?;
    Some(Lease {
        address: network,
        gateway,
        server: address(OptionCode::ServerIdentifier)?,
        term,
    })
}

#[cfg(test)]
mod tests {
    use dhcproto::{Decodable as _, Decoder};

    use super::*;

    const CARD: Card = [2, 0, 0, 1, 2, 3];
    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 1);
    const GIVEN: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 100);

    /// Packs what a server says.
    fn packed(message: &Message, from: u16) -> Vec<u8> {
        let mut payload = Vec::new();
        message.encode(&mut Encoder::new(&mut payload)).unwrap();
        let mut bytes = Vec::new();
        let packet = PacketBuilder::ipv4(SERVER.octets(), [255; 4], 64).udp(from, PORT);
        packet.write(&mut bytes, &payload).unwrap();
        bytes
    }

    fn said(kind: MessageType, options: &[DhcpOption]) -> Message {
        let mut message = Message::new_with_id(7, [0; 4].into(), GIVEN, SERVER, [0; 4].into(), &CARD);
        message.set_opcode(Opcode::BootReply);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        message
    }

    fn usual() -> Vec<DhcpOption> {
        vec![
            DhcpOption::SubnetMask([255, 255, 255, 0].into()),
            DhcpOption::Router(vec![SERVER, [192, 168, 50, 2].into()]),
            DhcpOption::ServerIdentifier(SERVER),
            DhcpOption::AddressLeaseTime(3600),
        ]
    }

    #[test]
    fn what_a_server_gives_is_read() {
        let expected = Lease {
            address: "192.168.50.100/24".parse().unwrap(),
            gateway: Some(SERVER),
            server: SERVER,
            term: Some(Term::new(3600, None, None)),
        };
        let offer = packed(&said(MessageType::Offer, &usual()), SERVER_PORT);
        assert_eq!(read(&offer, 7, CARD), Some(Answer::Offer(expected.clone())));
        let given = packed(&said(MessageType::Ack, &usual()), SERVER_PORT);
        assert_eq!(read(&given, 7, CARD), Some(Answer::Given(expected)));
        let refused = packed(&said(MessageType::Nak, &[]), SERVER_PORT);
        assert_eq!(read(&refused, 7, CARD), Some(Answer::Refused));
    }

    #[test]
    fn what_is_not_for_the_client_or_cannot_be_is_passed_over() {
        let good = said(MessageType::Ack, &usual());
        assert_eq!(read(&packed(&good, SERVER_PORT), 8, CARD), None);
        assert_eq!(read(&packed(&good, SERVER_PORT), 7, [2; 6]), None);
        assert_eq!(read(&packed(&good, 68), 7, CARD), None);
        let mut question = good.clone();
        question.set_opcode(Opcode::BootRequest);
        assert_eq!(read(&packed(&question, SERVER_PORT), 7, CARD), None);
        for wrong in [
            DhcpOption::SubnetMask([255, 0, 255, 0].into()),
            DhcpOption::SubnetMask([0; 4].into()),
            DhcpOption::Router(vec![[10, 0, 0, 1].into()]),
            DhcpOption::Router(vec![GIVEN]),
            DhcpOption::AddressLeaseTime(0),
        ] {
            let mut message = good.clone();
            message.opts_mut().insert(wrong.clone());
            assert_eq!(read(&packed(&message, SERVER_PORT), 7, CARD), None, "{wrong:?}");
        }
        for address in [[127, 0, 0, 1], [192, 168, 50, 255], [224, 0, 0, 1], [0; 4]] {
            let mut message = good.clone();
            message.set_yiaddr(address);
            assert_eq!(read(&packed(&message, SERVER_PORT), 7, CARD), None, "{address:?}");
        }
        for code in [
            OptionCode::SubnetMask,
            OptionCode::AddressLeaseTime,
            OptionCode::ServerIdentifier,
        ] {
            let mut message = good.clone();
            message.opts_mut().remove(code);
            assert_eq!(read(&packed(&message, SERVER_PORT), 7, CARD), None, "{code:?}");
        }
        // What is not read may be wrong, here an interface of four bytes instead of three (RFC 4578, 2.2).
        let mut odd = good.clone();
        let interface = dhcproto::v4::UnknownOption::new(OptionCode::from(94), vec![1, 2, 3, 4]);
        odd.opts_mut().insert(DhcpOption::Unknown(interface));
        assert!(read(&packed(&odd, SERVER_PORT), 7, CARD).is_some());
        let whole = packed(&good, SERVER_PORT);
        for length in 0..whole.len() {
            let _ = read(&whole[..length], 7, CARD);
        }
    }

    #[test]
    fn times_are_in_order_whatever_is_said_of_them() {
        let seconds = |term: Term| [term.renew, term.rebind, term.end].map(|time| time.as_secs());
        assert_eq!(seconds(Term::new(3600, None, None)), [1800, 3150, 3600]);
        assert_eq!(seconds(Term::new(3600, Some(600), Some(1200))), [600, 1200, 3600]);
        assert_eq!(seconds(Term::new(3600, Some(0), Some(9000))), [1800, 3150, 3600]);
        assert_eq!(seconds(Term::new(3600, None, Some(60))), [60, 60, 3600]);
        let forever = packed(
            &said(
                MessageType::Ack,
                &[&usual()[..3], &[DhcpOption::AddressLeaseTime(FOR_EVER)]].concat(),
            ),
            SERVER_PORT,
        );
        let Some(Answer::Given(lease)) = read(&forever, 7, CARD) else {
            panic!("it is an answer");
        };
        assert_eq!(lease.term, None);
    }

    #[test]
    fn what_a_client_says_has_what_its_state_asks_for() {
        let reads = |ask: Ask| {
            let packet = ask.packet(7, CARD, SERVER).unwrap();
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Udp(datagram)) = sliced.transport else {
                panic!("it is a datagram");
            };
            Message::decode(&mut Decoder::new(datagram.payload())).unwrap()
        };
        let discover = reads(Ask::Discover);
        assert!(discover.flags().broadcast() && discover.ciaddr().is_unspecified());
        let select = reads(Ask::Select {
            address: GIVEN,
            server: SERVER,
        });
        assert!(select.opts().contains(OptionCode::ServerIdentifier) && select.flags().broadcast());
        let reboot = reads(Ask::Reboot(GIVEN));
        assert!(reboot.opts().contains(OptionCode::RequestedIpAddress));
        assert!(!reboot.opts().contains(OptionCode::ServerIdentifier));
        let renew = reads(Ask::Renew(GIVEN));
        assert!(!renew.opts().contains(OptionCode::RequestedIpAddress) && renew.ciaddr() == GIVEN);
        let release = reads(Ask::Release {
            address: GIVEN,
            server: SERVER,
        });
        assert_eq!(release.opts().msg_type(), Some(MessageType::Release));
    }
}
