//! Images.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Full reference, as in `docker.io/library/debian:12`.
    pub reference: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes of its layers as they came.
    pub size_bytes: u64,
    /// Bytes of the root file system made of them.
    pub rootfs_bytes: u64,
    /// RFC 3339; when the image was built, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// Number of layers.
    pub layers: u32,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Bytes of its layers that no other image has; another name of this image is none.
    #[serde(default)]
    pub unique_bytes: u64,
    /// Its layers, the base first.
    #[serde(default)]
    pub layer_list: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLayer {
    /// Digest of its blob.
    pub digest: String,
    /// Digest of its archive, decompressed.
    pub diff_id: String,
    /// Bytes of its blob.
    pub size_bytes: u64,
    /// Media type.
    pub media_type: String,
    /// How many images of the store have it.
    pub images: u32,
}

/// Gives an image one more name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TagImage {
    /// An image of the store.
    pub source: String,
    /// The name, as in `app:2`; an image that had it loses it.
    pub target: String,
}

/// Asks for what nothing needs to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PruneImages {
    /// Images that no machine is made of, too.
    #[serde(default)]
    pub all: bool,
}

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PrunedImages {
    /// References of images.
    pub images: Vec<String>,
    /// Bytes of the disk that were given back; absent when a pull is under way: what nothing needs goes when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed_bytes: Option<u64>,
}

/// Asks for an archive of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveImages {
    /// Images of the store, one at least.
    pub references: Vec<String>,
}

/// How an image wants to be run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD.
    pub command: Vec<String>,
    /// ENV.
    pub environment: Vec<String>,
    /// USER.
    pub user: String,
    /// WORKDIR.
    pub working_directory: String,
    /// STOPSIGNAL.
    pub stop_signal: Option<String>,
    /// LABEL.
    pub labels: BTreeMap<String, String>,
    /// VOLUME.
    pub volumes: Vec<String>,
    /// EXPOSE, as in `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// HEALTHCHECK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<ImageHealthCheck>,
}

/// How an image wants it to be found out whether its workload works. What is absent is left to the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageHealthCheck {
    /// What is run, the image's shell in front of a line for it; absent for `HEALTHCHECK NONE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Time between two checks, in nanoseconds as images write it; so are the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ns: Option<u64>,
    /// Time that one check may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ns: Option<u64>,
    /// Time from the start in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ns: Option<u64>,
    /// Time between two checks in the start period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_interval_ns: Option<u64>,
    /// Failures in a row until the workload counts as unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// Asks for an image from a registry, a layout, an archive or a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// The reference.
    pub reference: String,
    /// Who asks. The node forgets it with the end of the pull: it is in no record, no answer, no log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<RegistryCredentials>,
}

/// Who asks a registry. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegistryCredentials {
    /// The registry that they are for, as in references: `docker.io`, `ghcr.io`, `localhost:5000`. No other gets them,
    /// but for the token server that it names.
    pub registry: String,
    /// What to show it.
    pub login: Login,
}

/// What to show a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Login {
    /// A user with a password, or an access token in its place.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// What a token server gave at an earlier login, to be exchanged for access tokens.
    IdentityToken(String),
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredentials")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// Asks for an image made of packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// What to start from.
    pub recipe: Recipe,
    /// Packages of the distribution to put in.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The reference it gets.
    pub reference: String,
}

/// What an image is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// A minimal Debian of the release that the host's package sources offer.
    Debian,
    /// The static busybox of the host's distribution, and nothing else.
    Busybox,
}
