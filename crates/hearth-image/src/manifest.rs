//! Manifests and indexes: JSON that a registry or a layout gives, checked. Pure.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::{Digest, Limits};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What a registry is asked for, most wanted first.
pub(crate) const ACCEPTED: [&str; 4] = [
    MANIFEST,
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

const CONFIGS: [&str; 2] = [CONFIG, "application/vnd.docker.container.image.v1+json"];

const LAYERS: [&str; 10] = [
    LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    LAYER_ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Points to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) media_type: String,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Its own media type.
    pub(crate) media_type: String,
    pub(crate) config: Blob,
    /// The base layer first.
    pub(crate) layers: Vec<Blob>,
}

impl Manifest {
    /// Returns all blobs that the manifest names.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// An image for several platforms, or a list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) blob: Blob,
    /// Operating system, architecture and variant, where the index says them.
    pub(crate) platform: Option<(String, String, Option<String>)>,
    /// The name that an image layout gives it.
    pub(crate) name: Option<String>,
    /// The name in full, as docker, podman and containerd write it beside that.
    pub(crate) image_name: Option<String>,
}

/// The annotation of a name within a layout.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Docker's, podman's and containerd's annotation of a name in full.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// What a manifest's bytes turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<IndexEntry>),
}

/// An operating system and an architecture, as images name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) os: &'static str,
    pub(crate) architecture: &'static str,
}

