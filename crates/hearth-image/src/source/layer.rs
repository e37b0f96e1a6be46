//! Makes a one-layer image from an archive that is written into it.

use std::io::{self, BufWriter, Write};

use crate::Digest;
use crate::Limits;
use crate::config::ImageConfig;
use crate::digest::HashingWriter;
use crate::manifest::{CONFIG, LAYER_ZSTD, MANIFEST, Platform};
use crate::store::{Blobs, StoreError};

/// The fastest level: it takes a third of the time that hashing takes, and halves a Debian tree.
const LEVEL: i32 = 1;

/// Says why no layer could be made.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive could not be read, or the layer not written.
    #[error("cannot read the files, or cannot write the layer")]
    Copy(#[source] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Compresses what `write` writes, an uncompressed archive, into a layer, and makes configuration and manifest for
/// it. Returns digest and length of the manifest.
pub(crate) fn write_layer(
    blobs: &Blobs,
    config: &ImageConfig,
    limits: &Limits,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(Digest, u64), LayerError> {
    let mut file = blobs.temporary()?;
    let compressed = HashingWriter::new(BufWriter::with_capacity(256 << 10, file.as_file_mut()));
    let encoder = zstd::stream::write::Encoder::new(compressed, LEVEL).map_err(LayerError::Copy)?;
    let mut archive = Bounded {
        output: HashingWriter::new(encoder),
        left: limits.unpacked_bytes,
    };
    write(&mut archive).map_err(LayerError::Copy)?;
    let (encoder, diff_id, _) = archive.into_output().finish();
    let mut compressed = encoder.finish().map_err(LayerError::Copy)?;
    compressed.flush().map_err(LayerError::Copy)?;
    let (_, layer, layer_size) = compressed.finish();
    blobs.keep(file, &blobs.blob_path(&layer))?;

    let created = jiff::Timestamp::now().to_string();
    let json = config.to_json(
        &created,
        Platform::of_this_host().architecture,
        &[diff_id.to_string()],
    );
    let config = blobs.put(&json)?;
    let layers = [(LAYER_ZSTD, layer, layer_size)];
    let manifest = manifest_json((config, json.len() as u64), &layers);
    Ok((blobs.put(&manifest)?, manifest.len() as u64))
}

/// Refuses more than so many bytes: an archive that does not end would fill the disk.
struct Bounded<W> {
    output: W,
    left: u64,
}

impl<W> Bounded<W> {
    fn into_output(self) -> W {
        self.output
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it goes over the limit of unpacked bytes",
            )
        })?;
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Makes the JSON of a manifest from digests and lengths.
pub(super) fn manifest_json(config: (Digest, u64), layers: &[(&str, Digest, u64)]) -> Vec<u8> {
    let descriptor = |(media_type, digest, size): (&str, Digest, u64)| serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size });
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(*layer)).collect();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor((CONFIG, config.0, config.1)),
        "layers": layers,
    });
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Document, parse};

    #[test]
    fn the_manifest_made_is_one_that_is_read() {
        let digest = Digest::of(b"x");
        let json = manifest_json((digest, 2), &[(LAYER_ZSTD, digest, 1)]);
        let parsed = parse(&json, &Limits::default()).unwrap();
        assert!(matches!(parsed, Document::Manifest(manifest) if manifest.layers[0].digest == digest));
    }
}
