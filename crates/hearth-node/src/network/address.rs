//! The addresses of one node: of its bridge, and of the machines behind it.
//!
//! A machine's place is a number, and the name of the host's end of its link is made of that: what is taken is what the kernel has,
//! also after a crash, and it lets nobody have a name twice.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use hearth_machine::MachineId;
use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};

/// The length of the prefix of a node's IPv4 network, and of one of machines that does not say.
const PREFIX_V4: u8 = 20;
/// The length of the prefix of their IPv6 networks.
const PREFIX_V6: u8 = 64;

/// Networks are cut out of this one, 10.64.0.0/10.
const POOL_V4: u32 = 0x0a40_0000;
/// How many there are in it.
const POOL_NETWORKS: u32 = 1 << (PREFIX_V4 - 10);
/// The first and the last address of a network are not for machines, nor is the bridge's.
const RESERVED: u32 = 3;

/// Tells whether this host has IPv6 at all.
pub(super) fn has_v6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// What tells one node's devices and networks from another's on the same host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeKey(u32);

impl NodeKey {
    /// Makes the key of the node that keeps its data here.
    pub(super) fn of(data: &Path) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        let digest = Sha256::digest(data.as_os_str().as_bytes());
        Self(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
    }

    /// Returns the name of its bridge, and of its table of rules.
    pub(super) fn bridge(self) -> String {
        format!("hearth{:08x}", self.0)
    }

    /// Returns the hardware address of its bridge. One that is not set is the lowest of its links', and changes as machines come and go:
    /// those that stay would send into the void until they ask for it again.
    pub(super) fn bridge_address(self) -> [u8; 6] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [0x02, b'h', a, b, c, d]
    }

    /// Returns the name of the host's end of a machine's link.
    pub(super) fn link(self, place: u32) -> String {
        format!("hv{:08x}{place:04x}", self.0)
    }

    /// Returns the name of the bridge of a network of machines.
    pub(super) fn user_bridge(self, number: u16) -> String {
        format!("{}{number:04x}", self.user_bridges())
    }

    /// Returns what the names of all those bridges begin with.
    pub(super) fn user_bridges(self) -> String {
        format!("hn{:08x}", self.0)
    }

    /// Returns the name of the host's end of a machine's link to one.
    pub(super) fn user_link(self, id: MachineId, number: u16) -> String {
        let digest = self.of_machine(id, number);
        let hex: String = digest[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("hu{hex}")
    }

    /// Returns the name of the host's end of a machine's link to a bridge of the host's.
    pub(super) fn bridge_link(self, id: MachineId) -> String {
        self.user_link(id, 0).replacen("hu", "hb", 1)
    }

    /// Returns the hardware address of the machine's end, the same at every start: others know it, and would send into the void until
    /// they ask for it again.
    pub(super) fn user_card(self, id: MachineId, number: u16) -> [u8; 6] {
        let digest = self.of_machine(id, number);
        [0x02, digest[6], digest[7], digest[8], digest[9], digest[10]]
    }

    fn of_machine(self, id: MachineId, number: u16) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.0.to_be_bytes());
        digest.update(id.bytes());
        digest.update(number.to_be_bytes());
        digest.finalize().into()
    }

    /// Returns the networks that it may have, the one that it tries first at the beginning.
    pub(super) fn networks(self) -> impl DoubleEndedIterator<Item = Network> {
        (0..POOL_NETWORKS).map(move |step| {
            let number = (self.0 % POOL_NETWORKS + step) % POOL_NETWORKS;
            let v4 = POOL_V4 + (number << (32 - PREFIX_V4));
            Network {
                v4: Ipv4Net::new_assert(v4.into(), PREFIX_V4),
                v6: self.v6(0),
            }
        })
    }

    /// Returns the range of IPv6 addresses of one of its networks: of its own with the number 0, and of those of machines.
    pub(super) fn v6(self, number: u16) -> Ipv6Net {
        let [high, low] = [(self.0 >> 16) as u16, self.0 as u16];
        // "h" and "r", and the key.
        let base = Ipv6Addr::new(0xfd68, 0x7200_u16.wrapping_add(number), high, low, 0, 0, 0, 0);
        Ipv6Net::new_assert(base, PREFIX_V6)
    }
}

