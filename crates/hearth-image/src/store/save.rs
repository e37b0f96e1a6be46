//! Images into an archive: an OCI layout that is docker's own form as well, so that docker, podman, skopeo, umoci and
//! containerd read it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{Found, Index, ProcessLock, Store, StoreError, blocking};
use crate::manifest::{IMAGE_NAME, REF_NAME};
use crate::{Digest, Reference};

/// Images that are to be written into an archive. While it lives, nothing of the store is deleted.
pub struct Saving {
    documents: Vec<(&'static str, Vec<u8>)>,
    blobs: BTreeMap<Digest, (PathBuf, u64)>,
    _lock: ProcessLock,
}

impl Store {
    /// Gathers images of the store for an archive.
    ///
    /// # Errors
    /// [`StoreError::Unknown`], or when the store is damaged.
    pub async fn save(&self, references: &[Reference]) -> Result<Saving, StoreError> {
        let (inner, references) = (self.inner.clone(), references.to_vec());
        blocking(move || {
            let lock = ProcessLock::shared(&inner.blobs)?;
            let index = Index::read(&inner.blobs)?;
            let mut found = Vec::new();
            for reference in &references {
                let named = index.named(reference);
                let named = named.ok_or_else(|| StoreError::Unknown(reference.familiar()))?;
                found.push((inner.load(&named)?, named.size));
            }
            let mut blobs = BTreeMap::new();
            for (found, size) in &found {
                let path = |digest: &Digest| inner.blobs.blob_path(digest);
                blobs.insert(found.image.digest, (path(&found.image.digest), *size));
                let parts = found.manifest.blobs();
                blobs.extend(parts.map(|blob| (blob.digest, (path(&blob.digest), blob.size))));
            }
            Ok(Saving {
                documents: vec![
                    ("index.json", index_json(&found)),
                    ("manifest.json", docker_json(&found)),
                    ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
                ],
                blobs,
                _lock: lock,
            })
        })
        .await
    }
}

impl Saving {
    /// Writes the archive; the same images make the same bytes. Blocks.
    ///
    /// # Errors
    /// The output's, or a blob cannot be read.
    pub fn write(self, output: &mut dyn Write) -> io::Result<()> {
        let mut archive = Builder::new(output);
        for directory in ["blobs/", "blobs/sha256/"] {
            archive.append_data(
                &mut header(EntryType::Directory, 0o755, 0),
                directory,
                io::empty(),
            )?;
        }
        for (digest, (path, size)) in &self.blobs {
            let content = File::open(path)?.take(*size);
            let name = format!("blobs/sha256/{}", digest.hex());
            if content.get_ref().metadata()?.len() != *size {
                return Err(io::Error::other(format!(
                    "the blob {digest} of the store is damaged"
                )));
            }
            archive.append_data(&mut header(EntryType::Regular, 0o644, *size), name, content)?;
        }
        for (name, content) in &self.documents {
            let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
            archive.append_data(&mut header, name, &content[..])?;
        }
        archive.finish()
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}

/// The index of the layout: an entry for each name. A reference to a path of this host is no name elsewhere.
fn index_json(found: &[(Found, u64)]) -> Vec<u8> {
    let manifests: Vec<_> = found
        .iter()
        .map(|(found, size)| {
            let annotations = match &found.image.reference {
                Reference::Registry(name) => json!({
                    IMAGE_NAME: found.image.reference.to_string(),
                    REF_NAME: name.tag().unwrap_or("latest"),
                }),
                _ => json!({}),
            };
            json!({
                "mediaType": found.manifest.media_type,
                "digest": found.image.digest.to_string(),
                "size": size,
                "annotations": annotations,
            })
        })
        .collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    index.to_string().into_bytes()
}

/// Docker's list: an entry for each image, with all its names.
fn docker_json(found: &[(Found, u64)]) -> Vec<u8> {
    let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let mut images: BTreeMap<Digest, (&Found, Vec<String>)> = BTreeMap::new();
    for (found, _) in found {
        let (_, names) = images
            .entry(found.image.digest)
            .or_insert_with(|| (found, Vec::new()));
        match &found.image.reference {
            Reference::Registry(name) if name.tag().is_some() => names.push(found.image.reference.familiar()),
            _ => {}
        }
    }
    let list: Vec<_> = images
        .into_values()
        .map(|(found, names)| {
            let layers: Vec<_> = found
                .manifest
                .layers
                .iter()
                .map(|layer| path(&layer.digest))
                .collect();
            json!({
                "Config": path(&found.manifest.config.digest),
                "RepoTags": names,
                "Layers": layers,
            })
        })
        .collect();
    json!(list).to_string().into_bytes()
}
