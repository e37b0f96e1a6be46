//! Tells what is below a directory, a line of JSON for each path, sorted. A test runs it on the host over what another tool
//! has unpacked, and in a guest over what hearth made of the same image: so both are looked at in the same way.
//!
//! Told are: path, type, permission bits, owner, group, size (of files and links), time with nanoseconds, device number,
//! target, SHA-256 of the content, extended attributes (but `trusted.*`, which a workload may not see), and the first path
//! that is the same file. Not told are other times, inode numbers, and blocks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{FileType, lgetxattr, llistxattr};
use rustix::io::Errno;
use serde_json::{Value, json};
use walkdir::WalkDir;

/// What Linux allows for the names, and for the value, of attributes.
const XATTR_MAX: usize = 64 << 10;

fn main() -> Result<()> {
    let root = std::env::args_os().nth(1).context("tree DIRECTORY")?;
    let mut first_names = HashMap::new();
    let mut output = io::stdout().lock();
    for entry in WalkDir::new(&root).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path();
        let name = path.strip_prefix(&root)?.as_os_str();
        let told = tell(path, name, &entry.metadata()?, &mut first_names);
        let told = told.with_context(|| path.display().to_string())?;
        writeln!(output, "{told}")?;
    }
    Ok(())
}

fn tell(
    path: &Path,
    name: &OsStr,
    meta: &Metadata,
    first_names: &mut HashMap<(u64, u64), String>,
) -> Result<Value> {
    let kind = FileType::from_raw_mode(meta.mode());
    let name = text(name.as_bytes());
    let mut told = json!({
        "path": name,
        "type": format!("{kind:?}"),
        "mode": format!("{:04o}", meta.mode() & 0o7777),
        "owner": format!("{}:{}", meta.uid(), meta.gid()),
        "mtime": format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
    });
    match kind {
        FileType::RegularFile => {
            told["size"] = meta.size().into();
            told["sha256"] = e2e::sha256(&fs::read(path)?).into();
        }
        FileType::Symlink => {
            told["size"] = meta.size().into();
            told["target"] = text(fs::read_link(path)?.as_os_str().as_bytes()).into();
        }
        FileType::CharacterDevice | FileType::BlockDevice => told["device"] = meta.rdev().into(),
        _ => {}
    }
    let xattrs = xattrs(path)?;
    if !xattrs.is_empty() {
        told["xattrs"] = json!(xattrs);
    }
    if kind != FileType::Directory && meta.nlink() > 1 {
        let first = first_names
            .entry((meta.dev(), meta.ino()))
            .or_insert_with(|| name.clone());
        told["same_as"] = first.as_str().into();
        told["links"] = meta.nlink().into();
    }
    Ok(told)
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut names = vec![0; XATTR_MAX];
    let length = match llistxattr(path, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        let length = lgetxattr(path, name, &mut value[..])?;
        found.insert(text(name), text(&value[..length]));
    }
    Ok(found)
}

/// Writes bytes as text that tells them exactly.
fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
