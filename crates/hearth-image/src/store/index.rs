//! The index of the store: which name is which manifest.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};

use super::{Blobs, ProcessLock, StoreError};
use crate::manifest::REF_NAME as NAME;
use crate::{Digest, Reference};

const STAMP: &str = "org.hearth.source.stamp";

/// A name in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) reference: Reference,
    pub(super) digest: Digest,
    /// Bytes of the manifest.
    pub(super) size: u64,
    /// What a local source looked like when it was imported; see `crate::source::stamp`.
    pub(super) stamp: Option<String>,
}

/// The index in memory. What other tools put there under names that are none to us is kept, and not listed.
#[derive(Debug, Clone)]
pub(super) struct Index {
    entries: Vec<Descriptor>,
}

impl Index {
    /// Reads the index; a missing one is empty.
    pub(super) fn read(blobs: &Blobs) -> Result<Self, StoreError> {
        let path = blobs.dir().join("index.json");
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { entries: Vec::new() });
            }
            Err(source) => {
                return Err(StoreError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
        };
        let index: ImageIndex =
            serde_json::from_slice(&content).map_err(|source| StoreError::Index { path, source })?;
        Ok(Self {
            entries: index.manifests().clone(),
        })
    }

    /// Changes the index, alone. Returns what `change` does.
    pub(super) fn update<T>(blobs: &Blobs, change: impl FnOnce(&mut Self) -> T) -> Result<T, StoreError> {
        // Its temporary file must not be swept away.
        let _writing = ProcessLock::shared(blobs)?;
        let _turn = ProcessLock::index(blobs)?;
        let mut index = Self::read(blobs)?;
        let result = change(&mut index);
        index.write(blobs)?;
        Ok(result)
    }

    fn write(self, blobs: &Blobs) -> Result<(), StoreError> {
        let path = blobs.dir().join("index.json");
        let index = ImageIndexBuilder::default()
            .schema_version(oci_spec::image::SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(self.entries)
            .build()
            .map_err(std::io::Error::other)
            .and_then(|index| serde_json::to_vec_pretty(&index).map_err(std::io::Error::other));
        let content = index.map_err(|source| StoreError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        blobs.replace(&path, &content)
    }

    pub(super) fn into_names(self) -> impl Iterator<Item = Named> {
        self.entries.into_iter().filter_map(|entry| named(&entry))
    }

    /// Finds a name. One that ends in a digest is found under any name of that registry and repository.
    pub(super) fn named(&self, reference: &Reference) -> Option<Named> {
        let names = || self.entries.iter().filter_map(named);
        names().find(|named| named.reference == *reference).or_else(|| {
            let Reference::Registry(wanted) = reference else {
                return None;
            };
            let same = |named: &Named| match &named.reference {
                Reference::Registry(known) => {
                    wanted.digest() == Some(named.digest)
                        && (known.registry(), known.repository()) == (wanted.registry(), wanted.repository())
                }
                _ => false,
            };
            names().find(same).map(|named| Named {
                reference: reference.clone(),
                ..named
            })
        })
    }

    pub(super) fn insert(&mut self, named: Named) {
        self.remove(&named.reference);
        let mut annotations = HashMap::from([(NAME.to_owned(), named.reference.to_string())]);
        annotations.extend(named.stamp.map(|stamp| (STAMP.to_owned(), stamp)));
        // The text of our digest is always one of theirs.
        if let Ok(digest) = named.digest.to_string().parse::<oci_spec::image::Digest>() {
            let mut descriptor = Descriptor::new(MediaType::ImageManifest, named.size, digest);
            descriptor.set_annotations(Some(annotations));
            self.entries.push(descriptor);
        }
    }

    pub(super) fn remove(&mut self, reference: &Reference) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|entry| named(entry).is_none_or(|named| named.reference != *reference));
        self.entries.len() < before
    }

    /// Returns the digests of everything in the index, under whatever name.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> {
        self.entries
            .iter()
            .filter_map(|entry| entry.digest().to_string().parse().ok())
    }
}

fn named(entry: &Descriptor) -> Option<Named> {
    let annotations = entry.annotations().as_ref()?;
    Some(Named {
        reference: annotations.get(NAME)?.parse().ok()?,
        digest: entry.digest().to_string().parse().ok()?,
        size: entry.size(),
        stamp: annotations.get(STAMP).cloned(),
    })
}
