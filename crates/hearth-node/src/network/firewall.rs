//! What a machine's firewall lets out: the sets of its rules, by nftables' netlink, and the connections that it knows.
//!
//! A policy is carried out by one transaction (nft(8) calls it a batch): a packet sees the sets as they were or as they are to be.
//! Sources: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h of Linux.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use hearth_machine::policy::{
    BALANCED_TCP, BALANCED_UDP, Destination, Host, Policy, Ports, Preset, Protocol,
};
use ipnet::IpNet;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList, SetElementMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, Nla as _, NlasIterator,
};
use rtnetlink::sys::Socket;
use rtnetlink::sys::constants::NETLINK_NETFILTER;

use super::rules::{DROPPED, TABLE};

/// The subsystem of nftables, which a batch names.
const SUBSYSTEM: u16 = 10;
/// Numbers of protocols (IANA).
const TCP: u8 = 6;
const UDP: u8 = 17;
/// The kernel sends what it has to say in pieces of this size at most.
const PIECE: usize = 64 << 10;

/// The firewall of one namespace.
#[derive(Debug)]
pub(super) struct Firewall {
    socket: Socket,
}

/// An element of a set: a key, or a range of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Element {
    key: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// Sets that a policy fills.
type Filling = Vec<(String, Vec<Element>)>;

impl Firewall {
    /// Opens a conversation with the firewall of the namespace that this thread is in.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Carries a policy out.
    pub(super) fn apply(&mut self, policy: &Policy) -> io::Result<()> {
        let filling = filling(policy);
        let flushed = filling.iter().map(|(set, _)| delete(set, None));
        let filled = filling.iter().filter(|(_, elements)| !elements.is_empty());
        let filled = filled.map(|(set, elements)| add(set, elements, None));
        self.change(flushed.chain(filled).collect())
    }

    /// Refuses these addresses, whatever a policy says, and no others that were given before.
    pub(super) fn keep_off(&mut self, here: &[IpNet]) -> io::Result<()> {
        let mut changes = Vec::new();
        for number in ["4", "6"] {
            let set = format!("host{number}");
            let of_family = here.iter().filter(|range| family(range.addr()) == number);
            let elements: Vec<Element> = of_family.map(all_protocols).collect();
            changes.push(delete(&set, None));
            if !elements.is_empty() {
                changes.push(add(&set, &elements, None));
            }
        }
        self.change(changes)
    }

    /// Lets an address be reached for as long as its name stands for it.
    pub(super) fn pin(&mut self, address: IpAddr, ports: &Ports, time: Duration) -> io::Result<()> {
        let (set, elements) = pins(address, ports);
        // One that is there would keep its time (Linux before 6.12). It is there once it was added, and so can be deleted.
        self.change(vec![
            add(&set, &elements, Some(time)),
            delete(&set, Some(&elements)),
            add(&set, &elements, Some(time)),
        ])
    }

    /// Forgets every pin.
    pub(super) fn unpin(&mut self) -> io::Result<()> {
        let sets = ["named4", "named6", "named_port4", "named_port6"];
        self.change(sets.into_iter().map(|set| delete(set, None)).collect())
    }

