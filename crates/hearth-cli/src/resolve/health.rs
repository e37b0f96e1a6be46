//! `--health-...`: how to find out whether a workload works.

use hearth_api::v1::{HealthOptions, HealthProbe};

use super::{ResolveError, duration};
use crate::arguments::HealthFlags;

/// The port of a page that names none.
const HTTP_PORT: u16 = 80;

/// Resolves the flags; `None` when none was given.
///
/// # Errors
/// Returns [`ResolveError`] for the first flag that makes no sense.
pub(super) fn options(flags: &HealthFlags) -> Result<Option<HealthOptions>, ResolveError> {
    let time = |text: &Option<String>| text.as_deref().map(duration::milliseconds).transpose();
    let options = HealthOptions {
        probe: probe(flags)?,
        interval_ms: time(&flags.health_interval)?,
        timeout_ms: time(&flags.health_timeout)?,
        start_period_ms: match flags.health_start_period.as_deref() {
            // The one time that may be none.
            Some("0" | "0s") => Some(0),
            _ => time(&flags.health_start_period)?,
        },
        start_interval_ms: time(&flags.health_start_interval)?,
        retries: flags.health_retries,
    };
    Ok(Some(options).filter(|options| *options != HealthOptions::default()))
}

fn probe(flags: &HealthFlags) -> Result<Option<HealthProbe>, ResolveError> {
    Ok(match (&flags.health_cmd, flags.health_tcp, &flags.health_http) {
        (Some(line), ..) => Some(HealthProbe::Shell(line.clone())),
        (_, Some(port), _) => Some(HealthProbe::Tcp(port)),
        (.., Some(page)) => Some(http(page).ok_or_else(|| ResolveError::HealthPage(page.clone()))?),
        _ => flags.no_healthcheck.then_some(HealthProbe::None),
    })
}

/// Reads `[PORT][/PATH]`, or an address of the machine's loopback with `http://` before it.
fn http(page: &str) -> Option<HealthProbe> {
    let (authority, path) = match page.find('/').filter(|_| !page.starts_with("http://")) {
        Some(slash) => page.split_at(slash),
        None => match page.strip_prefix("http://") {
            Some(address) => {
                let (authority, path) = address.split_at(address.find('/').unwrap_or(address.len()));
                let mut parts = authority.splitn(2, ':');
                let host = parts
                    .next()
                    .filter(|host| ["localhost", "127.0.0.1"].contains(host));
                host?;
                (parts.next().unwrap_or_default(), path)
            }
            None => (page, ""),
        },
    };
    let port = match authority {
        "" if path.is_empty() && !page.starts_with("http://") => return None,
        "" => HTTP_PORT,
        number => number.parse().ok().filter(|&port: &u16| port > 0)?,
    };
    let path = if path.is_empty() { "/" } else { path };
    Some(HealthProbe::Http {
        port,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Option<(u16, String)> {
        match http(text)? {
            HealthProbe::Http { port, path } => Some((port, path)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_page_is_a_port_a_path_or_an_address_of_the_loopback() {
        let at = |port, path: &str| Some((port, path.to_owned()));
        assert_eq!(page("8080/healthz?full=1"), at(8080, "/healthz?full=1"));
        assert_eq!(page("8080"), at(8080, "/"));
        assert_eq!(page("/ready"), at(80, "/ready"));
        assert_eq!(page("http://localhost:8080/healthz"), at(8080, "/healthz"));
        assert_eq!(page("http://127.0.0.1"), at(80, "/"));
    }

    #[test]
    fn another_host_or_protocol_is_refused() {
        for text in [
            "",
            "https://localhost/",
            "http://example.org/",
            "x/y",
            "0/x",
            "70000",
            "localhost:80/",
        ] {
            assert_eq!(page(text), None, "{text}");
        }
    }

    #[test]
    fn no_flags_ask_for_nothing_and_no_healthcheck_for_none() {
        assert_eq!(options(&HealthFlags::default()).unwrap(), None);
        let none = HealthFlags {
            no_healthcheck: true,
            ..HealthFlags::default()
        };
        let asked = options(&none).unwrap().unwrap();
        assert_eq!(asked.probe, Some(HealthProbe::None));
        let times = HealthFlags {
            health_interval: Some("1.5s".to_owned()),
            health_start_period: Some("0s".to_owned()),
            ..HealthFlags::default()
        };
        let asked = options(&times).unwrap().unwrap();
        assert_eq!((asked.interval_ms, asked.start_period_ms), (Some(1500), Some(0)));
        let never = HealthFlags {
            health_timeout: Some("never".to_owned()),
            ..HealthFlags::default()
        };
        assert!(options(&never).is_err());
    }
}
