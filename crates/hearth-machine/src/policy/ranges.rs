//! Addresses that are not the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(address: u128, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(address), prefix)
}

/// Addresses of both families.
#[derive(Debug, Clone, Copy)]
pub struct Ranges {
    /// Of IPv4.
    pub v4: &'static [Ipv4Net],
    /// Of IPv6.
    pub v6: &'static [Ipv6Net],
}

impl Ranges {
    /// Tells whether an address lies in one of them.
    pub fn contain(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.iter().any(|range| range.contains(&address)),
            IpAddr::V6(address) => self.v6.iter().any(|range| range.contains(&address)),
        }
    }
}

/// What is not the internet: this host, private and shared networks, link-local (with the metadata services of clouds), multicast,
/// and what is reserved (RFC 6890); likewise the ranges by which an IPv4 address is written as one of IPv6: mapped, translated, 6to4.
pub const PRIVATE: Ranges = Ranges {
    v4: &[
        v4(0, 0, 0, 0, 8),
        v4(10, 0, 0, 0, 8),
        v4(100, 64, 0, 0, 10),
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(172, 16, 0, 0, 12),
        v4(192, 0, 0, 0, 24),
        v4(192, 168, 0, 0, 16),
        v4(198, 18, 0, 0, 15),
        v4(224, 0, 0, 0, 3),
    ],
    v6: &[
        v6(0, 96),
        v6(0xffff_0000_0000, 96),
        v6(0x0064_ff9b << 96, 96),
        v6(0x0064_ff9b_0001 << 80, 48),
        v6(0x0100 << 112, 64),
        v6(0x2002 << 112, 16),
        v6(0xfc00 << 112, 7),
        v6(0xfe80 << 112, 10),
        v6(0xff00 << 112, 8),
    ],
};

/// The metadata services of clouds: what they tell is the host's, whatever else a machine may reach.
pub const METADATA: Ranges = Ranges {
    v4: &[v4(169, 254, 0, 0, 16)],
    v6: &[v6(0xfd00_0ec2 << 96 | 0x254, 128), v6(0xfe80 << 112, 10)],
};

/// Public name servers that speak encrypted protocols: whoever asks them asks past the gateway.
pub const RESOLVERS: Ranges = Ranges {
    v4: &[
        v4(1, 0, 0, 1, 32),
        v4(1, 0, 0, 2, 32),
        v4(1, 0, 0, 3, 32),
        v4(1, 1, 1, 1, 32),
        v4(1, 1, 1, 2, 32),
        v4(1, 1, 1, 3, 32),
        v4(8, 8, 4, 4, 32),
        v4(8, 8, 8, 8, 32),
        v4(9, 9, 9, 9, 32),
        v4(9, 9, 9, 10, 32),
        v4(9, 9, 9, 11, 32),
        v4(94, 140, 14, 0, 24),
        v4(94, 140, 15, 0, 24),
        v4(149, 112, 112, 0, 24),
        v4(185, 228, 168, 0, 24),
        v4(185, 228, 169, 0, 24),
        v4(208, 67, 220, 0, 24),
        v4(208, 67, 222, 0, 24),
    ],
    v6: &[
        v6(0x2001_4860_4860 << 80, 48),
        v6(0x2606_4700_4700 << 80, 48),
        v6(0x2620_00fe << 96, 48),
        v6(0x2620_0119_0035 << 80, 48),
        v6(0x2620_0119_0053 << 80, 48),
        v6(0x2a10_50c0 << 96, 32),
    ],
};

/// Their names, with those below.
pub(super) const RESOLVER_NAMES: [&str; 14] = [
    "cloudflare-dns.com",
    "one.one.one.one",
    "dns.google",
    "dns.google.com",
    "dns.quad9.net",
    "doh.opendns.com",
    "dns.opendns.com",
    "dns.nextdns.io",
    "dns.adguard-dns.com",
    "dns.adguard.com",
    "doh.cleanbrowsing.org",
    "dns.mullvad.net",
    "doh.dns.sb",
    // Where it has no address, browsers ask the name server they were given.
    "use-application-dns.net",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_registries() {
        let is_in = |ranges: Ranges, text: &str| ranges.contain(text.parse().unwrap());
        for private in [
            "0.1.2.3",
            "10.255.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.168.1.1",
            "198.19.0.1",
            "224.0.0.251",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2002:a00:1::1",
            "fd00::1",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(is_in(PRIVATE, private), "{private}");
        }
        for public in [
            "8.8.8.8",
            "172.32.0.1",
            "198.20.0.1",
            "203.0.113.1",
            "2001:db8::1",
            "2a00::1",
        ] {
            assert!(!is_in(PRIVATE, public), "{public}");
        }
        for metadata in ["169.254.169.254", "fd00:ec2::254", "fe80::1"] {
            assert!(is_in(METADATA, metadata), "{metadata}");
        }
        assert!(!is_in(METADATA, "fd00:ec2::253"));
        for resolver in [
            "1.1.1.1",
            "8.8.4.4",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "2620:fe::fe",
            "2a10:50c0::1",
        ] {
            assert!(is_in(RESOLVERS, resolver), "{resolver}");
        }
    }
}
