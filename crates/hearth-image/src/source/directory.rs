//! Makes a layer of a directory tree of the host. Nothing is followed out of the tree: symbolic links are stored as
//! such. Other file systems that are mounted below are part of the tree, except for the kernel's own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::digest::Hasher;

/// Writes the tree as a tar archive, sorted by name, with owners, times, extended attributes and hard links.
pub(super) fn write_tree(root: &Path, output: &mut dyn Write) -> io::Result<()> {
    let mut writer = TreeWriter {
        archive: Builder::new(output),
        links: HashMap::new(),
    };
    walk(root, &mut |path, name, meta| writer.add(path, name, meta))?;
    writer.archive.finish()
}

/// Tells states of a tree apart by names, sizes, times and owners of all its files.
pub(super) fn stamp(root: &Path) -> io::Result<String> {
    let mut hasher = Hasher::new();
    walk(root, &mut |_, name, meta| {
        hasher.update(name.as_os_str().as_bytes());
        let state = [
            meta.ino() as i64,
            meta.size() as i64,
            meta.ctime(),
            meta.ctime_nsec(),
        ];
        state
            .iter()
            .for_each(|number| hasher.update(&number.to_le_bytes()));
        Ok(())
    })?;
    Ok(hasher.finish().hex())
}

/// Visits the root and everything below it, directories first; the name is relative to the root.
fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Path, &Metadata) -> io::Result<()>) -> io::Result<()> {
    // The root itself may be given by a link.
    let root = fs::canonicalize(root)?;
    if !root.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut todo = vec![PathBuf::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(&name);
        let meta = fs::symlink_metadata(&path)?;
        visit(&path, &name, &meta)?;
        if meta.is_dir() {
            let mut names: Vec<OsString> = fs::read_dir(&path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<Result<_, _>>()?;
            names.sort_unstable_by(|a, b| b.cmp(a));
            todo.extend(names.into_iter().map(|child| name.join(child)));
        }
    }
    Ok(())
}

struct TreeWriter<'w> {
    archive: Builder<&'w mut dyn Write>,
    /// The first name of each file with several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl TreeWriter<'_> {
    fn add(&mut self, path: &Path, name: &Path, meta: &Metadata) -> io::Result<()> {
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let name = if name.as_os_str().is_empty() {
            Path::new("./")
        } else {
            name
        };
        let mut header = header(meta);
        if !meta.is_dir() && meta.nlink() > 1 {
            if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return self.archive.append_link(&mut header, name, first);
            }
            self.links.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        let xattrs = xattrs(path)?;
        let records = xattrs.iter().map(|(key, value)| (key.as_str(), &value[..]));
        if !xattrs.is_empty() {
            self.archive.append_pax_extensions(records)?;
        }
        if kind.is_symlink() {
            self.archive.append_link(&mut header, name, fs::read_link(path)?)
        } else if kind.is_file() {
            let file = File::open(path)?;
            // A file that grows meanwhile must not damage the archive, nor one that shrinks.
            let content = file.chain(io::repeat(0)).take(meta.size());
            self.archive.append_data(&mut header, name, content)
        } else {
            self.archive.append_data(&mut header, name, io::empty())
        }
    }
}

fn header(meta: &Metadata) -> Header {
    let kind = meta.file_type();
    let mut header = Header::new_gnu();
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(u64::from(meta.uid()));
    header.set_gid(u64::from(meta.gid()));
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(if kind.is_file() { meta.size() } else { 0 });
    header.set_entry_type(match kind {
        kind if kind.is_dir() => EntryType::Directory,
        kind if kind.is_symlink() => EntryType::Symlink,
        kind if kind.is_char_device() => EntryType::Char,
        kind if kind.is_block_device() => EntryType::Block,
        kind if kind.is_fifo() => EntryType::Fifo,
        _ => EntryType::Regular,
    });
    if kind.is_char_device() || kind.is_block_device() {
        let device = meta.rdev();
        // Only a header without the fields refuses, and this one has them.
        let _ = header.set_device_major(rustix::fs::major(device));
        let _ = header.set_device_minor(rustix::fs::minor(device));
    }
    header
}

/// Reads the extended attributes of a file, not of what a link points to.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 64 << 10];
        let length = match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(length) => length,
            // Gone meanwhile, or not for us: as tar does.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => continue,
            Err(error) => return Err(error.into()),
        };
        value.truncate(length);
        if let Ok(name) = std::str::from_utf8(name) {
            found.push((format!("SCHILY.xattr.{name}"), value));
        }
    }
    Ok(found)
}
