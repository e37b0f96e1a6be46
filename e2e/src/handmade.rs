//! OCI layouts written by hand: what no tool writes, and the same image in another form.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::text::sha256;

/// OCI's media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's media type of an index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI's media type of a configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI's media type of a layer that is not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer: its media type, its blob, and the digest of its archive.
#[derive(Debug, Clone)]
pub struct Layer {
    /// As the manifest says it.
    pub media_type: String,
    /// As it is stored.
    pub blob: Vec<u8>,
    /// As the configuration says it.
    pub diff_id: String,
}

impl Layer {
    /// Makes a layer of an archive, as it is.
    pub fn plain(archive: impl Into<Vec<u8>>) -> Self {
        let blob = archive.into();
        Self {
            media_type: OCI_LAYER.to_owned(),
            diff_id: digest(&blob),
            blob,
        }
    }

    /// Makes a layer of an archive and what it is compressed to.
    pub fn of(media_type: &str, archive: &[u8], blob: Vec<u8>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            diff_id: digest(archive),
            blob,
        }
    }
}

/// A layout in a directory of its own.
#[derive(Debug)]
pub struct HandMade {
    directory: TempDir,
}

impl HandMade {
    /// Makes a layout without an index.
    ///
    /// # Errors
    /// No directory can be made.
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hearth-hand-").tempdir()?;
        fs::create_dir_all(directory.path().join("blobs/sha256"))?;
        fs::write(
            directory.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        Ok(Self { directory })
    }

    /// Makes a layout of one image.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn image(layers: &[Layer]) -> Result<Self> {
        let made = Self::new()?;
        let manifest = made.manifest(layers, &[OCI_MANIFEST, OCI_CONFIG])?;
        made.index(&[manifest])?;
        Ok(made)
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the reference of its one image.
    pub fn reference(&self) -> String {
        format!("oci:{}", self.path().display())
    }

    /// Returns the file of a blob.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.path().join("blobs/sha256").join(hex)
    }

    /// Stores a blob, and returns its descriptor.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Value> {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
    }

    /// Stores an image's layers, its configuration and its manifest, which is of the first of these media types, the
    /// configuration of the second. Returns the manifest's descriptor.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub fn manifest(&self, layers: &[Layer], [manifest, config]: &[&str; 2]) -> Result<Value> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(config, configuration.to_string().as_bytes())?;
        let layers = layers
            .iter()
            .map(|layer| self.blob(&layer.media_type, &layer.blob))
            .collect::<Result<Vec<_>>>()?;
        self.manifest_of(manifest, &config, &layers)
    }

    /// Stores a manifest of descriptors.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub fn manifest_of(&self, media_type: &str, config: &Value, layers: &[Value]) -> Result<Value> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config,
            "layers": layers,
        });
        self.blob(media_type, manifest.to_string().as_bytes())
    }

    /// Writes the index.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub fn index(&self, manifests: &[Value]) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        Ok(fs::write(self.path().join("index.json"), index.to_string())?)
    }
}

/// Returns the digest of bytes as images write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// Compresses bytes to one gzip member.
///
/// # Panics
/// Never: memory does not fail.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("memory can be written")
}

/// Compresses bytes to one zstd frame.
///
/// # Panics
/// Never: memory does not fail.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).expect("memory can be written")
}

/// Reads the layers of an image that umoci has made, as its manifest lists them.
///
/// # Errors
/// It is none.
pub fn layers_of(layout: &Path, tag: &str) -> Result<Vec<Layer>> {
    let read = |digest: &Value| -> Result<Vec<u8>> {
        let digest = digest.as_str().context("a digest is text")?;
        let hex = digest.trim_start_matches("sha256:");
        Ok(fs::read(layout.join("blobs/sha256").join(hex))?)
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let entries = index["manifests"].as_array().context("an index lists")?;
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let entry = entries.iter().find(named).context("no such image")?;
    let manifest: Value = serde_json::from_slice(&read(&entry["digest"])?)?;
    let config: Value = serde_json::from_slice(&read(&manifest["config"]["digest"])?)?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().context("diff_ids")?;
    let layers = manifest["layers"].as_array().context("a manifest has layers")?;
    layers
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| {
            Ok(Layer {
                media_type: layer["mediaType"].as_str().unwrap_or_default().to_owned(),
                blob: read(&layer["digest"])?,
                diff_id: diff_id.as_str().unwrap_or_default().to_owned(),
            })
        })
        .collect()
}
