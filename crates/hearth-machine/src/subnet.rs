//! The ranges of addresses of networks of machines.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::METADATA;

/// The longest and the shortest prefix of one of IPv4: it has room for five machines at least.
const PREFIXES_V4: std::ops::RangeInclusive<u8> = 16..=29;
/// The same of IPv6: each machine that has room in the widest one of IPv4 has room here.
const PREFIXES_V6: std::ops::RangeInclusive<u8> = 48..=112;

/// The ranges that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Subnets {
    /// Of IPv4.
    pub v4: Option<Ipv4Net>,
    /// Of IPv6.
    pub v6: Option<Ipv6Net>,
}

/// Says why a range of addresses cannot be a network's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSubnet {
    /// No range at all.
    #[error("{0:?} is no network with a prefix, as 10.1.2.0/24 and fd12:3456:789a::/64 are")]
    Malformed(String),
    /// An address within one.
    #[error("{0:?} is an address within a network: {1} is the network")]
    HostBits(String, IpNet),
    /// Not a private one.
    #[error(
        "{0} is not private: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and fd00::/8 are, but for metadata services of clouds"
    )]
    Public(IpNet),
    /// Too large or too small.
    #[error("{0} cannot be: prefixes of 16 to 29 can (IPv4), and of 48 to 112 (IPv6)")]
    Prefix(IpNet),
    /// Two of a family.
    #[error("a network has one range of {0}, and two were given")]
    Twice(&'static str),
}

impl Subnets {
    /// Reads ranges as people write them.
    ///
    /// # Errors
    /// Returns [`InvalidSubnet`] with the first thing that cannot be.
    pub fn read(texts: &[String]) -> Result<Self, InvalidSubnet> {
        let mut subnets = Self::default();
        for text in texts {
            let range: IpNet = text.parse().map_err(|_| InvalidSubnet::Malformed(text.clone()))?;
            if range.addr() != range.network() {
                return Err(InvalidSubnet::HostBits(text.clone(), range.trunc()));
            }
            check(range)?;
            let is_second = match range {
                IpNet::V4(range) => subnets.v4.replace(range).is_some(),
                IpNet::V6(range) => subnets.v6.replace(range).is_some(),
            };
            if is_second {
                return Err(InvalidSubnet::Twice(match range {
                    IpNet::V4(_) => "IPv4",
                    IpNet::V6(_) => "IPv6",
                }));
            }
        }
        Ok(subnets)
    }
}

fn check(range: IpNet) -> Result<(), InvalidSubnet> {
    let (is_private, fits) = match range {
        IpNet::V4(range) => (
            range.network().is_private() && range.broadcast().is_private(),
            PREFIXES_V4.contains(&range.prefix_len()),
        ),
        IpNet::V6(range) => (
            range.network().octets()[0] == 0xfd
                && !METADATA.v6.iter().any(|metadata| range.contains(metadata)),
            PREFIXES_V6.contains(&range.prefix_len()),
        ),
    };
    match (is_private, fits) {
        (_, false) => Err(InvalidSubnet::Prefix(range)),
        (false, true) => Err(InvalidSubnet::Public(range)),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Subnets, InvalidSubnet> {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        Subnets::read(&texts)
    }

    #[test]
    fn private_ranges_can_be() {
        assert_eq!(read(&[]), Ok(Subnets::default()));
        let both = read(&["fd12::/64", "172.31.0.0/16"]).unwrap();
        assert_eq!(both.v4.unwrap().to_string(), "172.31.0.0/16");
        assert_eq!(both.v6.unwrap().to_string(), "fd12::/64");
    }

    #[test]
    fn what_is_no_range_of_ones_own_is_refused() {
        let refused = |text| read(&[text]).unwrap_err();
        for text in ["", "10.0.0.0", "10.0.0.0/33", "a/8"] {
            assert_eq!(refused(text), InvalidSubnet::Malformed(text.to_owned()));
        }
        let expected = "10.1.2.0/24".parse().unwrap();
        assert_eq!(
            refused("10.1.2.3/24"),
            InvalidSubnet::HostBits("10.1.2.3/24".to_owned(), expected)
        );
        for text in [
            "8.8.8.0/24",
            "172.32.0.0/16",
            "100.64.0.0/16",
            "2001:db8::/64",
            "fc00::/64",
            "fd00:ec2::/64",
        ] {
            assert_eq!(
                refused(text),
                InvalidSubnet::Public(text.parse().unwrap()),
                "{text}"
            );
        }
        for text in ["10.0.0.0/8", "10.0.0.0/30", "fd00::/8", "fd12::/127"] {
            assert_eq!(
                refused(text),
                InvalidSubnet::Prefix(text.parse().unwrap()),
                "{text}"
            );
        }
        assert_eq!(
            read(&["10.1.0.0/24", "10.2.0.0/24"]),
            Err(InvalidSubnet::Twice("IPv4"))
        );
    }
}
