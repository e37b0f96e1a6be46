//! Compressed streams of the kernel's world: what a stream is compressed with is told by its first bytes.
//!
//! Used for packages, kernel images and modules.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

/// The first bytes of an xz stream.
pub(super) const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// The first bytes of a zstd frame.
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The first bytes of a gzip member.
pub(super) const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Opens what is compressed with xz, zstd or gzip; anything else is passed on as it is.
///
/// Only the first stream, frame or member is read: a kernel image has its own bytes behind it.
pub(super) fn decompressed<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let start = reader.fill_buf()?;
    if start.starts_with(&XZ_MAGIC) {
        Ok(Box::new(liblzma::bufread::XzDecoder::new(reader)))
    } else if start.starts_with(&ZSTD_MAGIC) {
        Ok(Box::new(
            zstd::stream::read::Decoder::with_buffer(reader)?.single_frame(),
        ))
    } else if start.starts_with(&GZIP_MAGIC) {
        Ok(Box::new(flate2::bufread::GzDecoder::new(reader)))
    } else {
        Ok(Box::new(reader))
    }
}

/// Reads a stream to its end, and refuses it when it holds more than `limit` bytes: a few bytes of hostile input
/// could otherwise become all of the memory.
pub(super) fn read_bounded(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it holds more than {limit} bytes"),
        ));
    }
    Ok(bytes)
}

/// Reads a file that must not be larger than `limit` bytes.
pub(super) fn read_file_bounded(path: &std::path::Path, limit: u64) -> io::Result<Vec<u8>> {
    read_bounded(File::open(path)?, limit)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn unpacked(packed: &[u8]) -> Vec<u8> {
        read_bounded(decompressed(packed).unwrap(), 1 << 20).unwrap()
    }

    #[test]
    fn every_format_is_told_by_its_first_bytes() {
        let text = b"the same bytes each time".repeat(100);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&text).unwrap();
        assert_eq!(unpacked(&xz.finish().unwrap()), text);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text).unwrap();
        assert_eq!(unpacked(&gzip.finish().unwrap()), text);
        assert_eq!(unpacked(&zstd::encode_all(&text[..], 1).unwrap()), text);
        assert_eq!(unpacked(&text), text);
    }

    #[test]
    fn what_follows_the_frame_is_left_alone() {
        let mut packed = zstd::encode_all(&b"kernel"[..], 1).unwrap();
        packed.extend_from_slice(&6_u32.to_le_bytes());
        assert_eq!(unpacked(&packed), b"kernel");
    }

    #[test]
    fn more_than_the_limit_is_refused() {
        let bomb = zstd::encode_all(&vec![0; 1 << 20][..], 1).unwrap();
        let error = read_bounded(decompressed(&bomb[..]).unwrap(), 1000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
