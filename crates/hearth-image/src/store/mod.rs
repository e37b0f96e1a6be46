//! The store: images as an OCI layout that other tools can read, and the root file systems made from them.
//!
//! ```text
//! DIR/oci-layout, index.json, blobs/sha256/HEX     the image layout; names are `org.opencontainers.image.ref.name`
//! DIR/rootfs/HEX.v2.erofs                          by manifest digest and version of our format
//! DIR/partial/HEX                                  what came of a blob so far; a day old, it is swept
//! DIR/tmp/                                         what is being written; swept when nobody writes
//! DIR/lock, DIR/index.lock                         advisory locks, so that two processes may share a store
//! ```
//! Everything is written under `tmp/` or `partial/`, synced and renamed: a crash leaves nothing half-written under a final name.
//! Who writes holds `lock` shared; who deletes holds it exclusively, or leaves the deletion to the last one who writes, and
//! after a crash to the next who opens the store. So blobs never vanish under a pull. Callers are `hearth-node` and tools;
//! everything blocking is off the async threads.

mod audience;
mod blobs;
#[cfg(test)]
mod crash;
mod download;
mod flights;
mod import;
mod index;
mod load;
mod locks;
mod pull;
mod save;
mod sweep;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{self, ConfigError, ImageConfig};
use crate::manifest::{self, Blob, Document, Manifest, ManifestError};
use crate::rootfs::RootfsError;
use crate::{Digest, Limits, ProgressSink, Reference, step};

use audience::Audiences;
pub use blobs::BlobError;
pub(crate) use blobs::{Blobs, read_bounded};
pub(crate) use download::Download;
use flights::Flights;
pub use import::ImportError;
use index::{Index, Named};
use locks::{KeyedLocks, ProcessLock};
pub use pull::PullError;
pub use save::Saving;
use sweep::Reach;
use usage::Usage;

/// Counts the versions of our root file system images: a new one makes them anew.
const FORMAT: u32 = 2;

/// A store of images. Cloning is cheap; clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: Blobs,
    limits: Limits,
    /// One pull per reference, one download per blob, and one build per root file system, at a time.
    locks: KeyedLocks,
    flights: Flights,
    /// Who wants to hear of a blob's download.
    audiences: Audiences,
    /// Something was to be deleted while somebody wrote. A fact for whoever writes, not a lock.
    sweep_due: AtomicBool,
}

/// An image that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name it was asked for by.
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Bytes of its blobs, as a registry sends them.
    pub size: u64,
    /// When it was made, as RFC 3339 has it; its author's word.
    pub created: Option<String>,
    /// What runs in it.
    pub config: ImageConfig,
    /// Its root file system: a read-only EROFS image.
    pub rootfs: PathBuf,
    /// Bytes of the root file system image.
    pub rootfs_size: u64,
}

/// What [`Store::inspect`] tells besides the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDetails {
    /// The image.
    pub image: Image,
    /// The digest of its configuration, which docker calls the image's id.
    pub config_digest: Digest,
    /// `linux/amd64`.
    pub platform: String,
    /// Its layers, the base first.
    pub layers: Vec<LayerDetails>,
    /// Bytes of its blobs that no other image of the store has; another name of the same image is none.
    pub unique_size: u64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDetails {
    /// The digest of its blob.
    pub digest: Digest,
    /// Bytes of its blob.
    pub size: u64,
    /// Its media type.
    pub media_type: String,
    /// The digest of its archive, decompressed.
    pub diff_id: Digest,
    /// How many images of the store have it.
    pub images: usize,
}

/// Says why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store.
    #[error("cannot {action} {} of the image store", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The index of the store.
    #[error("the index of the image store, {}, is damaged", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest that is in the store already.
    #[error("the manifest {digest} in the image store is damaged")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A configuration that is in the store already.
    #[error("the image configuration {digest} in the image store is damaged")]
    Config {
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// A root file system could not be made.
    #[error("cannot make the root file system of {reference}")]
    Rootfs {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: RootfsError,
    },
    /// No image of this name.
    #[error("there is no image {0} in the store")]
    Unknown(String),
    /// The runtime shut down while work was under way.
    #[error("the work was cancelled because the process is stopping")]
    Cancelled,
}

