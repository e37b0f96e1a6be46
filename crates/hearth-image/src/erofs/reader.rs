//! Reads an image back, for tests and fuzz targets only. Written after the kernel's documentation, not after the writer:
//! it shares no code with it, and checks what the kernel takes for granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

const SUPER: u64 = 1024;
const SLOT: u64 = 32;
const PREFIXES: [(u8, &str); 5] = [
    (1, "user."),
    (2, "system.posix_acl_access"),
    (3, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular(Vec<u8>),
    Symlink(Vec<u8>),
    /// With its number as the inode has it.
    Special(u32),
    Directory,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Type and permission bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    /// Equal for names of one file.
    pub(crate) nid: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) kind: Kind,
}

type Result<T> = std::result::Result<T, String>;

struct Image<'f> {
    file: &'f File,
    block: u64,
    blocks: u64,
    length: u64,
}

/// Reads everything of an image, by path; the root is the empty one.
///
/// # Errors
/// It is not a sound file system, in words.
pub(crate) fn read(file: &File) -> Result<BTreeMap<Vec<u8>, Found>> {
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut head = [0; 128];
    file.read_exact_at(&mut head, SUPER)
        .map_err(|error| error.to_string())?;
    check(u32_at(&head, 0) == 0xE0F5_E1E2, || "no super block".into())?;
    check(u32_at(&head, 80) == 0, || "it needs features".into())?;
    let image = Image {
        file,
        block: 1 << head[12],
        blocks: u64::from(u32_at(&head, 36)),
        length,
    };
    check(image.block * image.blocks == length, || {
        format!("{} blocks in {length} bytes", image.blocks)
    })?;
    check(u32_at(&head, 40) == 0, || "inodes begin elsewhere".into())?;
    let root = u64::from(u16_at(&head, 14));
    let tree = image.tree(root)?;
    check(u64_at(&head, 16) >= tree_inodes(&tree), || {
        "too few inodes".into()
    })?;
    Ok(tree)
}

fn tree_inodes(tree: &BTreeMap<Vec<u8>, Found>) -> u64 {
    tree.values()
        .map(|found| found.nid)
        .collect::<BTreeSet<_>>()
        .len() as u64
}

