//! What a person has set for this node, in `hearth.toml`. Read when it is needed: a change needs no new node, and a mistake in
//! it keeps no node from finding its machines.
//!
//! ```toml
//! [registry."docker.io"]
//! mirrors = ["mirror.example.com", "http://10.0.0.5:5000/hub"]    # asked before the registry, in this order
//!
//! [registry."registry.example.com"]     # a mirror has its settings under its own name
//! ca = "/etc/ssl/example.pem"           # authorities that are trusted besides the system's
//! plain-http = true                     # no TLS; unless said, on the loopback only
//! timeout-seconds = 30                  # without a byte, or with hardly any
//!
//! [pools]
//! memory-percent = 80    # of the host's memory for guests: what all machines may take together before pools and executions wait
//!
//! [standby]
//! machines = 2           # how many clones are kept ready at most, one for each kind of machine that was run lately; none with 0
//!
//! [network]
//! name-servers = ["192.0.2.53"]    # whom machines' questions for names are passed on to; those of /etc/resolv.conf unless said
//! mtu = 1420                       # the longest packet of machines on their way out; that of the host's default route unless said
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_api::location::Configuration as Place;
use hearth_image::{InvalidMirror, InvalidReference, Mirror, Reference, Registries, RegistrySettings};
use serde::Deserialize;

/// What a person has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// How registries are reached.
    pub registries: Registries,
    /// What all machines may take together before pools and executions wait, of the host's memory for guests.
    pub memory_percent: u8,
    /// How many clones are kept ready at most.
    pub standbys: u8,
    /// Whom machines' questions for names are passed on to; those of the host when empty.
    pub name_servers: Vec<IpAddr>,
    /// The longest packet of machines on their way out, in bytes; that of the host's default route when absent.
    pub mtu: Option<u32>,
}

/// What machines may take unless it is said.
const MEMORY_PERCENT: u8 = 80;

/// How many clones are kept ready unless it is said.
const STANDBYS: u8 = 2;

impl Default for Configuration {
    fn default() -> Self {
        Self {
            registries: Registries::default(),
            memory_percent: MEMORY_PERCENT,
            standbys: STANDBYS,
            name_servers: Vec::new(),
            mtu: None,
        }
    }
}

/// Says why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The file cannot be read.
    #[error("the settings in {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is in it makes no sense.
    #[error("the settings in {} make no sense", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and why.
        #[source]
        source: toml::de::Error,
    },
}

