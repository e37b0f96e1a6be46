//! Makes images of what is no image yet: one layer from an archive or a tree, with a given configuration.

use std::io::{self, Read};

use super::pull::{Fetched, PullError};
use super::{Image, ProcessLock, Store, StoreError, blocking};
use crate::config::ImageConfig;
use crate::source::{LayerError, write_layer};
use crate::{ProgressSink, Reference};

/// Says why no image could be made of an archive.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive could not be read, or the store not written.
    #[error("cannot make the layer of {reference}")]
    Layer {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The archive is no root file system.
    #[error(transparent)]
    Finish(#[from] PullError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Makes an image of one layer from an uncompressed tar archive, with this configuration, for this host's
    /// architecture, and gives it a name.
    ///
    /// # Errors
    /// [`ImportError`]; an older image of the name stays usable then.
    pub async fn import_layer_tar(
        &self,
        reference: &Reference,
        archive: impl Read + Send + 'static,
        config: ImageConfig,
        progress: ProgressSink,
    ) -> Result<Image, ImportError> {
        let imported = self.import_locked(reference, archive, config, progress).await;
        self.sweep_after(imported.is_err()).await;
        imported
    }

    async fn import_locked(
        &self,
        reference: &Reference,
        archive: impl Read + Send + 'static,
        config: ImageConfig,
        progress: ProgressSink,
    ) -> Result<Image, ImportError> {
        let _turn = self.inner.locks.lock(reference.to_string()).await;
        let (inner, name) = (self.inner.clone(), reference.to_string());
        let (_writing, fetched) = blocking(move || {
            let writing = ProcessLock::shared(&inner.blobs)?;
            let mut archive = archive;
            let written = write_layer(&inner.blobs, &config, &inner.limits, |layer| {
                io::copy(&mut archive, layer).map(drop)
            });
            let (digest, size) = written.map_err(|source| ImportError::Layer {
                reference: name,
                source,
            })?;
            Ok::<_, ImportError>((
                writing,
                Fetched {
                    digest,
                    size,
                    stamp: None,
                },
            ))
        })
        .await?;
        Ok(self.finish(reference.clone(), fetched, progress).await?)
    }
}
