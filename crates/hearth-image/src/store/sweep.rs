//! Deletes what nothing needs: left-overs of a crash, and blobs and root file systems without a name.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::download::sweep_partial;
use super::{Blobs, Index, ProcessLock, StoreError};
use crate::manifest::{self, Document};
use crate::{Digest, Limits, step};

/// Deletes temporary files, unless somebody writes one.
pub(super) fn sweep_temporary(blobs: &Blobs) -> Result<(), StoreError> {
    match ProcessLock::try_exclusive(blobs)? {
        Some(_alone) => {
            sweep_partial(blobs)?;
            delete_unless(&blobs.dir().join("tmp"), |_| false)
        }
        None => Ok(()),
    }
}

/// Deletes blobs and root file systems that no name needs, unless somebody writes.
pub(super) fn sweep_unreferenced(blobs: &Blobs, limits: &Limits) -> Result<(), StoreError> {
    let Some(_alone) = ProcessLock::try_exclusive(blobs)? else {
        return Ok(());
    };
    let manifests: HashSet<Digest> = Index::read(blobs)?.digests().collect();
    let mut needed: HashSet<String> = HashSet::new();
    for digest in &manifests {
        collect(blobs, limits, digest, limits.index_depth, &mut needed)?;
    }
    delete_unless(&blobs.blob_dir(), |name| needed.contains(name))?;
    let rootfs: HashSet<_> = manifests.iter().map(|digest| blobs.rootfs_path(digest)).collect();
    let dir = blobs.dir().join("rootfs");
    delete_unless(&dir, |name| rootfs.contains(&dir.join(name)))
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

fn delete_unless(dir: &Path, keep: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    let failed = |action, path: &Path, source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(|source| failed("list", dir, source))? {
        let path = entry.map_err(|source| failed("list", dir, source))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if !keep(name) {
            fs::remove_file(&path).map_err(|source| failed("delete", &path, source))?;
            step::reached("image-swept").map_err(|source| failed("delete", &path, source))?;
        }
    }
    Ok(())
}
