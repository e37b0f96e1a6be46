//! `-p`: `[[IP:]HOST:]GUEST`, as docker writes it. TCP only.

use std::net::IpAddr;

use hearth_api::v1::PortMapping;

use super::ResolveError;

/// Reads one published port.
///
/// # Errors
/// Returns [`ResolveError::Port`].
pub(crate) fn parse(text: &str) -> Result<PortMapping, ResolveError> {
    mapping(text.strip_suffix("/tcp").unwrap_or(text)).ok_or_else(|| ResolveError::Port(text.to_owned()))
}

fn mapping(text: &str) -> Option<PortMapping> {
    let (before, guest) = text.rsplit_once(':').unwrap_or(("", text));
    let (address, host) = match before.rsplit_once(':') {
        Some((address, host)) => (Some(address), host),
        None => (None, before),
    };
    let address = address.map(|address| address.trim_start_matches('[').trim_end_matches(']'));
    let is_address = |address: &str| address.parse::<IpAddr>().is_ok();
    Some(PortMapping {
        address: address.map(str::to_owned),
        host: if host.is_empty() { 0 } else { host.parse().ok()? },
        guest: guest.parse().ok().filter(|&port: &u16| port > 0)?,
    })
    .filter(|_| address.is_none_or(is_address))
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

    fn parsed(text: &str) -> Option<(Option<String>, u16, u16)> {
        let port = parse(text).ok()?;
        Some((port.address, port.host, port.guest))
    }

    #[test]
    fn ports_are_read_as_docker_writes_them() {
        let at = |address: &str| Some(address.to_owned());
        assert_eq!(parsed("80"), Some((None, 0, 80)));
        assert_eq!(parsed("8080:80/tcp"), Some((None, 8080, 80)));
        assert_eq!(parsed("127.0.0.1:8080:80"), Some((at("127.0.0.1"), 8080, 80)));
        assert_eq!(parsed("127.0.0.1::80"), Some((at("127.0.0.1"), 0, 80)));
        assert_eq!(parsed("[::1]:8080:80"), Some((at("::1"), 8080, 80)));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in ["", "0", "x:80", "80:", "80/udp", "65536", "host:1:2", "1:2:3:4"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn a_published_port_can_be_pasted_into_an_address() {
        let shown = |text| shown(&parse(text).unwrap());
        assert_eq!(shown("[::1]:8080:80"), "[::1]:8080");
        assert_eq!(shown("8080:80"), "0.0.0.0:8080");
    }
}
