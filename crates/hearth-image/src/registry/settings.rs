//! How registries are reached: mirrors, plain HTTP, certificates. Pure; the caller reads it from wherever it lies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::reference::{is_host_and_port, is_repository};

/// Settings by registry, named as in references: `docker.io`, `localhost:5000`. A mirror's own are found by its name, too.
pub type Registries = BTreeMap<String, RegistrySettings>;

/// How one registry is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrySettings {
    /// Asked in this order before the registry itself.
    pub mirrors: Vec<Mirror>,
    /// Whether plain HTTP is spoken; unless said, on the loopback only.
    pub plain_http: Option<bool>,
    /// A PEM file of authorities that are trusted besides the system's.
    pub authorities: Option<PathBuf>,
    /// Time without a byte, or with hardly any, after which a connection counts as dead.
    pub patience: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            plain_http: None,
            authorities: None,
            patience: Duration::from_secs(30),
        }
    }
}

/// Another place that has a registry's images: `HOST[:PORT][/PREFIX]`, with `http://` or `https://` before it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Host and port.
    pub(super) host: String,
    /// What its repositories' names begin with; empty, or with a slash at its end.
    pub(super) prefix: String,
    /// The scheme, where it was given.
    pub(super) plain_http: Option<bool>,
}

/// Says that a text names no mirror.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no mirror: HOST[:PORT][/PREFIX] is, with http:// or https:// before it or not")]
pub struct InvalidMirror(String);

impl FromStr for Mirror {
    type Err = InvalidMirror;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (plain_http, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(true), rest),
            Some(("https", rest)) => (Some(false), rest),
            Some(_) => return Err(InvalidMirror(text.to_owned())),
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_host_and_port(host) || !(prefix.is_empty() || is_repository(prefix)) {
            return Err(InvalidMirror(text.to_owned()));
        }
        let prefix = match prefix {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self {
            host: host.to_owned(),
            prefix,
            plain_http,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_hosts_with_or_without_scheme_and_prefix() {
        for (text, host, prefix, plain_http) in [
            ("mirror.example.com", "mirror.example.com", "", None),
            ("http://10.0.0.5:5000/", "10.0.0.5:5000", "", Some(true)),
            (
                "https://harbor.example/hub/",
                "harbor.example",
                "hub/",
                Some(false),
            ),
            ("[::1]:5000/a/b", "[::1]:5000", "a/b/", None),
        ] {
            let mirror: Mirror = text.parse().unwrap();
            assert_eq!(
                (mirror.host.as_str(), mirror.prefix.as_str(), mirror.plain_http),
                (host, prefix, plain_http)
            );
        }
        for text in [
            "",
            "http://",
            "ftp://host",
            "host/UPPER",
            "host/a?b",
            "user@host",
            "host/../x",
        ] {
            assert!(text.parse::<Mirror>().is_err(), "{text}");
        }
    }
}