    /// Ends the connections that are not to go on: the rules see their next packet as a new one.
    pub(super) fn cut(&mut self, goes_on: impl Fn(IpAddr, Protocol, Option<u16>) -> bool) -> io::Result<()> {
        let all = ConntrackMessage::Get(Vec::new());
        self.send(&[message(all.into(), NetfilterProtoFamily::Unspec, 0, NLM_F_DUMP)])?;
        for connection in self.dump()? {
            let Some((address, protocol, port)) = destination(&connection) else {
                continue;
            };
            if goes_on(address, protocol, port) {
                continue;
            }
            let family = match address {
                IpAddr::V4(_) => NetfilterProtoFamily::IPv4,
                IpAddr::V6(_) => NetfilterProtoFamily::IPv6,
            };
            let found = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(connection)]);
            self.send(&[message(found.into(), family, 0, NLM_F_ACK)])?;
            match self.answers() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Returns how many packets the rules have refused or dropped; none that rules of an older node's count.
    pub(super) fn dropped(&self) -> io::Result<u64> {
        let query = NfTablesMessage::GetObject(vec![
            DefaultNla::new(OBJECT_TABLE, format!("{TABLE}\0").into_bytes()),
            DefaultNla::new(OBJECT_NAME, format!("{DROPPED}\0").into_bytes()),
            DefaultNla::new(OBJECT_TYPE, COUNTER.to_be_bytes().to_vec()),
        ]);
        self.send(&[message(query.into(), NetfilterProtoFamily::Inet, 0, 0)])?;
        let mut packets = 0;
        while let Some(messages) = self.receive()? {
            for message in messages {
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        let error = error.to_io();
                        if error.kind() != io::ErrorKind::NotFound {
                            return Err(error);
                        }
                    }
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::NfTables(NfTablesMessage::NewObject(object)),
                        ..
                    }) => packets = counted(&object).unwrap_or(0),
                    _ => {}
                }
            }
        }
        Ok(packets)
    }

    /// Makes all of the changes or none.
    fn change(&mut self, changes: Vec<NetfilterMessage>) -> io::Result<()> {
        let edge = |edge: ControlMessage| message(edge.into(), NetfilterProtoFamily::Unspec, SUBSYSTEM, 0);
        let changes = changes.into_iter().map(|change| {
            let mut message = NetlinkMessage::from(change);
            message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
            message
        });
        let mut batch = vec![edge(ControlMessage::BatchBegin)];
        batch.extend(changes);
        batch.push(edge(ControlMessage::BatchEnd));
        self.send(&batch)?;
        self.answers()
    }

    fn send(&self, messages: &[NetlinkMessage<NetfilterMessage>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for message in messages {
            let mut message = message.clone();
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(&mut bytes[start..]);
        }
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads what the kernel says to what was sent. It has said so when the sending ends.
    fn answers(&self) -> io::Result<()> {
        let mut said = Ok(());
        while let Some(messages) = self.receive()? {
            for message in messages {
                if let NetlinkPayload::Error(error) = message.payload
                    && error.code.is_some()
                    && said.is_ok()
                {
                    said = Err(error.to_io());
                }
            }
        }
        said
    }

    /// Reads a list of connections.
    fn dump(&self) -> io::Result<Vec<Vec<Tuple>>> {
        let mut connections = Vec::new();
        while let Some(messages) = self.receive()? {
            for message in messages {
                match message.payload {
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                        ..
                    }) => connections.extend(attributes.into_iter().find_map(original)),
                    _ => {}
                }
            }
        }
        Ok(connections)
    }

    /// Reads what is there.
    fn receive(&self) -> io::Result<Option<Vec<NetlinkMessage<NetfilterMessage>>>> {
        let mut bytes = Vec::with_capacity(PIECE);
        match self.socket.recv(&mut bytes, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        Ok(Some(messages(&bytes)))
    }
}

/// Reads the messages of one piece. What follows one that cannot be read is left out.
pub(super) fn messages(mut bytes: &[u8]) -> Vec<NetlinkMessage<NetfilterMessage>> {
    let mut messages = Vec::new();
    while let Ok(message) = NetlinkMessage::<NetfilterMessage>::deserialize(bytes) {
        // Messages begin at multiples of four bytes (netlink(7)).
        let length = (message.header.length as usize).next_multiple_of(4);
        messages.push(message);
        match bytes.get(length..) {
            Some(rest) if length > 0 && !rest.is_empty() => bytes = rest,
            _ => break,
        }
    }
    messages
}

/// `NFTA_OBJ_TABLE`, `NFTA_OBJ_NAME`, `NFTA_OBJ_TYPE`, `NFTA_OBJ_DATA`, `NFT_OBJECT_COUNTER` and `NFTA_COUNTER_PACKETS`.
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER: u32 = 1;
const COUNTER_PACKETS: u16 = 2;

