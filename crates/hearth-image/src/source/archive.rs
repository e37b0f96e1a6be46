//! Imports from archives: what `docker save`, `podman save` and `skopeo copy` write, in docker's own form or as an OCI
//! layout. One that is both, as docker has written them since version 25, is taken as a layout.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::layer::manifest_json;
use super::layout::{self, INDEX, Place};
use super::{ArchiveFault, SourceError};
use crate::config;
use crate::digest::HashingReader;
use crate::manifest::{Blob, IndexEntry, LAYER, ManifestError};
use crate::rootfs::{self, ArchiveError, Budget, CountHandle, Kind, TarReader};
use crate::store::{BlobError, Blobs};
use crate::{Digest, Limits, ProgressSink, Reference};

/// Links from one name of an archive to another, as docker writes for equal layers.
const LINK_HOPS: usize = 8;

/// The file that lists the images in docker's own form.
const MANIFEST: &str = "manifest.json";

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// One image of an archive.
#[derive(Debug)]
pub(super) struct Saved {
    /// Names that the archive gives it, as far as they are some.
    pub(super) names: Vec<Reference>,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Docker(DockerImage),
    Layout(Blob),
}

/// A file within the archive.
#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// An archive whose files are known; content is passed over by seeking.
pub(super) struct Archive {
    path: PathBuf,
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
    let images = archive.images(limits)?;
    let [image] = &images[..] else {
        return Err(archive.fault(ArchiveFault::Several(images.len())));
    };
    archive.copy(image, blobs, limits, progress)
}

/// Notes where each file of an archive is.
fn members<R: Read>(mut reader: TarReader<'_, R>) -> Result<HashMap<String, Member>, ArchiveError> {
    let mut members = HashMap::new();
    while let Some(entry) = reader.next()? {
        reader.budget().take_memory(1, entry.memory())?;
        let name = normal(&entry.path);
        let member = match (entry.kind, reader.content_offset()) {
            (Kind::Regular, Some(offset)) => Member::File {
                offset,
                size: entry.size,
            },
            // Symbolic links are relative to their directory, hard links to the archive's root.
            (Kind::Symlink, _) => {
                let base = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                Member::Link(normal(&[base.as_bytes(), &entry.link].join(&b'/')))
            }
            (Kind::HardLink, _) => Member::Link(normal(&entry.link)),
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// Reads an archive and writes it down, within the bounds of what so many compressed bytes may become.
struct Tee<'t, R> {
    input: R,
    compressed: CountHandle,
    output: &'t mut dyn Write,
    written: u64,
    limits: &'t Limits,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.written += count as u64;
        let limit = self.limits.expanded(self.compressed.get());
        if self.written > limit {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it goes over the limit of {limit} bytes"),
            ));
        }
        self.output.write_all(&buffer[..count])?;
        Ok(count)
    }
}

