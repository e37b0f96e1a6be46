//! `-p`: `[[IP:]HOST:]GUEST[/tcp|/udp]`, as docker writes it. HOST and GUEST may be ranges of one length. Docker takes several ports of
//! the host for one of the machine, too, and picks one that is free: here that is refused, as any that is free is had without naming some.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hearth_api::v1::{PortMapping, PortProtocol};

use super::ResolveError;

/// Reads all published ports.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_all(texts: &[String]) -> Result<Vec<PortMapping>, ResolveError> {
    let mut all = Vec::new();
    for text in texts {
        all.extend(parse(text)?);
    }
    Ok(all)
}

/// Reads one published port, or a range.
///
/// # Errors
/// Returns [`ResolveError::Port`], or [`ResolveError::PortRanges`].
fn parse(text: &str) -> Result<Vec<PortMapping>, ResolveError> {
    let wrong = || ResolveError::Port(text.to_owned());
    let (ports, protocol) = protocol(text).ok_or_else(wrong)?;
    let (before, guest) = ports.rsplit_once(':').unwrap_or(("", ports));
    let (address, host) = match before.rsplit_once(':') {
        Some((address, host)) => (Some(address), host),
        None => (None, before),
    };
    let address = address.map(|address| address.trim_start_matches('[').trim_end_matches(']'));
    if address.is_some_and(|address| address.parse::<IpAddr>().is_err()) {
        return Err(wrong());
    }
    let guests = range(guest)
        .filter(|guests| *guests.start() > 0)
        .ok_or_else(wrong)?;
    let hosts: Vec<u16> = match host {
        "" | "0" => vec![0; guests.len()],
        host => range(host)
            .filter(|hosts| *hosts.start() > 0)
            .ok_or_else(wrong)?
            .collect(),
    };
    if hosts.len() != guests.len() {
        return Err(ResolveError::PortRanges {
            text: text.to_owned(),
            host: hosts.len(),
            guest: guests.len(),
        });
    }
    let mapping = |(host, guest)| PortMapping {
        address: address.map(str::to_owned),
        host,
        guest,
        protocol,
    };
    Ok(hosts.into_iter().zip(guests).map(mapping).collect())
}

/// Reads a port of a machine.
///
/// # Errors
/// Returns [`ResolveError::GuestPort`].
pub(crate) fn guest(text: &str) -> Result<(u16, PortProtocol), ResolveError> {
    protocol(text)
        .and_then(|(port, protocol)| Some((port.parse().ok().filter(|&port| port > 0)?, protocol)))
        .ok_or_else(|| ResolveError::GuestPort(text.to_owned()))
}

/// Takes what is carried off the end; TCP where nothing is said.
fn protocol(text: &str) -> Option<(&str, PortProtocol)> {
    match text.rsplit_once('/') {
        None => Some((text, PortProtocol::Tcp)),
        Some((port, "tcp")) => Some((port, PortProtocol::Tcp)),
        Some((port, "udp")) => Some((port, PortProtocol::Udp)),
        Some(_) => None,
    }
}

/// Reads `8000` or `8000-8010`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// Writes a published port as `port` and `ps` show it.
pub(crate) fn shown(port: &PortMapping) -> String {
    let address = port.address.as_deref().unwrap_or("0.0.0.0");
    match address.contains(':') {
        true => format!("[{address}]:{}", port.host),
        false => format!("{address}:{}", port.host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(Option<String>, u16, u16, PortProtocol)> {
        let ports = parse(text).unwrap_or_default().into_iter();
        ports
            .map(|port| (port.address, port.host, port.guest, port.protocol))
            .collect()
    }

    #[test]
    fn ports_are_read_as_docker_writes_them() {
        use PortProtocol::{Tcp, Udp};
        let at = |address: &str| Some(address.to_owned());
        assert_eq!(parsed("80"), [(None, 0, 80, Tcp)]);
        assert_eq!(parsed("0:80"), [(None, 0, 80, Tcp)]);
        assert_eq!(parsed("8080:80/tcp"), [(None, 8080, 80, Tcp)]);
        assert_eq!(parsed("53:5353/udp"), [(None, 53, 5353, Udp)]);
        assert_eq!(parsed("127.0.0.1:8080:80"), [(at("127.0.0.1"), 8080, 80, Tcp)]);
        assert_eq!(parsed("127.0.0.1::80"), [(at("127.0.0.1"), 0, 80, Tcp)]);
        assert_eq!(parsed("[::1]:8080:80/udp"), [(at("::1"), 8080, 80, Udp)]);
    }

    #[test]
    fn ranges_are_ports_in_turn() {
        use PortProtocol::{Tcp, Udp};
        assert_eq!(
            parsed("8000-8001:80-81"),
            [(None, 8000, 80, Tcp), (None, 8001, 81, Tcp)]
        );
        assert_eq!(
            parsed("3000-3001/udp"),
            [(None, 0, 3000, Udp), (None, 0, 3001, Udp)]
        );
        assert_eq!(parsed("1-65535:1-65535").len(), 65_535);
        let lengths = |text| match parse(text) {
            Err(ResolveError::PortRanges { host, guest, .. }) => Some((host, guest)),
            _ => None,
        };
        assert_eq!(lengths("8000-8010:80"), Some((11, 1)));
        assert_eq!(lengths("8000:80-81"), Some((1, 2)));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "", "0", "x:80", "80:", "80/sctp", "80/", "/udp", "65536", "host:1:2", "1:2:3:4", "81-80", "0-1",
            "0-1:2-3", "1-2-3", "-1",
        ] {
            assert_eq!(parsed(text), [], "{text}");
        }
    }

    #[test]
    fn a_port_of_a_machine_is_tcp_unless_it_says_otherwise() {
        assert_eq!(guest("80").ok(), Some((80, PortProtocol::Tcp)));
        assert_eq!(guest("53/udp").ok(), Some((53, PortProtocol::Udp)));
        for text in ["", "0", "x", "80/sctp", "80-81"] {
            assert!(guest(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_published_port_can_be_pasted_into_an_address() {
        let shown = |text| shown(&parse(text).unwrap()[0]);
        assert_eq!(shown("[::1]:8080:80"), "[::1]:8080");
        assert_eq!(shown("8080:80"), "0.0.0.0:8080");
    }
}
