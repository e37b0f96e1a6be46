//! Layers to a root file system: any archives are refused, or become an EROFS image within the limits that another reader
//! finds sound.
//!
//! The first byte tells how many layers the rest is cut into, and whether the checksums of archive headers are made
//! right first: no mutation finds them. Blobs and image are files in memory.

#![no_main]
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use hearth_image::{Limits, fuzzing};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

const LIMITS: Limits = Limits {
    manifest_bytes: 4096,
    layers: 4,
    index_depth: 1,
    unpacked_bytes: 1 << 20,
    expansion: 256,
    expansion_free_bytes: 1 << 20,
    entries: 500,
    memory_bytes: 1 << 20,
    path_bytes: 512,
    depth: 16,
    xattr_bytes: 2048,
    header_bytes: 16 << 10,
};

/// Content, a block for each inode and one for each directory's names, and what is set aside at a time.
const IMAGE_BOUND: u64 = LIMITS.unpacked_bytes + LIMITS.entries * 2 * EROFS_BLOCK + (1 << 20);
const EROFS_BLOCK: u64 = 4096;
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();

const TAR_BLOCK: usize = 512;
/// Bytes of a header that hold its checksum.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// Bytes of a header that hold the length of the content, in octal.
const SIZE: std::ops::Range<usize> = 124..136;

fuzz_target!(|data: &[u8]| {
    let Some((choice, archives)) = data.split_first() else {
        return;
    };
    let files: Vec<File> = layers(*choice, archives.to_vec())
        .iter()
        .map(|layer| in_memory(layer))
        .collect();
    let paths: Vec<PathBuf> = files.iter().map(path).collect();
    let image = in_memory(&[]);
    if let Ok((image, length)) = fuzzing::rootfs(&paths, image, LIMITS) {
        check(&image, length);
    }
});

fn layers(choice: u8, mut archives: Vec<u8>) -> Vec<Vec<u8>> {
    let count = usize::from(choice >> 1) % LIMITS.layers + 1;
    let blocks = archives.len().div_ceil(TAR_BLOCK).div_ceil(count).max(1);
    let mut layers = Vec::new();
    for layer in archives.chunks_mut(blocks * TAR_BLOCK) {
        if choice & 1 == 1 {
            mend_checksums(layer);
        }
        layers.push(layer.to_vec());
    }
    layers
}

/// Makes the checksum right in every place where a header is due.
fn mend_checksums(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + TAR_BLOCK) {
        if header.iter().any(|&byte| byte != 0) {
            header[CHECKSUM].fill(b' ');
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        at = at
            .saturating_add(TAR_BLOCK)
            .saturating_add(content_length(header));
    }
}

/// Reads the length, in whole blocks; what is no octal number counts as none.
fn content_length(header: &[u8]) -> usize {
    let text = String::from_utf8_lossy(&header[SIZE]);
    let digits = text.trim_matches(|character: char| character == ' ' || character == '\0');
    let length = usize::from_str_radix(digits, 8).unwrap_or(0);
    length.div_ceil(TAR_BLOCK).saturating_mul(TAR_BLOCK)
}

fn in_memory(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("room in memory");
    file
}

fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn check(image: &File, length: u64) {
    let actual = image.metadata().expect("a file has a length").len();
    assert_eq!(actual, length, "the length that was told is the file's");
    assert!(
        length <= IMAGE_BOUND && length % EROFS_BLOCK == 0,
        "{length} bytes"
    );
    let mut magic = [0; 4];
    image.read_exact_at(&mut magic, 1024).expect("a super block");
    assert_eq!(magic, EROFS_MAGIC);
    let found = fuzzing::read_back(image).expect("a sound file system");
    assert!(found as u64 <= LIMITS.entries + 1, "{found} names");
}
