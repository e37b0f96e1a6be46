//! What the firewall tells of the packets that open connections, by nflog's netlink (include/uapi/linux/netfilter/nfnetlink_log.h
//! of Linux).

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice};
use hearth_machine::policy::Protocol;
use netlink_packet_netfilter::nflog::{
    ConfigCmd, ConfigMode, ConfigNla, PacketNla, Timeout, ULogMessage, config_request,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::sys::constants::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket as _, TokioSocket};

use super::firewall::{messages, protocol_of};
use super::guard::Guard;
use super::rules::{LOG_LET_OUT, LOG_REFUSED};

/// What of a packet is sent: its headers.
const COPIED: u32 = 128;
/// How long the kernel may keep what it has to tell.
const DELAY: Duration = Duration::from_millis(10);
/// It sends that in pieces of this size at most (`NFULNL_NLBUFSIZ_DEFAULT`, with what is around it).
const PIECE: usize = 128 << 10;

/// Opens the socket that tells of packets, in the namespace that this thread is in, which has entered the runtime.
pub(super) fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    for group in [LOG_REFUSED, LOG_LET_OUT] {
        let settings = vec![
            ConfigCmd::Bind.into(),
            ConfigMode::new_packet(COPIED).into(),
            ConfigNla::QThresh(1),
            Timeout::from(DELAY).into(),
        ];
        let request = config_request(NetfilterProtoFamily::Unspec, group, settings);
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        socket.socket_ref().send(&bytes, 0)?;
    }
    Ok(socket)
}

/// Reads what is told, until the task is ended.
pub(super) async fn watch(socket: TokioSocket, guard: Arc<Guard>) {
    let mut bytes = Vec::with_capacity(PIECE);
    loop {
        bytes.clear();
        if let Err(error) = poll_fn(|context| socket.poll_recv(context, &mut bytes)).await {
            // More was told than there was room for: some of it is lost.
            tracing::debug!(%error, "packets were not told of");
            continue;
        }
        for message in messages(&bytes) {
            if let NetlinkPayload::InnerMessage(message) = message.payload {
                note(message, &guard);
            }
        }
    }
}

fn note(message: NetfilterMessage, guard: &Guard) {
    let group = message.header.res_id;
    let NetfilterMessageInner::ULog(ULogMessage::Packet(parts)) = message.inner else {
        return;
    };
    let packet = parts.iter().find_map(|part| match part {
        PacketNla::Payload(packet) => Some(packet.as_slice()),
        _ => None,
    });
    let Some((address, protocol, port)) = packet.and_then(destination) else {
        return;
    };
    if group == LOG_REFUSED {
        guard.refused(address, protocol, port);
    } else {
        guard.let_out(address, protocol, port);
    }
}

/// Reads where a packet goes. A guest has made it.
pub(super) fn destination(packet: &[u8]) -> Option<(IpAddr, Protocol, Option<u16>)> {
    let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
    let (address, protocol) = match sliced.net? {
        LaxNetSlice::Ipv4(slice) => {
            let header = slice.header();
            (header.destination_addr().into(), slice.payload().ip_number)
        }
        LaxNetSlice::Ipv6(slice) => {
            let header = slice.header();
            (header.destination_addr().into(), slice.payload().ip_number)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let port = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Some(tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => Some(udp.destination_port()),
        _ => None,
    };
    Some((address, protocol_of(protocol.0), port))
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn packets_say_where_they_go_also_when_they_are_cut_off() {
        let mut packet = Vec::new();
        let tcp = PacketBuilder::ipv4([100, 127, 255, 254], [203, 0, 113, 1], 64).tcp(40000, 443, 1, 100);
        tcp.write(&mut packet, &[7; 500]).unwrap();
        let v4: IpAddr = "203.0.113.1".parse().unwrap();
        assert_eq!(destination(&packet), Some((v4, Protocol::Tcp, Some(443))));
        assert_eq!(destination(&packet[..128]), Some((v4, Protocol::Tcp, Some(443))));
        assert_eq!(destination(&packet[..22]), Some((v4, Protocol::Tcp, None)));
        assert_eq!(destination(&packet[..10]), None);
        assert_eq!(destination(&[]), None);

        let mut packet = Vec::new();
        let v6: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
        let udp = PacketBuilder::ipv6([0xfd; 16], v6.octets(), 64).udp(1, 53);
        udp.write(&mut packet, b"question").unwrap();
        assert_eq!(destination(&packet), Some((v6.into(), Protocol::Udp, Some(53))));

        let mut packet = Vec::new();
        let echo = PacketBuilder::ipv4([100, 127, 255, 254], [203, 0, 113, 1], 64).icmpv4_echo_request(1, 2);
        echo.write(&mut packet, &[]).unwrap();
        assert_eq!(destination(&packet), Some((v4, Protocol::Other(1), None)));
    }
}
