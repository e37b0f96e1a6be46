//! Bounds on what a hostile image can make this crate spend: bytes, entries, memory, depth.

/// Bounds the work that one image may cause. Exceeding one is an error that names it, never a slow death.
///
/// The defaults let every image through that its author meant for running (the largest machine-learning images
/// unpack to about 30 GB in 400,000 files), and stop decompression bombs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one manifest, index or configuration. The distribution specification asks for 4 MiB at least.
    pub manifest_bytes: u64,
    /// Layers of one image; overlayfs and docker stop at 127 too.
    pub layers: usize,
    /// Indexes that point to indexes, before the first manifest.
    pub index_depth: usize,
    /// Bytes of all layers of one image together, decompressed, headers and holes included.
    pub unpacked_bytes: u64,
    /// Archive entries of all layers together, and of directories that entries imply. One costs up to about
    /// 700 bytes of memory while an image is prepared.
    pub entries: u64,
    /// Bytes of one path, and of one symbolic link's target; Linux' `PATH_MAX`.
    pub path_bytes: usize,
    /// Directories within directories.
    pub depth: usize,
    /// Bytes of all extended attributes of one file, as stored; EROFS itself ends at 256 KiB.
    pub xattr_bytes: usize,
    /// Bytes of one header extension of an archive (pax records, long names).
    pub header_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layers: 127,
            index_depth: 3,
            unpacked_bytes: 64 << 30,
            entries: 1_000_000,
            path_bytes: 4095,
            depth: 512,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
        }
    }
}