impl Archive {
    /// Opens an archive of the host.
    fn open(path: &Path, limits: &Limits) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        if rootfs::starts_compressed(&mut file).map_err(read)? {
            return Err(SourceError::Archive {
                path: path.to_owned(),
                fault: ArchiveFault::Compressed,
            });
        }
        file.rewind().map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut budget = Budget::new(*limits, length);
        let members = members(TarReader::seeking(&mut file, &mut budget));
        Self::new(path, file, members)
    }

    /// Takes an archive from a stream, gzip or zstd around it or not, and puts it down in a file, which is empty. `path` is
    /// for messages.
    pub(super) fn receive(
        path: &Path,
        archive: Box<dyn Read + Send>,
        file: File,
        limits: &Limits,
    ) -> Result<Self, SourceError> {
        let read = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let (input, compressed) = rootfs::decompressed(archive).map_err(read)?;
        let mut output = BufWriter::with_capacity(256 << 10, &file);
        let mut input = Tee {
            input,
            compressed,
            output: &mut output,
            written: 0,
            limits,
        };
        let mut budget = Budget::new(*limits, u64::MAX);
        let members = members(TarReader::new(&mut input, &mut budget));
        if members.is_ok() {
            // What fills up the last record: whoever sends it is to get rid of it.
            io::copy(&mut input.input, &mut io::sink()).map_err(read)?;
        }
        output.flush().map_err(read)?;
        drop(output);
        Self::new(path, file, members)
    }

    fn new(
        path: &Path,
        file: File,
        members: Result<HashMap<String, Member>, ArchiveError>,
    ) -> Result<Self, SourceError> {
        let path = path.to_owned();
        match members {
            Ok(members) => Ok(Self { path, file, members }),
            Err(source) => Err(SourceError::Tar { path, source }),
        }
    }

    /// Lists the images; an archive without any is none.
    pub(super) fn images(&mut self, limits: &Limits) -> Result<Vec<Saved>, SourceError> {
        if self.members.contains_key(INDEX) {
            let entries = layout::entries(self, limits)?;
            return Ok(entries.into_iter().map(of_layout).collect());
        }
        if !self.members.contains_key(MANIFEST) {
            return Err(self.fault(ArchiveFault::Manifest));
        }
        let json = self.read_small(MANIFEST, limits)?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&json).map_err(|_| self.fault(ArchiveFault::Manifest))?;
        Ok(images.into_iter().map(of_docker).collect())
    }

    /// Copies one of the images into the store. Returns digest and length of its manifest.
    pub(super) fn copy(
        &mut self,
        image: &Saved,
        blobs: &Blobs,
        limits: &Limits,
        progress: &ProgressSink,
    ) -> Result<(Digest, u64), SourceError> {
        match &image.form {
            Form::Layout(blob) => layout::copy(self, blob.clone(), blobs, limits, progress),
            Form::Docker(image) => self.copy_docker(image, blobs, limits, progress),
        }
    }

    fn copy_docker(
        &mut self,
        image: &DockerImage,
        blobs: &Blobs,
        limits: &Limits,
        progress: &ProgressSink,
    ) -> Result<(Digest, u64), SourceError> {
        let json = self.read_small(&image.config, limits)?;
        let path = self.path.clone();
        let refused = |source| SourceError::Config {
            path: path.clone(),
            source,
        };
        let parsed = config::parse(&json).map_err(refused)?;
        let names = image.layers.as_deref().unwrap_or_default();
        if names.len() > limits.layers {
            return Err(SourceError::Manifest {
                path: path.clone(),
                source: ManifestError::Layers {
                    count: names.len(),
                    limit: limits.layers,
                },
            });
        }
        let diff_ids = parsed.layers(names.len()).map_err(refused)?;
        let config = blobs.put(&json)?;
        let mut layers = Vec::new();
        for (name, diff_id) in names.iter().zip(diff_ids) {
            let (digest, size) = self.layer(name, diff_id, blobs, progress)?;
            layers.push((LAYER, digest, size));
        }
        let manifest = manifest_json((config, json.len() as u64), &layers);
        Ok((blobs.put(&manifest)?, manifest.len() as u64))
    }

    fn fault(&self, fault: ArchiveFault) -> SourceError {
        SourceError::Archive {
            path: self.path.clone(),
            fault,
        }
    }

    fn unreadable(&self, source: io::Error) -> SourceError {
        SourceError::Read {
            path: self.path.clone(),
            source,
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
        if let Err(source) = self.file.seek(SeekFrom::Start(offset)) {
            return Err(self.unreadable(source));
        }
        Ok(((&mut self.file).take(size), size))
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
        let path = self.path.clone();
        let read = |source| SourceError::Read {
            path: path.clone(),
            source,
        };
        let (mut reader, size) = self.reader(name)?;
        let digest = if rootfs::starts_compressed(&mut reader).map_err(read)? {
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

impl Place for Archive {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_small(&mut self, name: &str, limits: &Limits) -> Result<Vec<u8>, SourceError> {
        let (mut reader, size) = self.reader(name)?;
        if size > limits.manifest_bytes {
            return Err(self.fault(ArchiveFault::Limit("bytes of a manifest or configuration")));
        }
        let mut content = Vec::new();
        let read = reader.read_to_end(&mut content);
        read.map_err(|source| self.unreadable(source))?;
        if (content.len() as u64) < size {
            return Err(self.fault(ArchiveFault::Tar));
        }
        Ok(content)
    }

    fn open(&mut self, name: &str) -> Result<Box<dyn Read + '_>, SourceError> {
        Ok(Box::new(self.reader(name)?.0))
    }
}

/// An entry is named in full by containerd's annotation or by podman's way with OCI's; skopeo writes a tag alone.
fn of_layout(entry: IndexEntry) -> Saved {
    let whole = entry.name.filter(|name| name.contains(['/', ':']));
    let name = entry.image_name.or(whole);
    Saved {
        names: name.and_then(|name| named(&name)).into_iter().collect(),
        form: Form::Layout(entry.blob),
    }
}

fn of_docker(image: DockerImage) -> Saved {
    let tags = image.repo_tags.as_deref().unwrap_or_default();
    Saved {
        names: tags.iter().filter_map(|tag| named(tag)).collect(),
        form: Form::Docker(image),
    }
}

/// Only names of registries are taken: a path of whoever saved the image is none of this host.
fn named(text: &str) -> Option<Reference> {
    let reference = text.parse().ok()?;
    matches!(reference, Reference::Registry(_)).then_some(reference)
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

    #[test]
    fn only_whole_names_of_registries_are_names() {
        let image = |image_name: Option<&str>, name: Option<&str>| {
            let entry = IndexEntry {
                blob: Blob {
                    digest: Digest::of(b""),
                    size: 0,
                    media_type: String::new(),
                },
                platform: None,
                name: name.map(str::to_owned),
                image_name: image_name.map(str::to_owned),
            };
            let names = of_layout(entry).names;
            names.first().map(Reference::to_string)
        };
        let busybox = Some("docker.io/library/busybox:1".to_owned());
        assert_eq!(image(Some("docker.io/library/busybox:1"), Some("1")), busybox);
        assert_eq!(image(None, Some("busybox:1")), busybox);
        assert_eq!(image(None, Some("latest")), None);
        assert_eq!(image(None, Some("dir:/etc")), None);
    }
}
