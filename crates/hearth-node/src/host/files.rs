//! Files of our own: written whole or not at all, copied without their holes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, SeekFrom, copy_file_range, ioctl_ficlone, seek};

use super::failpoint;

/// The permission bits of what only the node may read.
pub const PRIVATE: u32 = 0o600;

/// Writes a file so that a reader, and a reader after a crash of this process, sees the old bytes or the new ones.
///
/// It is not synced: after a crash of the host ext4's replace-via-rename rule gives one or the other as well.
///
/// # Errors
/// Returns the file system's error; the old file is untouched then.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| failpoint::reach("record-written"))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&temporary);
    } else {
        failpoint::pass("record-replaced");
    }
    written
}

/// Makes a directory and its parents; the last one gets the permission bits, even if it was there.
///
/// # Errors
/// Returns the file system's error.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Gives a path to a group, where one is named; its owner stays.
///
/// # Errors
/// Returns the file system's error.
pub fn give_to_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    group.map_or(Ok(()), |group| std::os::unix::fs::chown(path, None, Some(group)))
}

/// Links a file that nobody writes any more under a second name, and opens it to all who reach one of its names: who may
/// read it is up to the directories.
///
/// # Errors
/// Returns the file system's error.
pub fn link_for_readers(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o444))
}

/// Opens a file that somebody else may have put there, to be read: links are not followed, and nothing but a file is opened.
///
/// # Errors
/// Returns the file system's error.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file")),
    }
}

/// Removes a tree if it is there.
///
/// # Errors
/// Returns the file system's error.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_dir_all(path))
}

/// Removes a file if it is there.
///
/// # Errors
/// Returns the file system's error.
pub fn remove_file(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Copies a file: as a reflink where the file system shares blocks, else its data without its holes. `to` is new.
///
/// # Errors
/// Returns the file system's error; a half-made copy is removed.
pub fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(to)?;
    let copied = match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => copy_data(&source, &target),
    };
    if copied.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(to);
    }
    copied
}

/// Writes the data of a file over another one, and leaves that as it is where the first has holes. Returns how much it was.
///
/// # Errors
/// Returns the file system's error.
#[cfg(test)]
pub fn merge(from: &Path, into: &Path) -> io::Result<u64> {
    let (source, target) = (File::open(from)?, OpenOptions::new().write(true).open(into)?);
    let (mut at, mut merged) = (0, 0);
    while let Some((data, hole)) = next_stretch(&source, at)? {
        copy_stretch(&source, &target, data, hole - data)?;
        merged += hole - data;
        at = hole;
    }
    Ok(merged)
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while let Some((data, hole)) = next_stretch(source, at)? {
        copy_stretch(source, target, data, hole - data)?;
        at = hole;
    }
    Ok(())
}

/// Returns where the next data of a file begins and ends; none when there is no more.
pub(super) fn next_stretch(source: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let Some(data) = next_data(source, from)? else {
        return Ok(None);
    };
    Ok(Some((data, seek(source, SeekFrom::Hole(data))?)))
}

/// Returns where a file has data, in order; the rest of it is holes.
///
/// # Errors
/// Returns the file system's error.
pub fn data_of(file: &File) -> io::Result<Vec<Range<u64>>> {
    let (mut stretches, mut at) = (Vec::new(), 0);
    while let Some((data, hole)) = next_stretch(file, at)? {
        stretches.push(data..hole);
        at = hole;
    }
    Ok(stretches)
}

fn next_data(source: &File, from: u64) -> io::Result<Option<u64>> {
    match seek(source, SeekFrom::Data(from)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn copy_stretch(source: &File, target: &File, at: u64, mut length: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (at, at);
    while length > 0 {
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        let copied = copy_file_range(
            source.as_fd(),
            Some(&mut read_at),
            target.as_fd(),
            Some(&mut write_at),
            wanted,
        )?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length -= copied as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        let source = File::create(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"first", 0).unwrap();
        source.write_all_at(b"later", 40 << 20).unwrap();
        let stretches = data_of(&source).unwrap();
        assert_eq!(stretches.len(), 2);
        assert!(stretches[0].contains(&0) && stretches[1].contains(&(40 << 20)));
        clone_file(&from, &to).unwrap();
        assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap());
        let copied = fs::metadata(&to).unwrap();
        assert!(copied.blocks() * 512 < 1 << 20, "{} blocks", copied.blocks());
        assert_eq!(copied.permissions().mode() & 0o777, PRIVATE);
        assert!(
            clone_file(&from, &to).is_err(),
            "an existing file is not overwritten"
        );
    }

    #[test]
    fn an_atomic_write_replaces_and_leaves_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        write_atomic(&path, b"one", PRIVATE).unwrap();
        write_atomic(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