/// A network: the node's own, or one of machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) v4: Ipv4Net,
    pub(super) v6: Ipv6Net,
}

impl Network {
    /// Returns the node's own whose bridge has this address.
    pub(super) fn with_bridge(key: NodeKey, bridge: Ipv4Addr) -> Self {
        Self {
            v4: Ipv4Net::new_assert(bridge, PREFIX_V4).trunc(),
            v6: key.v6(0),
        }
    }

    /// Returns how many machines it has room for.
    pub(super) fn places(self) -> u32 {
        (1 << (32 - self.v4.prefix_len())) - RESERVED
    }

    pub(super) fn bridge_v4(self) -> Ipv4Addr {
        self.host(1).0
    }

    pub(super) fn bridge_v6(self) -> Ipv6Addr {
        self.host(1).1
    }

    /// Returns the addresses of the machine at a place.
    pub(super) fn machine(self, place: u32) -> (Ipv4Addr, Ipv6Addr) {
        self.host(2 + place)
    }

    fn host(self, host: u32) -> (Ipv4Addr, Ipv6Addr) {
        let v4 = u32::from(self.v4.network()) + host;
        let v6 = u128::from(self.v6.network()) + u128::from(host);
        (v4.into(), v6.into())
    }

    /// Tells whether one has addresses of the other. A default route is in nobody's way.
    pub(super) fn overlaps(self, other: Ipv4Net) -> bool {
        other.prefix_len() > 0 && (self.v4.contains(&other) || other.contains(&self.v4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_and_addresses_are_those_of_the_network() {
        let key = NodeKey::of(Path::new("/var/lib/hearth"));
        let id = MachineId::from_random([0xff; 6]);
        for name in [
            key.bridge(),
            key.link(u32::from(u16::MAX)),
            key.user_bridge(u16::MAX),
            key.user_link(id, u16::MAX),
        ] {
            assert!(name.len() < libc::IFNAMSIZ, "{name}");
        }
        assert_ne!(key.user_link(id, 1), key.user_link(id, 2));
        assert_ne!(key.user_card(id, 1), key.user_card(id, 2));
        assert_ne!(key, NodeKey::of(Path::new("/root/.hearth")));
        let all: Vec<_> = key.networks().collect();
        assert_eq!(all.len(), 1024);
        for network in &all {
            let (last, _) = network.machine(network.places() - 1);
            assert_eq!(network.bridge_v4().octets()[..2], last.octets()[..2]);
            assert!((64..128).contains(&last.octets()[1]), "{last}");
            assert_eq!(
                u32::from(last) & 0xfff,
                0xffe,
                "the broadcast address is nobody's"
            );
            assert_eq!(Network::with_bridge(key, network.bridge_v4()), *network);
        }
    }

    #[test]
    fn a_network_overlaps_larger_and_smaller_ones_and_not_its_neighbour() {
        let network = Network {
            v4: "10.64.16.0/20".parse().unwrap(),
            v6: NodeKey(1).v6(0),
        };
        let overlaps = |text: &str| network.overlaps(text.parse().unwrap());
        assert!(overlaps("10.64.16.0/20") && overlaps("10.64.31.7/32") && overlaps("10.0.0.0/8"));
        assert!(!overlaps("10.64.0.0/20") && !overlaps("10.64.32.0/24") && !overlaps("0.0.0.0/0"));
        assert_eq!(network.machine(4000).1.to_string(), "fd68:7200:0:1::fa2");
        assert_eq!(NodeKey(1).v6(7).to_string(), "fd68:7207:0:1::/64");
    }
}
