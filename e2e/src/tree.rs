//! Trees of files: a second one that shares its large files, and a search through their bytes.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memchr::memmem::Finder;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use walkdir::WalkDir;

/// Files of so many bytes and more are linked, not copied.
const LARGE: u64 = 64 << 10;

const BLOCK: usize = 1 << 20;

/// Makes `to` a copy of `from`: directories and small files for itself, large files shared where the file system can.
///
/// # Errors
/// Something cannot be read or made.
pub fn link_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in WalkDir::new(from) {
        let entry = entry?;
        let relative = entry.path().strip_prefix(from)?;
        let place = if relative.as_os_str().is_empty() {
            to.to_owned()
        } else {
            to.join(relative)
        };
        copy_one(&entry, &place).with_context(|| format!("cannot copy to {}", place.display()))?;
    }
    Ok(())
}

/// Makes `to` a copy of `from` that shares nothing with it.
///
/// # Errors
/// Something cannot be read or made.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in WalkDir::new(from) {
        let entry = entry?;
        let place = to.join(entry.path().strip_prefix(from)?);
        let made = match entry.file_type() {
            kind if kind.is_dir() => fs::create_dir_all(&place),
            kind if kind.is_symlink() => fs::read_link(entry.path()).and_then(|to| symlink(to, &place)),
            _ => fs::copy(entry.path(), &place).map(drop),
        };
        made.with_context(|| format!("cannot copy to {}", place.display()))?;
    }
    Ok(())
}

fn copy_one(entry: &walkdir::DirEntry, place: &Path) -> Result<()> {
    let kind = entry.file_type();
    let metadata = entry.metadata()?;
    if kind.is_dir() {
        fs::create_dir_all(place)?;
        fs::set_permissions(place, metadata.permissions())?;
    } else if kind.is_symlink() {
        symlink(fs::read_link(entry.path())?, place)?;
    } else if kind.is_file() {
        let linked = metadata.len() >= LARGE && fs::hard_link(entry.path(), place).is_ok();
        if !linked {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Returns the files below a directory in whose content or name `needle` occurs.
///
/// # Errors
/// A file cannot be read. One that vanishes meanwhile is no error.
pub fn files_that_contain(root: &Path, needle: &[u8]) -> Result<Vec<PathBuf>> {
    let finder = Finder::new(needle);
    let mut found = Vec::new();
    for entry in WalkDir::new(root).into_iter().flatten() {
        let path = entry.path();
        let named = finder.find(path.as_os_str().as_encoded_bytes()).is_some();
        if named || (entry.file_type().is_file() && file_contains(path, &finder)?) {
            found.push(path.to_owned());
        }
    }
    Ok(found)
}

fn file_contains(path: &Path, finder: &Finder<'_>) -> Result<bool> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let overlap = finder.needle().len().saturating_sub(1);
    let mut position = 0;
    // Disks are mostly holes: only data is read. Blocks overlap, so that no border hides anything.
    loop {
        position = match seek(&file, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot seek in {}", path.display())),
        };
        let mut block = Vec::with_capacity(BLOCK);
        (&mut file)
            .take(BLOCK as u64)
            .read_to_end(&mut block)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if finder.find(&block).is_some() {
            return Ok(true);
        }
        if block.len() < BLOCK {
            return Ok(false);
        }
        position += (BLOCK - overlap) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_across_two_blocks_and_behind_a_hole_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'.'; BLOCK + 100];
        bytes[BLOCK - 3..BLOCK + 3].copy_from_slice(b"needle");
        fs::write(directory.path().join("border"), bytes).unwrap();
        let sparse = File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"a needle", 700 << 20).unwrap();
        fs::write(directory.path().join("other"), "nothing").unwrap();
        let mut found = files_that_contain(directory.path(), b"needle").unwrap();
        found.sort();
        assert_eq!(
            found,
            [directory.path().join("border"), directory.path().join("sparse")]
        );
    }

    #[test]
    fn a_linked_tree_shares_large_files_and_owns_small_ones() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(from.join("deep/small"), "x").unwrap();
        fs::write(from.join("large"), vec![0; 100 << 10]).unwrap();
        symlink("large", from.join("link")).unwrap();
        link_tree(&from, &to).unwrap();
        let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(from.join("large")), inode(to.join("large")));
        assert_ne!(inode(from.join("deep/small")), inode(to.join("deep/small")));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("large"));
    }
}
