//! Bridges, links, addresses and routes, by rtnetlink(7).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use hearth_guest_protocol::network::{
    GATEWAY_V4, GATEWAY_V6, PREFIX_V4 as GUEST_PREFIX_V4, PREFIX_V6 as GUEST_PREFIX_V6,
};
use hearth_machine::{Rate, Uplink};
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, CacheInfo};
use rtnetlink::packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo,
    LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use super::NetworkError;
use super::address::{Network, NodeKey, has_v6};
use super::user::MTU_DEFAULT;
use crate::host::network_namespace::{EXISTS, NO_DEVICE, NetworkNamespace, TAP};

/// The name of a machine's end of its link, in its namespace.
pub(super) const UPLINK: &str = "uplink";

/// What the names of its interfaces on networks of machines begin with.
pub(super) const USER: &str = "user";

/// A bridge of the host's.
#[derive(Debug)]
pub(super) struct FoundBridge {
    pub(super) index: u32,
    /// The longest packet.
    pub(super) mtu: u32,
    /// How long it passes nothing on at a port that is new.
    pub(super) delay: Duration,
}

/// The two ends of a link between a bridge and a machine's namespace.
#[derive(Debug)]
pub(super) struct Ends<'a> {
    /// The name of the bridge's.
    pub(super) outer: &'a str,
    /// The name of the one in the namespace.
    pub(super) inner: &'a str,
    /// The hardware address of that; one that the kernel makes up when absent.
    pub(super) card: Option<[u8; 6]>,
    /// The longest packet.
    pub(super) mtu: u32,
}

/// A machine's end of its link, and the other one, for the families that lead out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outlet {
    pub(super) v4: (Ipv4Addr, u8),
    pub(super) v6: (Ipv6Addr, u8),
    pub(super) gateway_v4: Option<Ipv4Addr>,
    pub(super) gateway_v6: Option<Ipv6Addr>,
}

impl Outlet {
    /// Returns those of a place at a bridge.
    pub(super) fn at(network: Network, place: u32) -> Self {
        let (v4, v6) = network.machine(place);
        Self {
            v4: (v4, network.v4.prefix_len()),
            v6: (v6, network.v6.prefix_len()),
            gateway_v4: Some(network.bridge_v4()),
            gateway_v6: Some(network.bridge_v6()),
        }
    }
}

/// A conversation with the kernel about one namespace. Ends with this value.
#[derive(Debug)]
pub(super) struct Links {
    handle: Handle,
}

