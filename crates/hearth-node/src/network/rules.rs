//! The rules of the firewall, as texts for nft(8): of the node's bridge, and of each machine's namespace.

use hearth_guest_protocol::network::{GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6};
use hearth_machine::NetworkMode;

use super::address::{Network, NodeKey, PREFIX_V4, PREFIX_V6};
use super::links::UPLINK;
use crate::host::network_namespace::TAP;

/// What is not the internet: this host, private and shared networks, link-local (with the metadata services of clouds), multicast,
/// and what is reserved (RFC 6890).
const PRIVATE_V4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, \
     192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// Likewise, with the ranges by which an IPv4 address is written as one of IPv6: mapped, translated, 6to4.
const PRIVATE_V6: &str =
    "::/96, ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48, 100::/64, 2002::/16, fc00::/7, fe80::/10, ff00::/8";

/// The metadata services of clouds: what they tell is the host's, whatever else a machine may reach.
const METADATA_V4: &str = "169.254.0.0/16";
const METADATA_V6: &str = "fd00:ec2::254, fe80::/10";

/// Writes the rules of the host: machines get out by its addresses; nothing gets in to them, nor from one to another, nor to the
/// host itself.
pub(super) fn host(key: NodeKey, network: Network) -> String {
    let table = key.bridge();
    let (v4, v6) = (network.base_v4(), network.base_v6());
    format!(
        "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname != \"{table}\" accept
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        reject with icmpx type admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{table}\" oifname \"{table}\" drop
        oifname \"{table}\" ct state established,related accept
        oifname \"{table}\" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != \"{table}\" ip saddr {v4}/{PREFIX_V4} masquerade
        oifname != \"{table}\" ip6 saddr {v6}/{PREFIX_V6} masquerade
    }}
}}
"
    )
}

/// Writes what takes them away again.
pub(super) fn no_host(key: NodeKey) -> String {
    let table = key.bridge();
    format!("table inet {table} {{}}\ndelete table inet {table}\n")
}

/// Writes the rules of a machine's namespace.
pub(super) fn machine(mode: NetworkMode) -> String {
    let (leaving, names) = match mode {
        NetworkMode::Open => (
            format!(
                "ip daddr {{ {METADATA_V4} }} counter reject with icmpx type admin-prohibited
        ip6 daddr {{ {METADATA_V6} }} counter reject with icmpx type admin-prohibited
        accept"
            ),
            String::new(),
        ),
        NetworkMode::None | NetworkMode::Isolated | NetworkMode::Filtered => (
            format!(
                "ip daddr {{ {PRIVATE_V4} }} counter reject with icmpx type admin-prohibited
        ip6 daddr {{ {PRIVATE_V6} }} counter reject with icmpx type admin-prohibited
        tcp dport {{ 22, 80, 443, 9418 }} accept
        udp dport 443 accept
        counter reject with icmpx type admin-prohibited"
            ),
            // Whichever server a program asks: the gateway answers.
            format!(
                "iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {GATEWAY_V4}
        iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport 53 dnat ip6 to {GATEWAY_V6}"
            ),
        ),
    };
    format!(
        "table inet hearth {{}}
delete table inet hearth
table inet hearth {{
    chain arriving {{
        type filter hook prerouting priority raw; policy accept;
        iifname != \"{TAP}\" accept
        ip saddr {GUEST_V4} accept
        ip6 saddr {{ {GUEST_V6}, fe80::/10, :: }} accept
        counter drop
    }}
    chain names {{
        type nat hook prerouting priority dstnat; policy accept;
        {names}
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname \"lo\" accept
        ct state established,related accept
        iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport 53 accept
        iifname \"{TAP}\" icmp type echo-request accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
        iifname \"{TAP}\" counter reject with icmpx type admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname \"{TAP}\" oifname \"{UPLINK}\" jump leaving
    }}
    chain leaving {{
        {leaving}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"{UPLINK}\" masquerade
    }}
}}
"
    )
}
