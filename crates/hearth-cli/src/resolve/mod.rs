//! From arguments and the caller's environment to requests of the API. Pure but for [`Host`], which tests replace.

mod container;
mod copy;
mod duration;
mod environment;
mod execute;
mod health;
mod keys;
mod policy;
mod pool;
mod ports;
mod proxy;
mod reference;
mod run;
mod update;

use std::ffi::OsString;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

pub(crate) use copy::{CopyPlan, CopyRefused, Place, Side, place_in_machine, plan as plan_copy};
pub(crate) use duration::moment;
pub(crate) use environment::secrets;
pub(crate) use execute::{ExecuteOrder, execute};
pub(crate) use keys::Keys;
pub(crate) use policy::{Asked, destinations, is_policy, policy, policy_named, policy_of, policy_on_wire};
pub(crate) use pool::{pool_acquire, pool_create, pool_extend};
pub(crate) use ports::{guest as guest_port, shown as shown_port};
pub(crate) use reference::{absolute, image_reference, registry_and_repository};
pub(crate) use run::{Attachment, RunRequest, SignalsTo, create, exec, labels, memory_backend, run};
pub(crate) use update::update;

use run::driver;

/// What arguments may refer to on this side.
pub(crate) trait Host {
    /// Returns an environment variable.
    fn variable(&self, name: &str) -> Option<OsString>;
    /// Returns a file's content.
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>>;
    /// Returns the working directory.
    fn directory(&self) -> std::io::Result<PathBuf>;
    /// Returns the addresses of a host.
    fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The real one.
pub(crate) struct System;

impl Host for System {
    fn variable(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name)
    }

    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn directory(&self) -> std::io::Result<PathBuf> {
        std::env::current_dir()
    }

    fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let found = (name, 0).to_socket_addrs()?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// Says which argument makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// Metadata that are no JSON.
    #[error("metadata are a JSON object, or a file of one")]
    Metadata(#[source] serde_json::Error),
    /// Rules that make no policy.
    #[error(transparent)]
    Policy(#[from] hearth_machine::PolicyError),
    /// A file of a policy that cannot be read.
    #[error("{} is no preset (locked, balanced, open), and cannot be read as a file of a policy", path.display())]
    PolicyFile {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no policy.
    #[error("{} is no policy, see 'hearth policy --help'", path.display())]
    PolicyText {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// policy set without a policy.
    #[error("no policy is given: --policy, --allow or --deny says one")]
    NoPolicy,
    /// --network twice.
    #[error(
        "--network names one of none, isolated, filtered and open, and one bridge; two were given. The others are networks of machines"
    )]
    Modes,
    /// One address for many machines.
    #[error("a place on a bridge (--network bridge=) is one machine's: 'run' and 'create' take it")]
    PlaceOfMany,
    /// A policy of a machine that has no network.
    #[error(
        "{0} reaches nothing over a network, so there is no policy: 'hearth run --network filtered' gives a machine one"
    )]
    NoNetwork(String),
    /// policy check of many hosts.
    #[error(
        "{0:?} is not one host: a name or an address is, with a port and /tcp or /udp behind it where they count"
    )]
    NotOneHost(String),
    /// An environment variable without a name.
    #[error("{0:?} is not an environment variable: NAME=VALUE or NAME is")]
    Variable(String),
    /// A name that is not text on this side.
    #[error("the value of {0} in this environment is not UTF-8")]
    ValueNotText(String),
    /// A file that cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that should be text.
    #[error("{} is not UTF-8", .0.display())]
    FileNotText(PathBuf),
    /// A line of an environment file.
    #[error("{}, line {line}: a variable's name has no white space and is not empty", path.display())]
    FileLine {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
    },
    /// A secret without a name or value.
    // The text itself is not shown: it may hold the secret.
    #[error("--secret wants NAME=VALUE or NAME=@FILE")]
    Secret,
    /// A secret given twice.
    #[error("the secret {0} is given twice")]
    SecretTwice(String),
    /// A secret that no environment variable can hold.
    #[error("the secret {0} holds a NUL byte, which an environment variable cannot")]
    SecretNul(String),
    /// Code that JSON cannot carry.
    #[error("the code in {} is not UTF-8", .0.display())]
    CodeNotText(PathBuf),
    /// Code that is none.
    #[error("the code in {} is more than 16 MiB", .0.display())]
    CodeTooLong(PathBuf),
    /// A label without a name.
    #[error("{0:?} is not a label: NAME=VALUE or NAME is")]
    Label(String),
    /// A time span.
    #[error("{0:?} is not a duration: a number of seconds, or one as in 30s, 5m or 1h30m")]
    Duration(String),
    /// A moment.
    #[error(
        "{0:?} is neither a time, as in 2026-01-31T12:00:00Z or 1769860800, nor a duration before now, as in 10m"
    )]
    Moment(String),
    /// A page that no health check can ask for.
    #[error(
        "{0:?} is not a page to probe: [PORT][/PATH] is, as in 8080/healthz, or http://localhost:PORT/PATH; no other \
         host, and not https"
    )]
    HealthPage(String),
    /// A port that is none.
    #[error(
        "{0:?} is not a port to publish: [[IP:]HOST:]GUEST[/tcp|/udp] is, as in 8080:80 or 5000-5009:5000-5009/udp"
    )]
    Port(String),
    /// A port of a machine that is none.
    #[error("{0:?} is not a port of a machine: 1 to 65535 is, with /tcp or /udp behind it")]
    GuestPort(String),
    /// Two ranges that do not belong together.
    #[error(
        "{text:?} has {host} ports of the host and {guest} of the machine: give as many of both, or none of the host for \
         any that are free"
    )]
    PortRanges {
        /// As it was given.
        text: String,
        /// How many of the host.
        host: usize,
        /// How many of the machine.
        guest: usize,
    },
    /// A proxy that names no place.
    #[error("{0:?} is not a proxy: host, none, or a URL with a port is, as in http://proxy.example.com:3128")]
    Proxy(String),
    /// One whose name is not known.
    #[error("the proxy's name {name:?} is not known here")]
    ProxyName {
        /// The name.
        name: String,
        /// What was said.
        #[source]
        source: std::io::Error,
    },
    /// One on this host's loopback.
    #[error(
        "the proxy {0} is on this host's loopback, which no machine reaches: have it listen where machines get, and name that"
    )]
    ProxyOnLoopback(String),
    /// One for a machine without a network.
    #[error("--http-proxy needs a network that leads out, as 'filtered' and 'open' are")]
    ProxyWithoutNetwork,
    /// A file of certificates that has none.
    #[error("{} is no file of certificates", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: hearth_machine::certificate::CertificateError,
    },
    /// A line of /etc/hosts.
    #[error("{0:?} is no line of /etc/hosts: NAME:IP is")]
    AddHost(String),
    /// A limit.
    #[error("{0:?} is not a limit: NAME=SOFT[:HARD] is, as in nofile=1024:4096")]
    Ulimit(String),
    /// A sequence of keys.
    #[error("{0:?} are not keys: up to eight characters or ctrl-X are, with commas between")]
    DetachKeys(String),
    /// exec without a command.
    #[error("the command is missing: hearth exec MACHINE COMMAND")]
    NoCommand,
    /// create -d
    #[error("--detach makes no sense with 'create': nothing is started")]
    DetachOfCreate,
    /// update without a change.
    #[error("nothing is to be changed: 'hearth update --help' tells what can be")]
    NoChange,
    /// start -a of several machines.
    #[error("only one machine can be attached to")]
    SeveralAttached,
    /// logs --tail
    #[error("{0:?} is not a number of lines, and not 'all'")]
    Tail(String),
    /// The working directory cannot be told.
    #[error("the working directory cannot be told")]
    Directory(#[source] std::io::Error),
    /// A path that JSON cannot carry.
    #[error("the path {} is not UTF-8", .0.display())]
    PathNotText(PathBuf),
    /// cp between two local paths.
    #[error("one of source and destination must be MACHINE:PATH")]
    CopyLocal,
    /// cp between two machines.
    #[error("copying between machines goes through here: hearth cp A:PATH - | hearth cp - B:PATH")]
    CopyRemote,
    /// An empty path.
    #[error("{0:?} has no path")]
    CopyPath(String),
}

#[cfg(test)]
pub(crate) mod fake {
    //! A host made of maps.

    use std::collections::BTreeMap;

    use super::*;

    /// Returns a file of one certificate, as far as its outside goes: a sequence of 260 zeroes.
    pub(crate) fn certificate() -> &'static str {
        let digits = format!("MIIBBA{}", "A".repeat(346));
        let text = format!("-----BEGIN CERTIFICATE-----\n{digits}\n-----END CERTIFICATE-----\n");
        text.leak()
    }

    #[derive(Default)]
    pub(crate) struct FakeHost {
        pub(crate) variables: BTreeMap<&'static str, &'static str>,
        pub(crate) files: BTreeMap<&'static str, &'static [u8]>,
    }

    impl Host for FakeHost {
        fn variable(&self, name: &str) -> Option<OsString> {
            self.variables.get(name).map(OsString::from)
        }

        fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
            let file = path.to_str().and_then(|path| self.files.get(path));
            file.map(|content| content.to_vec())
                .ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }

        fn directory(&self) -> std::io::Result<PathBuf> {
            Ok(PathBuf::from("/work"))
        }

        fn addresses(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
            match name.starts_with("unknown") {
                true => Err(std::io::ErrorKind::NotFound.into()),
                false => Ok(vec![[10, 7, 7, 7].into(), [203, 0, 113, 7].into()]),
            }
        }
    }
}