/// Reads the packets of a counter.
fn counted(object: &[DefaultNla]) -> Option<u64> {
    let data = object.iter().find(|attribute| attribute.kind() == OBJECT_DATA)?;
    let mut bytes = vec![0; data.value_len()];
    data.emit_value(&mut bytes);
    let mut parts = NlasIterator::new(&bytes[..]).map_while(Result::ok);
    let packets = parts.find(|part| part.kind() == COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.value().try_into().ok()?))
}

fn original(attribute: ConntrackAttribute) -> Option<Vec<Tuple>> {
    match attribute {
        ConntrackAttribute::CtaTupleOrig(tuple) => Some(tuple),
        _ => None,
    }
}

/// Returns where a connection was opened to.
fn destination(connection: &[Tuple]) -> Option<(IpAddr, Protocol, Option<u16>)> {
    let (mut address, mut protocol, mut port) = (None, None, None);
    for part in connection {
        match part {
            Tuple::Ip(parts) => {
                address = parts.iter().find_map(|part| match part {
                    IPTuple::DestinationAddress(address) => Some(*address),
                    _ => None,
                });
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::DestinationPort(number) => port = Some(*number),
                        _ => {}
                    }
                }
            }
            Tuple::Other(_) | _ => {}
        }
    }
    Some((address?, protocol_of(protocol?), port))
}

pub(super) const fn protocol_of(number: u8) -> Protocol {
    match number {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        other => Protocol::Other(other),
    }
}

pub(super) fn message(
    inner: NetfilterMessageInner,
    family: NetfilterProtoFamily,
    resource: u16,
    flags: u16,
) -> NetlinkMessage<NetfilterMessage> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner);
    NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message))
}

fn of_tables(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn attributes(set: &str, elements: Option<&[Element]>, time: Option<Duration>) -> SetElementMessage {
    let mut attributes = vec![
        SetElementList::Table(TABLE.to_owned()),
        SetElementList::Set(set.to_owned()),
    ];
    if let Some(elements) = elements {
        let elements = elements.iter().map(|element| element.attributes(time));
        attributes.push(SetElementList::Elements(elements.collect()));
    }
    SetElementMessage { attributes }
}

fn add(set: &str, elements: &[Element], time: Option<Duration>) -> NetfilterMessage {
    of_tables(NfTablesMessage::NewSetElement(attributes(
        set,
        Some(elements),
        time,
    )))
}

/// Deletes elements, or all of them.
fn delete(set: &str, elements: Option<&[Element]>) -> NetfilterMessage {
    of_tables(NfTablesMessage::DeleteSetElement(attributes(set, elements, None)))
}

/// The kind of a datum that is a value (`NFTA_DATA_VALUE`).
const VALUE: u16 = 1;

impl Element {
    fn attributes(&self, time: Option<Duration>) -> ListAttribute<SetElementAttribute> {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(self.key.clone()))];
        if let Some(end) = &self.end {
            let end = vec![DefaultNla::new(VALUE, end.clone())];
            attributes.push(SetElementAttribute::KeyEnd(end));
        }
        if let Some(time) = time {
            let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            attributes.push(SetElementAttribute::Timeout(milliseconds));
        }
        ListAttribute::Element(attributes)
    }

    fn single(parts: &[&[u8]]) -> Self {
        let key = join(parts);
        Self { key, end: None }
    }

    fn range(first: &[&[u8]], last: &[&[u8]]) -> Self {
        let (key, end) = (join(first), Some(join(last)));
        Self { key, end }
    }
}

/// Joins the parts of a key: where there are several, each takes a multiple of four bytes.
fn join(parts: &[&[u8]]) -> Vec<u8> {
    if let [part] = parts {
        return part.to_vec();
    }
    let mut key = Vec::new();
    for part in parts {
        key.extend_from_slice(part);
        key.resize(key.len().next_multiple_of(4), 0);
    }
    key
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "4",
        IpAddr::V6(_) => "6",
    }
}

