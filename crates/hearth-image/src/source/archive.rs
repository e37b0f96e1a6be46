//! Imports from an archive as `docker save`, `skopeo copy docker-archive:` and `podman save` write it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::layer::manifest_json;
use super::{ArchiveFault, SourceError};
use crate::config;
use crate::digest::HashingReader;
use crate::manifest::{Blob, LAYER, ManifestError};
use crate::store::{BlobError, Blobs};
use crate::{Digest, Limits, ProgressSink};

/// Links from one name of an archive to another, as docker writes for equal layers.
const LINK_HOPS: usize = 8;

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// A file within the archive.
#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

struct Archive<'p> {
    path: &'p Path,
    file: File,
    members: HashMap<String, Member>,
}

/// Copies the archive's one image into the store.
pub(super) fn import(
    path: &Path,
    blobs: &Blobs,
    limits: &Limits,
    progress: &ProgressSink,
) -> Result<(Digest, u64), SourceError> {
    let mut archive = Archive::open(path, limits)?;
    let image = archive.image(limits)?;
    let json = archive.read_small(&image.config, limits)?;
    let config = blobs.put(&json)?;
    let manifest_fault = |source| SourceError::Manifest {
        path: path.to_owned(),
        source,
    };
    let parsed = config::parse(&json).map_err(|_| archive.fault(ArchiveFault::Manifest))?;
    let names = image.layers.unwrap_or_default();
    if names.len() > limits.layers || names.len() != parsed.diff_ids.len() {
        return Err(manifest_fault(ManifestError::Layers {
            count: names.len(),
            limit: limits.layers,
        }));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(&parsed.diff_ids) {
        let diff_id: Digest = diff_id
            .parse()
            .map_err(|_| manifest_fault(ManifestError::Digest(diff_id.clone())))?;
        let (digest, size) = archive.layer(name, diff_id, blobs, progress)?;
        layers.push((LAYER, digest, size));
    }
    let manifest = manifest_json((config, json.len() as u64), &layers);
    Ok((blobs.put(&manifest)?, manifest.len() as u64))
}

impl<'p> Archive<'p> {
    /// Notes where each file is; content is skipped by seeking.
    fn open(path: &'p Path, limits: &Limits) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let fault = |fault| SourceError::Archive {
            path: path.to_owned(),
            fault,
        };
        let mut file = File::open(path).map_err(read)?;
        let mut magic = [0; 4];
        let count = file.read(&mut magic).map_err(read)?;
        if magic[..count].starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(fault(ArchiveFault::Compressed));
        }
        file.rewind().map_err(read)?;
        let mut members = HashMap::new();
        let mut tar = tar::Archive::new(&file);
        for entry in tar.entries_with_seek().map_err(|_| fault(ArchiveFault::Tar))? {
            let entry = entry.map_err(|_| fault(ArchiveFault::Tar))?;
            let name = normal(&entry.path_bytes());
            let member = match entry.header().entry_type() {
                kind if kind.is_file() => Member::File {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                },
                kind if kind.is_symlink() || kind.is_hard_link() => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    // Symbolic links are relative to their directory, hard links to the archive's root.
                    let base = if kind.is_symlink() {
                        name.rsplit_once('/').map_or("", |(dir, _)| dir)
                    } else {
                        ""
                    };
                    Member::Link(normal(&[base.as_bytes(), &target].join(&b'/')))
                }
                _ => continue,
            };
            members.insert(name, member);
            // An image has two or three files per layer.
            if members.len() > limits.layers * 64 {
                return Err(fault(ArchiveFault::Limit("files")));
            }
        }
        Ok(Self { path, file, members })
    }

    fn fault(&self, fault: ArchiveFault) -> SourceError {
        SourceError::Archive {
            path: self.path.to_owned(),
            fault,
        }
    }

    fn image(&mut self, limits: &Limits) -> Result<SavedImage, SourceError> {
        let json = self.read_small("manifest.json", limits)?;
        let images: Vec<SavedImage> =
            serde_json::from_slice(&json).map_err(|_| self.fault(ArchiveFault::Manifest))?;
        let count = images.len();
        let mut images = images.into_iter();
        match (images.next(), images.next()) {
            (Some(image), None) => Ok(image),
            _ => Err(self.fault(ArchiveFault::Several(count))),
        }
    }

    fn locate(&self, name: &str) -> Result<(u64, u64), SourceError> {
        let missing = || self.fault(ArchiveFault::Missing(name.chars().take(200).collect()));
        let mut at = normal(name.as_bytes());
        for _ in 0..LINK_HOPS {
            match self.members.get(&at).ok_or_else(missing)? {
                Member::File { offset, size } => return Ok((*offset, *size)),
                Member::Link(target) => at = target.clone(),
            }
        }
        Err(missing())
    }

    fn reader(&mut self, name: &str) -> Result<(io::Take<&mut File>, u64), SourceError> {
        let (offset, size) = self.locate(name)?;
        let sought = self.file.seek(SeekFrom::Start(offset));
        sought.map_err(|source| SourceError::Read {
            path: self.path.to_owned(),
            source,
        })?;
        Ok(((&mut self.file).take(size), size))
    }

    fn read_small(&mut self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let path = self.path;
        let (reader, size) = match self.reader(name) {
            Err(SourceError::Archive { .. }) if name == "manifest.json" => {
                return Err(self.fault(ArchiveFault::Manifest));
            }
            other => other?,
        };
        let mut content = Vec::new();
        let mut reader = reader.take(limits.manifest_bytes);
        reader
            .read_to_end(&mut content)
            .map_err(|source| SourceError::Read {
                path: path.to_owned(),
                source,
            })?;
        if size > limits.manifest_bytes {
            return Err(self.fault(ArchiveFault::Limit("bytes of a manifest")));
        }
        if (content.len() as u64) < size {
            return Err(self.fault(ArchiveFault::Tar));
        }
        Ok(content)
    }

    /// Copies a layer. Most are uncompressed, and the blob's digest is then the one that the configuration names; a
    /// compressed one is first read for its digest.
    fn layer(
        &mut self,
        name: &str,
        diff_id: Digest,
        blobs: &Blobs,
        progress: &ProgressSink,
    ) -> Result<(Digest, u64), SourceError> {
        let path = self.path;
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let (mut reader, size) = self.reader(name)?;
        let mut magic = [0; 4];
        let filled = reader.read(&mut magic).map_err(read)?;
        let compressed = magic[..filled].starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd];
        let digest = if compressed {
            let mut hashing = HashingReader::new(self.reader(name)?.0);
            io::copy(&mut hashing, &mut io::sink()).map_err(read)?;
            hashing.finish().0
        } else {
            diff_id
        };
        let blob = Blob {
            digest,
            size,
            media_type: LAYER.to_owned(),
        };
        if !blobs.has(&blob) {
            let (mut reader, _) = self.reader(name)?;
            blobs
                .copy(&blob, &mut reader, progress)
                .map_err(|error| match error {
                    BlobError::Truncated { .. } => self.fault(ArchiveFault::Tar),
                    other => other.into(),
                })?;
        }
        Ok((digest, size))
    }
}

/// Makes names comparable: without `.`, `..` and doubled slashes. They are keys of a table, never paths of the host.
fn normal(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_an_archive_are_made_comparable() {
        for (raw, expected) in [
            ("./a//b", "a/b"),
            ("x/../layer.tar", "layer.tar"),
            ("../../x", "x"),
            ("/a", "a"),
        ] {
            assert_eq!(normal(raw.as_bytes()), expected);
        }
    }
}