impl StoreError {
    fn at(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl Store {
    /// Opens the store in a directory, which is made if need be. Sweeps what a crash left behind.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub async fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_within(dir, Limits::default()).await
    }

    /// Opens the store with other bounds for every image than the defaults.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_within(dir: impl AsRef<Path>, limits: Limits) -> Result<Self, StoreError> {
        let dir = dir.as_ref().to_owned();
        blocking(move || {
            let blobs = Blobs::open(&dir)?;
            sweep::sweep_opened(&blobs, &limits)?;
            let inner = Inner {
                blobs,
                limits,
                locks: KeyedLocks::default(),
                flights: Flights::default(),
                audiences: Audiences::default(),
                sweep_due: AtomicBool::new(false),
            };
            Ok(Self {
                inner: Arc::new(inner),
            })
        })
        .await
    }

    /// Returns the directory of the store.
    pub fn dir(&self) -> &Path {
        self.inner.blobs.dir()
    }

    /// Returns the image of this name when it is in the store: no network, no hashing, three small files. A local
    /// source that has changed since it was imported counts as not in the store.
    ///
    /// # Errors
    /// When the store is damaged.
    pub async fn resolve(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        let (inner, wanted) = (self.inner.clone(), reference.clone());
        let found = blocking(move || inner.find(&wanted)).await?;
        let Some(found) = found else {
            return Ok(None);
        };
        if found.image.rootfs.exists() {
            return Ok(Some(found.image));
        }
        // Made by an older version of our format.
        let image = self.with_rootfs(found, crate::no_progress()).await?;
        Ok(Some(image))
    }

    /// Lists all images, sorted by name. One that is damaged is left out, with a warning in the log.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageDetails>, StoreError> {
        let inner = self.inner.clone();
        blocking(move || {
            let found = inner.load_all()?;
            let usage = Usage::of(&found);
            let mut images: Vec<_> = found.into_iter().map(|found| found.details(&usage)).collect();
            images.sort_by(|a, b| a.image.reference.cmp(&b.image.reference));
            Ok(images)
        })
        .await
    }

    /// Tells all about an image of the store.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the store is damaged.
    pub async fn inspect(&self, reference: &Reference) -> Result<ImageDetails, StoreError> {
        let (inner, wanted) = (self.inner.clone(), reference.clone());
        blocking(move || {
            let named = Index::read(&inner.blobs)?.named(&wanted);
            let named = named.ok_or_else(|| StoreError::Unknown(wanted.to_string()))?;
            let usage = Usage::of(&inner.load_all()?);
            Ok(inner.load(&named)?.details(&usage))
        })
        .await
    }

    /// Drops a name, and what no other name needs. While somebody writes, unneeded files stay until that has ended.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the store cannot be written.
    pub async fn remove(&self, reference: &Reference) -> Result<(), StoreError> {
        let (inner, wanted) = (self.inner.clone(), reference.clone());
        blocking(move || {
            if !Index::update(&inner.blobs, |index| index.remove(&wanted))? {
                return Err(StoreError::Unknown(wanted.to_string()));
            }
            step::reached("image-unnamed").map_err(StoreError::at("write", inner.blobs.dir()))?;
            inner.sweep(Reach::Unneeded).map(drop)
        })
        .await
    }

    /// Deletes what no name needs, with what was left of pulls. Returns how many bytes of the disk that gave back; `None`
    /// when somebody writes: it happens then once that has ended.
    ///
    /// # Errors
    /// When the store is damaged, or cannot be written.
    pub async fn sweep(&self) -> Result<Option<u64>, StoreError> {
        let inner = self.inner.clone();
        blocking(move || inner.sweep(Reach::Partial)).await
    }

    /// Deletes what could not be deleted while somebody wrote, or what a refused image has left. What fails is tried
    /// again when something else is deleted.
    async fn sweep_after(&self, refused: bool) {
        if !self.inner.sweep_due.swap(false, Ordering::Relaxed) && !refused {
            return;
        }
        let inner = self.inner.clone();
        if let Err(error) = blocking(move || inner.sweep(Reach::Unneeded)).await {
            tracing::warn!(%error, "the image store is not swept");
        }
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the store cannot be written.
    pub async fn tag(&self, from: &Reference, to: &Reference) -> Result<Image, StoreError> {
        let (inner, from, to) = (self.inner.clone(), from.clone(), to.clone());
        blocking(move || {
            let _writing = ProcessLock::shared(&inner.blobs)?;
            let named = Index::read(&inner.blobs)?.named(&from);
            let named = named.ok_or_else(|| StoreError::Unknown(from.to_string()))?;
            let named = Named {
                reference: to,
                stamp: None,
                ..named
            };
            Index::update(&inner.blobs, |index| index.insert(named.clone()))?;
            Ok(inner.load(&named)?.image)
        })
        .await
    }

    /// Makes the root file system of an image unless it is there.
    async fn with_rootfs(&self, found: Found, progress: ProgressSink) -> Result<Image, StoreError> {
        let path = found.image.rootfs.clone();
        let _building = self.inner.locks.lock(path.display().to_string()).await;
        let inner = self.inner.clone();
        blocking(move || {
            let _writing = ProcessLock::shared(&inner.blobs)?;
            let Found {
                mut image,
                manifest,
                diff_ids,
                ..
            } = found;
            if !path.exists() {
                inner
                    .blobs
                    .make_rootfs(&image, (&manifest, &diff_ids), &inner.limits, &progress)?;
            }
            image.rootfs_size = blobs::file_size(&path)?;
            Ok(image)
        })
        .await
    }
}

