//! Deletes what nothing needs: left-overs of a crash, and blobs and root file systems without a name.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::download::sweep_partial;
use super::{Blobs, Index, ProcessLock, StoreError};
use crate::manifest::{self, Document};
use crate::{Digest, Limits, step};

/// Blobs without a name are kept so long when a store is opened: a pull that was cut off may be taken up again.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Deletes what a crash has left, unless somebody writes: temporary files, root file systems without a name, and blobs
/// without a name that are a day old.
pub(super) fn sweep_opened(blobs: &Blobs, limits: &Limits) -> Result<(), StoreError> {
    let Some(_alone) = ProcessLock::try_exclusive(blobs)? else {
        return Ok(());
    };
    delete_unless(&blobs.dir().join("tmp"), |_, _| false)?;
    sweep_partial(blobs)?;
    match Needed::of(blobs, limits) {
        Ok(needed) => needed.delete_others(blobs, PATIENCE).map(drop),
        // Nothing is deleted on a guess, and the images that are sound are of use.
        Err(error) => {
            tracing::warn!(%error, "the image store is not swept");
            Ok(())
        }
    }
}

/// How much is deleted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// What no name needs.
    Unneeded,
    /// What came of blobs so far, too.
    Partial,
}

/// Deletes blobs and root file systems that no name needs. Returns how many bytes of the disk that gave back; `None` when
/// somebody writes, and nothing was deleted.
pub(super) fn sweep_unreferenced(
    blobs: &Blobs,
    limits: &Limits,
    reach: Reach,
) -> Result<Option<u64>, StoreError> {
    let Some(_alone) = ProcessLock::try_exclusive(blobs)? else {
        return Ok(None);
    };
    let mut freed = delete_unless(&blobs.dir().join("tmp"), |_, _| false)?;
    if reach == Reach::Partial {
        freed += delete_unless(&blobs.partial_dir(), |_, _| false)?;
    }
    freed += Needed::of(blobs, limits)?.delete_others(blobs, Duration::ZERO)?;
    Ok(Some(freed))
}

/// What names need.
struct Needed {
    /// Names of blobs.
    blobs: HashSet<String>,
    manifests: HashSet<Digest>,
}

impl Needed {
    fn of(blobs: &Blobs, limits: &Limits) -> Result<Self, StoreError> {
        let manifests: HashSet<Digest> = Index::read(blobs)?.digests().collect();
        let mut needed: HashSet<String> = HashSet::new();
        for digest in &manifests {
            collect(blobs, limits, digest, limits.index_depth, &mut needed)?;
        }
        Ok(Self {
            blobs: needed,
            manifests,
        })
    }

    fn delete_others(&self, blobs: &Blobs, patience: Duration) -> Result<u64, StoreError> {
        let is_young = |meta: &Metadata| {
            let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
            age.is_some_and(|age| age < patience)
        };
        let freed = delete_unless(&blobs.blob_dir(), |name, meta| {
            self.blobs.contains(name) || is_young(meta)
        })?;
        let rootfs: HashSet<_> = self
            .manifests
            .iter()
            .map(|digest| blobs.rootfs_path(digest))
            .collect();
        let dir = blobs.dir().join("rootfs");
        Ok(freed + delete_unless(&dir, |name, _| rootfs.contains(&dir.join(name)))?)
    }
}

/// Collects the names of a manifest's blobs. A damaged manifest is an error: nothing is deleted on a guess.
fn collect(
    blobs: &Blobs,
    limits: &Limits,
    digest: &Digest,
    depth: usize,
    needed: &mut HashSet<String>,
) -> Result<(), StoreError> {
    if !needed.insert(digest.hex()) {
        return Ok(());
    }
    let json = blobs.read_small(digest, limits)?;
    let parsed = manifest::parse(&json, limits);
    match parsed.map_err(|source| StoreError::Manifest {
        digest: *digest,
        source,
    })? {
        Document::Manifest(manifest) => needed.extend(manifest.blobs().map(|blob| blob.digest.hex())),
        // Another tool may have put an index for several platforms here, of which not all are present.
        Document::Index(entries) if depth > 0 => {
            for entry in entries.iter().filter(|entry| blobs.has(&entry.blob)) {
                collect(blobs, limits, &entry.blob.digest, depth - 1, needed)?;
            }
        }
        Document::Index(_) => {}
    }
    Ok(())
}

/// Returns how many bytes of the disk that gave back; a root file system that a machine has still is none.
fn delete_unless(dir: &Path, keep: impl Fn(&str, &Metadata) -> bool) -> Result<u64, StoreError> {
    let mut freed = 0;
    for entry in fs::read_dir(dir).map_err(StoreError::at("list", dir))? {
        let entry = entry.map_err(StoreError::at("list", dir))?;
        let path = entry.path();
        let meta = match entry.metadata() {
            // Somebody who only names and unnames, or a second sweep.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta.map_err(StoreError::at("read", &path))?,
        };
        let name = entry.file_name();
        if !keep(name.to_str().unwrap_or_default(), &meta) {
            fs::remove_file(&path).map_err(StoreError::at("delete", &path))?;
            if meta.nlink() == 1 {
                freed += meta.blocks() * 512;
            }
            step::reached("image-swept").map_err(StoreError::at("delete", &path))?;
        }
    }
    Ok(freed)
}
