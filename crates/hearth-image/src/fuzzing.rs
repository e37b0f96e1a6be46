//! The door for the fuzz targets in `fuzz/` to the parsers that are private. Compiled with `--cfg fuzzing` only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::manifest::{self, Document, Platform};
use crate::rootfs::{self, Budget, Job, LayerBlob, TarReader};
use crate::{
    ArchiveError, ConfigError, Digest, ImageConfig, Limits, ManifestError, RootfsError, config, erofs,
};

/// Parses a manifest or an index; of an index, chooses the entry for this host.
///
/// # Errors
/// It is refused.
pub fn manifest(json: &[u8], limits: &Limits) -> Result<(), ManifestError> {
    match manifest::parse(json, limits)? {
        Document::Manifest(manifest) => {
            assert!(manifest.layers.len() <= limits.layers);
            Ok(())
        }
        Document::Index(entries) => manifest::choose(&entries, Platform::of_this_host()).map(drop),
    }
}

/// Parses an image configuration.
///
/// # Errors
/// It is refused.
pub fn config(json: &[u8]) -> Result<ImageConfig, ConfigError> {
    config::parse(json).map(|parsed| parsed.config)
}

/// Writes an image configuration.
pub fn write_config(config: &ImageConfig) -> Vec<u8> {
    config.to_json("1970-01-01T00:00:00Z", "amd64", &[])
}

/// Builds a root file system of layers, the base layer first. Returns its file and its length in bytes.
///
/// # Errors
/// A layer is refused.
pub fn rootfs(layers: &[PathBuf], output: File, limits: Limits) -> Result<(File, u64), RootfsError> {
    let layers: Vec<_> = layers.iter().map(|path| blob(path)).collect();
    rootfs::build(Job {
        layers: &layers,
        output,
        output_path: Path::new("fuzz"),
        uuid: [0; 16],
        limits,
        progress: &|_, _| {},
    })
}

/// Reads a root file system back with a reader that shares no code with the writer.
///
/// # Errors
/// It is not a sound file system, in words.
pub fn read_back(image: &File) -> Result<usize, String> {
    erofs::read(image).map(|tree| tree.len())
}

/// An entry of an archive, as far as archives of other writers tell it the same way.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// The path as written.
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The content, holes as zeros.
    pub content: Vec<u8>,
}

/// Reads an archive whole.
///
/// # Errors
/// It is refused.
///
/// # Panics
/// An entry's content is not as long as the entry says.
pub fn archive(bytes: &[u8], limits: Limits) -> Result<Vec<Member>, ArchiveError> {
    let mut budget = Budget::new(limits, bytes.len() as u64);
    let mut reader = TarReader::new(bytes, &mut budget);
    let mut members = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        if entry.size <= limits.expansion_free_bytes {
            let read = reader.content().take(entry.size).read_to_end(&mut content);
            match read {
                Ok(_) if (content.len() as u64) < entry.size => break,
                Ok(_) => assert_eq!(content.len() as u64, entry.size, "{entry:?}"),
                Err(error) => return Err(reader.content_error(error)),
            }
        }
        members.push(Member {
            path: entry.path,
            link: entry.link,
            mode: entry.mode,
            owner: (entry.uid, entry.gid),
            mtime: entry.mtime,
            xattrs: entry.xattrs,
            content,
        });
    }
    Ok(members)
}

fn blob(path: &Path) -> LayerBlob {
    LayerBlob {
        digest: Digest::of(path.as_os_str().as_encoded_bytes()),
        path: path.to_owned(),
        diff_id: None,
    }
}
