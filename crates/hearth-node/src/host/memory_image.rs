//! Images of guests' memory: copied without the pages that are zero, and held so that nobody can change them any more.
//!
//! A restored machine maps an image privately: pages that its guest writes become its own, all others are shared with every
//! machine of that image. QEMU opens the file for writing whatever it is told, and a monitor that could write would write into
//! the memory of others. So what it is given is a memfd, sealed. Called by the drivers in `vmm`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, memfd_create};

use super::files::{PRIVATE, next_stretch};
use super::memory_changes::Changes;

/// The name that the memory of restored machines has in their monitors' `/proc/PID/maps`.
pub const SEALED_NAME: &str = "/memfd:hearth-memory";

const PAGE: usize = 4 << 10;

/// How much is read at once, in bytes.
const CHUNK: usize = 1 << 20;

/// The file of a whole memory, sparse, in the directory that a monitor's snapshot is in.
pub const MEMORY_FILE: &str = "memory";

/// In the place of that: the memory that the machine was restored from, a link to a file that others have, too, and nobody writes to.
pub const BASE_FILE: &str = "base";

/// And in what the guest's memory differs from it.
pub const CHANGES_FILE: &str = "changes";

/// The files of a memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryFiles {
    /// A whole image.
    pub whole: PathBuf,
    /// What is another since that was taken.
    pub changes: Option<PathBuf>,
}

impl MemoryFiles {
    /// Returns those in a directory.
    pub fn of(directory: &Path) -> Self {
        let changes = directory.join(CHANGES_FILE);
        match changes.exists() {
            true => Self {
                whole: directory.join(BASE_FILE),
                changes: Some(changes),
            },
            false => Self {
                whole: directory.join(MEMORY_FILE),
                changes: None,
            },
        }
    }

    /// Writes them as one image. `to` is new.
    ///
    /// # Errors
    /// Returns the file system's error; what was begun is removed.
    pub fn flatten(&self, to: &Path) -> io::Result<()> {
        copy(&self.whole, to)?;
        let applied = self.apply(|| OpenOptions::new().write(true).open(to));
        if applied.is_err() {
            // The error that counts is the first one.
            let _ = std::fs::remove_file(to);
        }
        applied
    }

    fn apply(&self, image: impl FnOnce() -> io::Result<File>) -> io::Result<()> {
        match &self.changes {
            Some(changes) => Changes::open(changes)?.apply(&image()?),
            None => Ok(()),
        }
    }
}

/// Copies a memory file; pages of zeros become holes. `to` is new.
///
/// # Errors
/// Returns the file system's error; a half-made copy is removed.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(to)?;
    let copied = copy_pages(&source, &target);
    if copied.is_err() {
        // The error that counts is the first one.
        let _ = std::fs::remove_file(to);
    }
    copied
}

/// Loads a memory into memory that cannot be changed any more, by whomever.
///
/// # Errors
/// Returns the kernel's error.
pub fn sealed(from: &MemoryFiles) -> io::Result<OwnedFd> {
    let source = File::open(&from.whole)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let target = File::from(memfd_create("hearth-memory", flags)?);
    copy_pages(&source, &target)?;
    from.apply(|| target.try_clone())?;
    fcntl_add_seals(
        &target,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(target.into())
}

/// Returns what an image takes, in bytes.
///
/// # Errors
/// Returns the kernel's error.
pub fn bytes(image: &OwnedFd) -> io::Result<u64> {
    Ok(fstat(image)?.st_blocks.unsigned_abs() * 512)
}

/// Hands over every page that is not zero, with its place; what is behind the last whole page counts as a page, too.
///
/// # Errors
/// Returns the file system's error.
pub fn for_each_page(source: &File, mut visit: impl FnMut(u64, &[u8])) -> io::Result<()> {
    for_each_run(source, |at, bytes| {
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            visit(at + (number * PAGE) as u64, page);
        }
        Ok(())
    })
}

fn copy_pages(source: &File, target: &File) -> io::Result<()> {
    target.set_len(source.metadata()?.len())?;
    for_each_run(source, |at, bytes| target.write_all_at(bytes, at))
}

/// Hands over runs of pages that are not zero. Holes are not read; a file system may tell them at any granularity.
fn for_each_run(source: &File, mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while let Some((begin, end)) = next_stretch(source, at)? {
        let mut position = begin - begin % PAGE as u64;
        while position < end {
            let wanted = CHUNK.min(usize::try_from(end - position).unwrap_or(CHUNK));
            source.read_exact_at(&mut buffer[..wanted], position)?;
            runs(&buffer[..wanted], |range| {
                visit(position + range.start as u64, &buffer[range])
            })?;
            position += wanted as u64;
        }
        at = end;
    }
    Ok(())
}

/// Finds the runs of pages that are not zero.
fn runs(bytes: &[u8], mut visit: impl FnMut(std::ops::Range<usize>) -> io::Result<()>) -> io::Result<()> {
    let mut run = 0..0;
    for (number, page) in bytes.chunks(PAGE).enumerate() {
        let begin = number * PAGE;
        if page == &[0; PAGE][..page.len()] {
            if !run.is_empty() {
                visit(std::mem::take(&mut run))?;
            }
        } else if run.is_empty() {
            run = begin..begin + page.len();
        } else {
            run.end = begin + page.len();
        }
    }
    match run.is_empty() {
        true => Ok(()),
        false => visit(run),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn original(path: &Path) -> Vec<u8> {
        let file = File::create(path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[0; 64 << 10], 0).unwrap();
        file.write_all_at(b"a page", 5 * PAGE as u64 + 7).unwrap();
        file.write_all_at(&[9; 3 * PAGE], (2 << 20) - PAGE as u64)
            .unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_copy_has_the_bytes_and_holes_for_zeros() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        let bytes = original(&from);
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes);
        assert_eq!(std::fs::metadata(&to).unwrap().blocks() * 512, 4 * PAGE as u64);
    }

    #[test]
    fn sealed_memory_has_the_bytes_and_takes_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("a");
        let bytes = original(&from);
        let files = MemoryFiles {
            whole: from,
            changes: None,
        };
        let sealed = File::from(sealed(&files).unwrap());
        let mut read = vec![0; bytes.len()];
        sealed.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
        let refused = sealed.write_all_at(b"x", 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(sealed.set_len(0).is_err());
    }
}
