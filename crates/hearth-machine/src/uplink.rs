//! A machine's own place on a bridge that the host has, instead of the node's: with addresses that are said, or that are asked for there.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// The longest name of an interface (netdevice(7): IFNAMSIZ without its NUL).
const INTERFACE_MAX: usize = 15;

/// Where a machine leads out: this bridge, with these addresses; without any, with those that it is given there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    bridge: String,
    addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
}

/// Says why a machine cannot lead out there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUplink {
    /// Not written as one.
    #[error(
        "{0:?} is no place on a bridge: bridge=NAME is, and bridge=NAME,ip=ADDRESS/PREFIX with gateway=ADDRESS, and both once more for IPv6"
    )]
    Malformed(String),
    /// Not the name of an interface.
    #[error("{0:?} is not the name of an interface")]
    Bridge(String),
    /// An address that no machine can have.
    #[error("{0} cannot be a machine's address: it is its network's, or has none")]
    Address(IpNet),
    /// More than one of a family.
    #[error("one address of IPv4 and one of IPv6 can be, with one gateway each")]
    Twice,
    /// A gateway that is not there.
    #[error("the gateway {0} is on none of the machine's networks")]
    Gateway(IpAddr),
}

impl Uplink {
    /// Checks a place on a bridge.
    ///
    /// # Errors
    /// Returns [`InvalidUplink`] with the first thing that cannot be.
    pub fn new(bridge: String, addresses: Vec<IpNet>, gateways: Vec<IpAddr>) -> Result<Self, InvalidUplink> {
        let is_part = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
        let is_interface = (1..=INTERFACE_MAX).contains(&bridge.len()) && bridge.bytes().all(is_part);
        if !is_interface || bridge == "." || bridge == ".." {
            return Err(InvalidUplink::Bridge(bridge));
        }
        let is_twice =
            |families: &[bool]| families.len() > 2 || families.len() == 2 && families[0] == families[1];
        let of_addresses: Vec<bool> = addresses.iter().map(|address| address.addr().is_ipv4()).collect();
        let of_gateways: Vec<bool> = gateways.iter().map(IpAddr::is_ipv4).collect();
        if is_twice(&of_addresses) || is_twice(&of_gateways) {
            return Err(InvalidUplink::Twice);
        }
        let is_nobodys = |address: &&IpNet| {
            let (ip, is_lone) = (address.addr(), address.prefix_len() == address.max_prefix_len());
            let is_edge = !is_lone && (ip == address.network() || ip.is_ipv4() && ip == address.broadcast());
            is_edge
                || address.prefix_len() == 0
                || ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
        };
        if let Some(address) = addresses.iter().find(is_nobodys) {
            return Err(InvalidUplink::Address(*address));
        }
        let is_near = |gateway: &IpAddr| {
            let on = |address: &IpNet| address.contains(gateway) && address.addr() != *gateway;
            addresses.iter().any(on)
        };
        if let Some(gateway) = gateways.iter().find(|gateway| !is_near(gateway)) {
            return Err(InvalidUplink::Gateway(*gateway));
        }
        Ok(Self {
            bridge,
            addresses,
            gateways,
        })
    }

    /// Returns the name of the bridge.
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Returns the machine's addresses there, with the prefixes of their networks.
    pub fn addresses(&self) -> &[IpNet] {
        &self.addresses
    }

    /// Tells whether the machine asks for its addresses on the bridge.
    pub fn is_leased(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Returns who passes on what is for others.
    pub fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }

    /// Tells whether two machines would have one address.
    pub fn collides(&self, other: &Self) -> bool {
        let has = |address: &IpNet| {
            other
                .addresses
                .iter()
                .any(|theirs| theirs.addr() == address.addr())
        };
        self.bridge == other.bridge && self.addresses.iter().any(has)
    }
}

impl FromStr for Uplink {
    type Err = InvalidUplink;

    /// Reads `bridge=NAME[,ip=ADDRESS/PREFIX[,gateway=ADDRESS]]`.
    fn from_str(text: &str) -> Result<Self, InvalidUplink> {
        let malformed = || InvalidUplink::Malformed(text.to_owned());
        let mut parts = text.split(',');
        let bridge = parts.next().and_then(|part| part.strip_prefix("bridge="));
        let bridge = bridge.ok_or_else(malformed)?.to_owned();
        let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
        for part in parts {
            match part.split_once('=').ok_or_else(malformed)? {
                ("ip", address) => addresses.push(address.parse().map_err(|_| malformed())?),
                ("gateway", address) => gateways.push(address.parse().map_err(|_| malformed())?),
                _ => return Err(malformed()),
            }
        }
        Self::new(bridge, addresses, gateways)
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bridge={}", self.bridge)?;
        self.addresses
            .iter()
            .try_for_each(|address| write!(f, ",ip={address}"))?;
        self.gateways
            .iter()
            .try_for_each(|gateway| write!(f, ",gateway={gateway}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_its_text() {
        for text in [
            "bridge=br0",
            "bridge=br0,ip=192.168.1.50/24",
            "bridge=br0.7,ip=192.168.1.50/24,ip=fd12::5/64,gateway=192.168.1.1,gateway=fd12::1",
            "bridge=br0,ip=203.0.113.7/32",
        ] {
            assert_eq!(text.parse::<Uplink>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        let refused = |text: &str| text.parse::<Uplink>().unwrap_err();
        for text in ["", "br0", "bridge=br0,ip", "bridge=br0,ip=x", "bridge=br0,mac=1"] {
            assert_eq!(refused(text), InvalidUplink::Malformed(text.to_owned()));
        }
        for name in ["", "..", "a/b", "a b", "abcdefghijklmnop"] {
            let text = format!("bridge={name},ip=192.0.2.5/24");
            assert_eq!(refused(&text), InvalidUplink::Bridge(name.to_owned()));
        }
        let alone = refused("bridge=br0,gateway=192.0.2.1");
        assert_eq!(alone, InvalidUplink::Gateway("192.0.2.1".parse().unwrap()));
        for address in [
            "192.0.2.0/24",
            "192.0.2.255/24",
            "127.0.0.1/8",
            "224.0.0.1/24",
            "192.0.2.1/0",
        ] {
            let expected = InvalidUplink::Address(address.parse().unwrap());
            assert_eq!(refused(&format!("bridge=br0,ip={address}")), expected);
        }
        let twice = refused("bridge=br0,ip=192.0.2.5/24,ip=192.0.2.6/24");
        assert_eq!(twice, InvalidUplink::Twice);
        let far = refused("bridge=br0,ip=192.0.2.5/24,gateway=192.0.3.1");
        assert_eq!(far, InvalidUplink::Gateway("192.0.3.1".parse().unwrap()));
    }

    #[test]
    fn two_machines_do_not_have_one_address() {
        let place = |text: &str| text.parse::<Uplink>().unwrap();
        let one = place("bridge=br0,ip=192.0.2.5/24,ip=fd12::5/64");
        assert!(one.collides(&place("bridge=br0,ip=192.0.2.5/25")));
        assert!(one.collides(&place("bridge=br0,ip=192.0.2.6/24,ip=fd12::5/64")));
        assert!(!one.collides(&place("bridge=br1,ip=192.0.2.5/24")));
        assert!(!one.collides(&place("bridge=br0,ip=192.0.2.6/24")));
        let leased = place("bridge=br0");
        assert!(leased.is_leased() && !one.is_leased());
        assert!(!leased.collides(&leased) && !leased.collides(&one));
    }
}
