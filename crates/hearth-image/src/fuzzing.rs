//! The door for the fuzz targets in `fuzz/` to the parsers that are private. Compiled with `--cfg fuzzing` only.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::manifest::{self, Document, Platform};
use crate::rootfs::{self, Job, LayerBlob};
use crate::{ConfigError, Digest, ImageConfig, Limits, ManifestError, RootfsError, config};

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

fn blob(path: &Path) -> LayerBlob {
    LayerBlob {
        digest: Digest::of(path.as_os_str().as_encoded_bytes()),
        path: path.to_owned(),
    }
}
