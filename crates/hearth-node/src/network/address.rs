//! The addresses of one node: of its bridge, and of the machines behind it.
//!
//! A machine's place is a number, and the name of the host's end of its link is made of that: what is taken is what the kernel has,
//! also after a crash, and it lets nobody have a name twice.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// The length of the prefix of a node's IPv4 network.
pub(super) const PREFIX_V4: u8 = 20;
/// The length of the prefix of a node's IPv6 network.
pub(super) const PREFIX_V6: u8 = 64;

/// Networks of nodes are cut out of this one, 10.64.0.0/10.
const POOL_V4: u32 = 0x0a40_0000;
/// How many there are in it.
const POOL_NETWORKS: u32 = 1 << (PREFIX_V4 - 10);
/// The first and the last of a network are not for machines, and the bridge has one.
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

    /// Returns the networks that it may have, the one that it tries first at the beginning.
    pub(super) fn networks(self) -> impl Iterator<Item = Network> {
        (0..POOL_NETWORKS).map(move |step| Network {
            v4: POOL_V4 + (((self.0 % POOL_NETWORKS + step) % POOL_NETWORKS) << (32 - PREFIX_V4)),
            v6: self.0,
        })
    }
}

/// The network of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    v4: u32,
    v6: u32,
}

impl Network {
    /// How many machines it has room for.
    pub(super) const PLACES: u32 = (1 << (32 - PREFIX_V4)) - RESERVED;

    /// Returns the network whose bridge has this address.
    pub(super) fn with_bridge(key: NodeKey, bridge: Ipv4Addr) -> Self {
        Self {
            v4: u32::from(bridge) - 1,
            v6: key.0,
        }
    }

    pub(super) fn base_v4(self) -> Ipv4Addr {
        self.v4.into()
    }

    pub(super) fn base_v6(self) -> Ipv6Addr {
        self.host_v6(0)
    }

    pub(super) fn bridge_v4(self) -> Ipv4Addr {
        (self.v4 + 1).into()
    }

    pub(super) fn bridge_v6(self) -> Ipv6Addr {
        self.host_v6(1)
    }

    pub(super) fn machine_v4(self, place: u32) -> Ipv4Addr {
        (self.v4 + 2 + place).into()
    }

    pub(super) fn machine_v6(self, place: u32) -> Ipv6Addr {
        self.host_v6(2 + place)
    }

    fn host_v6(self, host: u32) -> Ipv6Addr {
        let [high, low] = [(self.v6 >> 16) as u16, self.v6 as u16];
        // "h" and "r", and the key.
        Ipv6Addr::new(0xfd68, 0x7200, high, low, 0, 0, (host >> 16) as u16, host as u16)
    }

    /// Tells whether one has addresses of the other.
    pub(super) fn overlaps(self, address: Ipv4Addr, prefix: u8) -> bool {
        let prefix = u32::from(prefix.min(PREFIX_V4));
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        // A default route is in nobody's way.
        prefix > 0 && u32::from(address) & mask == self.v4 & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_and_addresses_are_those_of_the_network() {
        let key = NodeKey::of(Path::new("/var/lib/hearth"));
        assert!(key.bridge().len() < libc::IFNAMSIZ && key.link(Network::PLACES).len() < libc::IFNAMSIZ);
        assert_ne!(key, NodeKey::of(Path::new("/root/.hearth")));
        let all: Vec<_> = key.networks().collect();
        assert_eq!(all.len(), 1024);
        for network in &all {
            let last = network.machine_v4(Network::PLACES - 1);
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
            v4: 0x0a40_1000,
            v6: 1,
        };
        let overlaps = |text: &str, prefix| network.overlaps(text.parse().unwrap(), prefix);
        assert!(overlaps("10.64.16.0", 20) && overlaps("10.64.31.7", 32) && overlaps("10.0.0.0", 8));
        assert!(!overlaps("10.64.0.0", 20) && !overlaps("10.64.32.0", 24) && !overlaps("0.0.0.0", 0));
        assert_eq!(network.machine_v6(4000).to_string(), "fd68:7200:0:1::fa2");
    }
}
