//! Names of images: where one comes from, as a checked type.
//!
//! ```text
//! [REGISTRY[:PORT]/]NAME[:TAG][@sha256:HEX]   a registry; docker.io by default
//! oci:DIR[:TAG]                               an OCI image layout
//! docker-archive:FILE                         what `docker save` and `skopeo copy` write
//! dir:DIR                                     a directory tree that becomes the root file system
//! ```
//! A repository that is itself called `oci`, `dir` or `docker-archive` is reached as `docker.io/library/oci:TAG`.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Docker's bound for registry and repository together.
const NAME_MAX: usize = 255;

/// Names an image and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// In a registry.
    Registry(RegistryReference),
    /// In an OCI image layout.
    Layout {
        /// The directory that holds `oci-layout`.
        dir: PathBuf,
        /// The name in its index; `None` when it holds one image only.
        tag: Option<String>,
    },
    /// In an archive as `docker save` writes it.
    Archive {
        /// The archive.
        file: PathBuf,
    },
    /// A directory tree.
    Directory {
        /// Its root.
        dir: PathBuf,
    },
}

/// Names an image in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Says why a text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of an image: {fault}")]
pub struct InvalidReference {
    text: String,
    fault: ReferenceFault,
}

/// Says which part of an image's name is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceFault {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// A scheme without a path.
    #[error("a path must follow the colon, as in oci:./image or dir:/srv/tree")]
    Path,
    /// The host or port.
    #[error("the registry is not HOST[:PORT], as in ghcr.io or localhost:5000")]
    Registry,
    /// The repository.
    #[error(
        "a repository is of lower-case letters, digits, and single . _ - or __ between them, parted by slashes"
    )]
    Repository,
    /// The repository has capitals, the most frequent mistake.
    #[error("a repository must be in lower case")]
    UpperCase,
    /// Registry and repository together.
    #[error("it is longer than 255 characters")]
    TooLong,
    /// The tag.
    #[error("a tag is of 1 to 128 letters, digits, . _ and -, not . or - first")]
    Tag,
    /// The digest.
    #[error("a digest is sha256: and 64 lower-case hexadecimal digits")]
    Digest,
    /// A name like an image id, which docker refuses too.
    #[error("64 hexadecimal digits are the id of an image; write NAME@sha256:HEX")]
    ImageId,
}

impl Reference {
    /// Makes paths absolute: the node does not share the working directory of who types a name.
    #[must_use]
    pub fn absolute(self, base: &Path) -> Self {
        match self {
            Self::Layout { dir, tag } => Self::Layout {
                dir: base.join(dir),
                tag,
            },
            Self::Archive { file } => Self::Archive {
                file: base.join(file),
            },
            Self::Directory { dir } => Self::Directory { dir: base.join(dir) },
            registry @ Self::Registry(_) => registry,
        }
    }

    /// Returns the short form that people type: without `docker.io/library/` where that is the default.
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        if !matches!(self, Self::Registry(_)) {
            return text;
        }
        let short = text
            .strip_prefix("docker.io/")
            .map(|rest| rest.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(rest));
        // Only what parses back to the same is a name for it.
        let same = |short: &&str| short.parse::<Self>().as_ref() == Ok(self);
        short.filter(same).map_or(text.clone(), str::to_owned)
    }
}

impl RegistryReference {
    /// Returns the registry's host and port, `docker.io` for the default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository, as in `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; `latest` unless a digest says it all.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest that the image must have.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Tells whether the registry is on this host, which is where plain HTTP is spoken unless the settings say otherwise.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }
}