/// Returns the set and the elements that let an address be reached.
fn pins(address: IpAddr, ports: &Ports) -> (String, Vec<Element>) {
    let octets = octets(address);
    match ports {
        Ports::All => (
            format!("named{}", family(address)),
            vec![Element::single(&[&octets])],
        ),
        Ports::Only(ports) => {
            let element = |port: &u16| Element::single(&[&octets, &port.to_be_bytes()]);
            let set = format!("named_port{}", family(address));
            (set, ports.iter().map(element).collect())
        }
    }
}

/// Returns what is to be in the sets of a policy; none of its ranges overlaps another one of its set, which the kernel refuses.
fn filling(policy: &Policy) -> Filling {
    let mut filling = Filling::new();
    let everything: [IpNet; 2] = [ipnet::Ipv4Net::default().into(), ipnet::Ipv6Net::default().into()];
    for (kind, rules) in [("deny", &policy.deny), ("allow", &policy.allow)] {
        let mut wide: Vec<IpNet> = networks(rules, None);
        if kind == "allow" && policy.preset == Preset::Open {
            wide.extend(everything);
        }
        let mut ported = Vec::new();
        for port in ports_of(rules) {
            let mut networks = networks(rules, Some(port));
            if kind == "deny" && names_any(rules, port) {
                networks.extend(everything);
            }
            ported.extend(
                IpNet::aggregate(&networks)
                    .into_iter()
                    .map(|network| (network, port)),
            );
        }
        let wide = IpNet::aggregate(&wide);
        for number in ["4", "6"] {
            let is_of = |network: &IpNet| family(network.addr()) == number;
            let wide = wide.iter().filter(|network| is_of(network)).map(all_protocols);
            filling.push((format!("{kind}{number}"), wide.collect()));
            let ported = ported.iter().filter(|(network, _)| is_of(network));
            let ported = ported.map(|(network, port)| one_port(network, *port));
            filling.push((format!("{kind}_port{number}"), ported.collect()));
        }
    }
    filling.push(("ports".to_owned(), ports(policy)));
    let captured = policy
        .captures_names()
        .then(|| Element::single(&[&53_u16.to_be_bytes()]));
    filling.push(("captured".to_owned(), captured.into_iter().collect()));
    filling
}

fn networks(rules: &[Destination], port: Option<u16>) -> Vec<IpNet> {
    let of_port = rules.iter().filter(|rule| rule.port == port);
    of_port
        .filter_map(|rule| match rule.host {
            Host::Network(network) => Some(network),
            Host::Name(_) | Host::Below(_) | Host::Any => None,
        })
        .collect()
}

fn ports_of(rules: &[Destination]) -> Vec<u16> {
    let mut ports: Vec<u16> = rules.iter().filter_map(|rule| rule.port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn names_any(rules: &[Destination], port: u16) -> bool {
    rules
        .iter()
        .any(|rule| rule.host == Host::Any && rule.port == Some(port))
}

fn all_protocols(network: &IpNet) -> Element {
    let (first, last) = (octets(network.network()), octets(network.broadcast()));
    Element::range(&[&first, &[0]], &[&last, &[u8::MAX]])
}

fn one_port(network: &IpNet, port: u16) -> Element {
    let (first, last) = (octets(network.network()), octets(network.broadcast()));
    let port = port.to_be_bytes();
    Element::range(&[&first, &port], &[&last, &port])
}

/// Returns the ports that are open to every host of the internet.
fn ports(policy: &Policy) -> Vec<Element> {
    let of = |protocol: u8| move |port: &u16| Element::single(&[&[protocol], &port.to_be_bytes()]);
    let mut elements: Vec<Element> = Vec::new();
    if policy.preset == Preset::Balanced {
        elements.extend(BALANCED_TCP.iter().map(of(TCP)));
        elements.extend(BALANCED_UDP.iter().map(of(UDP)));
    }
    for rule in policy.allow.iter().filter(|rule| rule.host == Host::Any) {
        elements.extend(rule.port.iter().map(of(TCP)));
        elements.extend(rule.port.iter().map(of(UDP)));
    }
    elements.sort();
    elements.dedup();
    elements
}
