//! `--http-proxy`: the variables by which programs find a proxy, and the rules by which a machine reaches it.

use std::net::IpAddr;

use hearth_api::v1::{NetworkMode, NetworkPolicy};
use hearth_machine::policy::PRIVATE;

use super::{Host, ResolveError};

/// The variables that name proxies, as curl, podman and most programs know them: each is read here, and set, in small letters and large.
const PROXIES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"];
/// The variable that names what is reached without.
const EXCEPTIONS: &str = "no_proxy";

/// What a proxy means for a machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Proxy {
    /// `NAME=value` for the workload.
    pub(super) environment: Vec<String>,
    /// Rules that let it be reached.
    pub(super) allow: Vec<String>,
}

/// Resolves `--http-proxy`. `true` and `false` are podman's words.
///
/// # Errors
/// Returns [`ResolveError`] for a proxy that no machine can reach.
pub(super) fn resolve(
    flag: Option<&str>,
    network: Option<NetworkMode>,
    host: &impl Host,
) -> Result<Proxy, ResolveError> {
    let proxies: Vec<(&str, String)> = match flag {
        None | Some("none" | "false") => return Ok(Proxy::default()),
        Some("host" | "true") => PROXIES
            .iter()
            .filter_map(|&name| Some((name, variable(name, host)?)))
            .collect(),
        Some(url) => PROXIES[..2].iter().map(|&name| (name, url.to_owned())).collect(),
    };
    let mut proxy = Proxy::default();
    if proxies.is_empty() {
        return Ok(proxy);
    }
    if matches!(network, Some(NetworkMode::None | NetworkMode::Isolated)) {
        return Err(ResolveError::ProxyWithoutNetwork);
    }
    for (_, url) in &proxies {
        for rule in rules(url, host)? {
            if !proxy.allow.contains(&rule) {
                proxy.allow.push(rule);
            }
        }
    }
    let exceptions = variable(EXCEPTIONS, host).map(|value| (EXCEPTIONS, value));
    for (name, value) in proxies.into_iter().chain(exceptions) {
        proxy.environment.push(format!("{}={value}", name.to_uppercase()));
        proxy.environment.push(format!("{name}={value}"));
    }
    Ok(proxy)
}

/// Adds rules to a policy.
pub(super) fn allowed(policy: Option<NetworkPolicy>, rules: Vec<String>) -> Option<NetworkPolicy> {
    if rules.is_empty() {
        return policy;
    }
    let mut policy = policy.unwrap_or_default();
    policy.allow.extend(rules);
    Some(policy)
}

/// Returns a variable, in small letters first, as curl does.
fn variable(name: &str, host: &impl Host) -> Option<String> {
    let value = host
        .variable(name)
        .or_else(|| host.variable(&name.to_uppercase()))?;
    value.into_string().ok().filter(|value| !value.is_empty())
}

/// Returns the rules that let a proxy be reached, by name, and at its private addresses, which a name alone does not open.
fn rules(url: &str, host: &impl Host) -> Result<Vec<String>, ResolveError> {
    // Never with what stands before an @: that may be a password.
    let (name, port) = place(url).ok_or_else(|| ResolveError::Proxy(hidden(url)))?;
    let literal = name
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .ok();
    let addresses = match literal {
        Some(address) => vec![address],
        None => host.addresses(name).map_err(|source| ResolveError::ProxyName {
            name: name.to_owned(),
            source,
        })?,
    };
    if addresses.iter().all(IpAddr::is_loopback) {
        return Err(ResolveError::ProxyOnLoopback(format!("{name}:{port}")));
    }
    let at = |address: &IpAddr| match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    };
    if literal.is_some() {
        return Ok(addresses.iter().map(at).collect());
    }
    let private = addresses
        .iter()
        .filter(|address| PRIVATE.contain(**address) && !address.is_loopback());
    Ok([format!("{name}:{port}")]
        .into_iter()
        .chain(private.map(at))
        .collect())
}