/// Tells whether a host, with or without a port, is this one.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { dir, tag: Some(tag) } => write!(f, "oci:{}:{tag}", dir.display()),
            Self::Layout { dir, tag: None } => write!(f, "oci:{}", dir.display()),
            Self::Archive { file } => write!(f, "docker-archive:{}", file.display()),
            Self::Directory { dir } => write!(f, "dir:{}", dir.display()),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |fault| InvalidReference {
            text: text.chars().take(300).collect(),
            fault,
        };
        if text.is_empty() {
            return Err(refused(ReferenceFault::Empty));
        }
        let parsed = match text.split_once(':') {
            Some(("oci", rest)) => layout(rest),
            Some(("docker-archive", rest)) => path(rest).map(|file| Self::Archive { file }),
            Some(("dir", rest)) => path(rest).map(|dir| Self::Directory { dir }),
            _ => registry_reference(text).map(Self::Registry),
        };
        parsed.map_err(refused)
    }
}

fn path(text: &str) -> Result<PathBuf, ReferenceFault> {
    if text.is_empty() || text.contains('\0') {
        return Err(ReferenceFault::Path);
    }
    Ok(PathBuf::from(text))
}

/// The first colon parts directory and tag, as for skopeo: the tag may hold colons, the directory may not.
fn layout(text: &str) -> Result<Reference, ReferenceFault> {
    let (dir, tag) = match text.split_once(':') {
        Some((dir, tag)) => (dir, Some(tag)),
        None => (text, None),
    };
    let printable = |tag: &str| !tag.is_empty() && !tag.chars().any(|c| c.is_control() || c.is_whitespace());
    if tag.is_some_and(|tag| !printable(tag)) {
        return Err(ReferenceFault::Tag);
    }
    Ok(Reference::Layout {
        dir: path(dir)?,
        tag: tag.map(str::to_owned),
    })
}

fn registry_reference(text: &str) -> Result<RegistryReference, ReferenceFault> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|_| ReferenceFault::Digest)?)),
        None => (text, None),
    };
    let (name, tag) = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(ReferenceFault::Tag);
    }
    let (registry, repository) = split_registry(name)?;
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err(ReferenceFault::TooLong);
    }
    let tag = tag
        .map(str::to_owned)
        .or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(RegistryReference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Docker's rule: the first component is a registry when it has a dot, a colon or a capital, or is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), ReferenceFault> {
    let is_registry = |host: &str| {
        host.contains(['.', ':']) || host == "localhost" || host.chars().any(|c| c.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((host, rest)) if is_registry(host) => (host, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if !is_host_and_port(registry) {
        return Err(ReferenceFault::Registry);
    }
    check_repository(repository)?;
    let namespace = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        DEFAULT_NAMESPACE
    } else {
        ""
    };
    Ok((registry.to_owned(), format!("{namespace}{repository}")))
}

pub(crate) fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => return address.parse::<std::net::Ipv6Addr>().is_ok(),
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", rest.strip_prefix(':'))
        }
        None => text
            .split_once(':')
            .map_or((text, Some("1")), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    host.split('.').all(is_label) && port.is_some_and(is_port)
}

/// Tells whether a text is the name of a repository, or the beginning of one up to a slash.
pub(crate) fn is_repository(text: &str) -> bool {
    check_repository(text).is_ok()
}

fn check_repository(text: &str) -> Result<(), ReferenceFault> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(ReferenceFault::UpperCase);
    }
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ReferenceFault::ImageId);
    }
    if text.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err(ReferenceFault::Repository)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, from the distribution specification.