impl Image<'_> {
    fn tree(&self, root: u64) -> Result<BTreeMap<Vec<u8>, Found>> {
        let mut tree = BTreeMap::new();
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        let mut todo = vec![(Vec::new(), root, root)];
        let first = self.inode(root)?;
        check(first.0.kind == Kind::Directory, || {
            "the root is no directory".into()
        })?;
        tree.insert(Vec::new(), first.0);
        while let Some((path, nid, parent)) = todo.pop() {
            check(names.insert(nid, 1).is_none(), || {
                format!("directory {nid} has several names")
            })?;
            let mut subdirectories = 0;
            for (name, child, kind) in self.entries(nid)? {
                let expected = match &name[..] {
                    b"." => nid,
                    b".." => parent,
                    _ => child,
                };
                check(child == expected, || {
                    format!("{name:?} of {nid} leads to {child}")
                })?;
                if name == b"." || name == b".." {
                    continue;
                }
                let (found, found_kind) = self.inode(child)?;
                check(kind == found_kind, || {
                    format!("{name:?} is of type {found_kind}, not {kind}")
                })?;
                let child_path = [&path[..], b"/", &name].concat();
                if found.kind == Kind::Directory {
                    subdirectories += 1;
                    todo.push((child_path.clone(), child, nid));
                } else {
                    *names.entry(child).or_default() += 1;
                }
                tree.insert(child_path, found);
            }
            let links = tree.get(&path).map_or(0, |found| found.links);
            check(links == subdirectories + 2, || {
                format!("directory {nid} has {links} links")
            })?;
        }
        for found in tree.values().filter(|found| found.kind != Kind::Directory) {
            let count = names.get(&found.nid).copied().unwrap_or_default();
            check(found.links == count, || format!("{found:?} has {count} names"))?;
        }
        Ok(tree)
    }

    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>> {
        check(at + length as u64 <= self.length, || {
            format!("{at} is behind the end")
        })?;
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// Returns an inode, and its type as directories name it.
    fn inode(&self, nid: u64) -> Result<(Found, u8)> {
        let head = self.bytes(nid * SLOT, 64)?;
        let format = u16_at(&head, 0);
        check(format & 1 == 1, || format!("inode {nid} is not extended"))?;
        let mode = u16_at(&head, 4);
        let mut found = Found {
            mode,
            uid: u32_at(&head, 24),
            gid: u32_at(&head, 28),
            mtime: (u64_at(&head, 32) as i64, u32_at(&head, 40)),
            links: u32_at(&head, 44),
            nid,
            xattrs: self.xattrs(nid * SLOT + 64, u16_at(&head, 2))?,
            kind: Kind::Directory,
        };
        let (kind, number) = match mode >> 12 {
            0o10 => (Kind::Regular(self.content(nid)?), 1),
            0o12 => (Kind::Symlink(self.content(nid)?), 7),
            0o04 => (Kind::Directory, 2),
            0o02 => (Kind::Special(u32_at(&head, 16)), 3),
            0o06 => (Kind::Special(u32_at(&head, 16)), 4),
            0o01 => (Kind::Special(u32_at(&head, 16)), 5),
            _ => return Err(format!("inode {nid} has the mode {mode:o}")),
        };
        found.kind = kind;
        Ok((found, number))
    }

    fn content(&self, nid: u64) -> Result<Vec<u8>> {
        let head = self.bytes(nid * SLOT, 64)?;
        let (layout, size) = (u16_at(&head, 0) >> 1 & 7, u64_at(&head, 8));
        let first = u64::from(u32_at(&head, 16)) * self.block;
        let tail = match layout {
            0 => 0,
            2 => size % self.block,
            _ => return Err(format!("inode {nid} has the layout {layout}")),
        };
        let whole = usize::try_from(size - tail).map_err(|error| error.to_string())?;
        let mut content = if whole > 0 {
            self.bytes(first, whole)?
        } else {
            Vec::new()
        };
        if tail > 0 {
            let at = nid * SLOT + 64 + area(u16_at(&head, 2));
            check(at / self.block == (at + tail - 1) / self.block, || {
                format!("the tail of {nid} crosses a block")
            })?;
            content.extend(self.bytes(at, tail as usize)?);
        }
        Ok(content)
    }

    fn xattrs(&self, at: u64, count: u16) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut xattrs = BTreeMap::new();
        if count == 0 {
            return Ok(xattrs);
        }
        let area = self.bytes(at, area(count) as usize)?;
        check(area[4] == 0, || "shared attributes".into())?;
        let mut rest = &area[12..];
        while let [name_length, index, low, high, ..] = *rest {
            let prefix = PREFIXES.iter().find(|(known, _)| *known == index);
            let (_, prefix) = prefix.ok_or_else(|| format!("attribute prefix {index}"))?;
            let name_end = 4 + usize::from(name_length);
            let value_end = name_end + usize::from(u16::from_le_bytes([low, high]));
            check(value_end <= rest.len(), || "an attribute leaves its area".into())?;
            let name = [prefix.as_bytes(), &rest[4..name_end]].concat();
            xattrs.insert(name, rest[name_end..value_end].to_vec());
            rest = rest.get(value_end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(xattrs)
    }

    /// Returns name, node id and type of each entry, sorted as the kernel needs them.
    fn entries(&self, nid: u64) -> Result<Vec<(Vec<u8>, u64, u8)>> {
        let content = self.content(nid)?;
        let mut entries: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for block in content.chunks(self.block as usize) {
            check(block.len() > 12, || format!("directory {nid} has an empty block"))?;
            let count = usize::from(u16_at(block, 8)) / 12;
            for index in 0..count {
                let entry = &block[index * 12..];
                let start = usize::from(u16_at(entry, 8));
                let end = match index + 1 < count {
                    true => usize::from(u16_at(entry, 20)),
                    false => block.len(),
                };
                let name = block.get(start..end).ok_or("a name leaves its block")?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                check(
                    !name.is_empty() && name.len() < 256 && !name.contains(&b'/'),
                    || format!("the name {name:?}"),
                )?;
                check(entries.last().is_none_or(|(last, ..)| &last[..] < name), || {
                    format!("{name:?} is not in order")
                })?;
                entries.push((name.to_vec(), u64_at(entry, 0), entry[10]));
            }
        }
        let has = |wanted: &[u8]| entries.iter().any(|(name, ..)| name == wanted);
        check(has(b".") && has(b".."), || format!("directory {nid} has no dots"))?;
        Ok(entries)
    }
}

fn area(count: u16) -> u64 {
    match count {
        0 => 0,
        count => 12 + u64::from(count - 1) * 4,
    }
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