/// Finds host and port of `[SCHEME://][USER[:PASSWORD]@]HOST:PORT[/]`; without a port that of the scheme.
fn place(url: &str) -> Option<(&str, u16)> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['/', '?', '#']).next()?;
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let bare = || {
        Some((
            place,
            match scheme {
                "http" => 80,
                "https" => 443,
                "socks4" | "socks4a" | "socks5" | "socks5h" => 1080,
                _ => return None,
            },
        ))
    };
    let (name, port) = match place.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok().filter(|&port| port > 0)?),
        _ => bare()?,
    };
    let is_address = name.starts_with('[') && name.ends_with(']');
    let is_name = !name.is_empty() && !name.contains([':', ' ', '[', ']']);
    (is_address || is_name).then_some((name, port))
}

/// Writes a URL without user and password.
fn hidden(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, place)) => format!("...@{place}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    fn host() -> FakeHost {
        FakeHost {
            variables: [
                ("http_proxy", "http://user:pass@proxy.corp:3128/"),
                ("HTTPS_PROXY", "http://10.1.2.3:8080"),
                ("NO_PROXY", "localhost,.corp"),
            ]
            .into(),
            ..FakeHost::default()
        }
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_hosts_proxy_is_handed_on_in_both_writings_and_may_be_reached() {
        let expected = Proxy {
            environment: texts(&[
                "HTTP_PROXY=http://user:pass@proxy.corp:3128/",
                "http_proxy=http://user:pass@proxy.corp:3128/",
                "HTTPS_PROXY=http://10.1.2.3:8080",
                "https_proxy=http://10.1.2.3:8080",
                "NO_PROXY=localhost,.corp",
                "no_proxy=localhost,.corp",
            ]),
            // The fake host knows two addresses of each name, one of them private.
            allow: texts(&["proxy.corp:3128", "10.7.7.7:3128", "10.1.2.3:8080"]),
        };
        for word in ["host", "true"] {
            assert_eq!(resolve(Some(word), None, &host()).unwrap(), expected);
        }
        for word in [None, Some("none"), Some("false")] {
            assert_eq!(resolve(word, None, &host()).unwrap(), Proxy::default());
        }
        let nothing = resolve(Some("host"), Some(NetworkMode::None), &FakeHost::default());
        assert_eq!(nothing.unwrap(), Proxy::default());
    }

    #[test]
    fn another_proxy_stands_for_web_addresses_of_both_kinds() {
        let proxy = resolve(Some("socks5h://[fd00::1]"), None, &host()).unwrap();
        assert_eq!(proxy.allow, ["[fd00::1]:1080"]);
        let names: Vec<_> = proxy
            .environment
            .iter()
            .filter_map(|it| it.split('=').next())
            .collect();
        assert_eq!(
            names,
            [
                "HTTP_PROXY",
                "http_proxy",
                "HTTPS_PROXY",
                "https_proxy",
                "NO_PROXY",
                "no_proxy"
            ]
        );
    }

    #[test]
    fn a_proxy_that_no_machine_can_reach_is_refused_without_its_password() {
        for url in [
            "http://u:secret@",
            "u:secret@proxy.corp",
            "http://u:secret@h:x",
            "http://u:secret@127.0.0.1:3128",
            "http://u:secret@unknown.corp:1",
            "ftp://u:secret@h",
            "http://u:secret@a b:1",
        ] {
            let refused = resolve(Some(url), None, &host()).unwrap_err().to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
        assert!(matches!(
            resolve(Some("http://a.corp:1"), Some(NetworkMode::None), &host()),
            Err(ResolveError::ProxyWithoutNetwork)
        ));
    }

    #[test]
    fn rules_are_added_to_a_policy_or_make_one() {
        assert_eq!(allowed(None, Vec::new()), None);
        let made = allowed(
            Some(NetworkPolicy {
                allow: texts(&["a.com"]),
                ..NetworkPolicy::default()
            }),
            texts(&["b.com:1"]),
        );
        assert_eq!(made.unwrap().allow, ["a.com", "b.com:1"]);
        assert_eq!(allowed(None, texts(&["b.com:1"])).unwrap().allow, ["b.com:1"]);
    }
}