fn is_path_component(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let letters = rest.iter().take_while(|byte| word(**byte)).count();
        if letters == 0 {
            return false;
        }
        rest = &rest[letters..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|byte| !word(**byte)).count();
        let known = match &rest[..separator] {
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|byte| *byte == b'-'),
        };
        if !known {
            return false;
        }
        rest = &rest[separator..];
    }
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || byte == b'.' || byte == b'-')
        && text.len() <= 128
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn fault(text: &str) -> Option<ReferenceFault> {
        text.parse::<Reference>().err().map(|error| error.fault)
    }

    #[test]
    fn dockers_defaults_apply() {
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("grafana/k6", "docker.io/grafana/k6:latest", "grafana/k6:latest"),
            ("ghcr.io/x/y/z:v1", "ghcr.io/x/y/z:v1", "ghcr.io/x/y/z:v1"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            (
                "docker.io/library/oci:1",
                "docker.io/library/oci:1",
                "docker.io/library/oci:1",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(full.parse(), Ok(reference));
        }
    }

    #[test]
    fn a_digest_stands_without_a_tag() {
        let text = format!("a/b@sha256:{HEX}");
        let Reference::Registry(reference) = text.parse().unwrap() else {
            panic!("not of a registry")
        };
        assert_eq!(
            (reference.tag(), reference.digest()),
            (None, Some(Digest::of(b"")))
        );
        let both: Reference = format!("a/b:t@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/a/b:t@sha256:{HEX}"));
    }

    #[test]
    fn only_loopback_speaks_plain_http() {
        for (text, loopback) in [
            ("localhost/x", true),
            ("localhost:5000/x", true),
            ("127.0.0.1:5000/x", true),
            ("127.8.9.1/x", true),
            ("[::1]:5000/x", true),
            ("[::2]:5000/x", false),
            ("192.168.1.1:5000/x", false),
            ("localhost.evil.com/x", false),
            ("busybox", false),
        ] {
            let Reference::Registry(reference) = text.parse().unwrap() else {
                panic!("{text}")
            };
            assert_eq!(reference.is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn local_sources_are_told_by_their_scheme() {
        let layout = |dir: &str, tag: Option<&str>| Reference::Layout {
            dir: dir.into(),
            tag: tag.map(Into::into),
        };
        assert_eq!("oci:/a/b".parse(), Ok(layout("/a/b", None)));
        assert_eq!(
            "oci:b:docker.io/c:d".parse(),
            Ok(layout("b", Some("docker.io/c:d")))
        );
        assert_eq!(
            "dir:/x:y".parse(),
            Ok(Reference::Directory { dir: "/x:y".into() })
        );
        let archive: Reference = "docker-archive:x.tar".parse().unwrap();
        assert_eq!(
            archive.absolute(Path::new("/w")).to_string(),
            "docker-archive:/w/x.tar"
        );
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_its_fault() {
        use ReferenceFault as F;
        let long = "a/".repeat(130) + "a";
        for (text, expected) in [
            ("", F::Empty),
            ("oci:", F::Path),
            ("dir:", F::Path),
            ("oci:x:", F::Tag),
            ("docker-archive:", F::Path),
            ("BusyBox", F::UpperCase),
            ("a//b", F::Repository),
            ("a/", F::Repository),
            ("/a", F::Repository),
            ("../a", F::Registry),
            ("a..b", F::Repository),
            ("a___b", F::Repository),
            ("a:", F::Tag),
            ("a:-x", F::Tag),
            ("a:b c", F::Tag),
            ("a@sha256:abc", F::Digest),
            ("a@", F::Digest),
            ("host:0/x", F::Registry),
            ("host:99999/x", F::Registry),
            ("-host.com/x", F::Registry),
            ("[::1/x", F::Registry),
            ("https://a/b", F::Registry),
            (HEX, F::ImageId),
            (&long, F::TooLong),
        ] {
            assert_eq!(fault(text), Some(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference.clone()));
                prop_assert_eq!(reference.familiar().parse::<Reference>(), Ok(reference));
            }
        }

        #[test]
        fn well_formed_names_round_trip(
            host in "([a-z][a-z0-9]{0,5}\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?/)?",
            repository in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9._-]{0,20})?",
        ) {
            let text = format!("{host}{repository}{tag}");
            prop_assume!(!["oci", "dir"].contains(&repository.as_str()) || !host.is_empty());
            // By docker's rule a first component with a dot is a registry, whatever else is in it.
            let first = repository.split_once('/').map_or("", |(first, _)| first);
            prop_assume!(!host.is_empty() || !first.contains('.'));
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
    }
}
