//! Images as the node uses them: found, fetched, built, removed. Knows `hearth-image`; machines know only this.

mod build;

use std::collections::BTreeMap;
use std::path::PathBuf;

use hearth_image::{Image, InvalidReference, ProgressSink, PullError, Reference, Store, StoreError};
use hearth_machine::{ImageDefaults, ImageHealthCheck};

pub use build::{BuildError, Recipe};
pub use hearth_image::{Phase, Progress};

use crate::host::failpoint;
use crate::layout::Layout;

/// The images of this node; cloned freely.
#[derive(Clone)]
pub struct Images {
    store: Store,
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
    /// It could not be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
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

    /// Fetches an image and prepares its root file system.
    ///
    /// # Errors
    /// Returns [`ImageError::Pull`].
    pub async fn pull(&self, text: &str, progress: ProgressSink) -> Result<ImageInfo, ImageError> {
        let reference = parse(text)?;
        self.store.pull(&reference, progress).await?;
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
        let reference = parse(text)?;
        if self.store.resolve(&reference).await?.is_none() {
            return Err(ImageError::NotFound(reference.familiar()));
        }
        self.info(&reference).await
    }

    async fn info(&self, reference: &Reference) -> Result<ImageInfo, ImageError> {
        let details = self.store.inspect(reference).await?;
        let image = details.image;
        Ok(ImageInfo {
            reference: image.reference.familiar(),
            digest: image.digest.to_string(),
            size_bytes: image.size,
            rootfs_bytes: image.rootfs_size,
            layers: u32::try_from(details.layers.len()).unwrap_or(u32::MAX),
            defaults: defaults(&image),
            created_at: image.created,
            labels: image.config.labels,
            volumes: image.config.volumes,
            exposed_ports: image.config.exposed_ports,
        })
    }

    /// Lists the images, by reference.
    ///
    /// # Errors
    /// Returns [`ImageError::Store`].
    pub async fn list(&self) -> Result<Vec<ImageInfo>, ImageError> {
        let mut list = Vec::new();
        for image in self.store.list().await? {
            list.push(self.info(&image.reference).await?);
        }
        list.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(list)
    }

    /// Removes an image's name, and what nothing else needs of it. Machines made of it keep their root file system.
    ///
    /// # Errors
    /// Returns [`ImageError::NotFound`].
    pub async fn remove(&self, text: &str) -> Result<(), ImageError> {
        let reference = parse(text)?;
        if self.store.resolve(&reference).await?.is_none() {
            return Err(ImageError::NotFound(reference.familiar()));
        }
        Ok(self.store.remove(&reference).await?)
    }
}
