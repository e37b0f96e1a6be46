//! The network interface of a machine, and how much its devices may carry.

use std::fmt;
use std::str::FromStr;

use crate::{ByteSize, MachineId};

/// The least rate: less would not carry one frame in a second.
pub const RATE_MIN: u64 = 4 << 10;
/// The most: 1 TiB a second.
pub const RATE_MAX: u64 = 1 << 40;
/// The longest metadata, in bytes: Firecracker's service holds little more.
pub const METADATA_MAX: usize = 48 << 10;

/// What network a machine sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkMode {
    /// Its loopback.
    #[default]
    None,
    /// An interface whose other end, a TAP in a network namespace of the machine's own, leads nowhere.
    Isolated,
    /// An interface that leads to the internet: names, web, ssh and git. Private networks, the host, other machines and metadata services
    /// are out of reach.
    Filtered,
    /// An interface that leads wherever the host gets, but to the host itself, other machines and metadata services.
    Open,
}

/// The most networks that a machine is on beside its way out.
pub const NETWORKS_MAX: usize = 8;
/// Words that say what a machine reaches, or may come to say so: no network has one as its name.
const RESERVED: [&str; 8] = [
    "none", "isolated", "filtered", "open", "host", "bridge", "default", "rootless",
];

/// The name of a network of machines: `[a-z0-9][a-z0-9-]*`, 63 bytes at most, a label of the domain name system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetworkName(String);

/// Says why a text is not the name of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a network: 1 to 63 of [a-z0-9-], the first no hyphen, and none of none, isolated, filtered, open, \
     host, bridge, default, rootless"
)]
pub struct InvalidNetworkName(String);

impl NetworkName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkName {
    type Err = InvalidNetworkName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_label = (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-');
        if is_label && !RESERVED.contains(&text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidNetworkName(text.to_owned()))
        }
    }
}

/// The address of a network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Returns the address of a machine's interface: locally administered, and the same at every start.
    pub const fn of(id: MachineId) -> Self {
        let [.., a, b, c] = id.bytes();
        Self([2, 0, 0, a, b, c])
    }

    /// Returns its bytes.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How many bytes may pass in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub bytes_per_second: u64,
    /// So many beyond that, once, at the beginning.
    pub burst_bytes: u64,
}

/// Says that a text is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no rate: bytes a second as in 20m, or bits as in 100mbit, and a burst behind a colon, as in 20m:64m"
)]
pub struct InvalidRate(String);

impl FromStr for Rate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let refused = || InvalidRate(text.to_owned());
        let (rate, burst) = text
            .split_once(':')
            .map_or((text, None), |(rate, burst)| (rate, Some(burst)));
        let bytes = |text: &str| {
            text.parse::<ByteSize>()
                .map(|size| size.bytes())
                .map_err(|_| refused())
        };
        Ok(Self {
            bytes_per_second: match bits(rate) {
                Some(bits) => bits / 8,
                None => bytes(rate)?,
            },
            burst_bytes: burst.map_or(Ok(0), bytes)?,
        })
    }
}

/// Reads `10mbit`: bits come in decimal units.
fn bits(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.strip_suffix("bit")?;
    let (digits, unit) = match number.as_bytes().last()? {
        b'k' => (&number[..number.len() - 1], 1_000),
        b'm' => (&number[..number.len() - 1], 1_000_000),
        b'g' => (&number[..number.len() - 1], 1_000_000_000),
        _ => (number, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_s_name_is_a_label_and_no_word_for_what_is_reached() {
        for text in ["db", "0", "team-1"] {
            assert_eq!(text.parse::<NetworkName>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "-a",
            "A",
            "a.b",
            "a_b",
            "../x",
            "none",
            "bridge",
            &"a".repeat(64),
        ] {
            assert!(text.parse::<NetworkName>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_bytes_or_bits_with_a_burst_behind() {
        let rate = |bytes_per_second, burst_bytes| {
            Ok(Rate {
                bytes_per_second,
                burst_bytes,
            })
        };
        assert_eq!("20m".parse(), rate(20 << 20, 0));
        assert_eq!("10mbit:64k".parse(), rate(1_250_000, 64 << 10));
        assert_eq!("8000bit".parse(), rate(1000, 0));
        for wrong in [
            "",
            "fast",
            "10mbps",
            "1m:",
            "1m:x",
            "bit",
            "kbit",
            "-1",
            "99999999999gbit",
        ] {
            assert_eq!(
                wrong.parse::<Rate>(),
                Err(InvalidRate(wrong.to_owned())),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_machines_address_is_its_own_and_locally_administered() {
        let id = MachineId::from_random([1, 2, 3, 0xaa, 0xbb, 0xcc]);
        assert_eq!(MacAddress::of(id).to_string(), "02:00:00:aa:bb:cc");
    }
}
