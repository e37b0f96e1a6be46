//! Pulls: from a registry or a local source into the store, and on to a root file system.

use std::sync::Arc;

use futures_util::{FutureExt, TryStreamExt, stream};

use super::{BlobError, Download, Found, Image, Index, Named, ProcessLock, Store, StoreError, blocking};
use crate::config::{self, ConfigError};
use crate::manifest::{self, Blob, Document, Manifest, ManifestError, Platform};
use crate::reference::RegistryReference;
use crate::registry::{Access, Registry, RegistryError};
use crate::source::{self, SourceError};
use crate::{Digest, Phase, Progress, ProgressSink, Reference, step};

/// Layers that come at a time: enough to fill a line, few enough to be polite.
const PARALLEL: usize = 4;

/// Says why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry.
    #[error("cannot pull {reference}")]
    Registry {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// A local source.
    #[error("cannot import {reference}")]
    Source {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// A manifest or index that is not usable, or has nothing for this host.
    #[error("the manifest of {reference} is not usable")]
    Manifest {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A configuration that is not usable.
    #[error("the configuration of {reference} is not usable")]
    Config {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// A blob that did not come, or is another than it should be.
    #[error("a blob of {reference} is not usable")]
    Blob {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: BlobError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PullError {
    /// Tells whether trying again is in vain: the image itself is refused, so what came of it is of no use.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Registry { .. } | Self::Blob { .. } => false,
            Self::Store(error) => matches!(error, StoreError::Rootfs { .. } | StoreError::Config { .. }),
            Self::Source { .. } | Self::Manifest { .. } | Self::Config { .. } => true,
        }
    }

    /// Says what the user can do about it, in a sentence.
    pub fn remedy(&self) -> String {
        match self {
            Self::Registry { source, .. } => source.remedy(),
            Self::Source { source, .. } => source.remedy().to_owned(),
            Self::Manifest {
                source: ManifestError::Platform { .. },
                ..
            } => "choose an image that is built for this machine's architecture".to_owned(),
            Self::Manifest { .. } | Self::Config { .. } => {
                "ask the image's author for one that follows the OCI image specification".to_owned()
            }
            Self::Blob {
                source: BlobError::Store(_),
                ..
            }
            | Self::Store(StoreError::Io { .. }) => {
                "check the space and the permissions of the store's directory".to_owned()
            }
            Self::Blob { .. } => {
                "pull again; if it stays so, the registry's copy is damaged: push the image anew".to_owned()
            }
            Self::Store(StoreError::Rootfs { source, .. }) if source.is_the_images() => {
                "do not use this image; its author may have one that follows the OCI image specification"
                    .to_owned()
            }
            Self::Store(_) => "remove the image and pull it again".to_owned(),
        }
    }
}

/// A manifest that is in the store, with all its blobs.
pub(super) struct Fetched {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) stamp: Option<String>,
}

impl Store {
    /// Gets an image from its registry or local source, whether or not the store has one of this name, and makes its
    /// root file system. Blobs that the store has are not fetched again, and of others only what is missing. Safe to call
    /// from many tasks at once: those who want the same share one pull. When all who wait are dropped, so is the pull; what
    /// came of blobs so far stays for a later one.
    ///
    /// # Errors
    /// [`PullError`]; nothing half-written stays under a final name, and an older image of the name stays usable.
    pub async fn pull(
        &self,
        reference: &Reference,
        access: &Access,
        progress: ProgressSink,
    ) -> Result<Image, Arc<PullError>> {
        let (store, wanted, access) = (self.clone(), reference.clone(), access.clone());
        let route = (reference.to_string(), access.credentials.clone());
        let mut passenger = self.inner.flights.join(route, progress, move |progress| {
            let work = async move {
                let pulled = store.pull_alone(wanted, access, progress).await;
                let refused = pulled.as_ref().is_err_and(PullError::is_refusal);
                store.sweep_after(refused).await;
                pulled.map_err(Arc::new)
            };
            work.boxed()
        });
        passenger.landing().await
    }

    async fn pull_alone(
        &self,
        reference: Reference,
        access: Access,
        progress: ProgressSink,
    ) -> Result<Image, PullError> {
        let _turn = self.inner.locks.lock(reference.to_string()).await;
        let inner = self.inner.clone();
        let _writing = blocking(move || ProcessLock::shared(&inner.blobs)).await?;
        let fetched = match &reference {
            Reference::Registry(wanted) => self.fetch(wanted, &access, &progress).await?,
            local => self.import(local.clone(), progress.clone()).await?,
        };
        self.finish(reference, fetched, progress).await
    }

    /// Checks a fetched image, makes its root file system, and gives it its name: last, so that a name never leads to
    /// something that is not there.
    pub(super) async fn finish(
        &self,
        reference: Reference,
        fetched: Fetched,
        progress: ProgressSink,
    ) -> Result<Image, PullError> {
        let Fetched { digest, size, stamp } = fetched;
        let named = Named {
            reference,
            digest,
            size,
            stamp,
        };
        let (inner, loading) = (self.inner.clone(), named.clone());
        let found = blocking(move || inner.load(&loading)).await?;
        check_platform(&found)?;
        let image = self.with_rootfs(found, progress).await?;
        let inner = self.inner.clone();
        blocking(move || {
            Index::update(&inner.blobs, |index| index.insert(named))?;
            step::reached("pull-named").map_err(StoreError::at("write", inner.blobs.dir()))
        })
        .await?;
        Ok(image)
    }

    async fn import(&self, reference: Reference, progress: ProgressSink) -> Result<Fetched, PullError> {
        let inner = self.inner.clone();
        blocking(move || {
            // Before the import: a change while it runs must be seen later.
            let stamp = source::stamp(&reference);
            let (blobs, limits) = (&inner.blobs, &inner.limits);
            let imported = source::import(&reference, blobs, limits, &progress);
            let failed = |source| PullError::Source {
                reference: reference.to_string(),
                source,
            };
            let (digest, size) = imported.map_err(failed)?;
            Ok(Fetched { digest, size, stamp })
        })
        .await
    }

    async fn fetch(
        &self,
        reference: &RegistryReference,
        access: &Access,
        progress: &ProgressSink,
    ) -> Result<Fetched, PullError> {
        let failed = |source| PullError::Registry {
            reference: reference.to_string(),
            source,
        };
        let limits = &self.inner.limits;
        let registry = Registry::connect(reference, access, limits.manifest_bytes)
            .await
            .map_err(failed)?;
        let (json, manifest) = self.fetch_manifest(&registry, reference).await?;
        // The configuration first: an image for another platform is refused before its layers come.
        self.fetch_blob(&registry, reference, &manifest.config, &[], progress)
            .await?;
        self.check_config(reference, &manifest).await?;
        stream::iter(manifest.layers.iter().map(Ok))
            .try_for_each_concurrent(PARALLEL, |layer| async {
                let elsewhere = manifest::addresses(&json, layer);
                self.fetch_blob(&registry, reference, layer, &elsewhere, progress)
                    .await
            })
            .await?;
        let inner = self.inner.clone();
        let size = json.len() as u64;
        let digest = blocking(move || inner.blobs.put(&json)).await?;
        Ok(Fetched {
            digest,
            size,
            stamp: None,
        })
    }

    /// Descends through indexes to the manifest for this host.
    async fn fetch_manifest(
        &self,
        registry: &Registry,
        reference: &RegistryReference,
    ) -> Result<(Vec<u8>, Manifest), PullError> {
        let failed = |source| PullError::Registry {
            reference: reference.to_string(),
            source,
        };
        let refused = |source| PullError::Manifest {
            reference: reference.to_string(),
            source,
        };
        let limits = &self.inner.limits;
        let mut wanted = reference.digest();
        for _ in 0..=limits.index_depth {
            let json = registry.manifest(wanted).await.map_err(failed)?;
            match manifest::parse(&json, limits).map_err(refused)? {
                Document::Manifest(manifest) => return Ok((json, manifest)),
                Document::Index(entries) => {
                    let entry = manifest::choose(&entries, Platform::of_this_host()).map_err(refused)?;
                    wanted = Some(entry.blob.digest);
                }
            }
        }
        Err(refused(ManifestError::Nesting(limits.index_depth)))
    }

    async fn fetch_blob(
        &self,
        registry: &Registry,
        reference: &RegistryReference,
        blob: &Blob,
        elsewhere: &[String],
        progress: &ProgressSink,
    ) -> Result<(), PullError> {
        // Two images that share a layer fetch it once, and both hear of it.
        let seat = self.inner.audiences.join(blob.digest, progress.clone());
        let turn = self.inner.locks.lock(blob.digest.to_string()).await;
        let (inner, wanted, told) = (self.inner.clone(), blob.clone(), seat.audience().sink());
        let download = blocking(move || match inner.blobs.has(&wanted) {
            true => Ok(None),
            false => {
                let guards = (turn, ProcessLock::shared(&inner.blobs)?);
                Download::open(&inner.blobs, wanted, guards, told)
            }
        });
        let Some(download) = download.await? else {
            progress(Progress {
                blob: blob.digest,
                done: blob.size,
                total: blob.size,
                already: blob.size,
                phase: Phase::Stored,
            });
            return Ok(());
        };
        registry
            .blob(download, elsewhere)
            .await
            .map_err(|source| match source {
                RegistryError::Blob(source) => PullError::Blob {
                    reference: reference.to_string(),
                    source,
                },
                source => PullError::Registry {
                    reference: reference.to_string(),
                    source,
                },
            })
    }

    async fn check_config(
        &self,
        reference: &RegistryReference,
        manifest: &Manifest,
    ) -> Result<(), PullError> {
        let (inner, digest) = (self.inner.clone(), manifest.config.digest);
        let json = blocking(move || inner.blobs.read_small(&digest, &inner.limits)).await?;
        let parsed = config::parse(&json);
        let parsed = parsed.map_err(|source| PullError::Config {
            reference: reference.to_string(),
            source,
        })?;
        check_host(&reference.to_string(), &parsed.os, &parsed.architecture)
    }
}

fn check_platform(found: &Found) -> Result<(), PullError> {
    let (os, architecture) = found.platform.split_once('/').unwrap_or_default();
    check_host(&found.image.reference.to_string(), os, architecture)
}

fn check_host(reference: &str, os: &str, architecture: &str) -> Result<(), PullError> {
    let platform = Platform::of_this_host();
    if (os, architecture) == (platform.os, platform.architecture) {
        return Ok(());
    }
    let source = ManifestError::Platform {
        wanted: platform.to_string(),
        available: format!("{os}/{architecture}"),
    };
    Err(PullError::Manifest {
        reference: reference.to_owned(),
        source,
    })
}
