//! The rules of the firewall, as texts for nft(8): of the node's bridge, and of each machine's namespace.
//!
//! Those of a machine are the same for all: what tells one policy from another is in their sets, which [`super::firewall`] fills.

use std::fmt::Display;

use hearth_guest_protocol::network::{GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6};
use hearth_machine::policy::{METADATA, PRIVATE, RESOLVERS};

use super::address::{Network, NodeKey};
use super::links::{UPLINK, USER};
use crate::host::network_namespace::TAP;

/// The table of a machine's namespace.
pub(super) const TABLE: &str = "hearth";

/// The counter of what is refused or dropped.
pub(super) const DROPPED: &str = "dropped";

/// The groups of nflog by which the node hears of connections: of those that are refused, and of those that are let out.
pub(super) const LOG_REFUSED: u16 = 1;
/// See [`LOG_REFUSED`].
pub(super) const LOG_LET_OUT: u16 = 2;

/// Addresses that mean the sender itself, or an IPv4 address in the guise of an IPv6 one, to whoever takes them for a destination.
const NOWHERE_V4: [&str; 2] = ["0.0.0.0/8", "127.0.0.0/8"];
const NOWHERE_V6: [&str; 2] = ["::/96", "::ffff:0.0.0.0/96"];

/// How many connections a machine may have open at once: each takes memory of the host's.
const CONNECTIONS_MAX: u32 = 8192;