impl Links {
    /// Opens one about the node's own namespace.
    pub(super) fn of_node() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Opens one about another.
    pub(super) fn within(namespace: &NetworkNamespace) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = namespace.enter(|| {
            let _entered = runtime.enter();
            rtnetlink::new_connection()
        })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Returns the number of an interface, if there is one of that name.
    pub(super) async fn find(&self, name: &str) -> Result<Option<u32>, NetworkError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if errno(&error) == Some(NO_DEVICE) => Ok(None),
            Err(error) => Err(failed("look for", name)(error)),
        }
    }

    /// Returns the number of an interface.
    pub(super) async fn index(&self, name: &str) -> Result<u32, NetworkError> {
        self.find(name)
            .await?
            .ok_or_else(|| NetworkError::Gone(name.to_owned()))
    }

    /// Tells for which of IPv4 and IPv6 there is a way out.
    pub(super) async fn ways_out(&self) -> Result<(bool, bool), NetworkError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut ways = [false; 2];
        for (way, family) in ways.iter_mut().zip([v4, v6]) {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(failed("read", "the routes"))? {
                *way |=
                    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
            }
        }
        Ok((ways[0], ways[1]))
    }

    /// Makes the node's bridge, or finds it, and returns its number and network.
    ///
    /// `taken` are ranges that no route of this host's leads to, and that machines have.
    pub(super) async fn bridge(
        &self,
        key: NodeKey,
        taken: Vec<Ipv4Net>,
    ) -> Result<(u32, Network), NetworkError> {
        let name = key.bridge();
        if let Some(index) = self.find(&name).await? {
            if let Some(address) = self.address(index).await? {
                return Ok((index, Network::with_bridge(key, address.addr())));
            }
            // Half made.
            self.remove(index, &name).await?;
        }
        let mut taken = taken;
        taken.extend(self.routes().await?);
        let is_free = |network: &Network| !taken.iter().any(|&range| network.overlaps(range));
        let network = key.networks().find(is_free).ok_or(NetworkError::NoNetwork)?;
        let bridge = LinkBridge::new(&name).address(key.bridge_address().into());
        let made = self.handle.link().add(bridge.build());
        made.execute().await.map_err(failed("make the bridge", &name))?;
        let index = self.index(&name).await?;
        self.add_address(index, network.bridge_v6().into(), network.v6.prefix_len())
            .await?;
        self.add_address(index, network.bridge_v4().into(), network.v4.prefix_len())
            .await?;
        Ok((index, network))
    }

    async fn address(&self, index: u32) -> Result<Option<Ipv4Net>, NetworkError> {
        let mut addresses = self.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = addresses
            .try_next()
            .await
            .map_err(failed("read the addresses of", "the bridge"))?
        {
            for attribute in message.attributes {
                if let AddressAttribute::Address(IpAddr::V4(address)) = attribute {
                    return Ok(Ipv4Net::new(address, message.header.prefix_len).ok());
                }
            }
        }
        Ok(None)
    }

    /// Returns where the routes of this host lead to.
    pub(super) async fn routes(&self) -> Result<Vec<Ipv4Net>, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(all).execute();
        let mut taken = Vec::new();
        while let Some(route) = routes.try_next().await.map_err(failed("read", "the routes"))? {
            let prefix = route.header.destination_prefix_length;
            taken.extend(route.attributes.iter().filter_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                    Ipv4Net::new(*address, prefix).ok()
                }
                _ => None,
            }));
        }
        Ok(taken)
    }

    /// Finds a bridge that somebody else has made.
    pub(super) async fn find_bridge(&self, name: &str) -> Result<FoundBridge, NetworkError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = match found.try_next().await {
            Ok(link) => link,
            Err(error) if errno(&error) == Some(NO_DEVICE) => None,
            Err(error) => return Err(failed("look for", name)(error)),
        };
        let absent = || NetworkError::NoBridge(name.to_owned());
        let link = link.ok_or_else(absent)?;
        let is_bridge = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::LinkInfo(parts) => parts.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => false,
        };
        if !link.attributes.iter().any(is_bridge) {
            return Err(absent());
        }
        Ok(FoundBridge {
            index: link.header.index,
            mtu: mtu_of(&link),
            delay: delay_of(&link),
        })
    }

    /// Takes the machine's way out from its namespace.
    pub(super) async fn remove_uplink(&self) -> Result<(), NetworkError> {
        self.remove(self.index(UPLINK).await?, UPLINK).await
    }

    /// Gives the machine's way out the addresses and gateways of its own that it is said to have.
    pub(super) async fn lead_out(&self, uplink: &Uplink) -> Result<(), NetworkError> {
        let index = self.index(UPLINK).await?;
        self.bring_up(LinkUnspec::new_with_index(index), UPLINK).await?;
        for address in uplink.addresses() {
            self.add_address(index, address.addr(), address.prefix_len())
                .await?;
        }
        for gateway in uplink.gateways() {
            self.add_gateway(*gateway).await?;
        }
        Ok(())
    }

    /// Gives it an address for a time, or for more of it, and the gateway there.
    pub(super) async fn lease(
        &self,
        address: Ipv4Net,
        term: Option<Duration>,
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let index = self.index(UPLINK).await?;
        let seconds = term.map_or(u32::MAX, |term| u32::try_from(term.as_secs()).unwrap_or(u32::MAX));
        let mut times = CacheInfo::default();
        (times.ifa_preferred, times.ifa_valid) = (seconds, seconds);
        let added = self
            .handle
            .address()
            .add(index, address.addr().into(), address.prefix_len());
        let mut added = added.replace();
        added
            .message_mut()
            .attributes
            .push(AddressAttribute::CacheInfo(times));
        let added = added.execute().await;
        added.map_err(failed("add the address", &address.to_string()))?;
        let Some(gateway) = gateway else {
            return Ok(());
        };
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(failed("add the route of", UPLINK))
    }

    /// Returns the address that it has.
    pub(super) async fn leased(&self) -> Result<Option<Ipv4Net>, NetworkError> {
        self.address(self.index(UPLINK).await?).await
    }

    /// Takes an address from it, and the kernel all routes that go by that.
    pub(super) async fn unlease(&self, address: Ipv4Net) -> Result<(), NetworkError> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(self.index(UPLINK).await?)
            .address(address.addr(), address.prefix_len())
            .build();
        let removed = self.handle.address().del(message).execute().await;
        removed.map_err(failed("remove the address", &address.to_string()))
    }

    async fn add_gateway(&self, gateway: IpAddr) -> Result<(), NetworkError> {
        let route = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
            IpAddr::V6(_) if !has_v6() => return Ok(()),
            IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
        };
        let added = self.handle.route().add(route).execute().await;
        added.map_err(failed("add the route of", UPLINK))
    }

    /// Returns the longest packet that this host sends by its default route; what Ethernet has where there is none.
    pub(super) async fn outward_mtu(&self) -> Result<u32, NetworkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = self.handle.route().get(all).execute();
        let mut outward = None;
        while let Some(route) = routes.try_next().await.map_err(failed("read", "the routes"))? {
            let is_default = route.header.destination_prefix_length == 0;
            outward = outward.or(route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) if is_default => Some(*index),
                _ => None,
            }));
        }
        let Some(outward) = outward else {
            return Ok(MTU_DEFAULT);
        };
        let mut found = self.handle.link().get().match_index(outward).execute();
        let link = found
            .try_next()
            .await
            .map_err(failed("look at", "the host's way out"))?;
        Ok(link.as_ref().map_or(MTU_DEFAULT, mtu_of))
    }

    /// Makes the bridge of a network of machines, or finds it. It has no address: the host is not on that network.
    pub(super) async fn user_bridge(&self, name: &str) -> Result<u32, NetworkError> {
        if let Some(index) = self.find(name).await? {
            return Ok(index);
        }
        let made = self
            .handle
            .link()
            .add(LinkBridge::new(name).build())
            .execute()
            .await;
        match made {
            Err(error) if errno(&error) == Some(EXISTS) => {}
            other => other.map_err(failed("make the bridge", name))?,
        }
        if has_v6() {
            // It would give itself an address of the link's.
            let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
            std::fs::write(path, "1").map_err(super::namespace_error("keep a bridge without addresses"))?;
        }
        let index = self.index(name).await?;
        self.bring_up(LinkUnspec::new_with_index(index), name).await?;
        Ok(index)
    }

    async fn bring_up(&self, link: LinkMessageBuilder<LinkUnspec>, name: &str) -> Result<(), NetworkError> {
        let set = self.handle.link().set(link.up().build()).execute().await;
        set.map_err(failed("bring up", name))
    }

    /// Connects a namespace with the bridge of a network of machines. What an earlier start of the machine has left of the link is
    /// removed.
    pub(super) async fn plug(
        &self,
        bridge: u32,
        namespace: &NetworkNamespace,
        ends: &Ends<'_>,
    ) -> Result<(), NetworkError> {
        let name = ends.outer;
        self.remove_found(name).await?;
        let made = self.link(bridge, namespace, ends).await;
        made.map_err(failed("make the link", name))?;
        let index = self.index(name).await?;
        self.bring_up(LinkUnspec::new_with_index(index), name).await
    }

    /// Makes a link between a bridge and a namespace, which is not up.
    async fn link(
        &self,
        bridge: u32,
        namespace: &NetworkNamespace,
        ends: &Ends<'_>,
    ) -> Result<(), rtnetlink::Error> {
        let mut inner = LinkMessageBuilder::<LinkUnspec>::new()
            .name(ends.inner.to_owned())
            .mtu(ends.mtu)
            .append_extra_attribute(LinkAttribute::NetNsFd(namespace.descriptor()));
        if let Some(card) = ends.card {
            inner = inner.address(card.into());
        }
        let link = LinkVeth::new(ends.outer, ends.inner)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inner.build())))
            .controller(bridge)
            .mtu(ends.mtu)
            .build();
        self.handle.link().add(link).execute().await
    }

    /// Connects a namespace with the bridge; returns false when this place is taken.
    pub(super) async fn connect(
        &self,
        name: &str,
        bridge: u32,
        namespace: &NetworkNamespace,
        mtu: u32,
    ) -> Result<bool, NetworkError> {
        let ends = Ends {
            outer: name,
            inner: UPLINK,
            card: None,
            mtu,
        };
        match self.link(bridge, namespace, &ends).await {
            Ok(()) => {}
            Err(error) if errno(&error) == Some(EXISTS) => return Ok(false),
            Err(error) => return Err(failed("make the link", name)(error)),
        }
        // Before it is up: machines do not see each other's frames.
        let index = self.index(name).await?;
        let port = LinkBridgePort::new(index).append_info_data(InfoBridgePort::Isolated(true));
        let isolated = self.handle.link().set_port(port.build()).execute().await;
        isolated.map_err(failed("isolate", name))?;
        self.bring_up(LinkUnspec::new_with_index(index), name).await?;
        Ok(true)
    }

    /// Removes an interface, if there is one of that name.
    pub(super) async fn remove_found(&self, name: &str) -> Result<(), NetworkError> {
        match self.find(name).await? {
            Some(index) => self.remove(index, name).await,
            None => Ok(()),
        }
    }

    pub(super) async fn remove(&self, index: u32, name: &str) -> Result<(), NetworkError> {
        let removed = self.handle.link().del(index).execute().await;
        removed.map_err(failed("remove", name))
    }

    /// Gives the two interfaces of a machine's namespace their addresses, and the namespace its way out.
    pub(super) async fn furnish(&self, outlet: Outlet) -> Result<(), NetworkError> {
        for name in ["lo", TAP, UPLINK] {
            self.bring_up(LinkUnspec::new_with_name(name), name).await?;
        }
        let (tap, uplink) = (self.index(TAP).await?, self.index(UPLINK).await?);
        self.add_address(tap, GATEWAY_V4.into(), GUEST_PREFIX_V4).await?;
        self.add_address(tap, GATEWAY_V6.into(), GUEST_PREFIX_V6).await?;
        self.add_address(uplink, outlet.v4.0.into(), outlet.v4.1).await?;
        self.add_address(uplink, outlet.v6.0.into(), outlet.v6.1).await?;
        let gateways = [
            outlet.gateway_v4.map(IpAddr::from),
            outlet.gateway_v6.map(IpAddr::from),
        ];
        for gateway in gateways.into_iter().flatten() {
            self.add_gateway(gateway).await?;
        }
        Ok(())
    }

    /// Gives an interface of a machine's namespace its hardware address, and the longest packet.
    pub(super) async fn shape(&self, name: &str, card: [u8; 6], mtu: u32) -> Result<(), NetworkError> {
        let index = self.index(name).await?;
        let link = LinkUnspec::new_with_index(index).address(card.into()).mtu(mtu);
        let set = self.handle.link().set(link.build()).execute().await;
        set.map_err(failed("set up", name))
    }

    /// Gives an interface of a machine's namespace its addresses on a network of machines.
    pub(super) async fn join(
        &self,
        interface: &str,
        network: Network,
        place: u32,
    ) -> Result<(), NetworkError> {
        let index = self.index(interface).await?;
        self.bring_up(LinkUnspec::new_with_index(index), interface)
            .await?;
        self.add_addresses(index, network, place).await
    }

    async fn add_addresses(&self, index: u32, network: Network, place: u32) -> Result<(), NetworkError> {
        let (v4, v6) = network.machine(place);
        self.add_address(index, v4.into(), network.v4.prefix_len())
            .await?;
        self.add_address(index, v6.into(), network.v6.prefix_len()).await
    }

    /// Lets no more through interfaces of a machine's namespace than this: what goes to the guest waits at its TAP, what it sends at
    /// the uplink, and where it is plugged into networks.
    pub(super) async fn limit(
        &self,
        interfaces: &[&str],
        rate: Rate,
        sender: Sender,
    ) -> Result<(), NetworkError> {
        for &name in interfaces {
            let mut bucket =
                TcMessage::with_index(i32::try_from(self.index(name).await?).unwrap_or(i32::MAX));
            bucket.header.parent = TcHandle::ROOT;
            bucket.attributes = vec![
                TcAttribute::Kind("tbf".to_owned()),
                TcAttribute::Options(token_bucket(rate, sender)),
            ];
            let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(bucket));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
            let mut handle = self.handle.clone();
            let mut answers = handle.request(request).map_err(failed("limit", name))?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(failed("limit", name)(rtnetlink::Error::NetlinkError(error)));
                }
            }
        }
        Ok(())
    }

    /// Returns how many packets found the queue of an interface full.
    pub(super) async fn overflowed(&self, name: &str) -> Result<u64, NetworkError> {
        let index = i32::try_from(self.index(name).await?).unwrap_or(i32::MAX);
        let mut queues = self.handle.qdisc().get().index(index).execute();
        let mut dropped = 0;
        while let Some(queue) = queues
            .try_next()
            .await
            .map_err(failed("read the queue of", name))?
        {
            let is_root = queue.header.index == index && queue.header.parent == TcHandle::ROOT;
            dropped += queue
                .attributes
                .iter()
                .filter_map(|attribute| match attribute {
                    TcAttribute::Stats2(parts) if is_root => Some(parts),
                    _ => None,
                })
                .flatten()
                .map(|part| match part {
                    TcStats2::Queue(queue) => u64::from(queue.drops),
                    _ => 0,
                })
                .sum::<u64>();
        }
        Ok(dropped)
    }

    /// Adds an address, which counts at once: nobody else has it, so nobody is asked (RFC 4862, 5.4).
    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), NetworkError> {
        if address.is_ipv6() && !has_v6() {
            return Ok(());
        }
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .map_err(failed("add the address", &address.to_string()))
    }
}

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64` and `TCA_TBF_BURST` of include/uapi/linux/pkt_sched.h of Linux.
const TBF_PARAMETERS: u16 = 1;
const TBF_RATE_64: u16 = 4;
const TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: the kernel works times out from the rate, without a table.
const ETHERNET: u8 = 1;
/// The least bucket: two frames of an Ethernet.
const BUCKET_MIN: u64 = 2 * 1550;
/// A bucket is not larger than this unless somebody asks for it: what is in it comes at once.
const BUCKET_MAX: u64 = 1 << 20;
/// The least queue: ten frames.
const QUEUE_MIN: u64 = 10 * 1550;

/// The most that a guest's kernel lets one connection have on its way to it (`tcp_rmem` of Linux).
const QUEUE_OF_PASTA: u64 = 6 << 20;

/// Who fills a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// Somebody's TCP, which sends again what was dropped, and slows down.
    Kernel,
    /// Pasta, which sends all again from there on, at once: what is dropped costs many times over, so much is let wait instead.
    Pasta,
}

/// Makes the settings of a token bucket, see tc-tbf(8): what passes in 50 ms may come at once, what would wait for more than 200 ms is
/// dropped; of what pasta sends, what would wait for more than two seconds.
fn token_bucket(rate: Rate, sender: Sender) -> Vec<TcOption> {
    let per_second = rate.bytes_per_second;
    let bucket = (per_second / 20)
        .clamp(BUCKET_MIN, BUCKET_MAX)
        .max(rate.burst_bytes);
    let waiting = match sender {
        Sender::Kernel => per_second / 5,
        Sender::Pasta => (per_second / 5).max((2 * per_second).min(QUEUE_OF_PASTA)),
    };
    let queue = bucket + waiting.max(QUEUE_MIN);
    let narrow = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
    // struct tc_tbf_qopt: two struct tc_ratespec, for the rate and for a peak, and limit, buffer and mtu.
    let mut parameters = [0; 36];
    parameters[1] = ETHERNET;
    parameters[8..12].copy_from_slice(&narrow(per_second).to_ne_bytes());
    parameters[24..28].copy_from_slice(&narrow(queue).to_ne_bytes());
    [
        (TBF_PARAMETERS, parameters.to_vec()),
        (TBF_RATE_64, per_second.to_ne_bytes().to_vec()),
        (TBF_BURST, narrow(bucket).to_ne_bytes().to_vec()),
    ]
    .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)))
    .to_vec()
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    mtu.unwrap_or(MTU_DEFAULT)
}

/// Returns how long a bridge keeps a new port quiet: one of a spanning tree listens and learns first (IEEE 802.1D, 17.20), each for its
/// delay, which Linux counts in hundredths of a second.
fn delay_of(link: &LinkMessage) -> Duration {
    let of_bridge = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(parts) => Some(parts),
        _ => None,
    });
    let (mut is_tree, mut delay) = (false, Duration::ZERO);
    for part in of_bridge.flatten() {
        let LinkInfo::Data(InfoData::Bridge(settings)) = part else {
            continue;
        };
        for setting in settings {
            match setting {
                InfoBridge::StpState(state) => is_tree = *state != BridgeStpState::Disabled,
                InfoBridge::ForwardDelay(hundredths) => {
                    delay = Duration::from_millis(u64::from(*hundredths) * 10);
                }
                _ => {}
            }
        }
    }
    if is_tree { delay * 2 } else { Duration::ZERO }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

pub(super) fn failed(what: &'static str, name: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let name = name.to_owned();
    move |source| NetworkError::Link {
        what,
        name,
        source: Box::new(source),
    }
}
