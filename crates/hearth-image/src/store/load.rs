//! Images out of an archive that a client sends.

use std::io::Read;

use super::pull::{Fetched, PullError};
use super::{Image, ProcessLock, Store, StoreError, blocking};
use crate::source::{self, SourceError};
use crate::{ProgressSink, Reference};

/// What error messages call the archive: its path is where it was put down.
const ARCHIVE: &str = "the archive";

impl Store {
    /// Takes all images of an archive, as `docker save`, `podman save`, skopeo and [`Store::save`] write it, gzip or zstd
    /// around it or not, under the names that it gives them, or under `name` if it has one image only.
    ///
    /// # Errors
    /// [`PullError`]. Images before the one that is refused are in the store then, whole.
    pub async fn load(
        &self,
        archive: impl Read + Send + 'static,
        name: Option<Reference>,
        progress: ProgressSink,
    ) -> Result<Vec<Image>, PullError> {
        let loaded = self.load_all(Box::new(archive), name, progress).await;
        self.sweep_after(loaded.is_err()).await;
        loaded
    }

    async fn load_all(
        &self,
        archive: Box<dyn Read + Send>,
        name: Option<Reference>,
        progress: ProgressSink,
    ) -> Result<Vec<Image>, PullError> {
        let (inner, telling) = (self.inner.clone(), progress.clone());
        let (_writing, loaded) = blocking(move || {
            let writing = ProcessLock::shared(&inner.blobs)?;
            let file = inner.blobs.temporary()?;
            let opened = file.reopen().map_err(StoreError::at("write", file.path()))?;
            let place = (&inner.blobs, &inner.limits);
            let loaded = source::load((ARCHIVE.as_ref(), opened), archive, name, place, &telling);
            Ok::<_, PullError>((writing, loaded.map_err(failed)?))
        })
        .await?;
        let mut images = Vec::new();
        for (reference, (digest, size)) in loaded {
            let _turn = self.inner.locks.lock(reference.to_string()).await;
            let fetched = Fetched {
                digest,
                size,
                stamp: None,
            };
            images.push(self.finish(reference, fetched, progress.clone()).await?);
        }
        Ok(images)
    }
}

fn failed(source: SourceError) -> PullError {
    PullError::Source {
        reference: ARCHIVE.to_owned(),
        source,
    }
}
