//! Imports from an OCI image layout.

use std::fs::File;
use std::io;
use std::path::Path;

use super::SourceError;
use crate::manifest::{self, Blob, Document, IndexEntry, Manifest, ManifestError, Platform};
use crate::store::{Blobs, read_bounded};
use crate::{Digest, Limits, ProgressSink};

/// Copies the image of this name, or the only one, into the store.
pub(super) fn import(
    dir: &Path,
    tag: Option<&str>,
    blobs: &Blobs,
    limits: &Limits,
    progress: &ProgressSink,
) -> Result<(Digest, u64), SourceError> {
    let entry = find(dir, tag, limits)?;
    let (json, manifest) = descend(dir, entry.blob, limits)?;
    for blob in manifest.blobs() {
        if !blobs.has(blob) {
            let path = blob_path(dir, &blob.digest);
            let mut file = File::open(&path).map_err(|source| SourceError::Read { path, source })?;
            blobs.copy(blob, &mut file, progress)?;
        }
    }
    Ok((blobs.put(&json)?, json.len() as u64))
}

fn blob_path(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

fn find(dir: &Path, tag: Option<&str>, limits: &Limits) -> Result<IndexEntry, SourceError> {
    let path = dir.join("index.json");
    let json = read_bounded(&path, limits.manifest_bytes).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SourceError::NoLayout(dir.to_owned()),
        _ => SourceError::Read {
            path: path.clone(),
            source,
        },
    })?;
    let refused = |source| SourceError::Manifest {
        path: path.clone(),
        source,
    };
    let Document::Index(mut entries) = manifest::parse(&json, limits).map_err(refused)? else {
        return Err(refused(ManifestError::Ambiguous));
    };
    let names = || {
        entries
            .iter()
            .map(|entry| entry.name.as_deref().unwrap_or("(no name)"))
    };
    let available = names().collect::<Vec<_>>().join(", ");
    let dir = dir.to_owned();
    match tag {
        Some(tag) => {
            let found = entries
                .into_iter()
                .find(|entry| entry.name.as_deref() == Some(tag));
            found.ok_or_else(|| SourceError::UnknownTag {
                dir,
                tag: tag.to_owned(),
                available,
            })
        }
        None if entries.len() == 1 => Ok(entries.swap_remove(0)),
        None => Err(SourceError::Several { dir, available }),
    }
}

/// Descends through indexes to the manifest for this host.
fn descend(dir: &Path, mut blob: Blob, limits: &Limits) -> Result<(Vec<u8>, Manifest), SourceError> {
    let refused = |source| SourceError::Manifest {
        path: dir.to_owned(),
        source,
    };
    for _ in 0..=limits.index_depth {
        let json = read_checked(dir, &blob, limits)?;
        match manifest::parse(&json, limits).map_err(refused)? {
            Document::Manifest(manifest) => return Ok((json, manifest)),
            Document::Index(entries) => {
                blob = manifest::choose(&entries, Platform::of_this_host())
                    .map_err(refused)?
                    .blob
                    .clone();
            }
        }
    }
    Err(refused(ManifestError::Nesting(limits.index_depth)))
}

fn read_checked(dir: &Path, blob: &Blob, limits: &Limits) -> Result<Vec<u8>, SourceError> {
    let path = blob_path(dir, &blob.digest);
    let read = read_bounded(&path, limits.manifest_bytes);
    let json = read.map_err(|source| SourceError::Read { path, source })?;
    let actual = Digest::of(&json);
    if actual != blob.digest {
        return Err(crate::store::BlobError::WrongDigest {
            expected: blob.digest,
            actual,
        }
        .into());
    }
    Ok(json)
}