impl ConfigurationError {
    /// Returns the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. } | Self::Parse { path, .. } => path,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    registry: BTreeMap<Name, Table>,
    #[serde(default)]
    pools: Pools,
    #[serde(default)]
    standby: Standby,
    #[serde(default)]
    network: Network,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Standby {
    machines: Option<u8>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Network {
    #[serde(default)]
    name_servers: Vec<IpAddr>,
    mtu: Option<Mtu>,
}

#[derive(Deserialize)]
#[serde(try_from = "u32")]
struct Mtu(u32);

impl TryFrom<u32> for Mtu {
    type Error = &'static str;

    fn try_from(bytes: u32) -> Result<Self, &'static str> {
        match bytes {
            1280..=9000 => Ok(Self(bytes)),
            _ => Err("the longest packet is from 1280 to 9000 bytes"),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Pools {
    memory_percent: Option<Percent>,
}

#[derive(Deserialize)]
#[serde(try_from = "u8")]
struct Percent(u8);

impl TryFrom<u8> for Percent {
    type Error = &'static str;

    fn try_from(percent: u8) -> Result<Self, &'static str> {
        match percent {
            1..=100 => Ok(Self(percent)),
            _ => Err("a share of the memory is from 1 to 100 percent"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    #[serde(default)]
    mirrors: Vec<Address>,
    plain_http: Option<bool>,
    ca: Option<PathBuf>,
    timeout_seconds: Option<Seconds>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct Name(String);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Address(Mirror);

#[derive(Deserialize)]
#[serde(try_from = "u64")]
struct Seconds(Duration);

impl TryFrom<String> for Name {
    type Error = String;

    /// A name is a registry's when a reference that begins with it is in that registry.
    fn try_from(text: String) -> Result<Self, String> {
        let reference: Result<Reference, InvalidReference> = format!("{text}/x").parse();
        match reference {
            Ok(Reference::Registry(reference))
                if !text.contains('/') && reference.repository().ends_with('x') =>
            {
                let same = reference.registry() == text || text == "index.docker.io";
                same.then(|| Self(reference.registry().to_owned()))
            }
            _ => None,
        }
        .ok_or_else(|| format!("{text:?} is no registry: HOST[:PORT] is, as in docker.io or localhost:5000"))
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidMirror;

    fn try_from(text: String) -> Result<Self, InvalidMirror> {
        text.parse().map(Self)
    }
}

impl TryFrom<u64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: u64) -> Result<Self, &'static str> {
        match seconds {
            1..=3600 => Ok(Self(Duration::from_secs(seconds))),
            _ => Err("a time-out is from 1 to 3600 seconds"),
        }
    }
}

/// Reads the settings; none are there unless somebody has said so.
///
/// # Errors
/// They cannot be read, or make no sense.
pub fn read(place: &Place) -> Result<Configuration, ConfigurationError> {
    let (Place::Named(path) | Place::Usual(path)) = place;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && matches!(place, Place::Usual(_)) => {
            return Ok(Configuration::default());
        }
        Err(source) => {
            return Err(ConfigurationError::Read {
                path: path.clone(),
                source,
            });
        }
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    parse(&text, directory).map_err(|source| ConfigurationError::Parse {
        path: path.clone(),
        source,
    })
}

/// Parses settings; paths in them begin at the directory of the file.
fn parse(text: &str, directory: &Path) -> Result<Configuration, toml::de::Error> {
    let file: File = toml::from_str(text)?;
    let registries = file.registry.into_iter().map(|(Name(name), table)| {
        let usual = RegistrySettings::default();
        let settings = RegistrySettings {
            mirrors: table.mirrors.into_iter().map(|Address(mirror)| mirror).collect(),
            plain_http: table.plain_http,
            authorities: table.ca.map(|path| directory.join(path)),
            patience: table.timeout_seconds.map_or(usual.patience, |Seconds(time)| time),
        };
        (name, settings)
    });
    Ok(Configuration {
        registries: registries.collect(),
        standbys: file.standby.machines.unwrap_or(STANDBYS),
        memory_percent: file
            .pools
            .memory_percent
            .map_or(MEMORY_PERCENT, |Percent(percent)| percent),
        mtu: file.network.mtu.map(|Mtu(bytes)| bytes),
        name_servers: file.network.name_servers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text, Path::new("/etc/hearth")).unwrap_err().to_string()
    }

    #[test]
    fn settings_of_registries_are_read() {
        let text = "
            [registry.\"docker.io\"]
            mirrors = [\"mirror.example.com\", \"http://10.0.0.5:5000/hub\"]
            [registry.\"localhost:5000\"]
            ca = \"own.pem\"
            plain-http = false
            timeout-seconds = 5";
        let read = parse(text, Path::new("/etc/hearth")).unwrap().registries;
        let mirrors: Vec<Mirror> = ["mirror.example.com", "http://10.0.0.5:5000/hub"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(read["docker.io"].mirrors, mirrors);
        let own = &read["localhost:5000"];
        assert_eq!(own.authorities.as_deref(), Some(Path::new("/etc/hearth/own.pem")));
        assert_eq!(
            (own.plain_http, own.patience),
            (Some(false), Duration::from_secs(5))
        );
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        for (text, line, what) in [
            (
                "\n[registry.\"docker.io\"]\nmirors = []",
                "line 3",
                "unknown field `mirors`",
            ),
            ("registry = 1", "line 1", "invalid type"),
            ("\n\n[registries]", "line 3", "unknown field `registries`"),
            (
                "[registry.\"docker.io\"]\nmirrors = [\"ftp://x\"]",
                "line 2",
                "no mirror",
            ),
            ("[registry.\"docker.io/library\"]", "line 1", "no registry"),
            ("[registry.hub]", "line 1", "no registry"),
            (
                "[registry.\"docker.io\"]\ntimeout-seconds = 0",
                "line 2",
                "1 to 3600",
            ),
            ("[registry", "line 1", "]"),
            ("[pools]\nmemory-percent = 101", "line 2", "1 to 100"),
            (
                "[network]\nname-servers = [\"ns.example.com\"]",
                "line 2",
                "IP address",
            ),
        ] {
            let told = refused(text);
            assert!(told.contains(line) && told.contains(what), "{text}: {told}");
        }
    }

    #[test]
    fn settings_that_are_named_must_be_there() {
        let nowhere = PathBuf::from("/nonexistent/hearth.toml");
        assert_eq!(
            read(&Place::Usual(nowhere.clone())).unwrap(),
            Configuration::default()
        );
        let error = read(&Place::Named(nowhere)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the settings in /nonexistent/hearth.toml cannot be read"
        );
    }
}
