//! Which images have a blob. Counted anew from the manifests each time: a count on the disk could be wrong after a crash.

use std::collections::{HashMap, HashSet};

use super::{Found, Image};
use crate::Digest;
use crate::manifest::Manifest;

/// The images of each blob, by the digests of their manifests.
#[derive(Debug, Default)]
pub(super) struct Usage(HashMap<Digest, HashSet<Digest>>);

impl Usage {
    pub(super) fn of(found: &[Found]) -> Self {
        let mut usage = Self::default();
        for Found { image, manifest, .. } in found {
            for blob in manifest.blobs() {
                usage.0.entry(blob.digest).or_default().insert(image.digest);
            }
        }
        usage
    }

    /// Returns how many images have a blob; several names of one image count as one.
    pub(super) fn images(&self, blob: &Digest) -> usize {
        self.0.get(blob).map_or(0, HashSet::len)
    }

    /// Returns how many bytes would be deleted with the image's last name.
    pub(super) fn unique(&self, image: &Image, manifest: &Manifest) -> u64 {
        let mut counted = HashSet::new();
        let own = manifest
            .blobs()
            .filter(|blob| self.images(&blob.digest) <= 1 && counted.insert(blob.digest));
        let shared: u64 = manifest.blobs().map(|blob| blob.size).sum();
        // What is left of the size is the manifest itself.
        image.size.saturating_sub(shared) + own.map(|blob| blob.size).sum::<u64>()
    }
}
