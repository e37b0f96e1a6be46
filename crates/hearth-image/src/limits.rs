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
    /// How many times the bytes of its blobs an image may unpack to. Programs and texts compress to a third, disk images
    /// to a sixtieth; gzip ends at a thousandth, zstd does not.
    pub expansion: u64,
    /// Bytes that an image may always unpack to, whatever its blobs have.
    pub expansion_free_bytes: u64,
    /// Archive entries of all layers together, and of directories that entries imply.
    pub entries: u64,
    /// Bytes of memory that entries may take while an image is prepared: their names, links and attributes, and
    /// [`Limits::ENTRY_MEMORY`] for each.
    pub memory_bytes: u64,
    /// Bytes of one path, and of one symbolic link's target; Linux' `PATH_MAX`.
    pub path_bytes: usize,
    /// Directories within directories.
    pub depth: usize,
    /// Bytes of all extended attributes of one file, as stored; EROFS itself ends at 256 KiB.
    pub xattr_bytes: usize,
    /// Bytes of one header extension of an archive (pax records, long names).
    pub header_bytes: u64,
}

impl Limits {
    /// Returns how many bytes may come of so many compressed ones.
    pub(crate) fn expanded(&self, compressed: u64) -> u64 {
        let expanded = compressed.saturating_mul(self.expansion);
        expanded.max(self.expansion_free_bytes).min(self.unpacked_bytes)
    }

    /// Bytes of memory that an entry takes besides its names and attributes.
    pub const ENTRY_MEMORY: u64 = 384;
    /// The largest window that a zstd frame may ask for, as a power of two: 128 MiB, what `zstd --ultra -22` asks for.
    pub const ZSTD_WINDOW_LOG: u32 = 27;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            layers: 127,
            index_depth: 3,
            unpacked_bytes: 64 << 30,
            expansion: 256,
            expansion_free_bytes: 2 << 30,
            entries: 1_000_000,
            memory_bytes: 640 << 20,
            path_bytes: 4095,
            depth: 512,
            xattr_bytes: 64 << 10,
            header_bytes: 1 << 20,
        }
    }
}
