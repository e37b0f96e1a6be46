//! The bytes of EROFS: super block, inodes, directory entries, extended attributes. Pure functions, no IO.
//!
//! Source: `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst of Linux 6.12. Used here: blocks of 4 KiB,
//! extended inodes (64 bytes), the two uncompressed layouts "plain" and "inline"; nothing that needs an
//! incompatible-feature bit, so that every kernel since 5.4 mounts it.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Bytes of an extended inode.
pub(crate) const INODE: usize = 64;
/// Node ids count in steps of 32 bytes.
pub(crate) const NID_STEP: u64 = 32;
/// The longest file name.
pub(crate) const NAME_MAX: usize = 255;

const SUPER_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 0x1;
const DIRENT: usize = 12;
const EXTENDED: u16 = 1;

/// Type bits of a mode, as in `stat(2)`.
pub(crate) mod mode {
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHARACTER: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK: u16 = 0o060_000;
    pub(crate) const REGULAR: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
    pub(crate) const TYPE: u16 = 0o170_000;
}

/// Where the content of an inode lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In whole blocks from this one on.
    Plain(u32),
    /// In whole blocks from this one on, but the last partial block follows the inode and its attributes.
    Inline(u32),
    /// None: this is a device number.
    Device(u32),
}

/// Everything that an inode holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    pub(crate) layout: Layout,
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// The number that `stat` shows on 32-bit systems.
    pub(crate) number: u32,
    /// Bytes of the attribute area behind the inode.
    pub(crate) xattr_bytes: usize,
}

/// Offset of the link count within an inode, for when it is known only later.
pub(crate) const LINKS_OFFSET: u64 = 44;

impl Inode {
    /// Encodes the inode.
    pub(crate) fn encode(&self) -> [u8; INODE] {
        let (layout, union) = match self.layout {
            Layout::Plain(block) => (0, block),
            Layout::Inline(block) => (2, block),
            Layout::Device(number) => (0, number),
        };
        let mut out = [0; INODE];
        put(&mut out, 0, &(EXTENDED | layout << 1).to_le_bytes());
        put(&mut out, 2, &xattr_count(self.xattr_bytes).to_le_bytes());
        put(&mut out, 4, &self.mode.to_le_bytes());
        put(&mut out, 8, &self.size.to_le_bytes());
        put(&mut out, 16, &union.to_le_bytes());
        put(&mut out, 20, &self.number.to_le_bytes());
        put(&mut out, 24, &self.uid.to_le_bytes());
        put(&mut out, 28, &self.gid.to_le_bytes());
        put(&mut out, 32, &self.mtime.to_le_bytes());
        put(&mut out, 40, &self.mtime_nsec.to_le_bytes());
        put(&mut out, LINKS_OFFSET as usize, &self.links.to_le_bytes());
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The attribute area is 12 bytes of header, and entries counted in steps of 4 bytes from one on.
fn xattr_count(bytes: usize) -> u16 {
    if bytes == 0 {
        0
    } else {
        u16::try_from((bytes - 12) / 4 + 1).unwrap_or(u16::MAX)
    }
}

/// Encodes a device number as the kernel's `new_decode_dev` reads it.
pub(crate) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// What the super block says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Super {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) uuid: [u8; 16],
}

impl Super {
    /// Encodes the first block of the image.
    pub(crate) fn encode(&self) -> [u8; BLOCK] {
        let mut out = [0; BLOCK];
        let sb = &mut out[SUPER_OFFSET..];
        put(sb, 0, &MAGIC.to_le_bytes());
        put(sb, 8, &COMPAT_CHECKSUM.to_le_bytes());
        sb[12] = BLOCK.trailing_zeros() as u8;
        put(sb, 14, &self.root_nid.to_le_bytes());
        put(sb, 16, &self.inodes.to_le_bytes());
        put(sb, 36, &self.blocks.to_le_bytes());
        put(sb, 48, &self.uuid);
        let checksum = crc32c(sb);
        put(sb, 4, &checksum.to_le_bytes());
        out
    }
}

/// CRC-32C, seeded with ones and not inverted at the end, as the kernel's `crc32c(~0, ...)`. Only 3 KiB ever pass.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
        })
    })
}

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    /// Mode of the inode, for its type bits.
    pub(crate) mode: u16,
}