impl Platform {
    /// Returns what this host's microVMs run.
    pub(crate) fn of_this_host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux",
            architecture,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Says why a manifest or index is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the right shape.
    #[error("it is not valid JSON of its kind")]
    Json(#[source] serde_json::Error),
    /// Longer than [`Limits::manifest_bytes`].
    #[error("it is longer than {0} bytes")]
    TooLong(u64),
    /// A schema from before 2016.
    #[error("it is of schema version {0}; only version 2 is known")]
    Schema(u32),
    /// Something between manifest and index.
    #[error("it is neither a manifest nor an index, or claims to be both")]
    Ambiguous,
    /// Not a container image: a chart, a signature, a WebAssembly module.
    #[error("it is an artifact of type {0:?}, not a container image")]
    Artifact(String),
    /// A layer of unknown kind.
    #[error("it has a layer of unknown type {0:?}")]
    LayerType(String),
    /// More layers than [`Limits::layers`].
    #[error("it has {count} layers; {limit} are allowed")]
    Layers {
        /// How many it has.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// More bytes than an image may unpack to.
    #[error("its blobs are said to have {bytes} bytes; {limit} are allowed")]
    Bytes {
        /// How many it says.
        bytes: u64,
        /// How many may be.
        limit: u64,
    },
    /// A digest that is not SHA-256.
    #[error("it names a blob by {0:?}, which is not a SHA-256 digest")]
    Digest(String),
    /// Indexes within indexes.
    #[error("its indexes are nested more than {0} deep")]
    Nesting(usize),
    /// Nothing for this host.
    #[error("there is no image for {wanted} in it, only for {available}")]
    Platform {
        /// What was looked for.
        wanted: String,
        /// What is there, as a list for people.
        available: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: u32,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

/// Parses a manifest or an index.
pub(crate) fn parse(json: &[u8], limits: &Limits) -> Result<Document, ManifestError> {
    if json.len() as u64 > limits.manifest_bytes {
        return Err(ManifestError::TooLong(limits.manifest_bytes));
    }
    let probe: Probe = serde_json::from_slice(json).map_err(ManifestError::Json)?;
    if probe.schema_version != 2 {
        return Err(ManifestError::Schema(probe.schema_version));
    }
    match (probe.manifests, probe.layers) {
        (None, Some(_)) => parse_manifest(json, limits).map(Document::Manifest),
        (Some(_), None) => parse_index(json).map(Document::Index),
        // A document that is both means different images to different readers: CVE-2021-41190.
        _ => Err(ManifestError::Ambiguous),
    }
}

fn parse_manifest(json: &[u8], limits: &Limits) -> Result<Manifest, ManifestError> {
    let manifest: ImageManifest = serde_json::from_slice(json).map_err(ManifestError::Json)?;
    let config = blob(manifest.config())?;
    if !CONFIGS.contains(&config.media_type.as_str()) {
        return Err(ManifestError::Artifact(config.media_type));
    }
    if config.size > limits.manifest_bytes {
        return Err(ManifestError::Bytes {
            bytes: config.size,
            limit: limits.manifest_bytes,
        });
    }
    let count = manifest.layers().len();
    if count > limits.layers {
        return Err(ManifestError::Layers {
            count,
            limit: limits.layers,
        });
    }
    let layers = manifest
        .layers()
        .iter()
        .map(blob)
        .collect::<Result<Vec<_>, _>>()?;
    // What is fetched lies on the disk before anything of it is looked at.
    let sizes = layers.iter().map(|layer| layer.size);
    let bytes = sizes.fold(0, u64::saturating_add);
    if bytes > limits.unpacked_bytes {
        return Err(ManifestError::Bytes {
            bytes,
            limit: limits.unpacked_bytes,
        });
    }
    match layers
        .iter()
        .find(|layer| !LAYERS.contains(&layer.media_type.as_str()))
    {
        Some(layer) => Err(ManifestError::LayerType(layer.media_type.clone())),
        None => Ok(Manifest {
            media_type: manifest
                .media_type()
                .as_ref()
                .map_or_else(|| MANIFEST.to_owned(), ToString::to_string),
            config,
            layers,
        }),
    }
}

fn parse_index(json: &[u8]) -> Result<Vec<IndexEntry>, ManifestError> {
    let index: ImageIndex = serde_json::from_slice(json).map_err(ManifestError::Json)?;
    index.manifests().iter().map(index_entry).collect()
}

fn index_entry(descriptor: &Descriptor) -> Result<IndexEntry, ManifestError> {
    let platform = descriptor.platform().as_ref().map(|platform| {
        (
            platform.os().to_string(),
            platform.architecture().to_string(),
            platform.variant().clone(),
        )
    });
    let annotations = descriptor.annotations().as_ref();
    let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key).cloned());
    Ok(IndexEntry {
        blob: blob(descriptor)?,
        platform,
        name: annotation(REF_NAME),
        image_name: annotation(IMAGE_NAME),
    })
}

fn blob(descriptor: &Descriptor) -> Result<Blob, ManifestError> {
    let digest = descriptor.digest().to_string();
    let refused = |_| ManifestError::Digest(digest.chars().take(100).collect());
    Ok(Blob {
        digest: digest.parse().map_err(refused)?,
        size: descriptor.size(),
        media_type: descriptor.media_type().to_string(),
    })
}

/// Returns where else a manifest says a layer lies that a registry may not pass on (`urls` of a descriptor).
pub(crate) fn addresses(json: &[u8], layer: &Blob) -> Vec<String> {
    /// More are noise.
    const MOST: usize = 8;
    if !layer.media_type.contains(".nondistributable.") && !layer.media_type.contains(".foreign.") {
        return Vec::new();
    }
    let manifest = serde_json::from_slice::<ImageManifest>(json).ok();
    let layers = manifest.iter().flat_map(|manifest| manifest.layers());
    layers
        .filter(|known| known.digest().to_string() == layer.digest.to_string())
        .flat_map(|known| known.urls().iter().flatten())
        .take(MOST)
        .cloned()
        .collect()
}

/// Chooses the entry for a platform; the plainest variant of an architecture when there are several.
pub(crate) fn choose(entries: &[IndexEntry], platform: Platform) -> Result<&IndexEntry, ManifestError> {
    let fits = |entry: &&IndexEntry| match &entry.platform {
        Some((os, architecture, _)) => os == platform.os && architecture == platform.architecture,
        // The configuration tells, later on.
        None => entries.len() == 1,
    };
    let rank = |entry: &&IndexEntry| match entry
        .platform
        .as_ref()
        .and_then(|(.., variant)| variant.as_deref())
    {
        None | Some("" | "v1" | "v8") => String::new(),
        Some(variant) => variant.to_owned(),
    };
    let chosen = entries.iter().filter(fits).min_by_key(rank);
    chosen.ok_or_else(|| ManifestError::Platform {
        wanted: platform.to_string(),
        available: available(entries),
    })
}

fn available(entries: &[IndexEntry]) -> String {
    let mut names: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // Attestations of builders hang in indexes as images for no platform.
        .filter(|(os, ..)| os != "unknown")
        .map(|(os, architecture, variant)| match variant {
            Some(variant) if !variant.is_empty() => format!("{os}/{architecture}/{variant}"),
            _ => format!("{os}/{architecture}"),
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    match names.is_empty() {
        true => "platforms that it does not name".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, platform: &str) -> String {
        let digest = Digest::of(platform.as_bytes());
        let platform = match platform.split('/').collect::<Vec<_>>()[..] {
            [os, architecture] => format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#),
            [os, architecture, variant] => {
                format!(
                    r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
                )
            }
            _ => String::new(),
        };
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":7{platform}}}"#)
    }

    fn index(platforms: &[&str]) -> Vec<IndexEntry> {
        let entries: Vec<_> = platforms
            .iter()
            .map(|platform| descriptor(MANIFEST, platform))
            .collect();
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match parse(json.as_bytes(), &Limits::default()).unwrap() {
            Document::Index(entries) => entries,
            Document::Manifest(_) => panic!("not an index"),
        }
    }

    fn manifest(config: &str, layers: &[&str]) -> Result<Document, ManifestError> {
        let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer, "")).collect();
        let json = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor(config, ""),
            layers.join(",")
        );
        parse(json.as_bytes(), &Limits::default())
    }

    const AMD64: Platform = Platform {
        os: "linux",
        architecture: "amd64",
    };

    #[test]
    fn the_platform_of_the_host_is_chosen() {
        let entries = index(&["linux/arm64/v8", "linux/amd64", "unknown/unknown"]);
        assert_eq!(
            choose(&entries, AMD64).unwrap().blob.digest,
            Digest::of(b"linux/amd64")
        );
        let variants = index(&["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]);
        assert_eq!(
            choose(&variants, AMD64).unwrap().blob.digest,
            Digest::of(b"linux/amd64")
        );
    }

    #[test]
    fn a_missing_platform_names_those_that_exist() {
        let entries = index(&["linux/s390x", "linux/arm/v7", "linux/arm/v7", "unknown/unknown"]);
        let error = choose(&entries, AMD64).unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no image for linux/amd64 in it, only for linux/arm/v7, linux/s390x"
        );
    }

    #[test]
    fn docker_and_oci_manifests_are_read() {
        for (config, layer) in [
            (CONFIGS[0], LAYERS[1]),
            (CONFIGS[1], LAYERS[7]),
            (CONFIGS[0], LAYER_ZSTD),
        ] {
            let Document::Manifest(manifest) = manifest(config, &[layer]).unwrap() else {
                panic!("an index")
            };
            assert_eq!((manifest.layers.len(), manifest.layers[0].size), (1, 7));
        }
    }

    #[test]
    fn only_layers_that_may_not_be_passed_on_lie_elsewhere() {
        let digest = Digest::of(b"x");
        for (kind, expected) in [(LAYERS[9], 1), (LAYERS[3], 1), (LAYERS[1], 0)] {
            let json = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{{"mediaType":"{kind}","digest":"{digest}","size":7,"urls":["https://h/x"]}}]}}"#,
                descriptor(CONFIG, "")
            );
            let Document::Manifest(manifest) = parse(json.as_bytes(), &Limits::default()).unwrap() else {
                panic!("an index")
            };
            assert_eq!(
                addresses(json.as_bytes(), &manifest.layers[0]).len(),
                expected,
                "{kind}"
            );
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let helm = "application/vnd.cncf.helm.config.v1+json";
        assert!(matches!(manifest(helm, &[LAYER]), Err(ManifestError::Artifact(kind)) if kind == helm));
        assert!(matches!(
            manifest(CONFIG, &["text/plain"]),
            Err(ManifestError::LayerType(_))
        ));
        assert!(matches!(
            manifest(CONFIG, &[LAYER; 128]),
            Err(ManifestError::Layers {
                count: 128,
                limit: 127
            })
        ));
        let limits = Limits::default();
        let refused = |json: &str| parse(json.as_bytes(), &limits).unwrap_err();
        assert!(matches!(refused("{}"), ManifestError::Json(_)));
        assert!(matches!(
            refused(r#"{"schemaVersion":1}"#),
            ManifestError::Schema(1)
        ));
        assert!(matches!(
            refused(r#"{"schemaVersion":2}"#),
            ManifestError::Ambiguous
        ));
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#;
        assert!(matches!(refused(both), ManifestError::Ambiguous));
        for (config, layer) in [(4 << 20, u64::MAX - 1), ((4 << 20) + 1, 7), (7, (64 << 30) + 1)] {
            let sized = |size: u64| descriptor(CONFIG, "").replace(":7}", &format!(":{size}}}"));
            let json = format!(
                r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
                sized(config),
                sized(layer).replace(CONFIG, LAYER)
            );
            assert!(matches!(refused(&json), ManifestError::Bytes { .. }), "{json}");
        }
        let sha512 = descriptor(CONFIG, "").replace("sha256:", "sha512:");
        let json = format!(r#"{{"schemaVersion":2,"config":{sha512},"layers":[]}}"#);
        assert!(matches!(
            refused(&json),
            ManifestError::Json(_) | ManifestError::Digest(_)
        ));
        let long = " ".repeat(5 << 20);
        assert!(matches!(refused(&long), ManifestError::TooLong(_)));
    }
}
