//! Images as the node uses them: found, fetched, built, removed. Knows `hearth-image`; machines know only this.

mod build;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use hearth_image::{
    Access, Image, ImageDetails, InvalidReference, ProgressSink, PullError, Reference, Saving, Store,
    StoreError, no_progress,
};
use hearth_machine::{ImageDefaults, ImageHealthCheck};

pub use build::{BuildError, Recipe};
pub use hearth_image::{Credentials, Phase, Progress};

use crate::configuration::{self, ConfigurationError};
use crate::host::failpoint;
use crate::layout::Layout;

/// The images of this node; cloned freely.
#[derive(Clone)]
pub struct Images {
    store: Store,
    layout: Layout,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("store", &self.store.dir())
            .finish()
    }
}

/// Says why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The store does not have it.
    #[error("image {0} is not in the store")]
    NotFound(String),
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A path would mean another file to the node than to its client.
    #[error("{0} names a relative path")]
    Relative(String),
    /// A name that is to be given must be one of a registry, with a tag.
    #[error("{0} is no name that an image can be given")]
    Target(String),
    /// It could not be fetched.
    #[error(transparent)]
    Pull(#[from] Arc<PullError>),
    /// The settings of registries.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// Credentials must not go to another registry than they are for.
    #[error("the credentials are for {given}, and {reference} is not there")]
    OthersCredentials {
        /// The registry that they are for.
        given: String,
        /// The image.
        reference: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// An image that a machine can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Reference in full.
    pub reference: String,
    /// Manifest digest.
    pub digest: String,
    /// The read-only root file system.
    pub rootfs: PathBuf,
    /// How it wants to be run.
    pub defaults: ImageDefaults,
}

/// The file system of [`ResolvedImage::rootfs`], as mount(2) names it.
pub const ROOTFS_FILESYSTEM: &str = "erofs";

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Reference as people write it.
    pub reference: String,
    /// Manifest digest.
    pub digest: String,
    /// Bytes of its blobs.
    pub size_bytes: u64,
    /// Bytes of its root file system.
    pub rootfs_bytes: u64,
    /// RFC 3339.
    pub created_at: Option<String>,
    /// Number of layers.
    pub layers: u32,
    /// How it wants to be run.
    pub defaults: ImageDefaults,
    /// LABEL.
    pub labels: BTreeMap<String, String>,
    /// VOLUME.
    pub volumes: Vec<String>,
    /// EXPOSE.
    pub exposed_ports: Vec<String>,
    /// Bytes of blobs that no other image has.
    pub unique_bytes: u64,
    /// Its layers, the base first.
    pub layer_list: Vec<LayerInfo>,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of its blob.
    pub digest: String,
    /// Digest of its archive.
    pub diff_id: String,
    /// Bytes of its blob.
    pub size_bytes: u64,
    /// Media type.
    pub media_type: String,
    /// How many images have it.
    pub images: u32,
}

fn info(details: ImageDetails) -> ImageInfo {
    let image = details.image;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    ImageInfo {
        reference: image.reference.familiar(),
        digest: image.digest.to_string(),
        size_bytes: image.size,
        rootfs_bytes: image.rootfs_size,
        layers: number(details.layers.len()),
        defaults: defaults(&image),
        created_at: image.created,
        labels: image.config.labels,
        volumes: image.config.volumes,
        exposed_ports: image.config.exposed_ports,
        unique_bytes: details.unique_size,
        layer_list: details
            .layers
            .into_iter()
            .map(|layer| LayerInfo {
                digest: layer.digest.to_string(),
                diff_id: layer.diff_id.to_string(),
                size_bytes: layer.size,
                media_type: layer.media_type,
                images: number(layer.images),
            })
            .collect(),
    }
}

fn unknown(error: StoreError, reference: &Reference) -> ImageError {
    match error {
        StoreError::Unknown(_) => ImageError::NotFound(reference.familiar()),
        error => error.into(),
    }
}

/// Parses a name that an image is given. A digest is no name, and a path is a source.
fn target(text: &str) -> Result<Reference, ImageError> {
    let reference: Reference = text.parse()?;
    match &reference {
        Reference::Registry(name) if name.digest().is_none() => Ok(reference),
        _ => Err(ImageError::Target(text.to_owned())),
    }
}

fn parse(text: &str) -> Result<Reference, ImageError> {
    let reference: Reference = text.parse()?;
    match &reference {
        Reference::Layout { dir: path, .. }
        | Reference::Archive { file: path }
        | Reference::Directory { dir: path }
            if path.is_relative() =>
        {
            Err(ImageError::Relative(text.to_owned()))
        }
        _ => Ok(reference),
    }
}

/// Who a client is to one registry.
#[derive(Debug)]
pub struct Login {
    /// The registry, as in references.
    pub registry: String,
    /// What to show it.
    pub credentials: Credentials,
}

/// Returns the credentials if they are for this image's registry.
fn credentials(reference: &Reference, login: Option<Login>) -> Result<Credentials, ImageError> {
    match (reference, login) {
        (_, None) => Ok(Credentials::Anonymous),
        (Reference::Registry(wanted), Some(login)) if wanted.registry() == login.registry => {
            Ok(login.credentials)
        }
        (_, Some(login)) => Err(ImageError::OthersCredentials {
            given: login.registry,
            reference: reference.familiar(),
        }),
    }
}

fn defaults(image: &Image) -> ImageDefaults {
    let config = &image.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        command: config.cmd.clone(),
        environment: config
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_directory: config.working_dir.clone().unwrap_or_default(),
        user: config.user.clone().unwrap_or_default(),
        stop_signal: config.stop_signal.clone(),
        health_check: config.healthcheck.as_ref().map(|check| ImageHealthCheck {
            command: check.test.command(&config.shell),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        }),
    }
}

