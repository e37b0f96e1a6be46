//! Imports from an OCI image layout, in a directory or in an archive.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::SourceError;
use crate::manifest::{self, Blob, Document, IndexEntry, Manifest, ManifestError, Platform};
use crate::store::{BlobError, Blobs, read_bounded};
use crate::{Digest, Limits, ProgressSink};

/// What the files of a layout are read from.
pub(super) trait Place {
    /// Returns its path, for messages.
    fn path(&self) -> &Path;

    /// Reads a file of at most [`Limits::manifest_bytes`].
    fn read_small(&mut self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError>;

    /// Opens a file for reading it once.
    fn open(&mut self, name: &str) -> Result<Box<dyn Read + '_>, SourceError>;
}

/// A layout in a directory of the host. Names are the constants of this module and digests.
pub(super) struct Directory(pub(super) PathBuf);

impl Place for Directory {
    fn path(&self) -> &Path {
        &self.0
    }

    fn read_small(&mut self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let path = self.0.join(name);
        read_bounded(&path, limits.manifest_bytes).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound if name == INDEX => SourceError::NoLayout(self.0.clone()),
            _ => SourceError::Read { path, source },
        })
    }

    fn open(&mut self, name: &str) -> Result<Box<dyn Read + '_>, SourceError> {
        let path = self.0.join(name);
        match File::open(&path) {
            Ok(file) => Ok(Box::new(file)),
            Err(source) => Err(SourceError::Read { path, source }),
        }
    }
}

/// The file that lists a layout's images.
pub(super) const INDEX: &str = "index.json";

/// Copies the image of this name, or the only one, into the store.
pub(super) fn import(
    dir: &Path,
    tag: Option<&str>,
    blobs: &Blobs,
    limits: &Limits,
    progress: &ProgressSink,
) -> Result<(Digest, u64), SourceError> {
    let mut place = Directory(dir.to_owned());
    let entry = find(entries(&mut place, limits)?, dir, tag)?;
    copy(&mut place, entry.blob, blobs, limits, progress)
}

/// Lists the images of a layout.
pub(super) fn entries(place: &mut dyn Place, limits: &Limits) -> Result<Vec<IndexEntry>, SourceError> {
    let json = place.read_small(INDEX, limits)?;
    let refused = |source| SourceError::Manifest {
        path: place.path().join(INDEX),
        source,
    };
    match manifest::parse(&json, limits).map_err(refused)? {
        Document::Index(entries) => Ok(entries),
        Document::Manifest(_) => Err(refused(ManifestError::Ambiguous)),
    }
}

/// Copies what an entry of the index leads to, for this host.
pub(super) fn copy(
    place: &mut dyn Place,
    blob: Blob,
    blobs: &Blobs,
    limits: &Limits,
    progress: &ProgressSink,
) -> Result<(Digest, u64), SourceError> {
    let (json, manifest) = descend(place, blob, limits)?;
    for blob in manifest.blobs() {
        if !blobs.has(blob) {
            let mut content = place.open(&blob_name(&blob.digest))?;
            blobs.copy(blob, &mut content, progress)?;
        }
    }
    Ok((blobs.put(&json)?, json.len() as u64))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn find(mut entries: Vec<IndexEntry>, dir: &Path, tag: Option<&str>) -> Result<IndexEntry, SourceError> {
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
fn descend(
    place: &mut dyn Place,
    mut blob: Blob,
    limits: &Limits,
) -> Result<(Vec<u8>, Manifest), SourceError> {
    for _ in 0..=limits.index_depth {
        let json = read_checked(place, &blob, limits)?;
        let refused = |source| SourceError::Manifest {
            path: place.path().to_owned(),
            source,
        };
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
    Err(SourceError::Manifest {
        path: place.path().to_owned(),
        source: ManifestError::Nesting(limits.index_depth),
    })
}

fn read_checked(place: &mut dyn Place, blob: &Blob, limits: &Limits) -> Result<Vec<u8>, SourceError> {
    let json = place.read_small(&blob_name(&blob.digest), limits)?;
    let (digest, expected, got) = (blob.digest, blob.size, json.len() as u64);
    match got.cmp(&expected) {
        std::cmp::Ordering::Equal => {}
        std::cmp::Ordering::Greater => return Err(BlobError::TooLong { digest, expected }.into()),
        std::cmp::Ordering::Less => {
            return Err(BlobError::Truncated {
                digest,
                expected,
                got,
            }
            .into());
        }
    }
    let actual = Digest::of(&json);
    if actual != blob.digest {
        return Err(BlobError::WrongDigest {
            expected: digest,
            actual,
        }
        .into());
    }
    Ok(json)
}