/// Returns how many bytes a directory with names of these lengths, in this order, takes.
pub(crate) fn directory_size(name_lengths: impl Iterator<Item = usize>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for length in name_lengths {
        let cost = DIRENT + length;
        if used + cost > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += cost;
    }
    blocks * BLOCK as u64 + used as u64
}

/// Encodes a directory: every block holds its entries first, then their names. `entries` must be sorted by name
/// ("." and ".." are names like others), as the kernel searches by halves.
pub(crate) fn encode_directory(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(directory_size(entries.iter().map(|e| e.name.len())) as usize);
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT + entry.name.len();
                used <= BLOCK
            })
            .count();
        let (block, tail) = rest.split_at(count);
        encode_directory_block(block, &mut out);
        rest = tail;
        if !rest.is_empty() {
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
    }
    out
}

fn encode_directory_block(entries: &[Dirent<'_>], out: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT;
    for entry in entries {
        out.extend_from_slice(&entry.nid.to_le_bytes());
        out.extend_from_slice(&(name_offset as u16).to_le_bytes());
        out.push(file_type(entry.mode));
        out.push(0);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
}

fn file_type(mode: u16) -> u8 {
    match mode & mode::TYPE {
        mode::REGULAR => 1,
        mode::DIRECTORY => 2,
        mode::CHARACTER => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// Encodes the attribute area of an inode: empty when there is none that Linux could store.
///
/// Returns `None` when a name or a value is longer than Linux allows (255 bytes, 64 KiB).
pub(crate) fn encode_xattrs<'a>(xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for (name, value) in xattrs {
        let Some((index, suffix)) = split_xattr_name(name) else {
            continue;
        };
        if out.is_empty() {
            out.resize(12, 0);
        }
        out.push(u8::try_from(suffix.len()).ok()?);
        out.push(index);
        out.extend_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Some(out)
}

/// The book-keeping of overlayfs, which the guest's own would take for its.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Returns the prefix' index and the rest of the name; `None` for name spaces that no Linux file system stores, and
/// for what would not be data to the guest.
fn split_xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.starts_with(OVERLAY) {
        return None;
    }
    XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let suffix = name.strip_prefix(*prefix)?;
        let is_acl = matches!(index, 2 | 3);
        (is_acl == suffix.is_empty()).then_some((*index, suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 zero bytes give 8a9136aa after the final inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn the_size_of_a_directory_is_that_of_its_encoding() {
        let names: Vec<String> = (0..700)
            .map(|n| format!("{n:0>width$}", width = 5 + n % 200))
            .collect();
        for count in [0, 1, 2, 100, 240, 241, 300, 700] {
            let entries: Vec<_> = names[..count]
                .iter()
                .map(|name| Dirent {
                    name: name.as_bytes(),
                    nid: 1,
                    mode: mode::REGULAR,
                })
                .collect();
            let size = directory_size(names[..count].iter().map(String::len));
            assert_eq!(encode_directory(&entries).len() as u64, size, "{count}");
        }
    }

    #[test]
    fn attributes_outside_of_linux_name_spaces_are_dropped() {
        let foreign = [
            (&b"osx.thing"[..], &b"x"[..]),
            (b"user.", b"y"),
            (b"trusted.overlay.opaque", b"y"),
        ];
        let encoded = encode_xattrs(foreign.into_iter());
        assert_eq!(encoded, Some(Vec::new()));
        let capability = encode_xattrs([(&b"security.capability"[..], &b"1\n3"[..])].into_iter());
        assert_eq!(capability.map(|c| c.len()), Some(12 + 4 + 10 + 3 + 3));
    }

    #[test]
    fn device_numbers_follow_the_kernels_encoding() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(259, 0x12345), 0x1231_0345);
    }
}