/// An image with its manifest.
struct Found {
    image: Image,
    manifest: Manifest,
    /// Digests of the layers' archives, one for each layer.
    diff_ids: Vec<Digest>,
    platform: String,
}

impl Found {
    fn details(self, usage: &Usage) -> ImageDetails {
        let layer = |(blob, diff_id): (&Blob, &Digest)| LayerDetails {
            digest: blob.digest,
            size: blob.size,
            media_type: blob.media_type.clone(),
            diff_id: *diff_id,
            images: usage.images(&blob.digest),
        };
        let layers = self.manifest.layers.iter().zip(&self.diff_ids);
        ImageDetails {
            config_digest: self.manifest.config.digest,
            platform: self.platform,
            layers: layers.map(layer).collect(),
            unique_size: usage.unique(&self.image, &self.manifest),
            image: self.image,
        }
    }
}

impl Inner {
    fn find(&self, reference: &Reference) -> Result<Option<Found>, StoreError> {
        let Some(named) = Index::read(&self.blobs)?.named(reference) else {
            return Ok(None);
        };
        // A source that is gone cannot have changed: what was imported of it still runs.
        let changed =
            crate::source::stamp(reference).is_some_and(|stamp| named.stamp.as_ref() != Some(&stamp));
        if changed {
            Ok(None)
        } else {
            self.load(&named).map(Some)
        }
    }

    fn sweep(&self, reach: Reach) -> Result<Option<u64>, StoreError> {
        let swept = sweep::sweep_unreferenced(&self.blobs, &self.limits, reach)?;
        if swept.is_none() {
            self.sweep_due.store(true, Ordering::Relaxed);
        }
        Ok(swept)
    }

    /// Reads all images; damaged ones are left out, with a warning in the log.
    fn load_all(&self) -> Result<Vec<Found>, StoreError> {
        let mut all = Vec::new();
        for named in Index::read(&self.blobs)?.into_names() {
            match self.load(&named) {
                Ok(found) => all.push(found),
                Err(error) => tracing::warn!(name = %named.reference, %error, "image left out of the list"),
            }
        }
        Ok(all)
    }

    /// Reads manifest and configuration of a name in the index.
    fn load(&self, named: &Named) -> Result<Found, StoreError> {
        let digest = named.digest;
        let damaged = |source| StoreError::Manifest { digest, source };
        let json = self.blobs.read_small(&digest, &self.limits)?;
        let Document::Manifest(manifest) = manifest::parse(&json, &self.limits).map_err(damaged)? else {
            return Err(damaged(ManifestError::Ambiguous));
        };
        let config_digest = manifest.config.digest;
        let config = config::parse(&self.blobs.read_small(&config_digest, &self.limits)?);
        let config = config.map_err(|source| StoreError::Config {
            digest: config_digest,
            source,
        })?;
        let damaged = |source| StoreError::Config {
            digest: config_digest,
            source,
        };
        let diff_ids = config.layers(manifest.layers.len()).map_err(damaged)?;
        let rootfs = self.blobs.rootfs_path(&digest);
        let image = Image {
            reference: named.reference.clone(),
            digest,
            size: json.len() as u64 + manifest.blobs().map(|blob| blob.size).sum::<u64>(),
            created: config.created,
            config: config.config,
            rootfs_size: blobs::file_size(&rootfs).unwrap_or(0),
            rootfs,
        };
        Ok(Found {
            image,
            manifest,
            diff_ids,
            platform: format!("{}/{}", config.os, config.architecture),
        })
    }
}

/// Runs blocking work where it holds nobody up.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Cancelled.into()),
        },
    }
}