/// Writes the rules of the host: machines get out by its addresses; nothing gets in to them, nor from one to another, nor to the
/// host itself. Networks of machines stay what they are on the link: the host is on none, and passes nothing in or out.
pub(super) fn host(key: NodeKey, network: Network) -> String {
    let table = key.bridge();
    let (v4, v6, users) = (network.v4, network.v6, key.user_bridges());
    format!(
        "table inet {table} {{}}
delete table inet {table}
table inet {table} {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname \"{users}*\" drop
        iifname != \"{table}\" accept
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        reject with icmpx type admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname \"{users}*\" oifname \"{users}*\" accept
        iifname \"{users}*\" drop
        oifname \"{users}*\" drop
        iifname \"{table}\" oifname \"{table}\" drop
        oifname \"{table}\" ct state established,related accept
        oifname \"{table}\" drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname != \"{table}\" ip saddr {v4} masquerade
        oifname != \"{table}\" ip6 saddr {v6} masquerade
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

fn list<T: Display>(ranges: &[T]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// Writes the sets of a machine's namespace. They are empty: nothing gets out by them.
fn sets() -> String {
    let mut text = String::new();
    for (family, kind) in [("4", "ipv4_addr"), ("6", "ipv6_addr")] {
        for (set, of, flags) in [
            ("host", "inet_proto", "interval"),
            ("deny", "inet_proto", "interval"),
            ("allow", "inet_proto", "interval"),
            ("deny_port", "inet_service", "interval"),
            ("allow_port", "inet_service", "interval"),
            ("named_port", "inet_service", "timeout"),
        ] {
            text += &format!("    set {set}{family} {{ type {kind} . {of}; flags {flags}; }}\n");
        }
        text += &format!("    set named{family} {{ type {kind}; flags timeout; }}\n");
    }
    text + "    set ports { type inet_proto . inet_service; }\n    set captured { type inet_service; }\n"
}

/// Says what becomes of a packet that opens a connection because of its address alone.
fn by_address(kind: &str, verdict: &str) -> Vec<String> {
    let of_family = |(family, ip)| {
        [
            format!("{ip} daddr . meta l4proto @{kind}{family} goto {verdict}"),
            format!("meta l4proto {{ tcp, udp }} {ip} daddr . th dport @{kind}_port{family} goto {verdict}"),
        ]
    };
    [("4", "ip"), ("6", "ip6")]
        .into_iter()
        .flat_map(of_family)
        .collect()
}

/// Says what becomes of a packet that opens a connection. What has ports is asked for by protocol first: other headers have
/// something else there.
fn leaving() -> Vec<String> {
    let families = [
        ("4", "ip", list(METADATA.v4), list(PRIVATE.v4), list(RESOLVERS.v4)),
        (
            "6",
            "ip6",
            list(METADATA.v6),
            list(PRIVATE.v6),
            list(RESOLVERS.v6),
        ),
    ];
    // A header of routes leads elsewhere than its packet says (RFC 8200, 4.4).
    let mut rules = vec!["exthdr rt exists goto refused".to_owned()];
    // The host itself, where the way out is by its sockets: no rule of a policy's allows that.
    for (family, ip, ..) in &families {
        rules.push(format!("{ip} daddr . meta l4proto @host{family} goto refused"));
    }
    rules.push(format!("ip daddr {{ {} }} goto refused", NOWHERE_V4.join(", ")));
    rules.push(format!("ip6 daddr {{ {} }} goto refused", NOWHERE_V6.join(", ")));
    for (_, ip, metadata, ..) in &families {
        rules.push(format!("{ip} daddr {{ {metadata} }} goto refused"));
    }
    rules.extend(by_address("deny", "refused"));
    rules.extend(by_address("allow", "let_out"));
    for (family, ip, ..) in &families {
        rules.push(format!("{ip} daddr @named{family} goto let_out"));
        rules.push(format!(
            "meta l4proto {{ tcp, udp }} {ip} daddr . th dport @named_port{family} goto let_out"
        ));
    }
    for (_, ip, _, private, resolvers) in &families {
        rules.push(format!("{ip} daddr {{ {private}, {resolvers} }} goto refused"));
    }
    rules.push("meta l4proto . th dport @ports goto let_out".to_owned());
    rules.push("goto refused".to_owned());
    rules
}

/// Writes rules of a chain, a line each.
fn lines(rules: &[String]) -> String {
    rules.iter().map(|rule| format!("        {rule}\n")).collect()
}

/// Writes the rules of a machine's namespace. TCP is refused by a reset: a guest may still be in the call that opens the connection
/// when an error of ICMP arrives, and takes that for no more than a hint then. Nobody in the namespace itself begins to talk to the
/// outside: a guest that has taken its monitor over gets no further by that.
pub(super) fn machine() -> String {
    let (sets, leaving, denied) = (sets(), lines(&leaving()), lines(&by_address("deny", "refused")));
    format!(
        "table inet {TABLE} {{}}
delete table inet {TABLE}
table inet {TABLE} {{
{sets}
    counter {DROPPED} {{ }}
    chain arriving {{
        type filter hook prerouting priority raw; policy accept;
        iifname != \"{TAP}\" accept
        ip saddr {GUEST_V4} accept
        ip6 saddr {{ {GUEST_V6}, fe80::/10, :: }} accept
        counter name {DROPPED} drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname \"{USER}*\" meta pkttype host dnat ip to {GUEST_V4}
        iifname \"{USER}*\" meta pkttype host dnat ip6 to {GUEST_V6}
        iifname \"{TAP}\" fib daddr oifname \"{USER}*\" accept
        iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport @captured dnat ip to {GATEWAY_V4}
        iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport @captured dnat ip6 to {GATEWAY_V6}
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname \"lo\" accept
        ct state established,related accept
        iifname \"{TAP}\" meta l4proto {{ tcp, udp }} th dport 53 accept
        iifname \"{TAP}\" icmp type echo-request accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, echo-request }} accept
        iifname \"{UPLINK}\" icmpv6 type nd-router-advert accept
        iifname \"{TAP}\" meta l4proto tcp counter name {DROPPED} reject with tcp reset
        iifname \"{TAP}\" counter name {DROPPED} reject with icmpx type admin-prohibited
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oifname != \"{UPLINK}\" accept
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept
        drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        tcp flags syn tcp option maxseg size set rt mtu
        ct state established,related accept
        iifname \"{TAP}\" oifname \"{UPLINK}\" jump leaving
        iifname \"{TAP}\" oifname \"{USER}*\" jump to_machines
        iifname \"{USER}*\" oifname \"{TAP}\" ct status dnat jump from_machines
    }}
    chain refused {{
        limit rate 20/second burst 50 packets log group {LOG_REFUSED} snaplen 128
        meta l4proto tcp counter name {DROPPED} reject with tcp reset
        counter name {DROPPED} reject with icmpx type admin-prohibited
    }}
    chain let_out {{
        ct count over {CONNECTIONS_MAX} goto refused
        limit rate 50/second burst 200 packets log group {LOG_LET_OUT} snaplen 128
        accept
    }}
    chain to_machines {{
{denied}        ct count over {CONNECTIONS_MAX} goto refused
        accept
    }}
    chain from_machines {{
        ct count over {CONNECTIONS_MAX} drop
        accept
    }}
    chain leaving {{
{leaving}    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname {{ \"{UPLINK}\", \"{USER}*\" }} masquerade
    }}
}}
"
    )
}