impl Images {
    /// Opens the store of this node.
    ///
    /// # Errors
    /// Returns [`ImageError::Store`].
    pub async fn open(layout: &Layout) -> Result<Self, ImageError> {
        hearth_image::watch_steps(failpoint::reach);
        Ok(Self {
            store: Store::open(layout.images()).await?,
            layout: layout.clone(),
        })
    }

    /// Finds an image that is in the store; asks no registry.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`] when it must be pulled first.
    pub async fn resolve(&self, text: &str) -> Result<ResolvedImage, ImageError> {
        let reference = parse(text)?;
        let image = self.store.resolve(&reference).await?;
        let image = image.ok_or_else(|| ImageError::NotFound(reference.familiar()))?;
        Ok(ResolvedImage {
            reference: image.reference.to_string(),
            digest: image.digest.to_string(),
            defaults: defaults(&image),
            rootfs: image.rootfs,
        })
    }

    /// Fetches an image and prepares its root file system. When the caller stops waiting, and nobody else waits for the same,
    /// the pull ends where it is. Settings are read each time, so that a change needs no new node.
    ///
    /// # Errors
    /// Returns [`ImageError::Pull`], or what is wrong with settings or credentials.
    pub async fn pull(
        &self,
        text: &str,
        login: Option<Login>,
        progress: ProgressSink,
    ) -> Result<ImageInfo, ImageError> {
        let reference = parse(text)?;
        let registries = match reference {
            Reference::Registry(_) => configuration::read(self.layout.configuration())?.registries,
            _ => Default::default(),
        };
        let access = Access {
            credentials: credentials(&reference, login)?,
            registries,
        };
        self.store.pull(&reference, &access, progress).await?;
        self.inspect(text).await
    }

    /// Makes an image of packages.
    ///
    /// # Errors
    /// Returns [`ImageError::Build`].
    pub async fn build(
        &self,
        recipe: Recipe,
        packages: &[String],
        text: &str,
        progress: ProgressSink,
    ) -> Result<ImageInfo, ImageError> {
        let reference = parse(text)?;
        build::build(&self.store, recipe, packages, &reference, progress).await?;
        self.inspect(text).await
    }

    /// Tells everything about an image.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`].
    pub async fn inspect(&self, text: &str) -> Result<ImageInfo, ImageError> {
        self.info(&parse(text)?).await
    }

    async fn info(&self, reference: &Reference) -> Result<ImageInfo, ImageError> {
        let details = self.store.inspect(reference).await;
        Ok(info(details.map_err(|error| unknown(error, reference))?))
    }

    /// Lists the images, by reference.
    ///
    /// # Errors
    /// Returns [`ImageError::Store`].
    pub async fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut list: Vec<_> = self.store.list().await?.into_iter().map(info).collect();
        list.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(list)
    }

    /// Gives an image one more name; an image that had it loses it.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`] or [`ImageError::Target`].
    pub async fn tag(&self, source: &str, name: &str) -> Result<ImageInfo, ImageError> {
        let (source, target) = (parse(source)?, target(name)?);
        let tagged = self.store.tag(&source, &target).await;
        tagged.map_err(|error| unknown(error, &source))?;
        self.info(&target).await
    }

    /// Deletes what no name needs. Returns how many bytes of the disk that gave back; `None` when a pull is under way, at
    /// whose end it happens.
    ///
    /// # Errors
    /// Returns [`ImageError::Store`].
    pub async fn sweep(&self) -> Result<Option<u64>, ImageError> {
        Ok(self.store.sweep().await?)
    }

    /// Gathers images for an archive.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`].
    pub async fn save(&self, references: &[String]) -> Result<Saving, ImageError> {
        let parsed = references.iter().map(|text| parse(text));
        let parsed: Vec<_> = parsed.collect::<Result<_, _>>()?;
        let saving = self.store.save(&parsed).await;
        saving.map_err(|error| match error {
            StoreError::Unknown(reference) => ImageError::NotFound(reference),
            error => error.into(),
        })
    }

    /// Takes the images of an archive.
    ///
    /// # Errors
    /// Returns [`ImageError::Pull`].
    pub async fn load(
        &self,
        archive: impl std::io::Read + Send + 'static,
        name: Option<&str>,
    ) -> Result<Vec<ImageInfo>, ImageError> {
        let name = name.map(target).transpose()?;
        let mut loaded = Vec::new();
        let images = self.store.load(archive, name, no_progress()).await;
        for image in images.map_err(Arc::new)? {
            loaded.push(self.info(&image.reference).await?);
        }
        Ok(loaded)
    }

    /// Removes an image's name, and what nothing else needs of it. Machines made of it keep their root file system.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`].
    pub async fn remove(&self, text: &str) -> Result<(), ImageError> {
        let reference = parse(text)?;
        let removed = self.store.remove(&reference).await;
        removed.map_err(|error| unknown(error, &reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_go_to_their_own_registry_only() {
        let login = |registry: &str| {
            Some(Login {
                registry: registry.to_owned(),
                credentials: Credentials::IdentityToken("x".into()),
            })
        };
        let of = |image: &str, login| credentials(&image.parse().unwrap(), login);
        assert!(of("debian:12", login("docker.io")).is_ok());
        assert!(of("localhost:5000/x", login("localhost:5000")).is_ok());
        for (image, registry) in [
            ("debian:12", "ghcr.io"),
            ("localhost:5000/x", "localhost"),
            ("dir:/srv", "docker.io"),
        ] {
            assert!(of(image, login(registry)).is_err(), "{image}");
        }
    }
}
