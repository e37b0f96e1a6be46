//! Debian packages: an `ar` archive whose member `data.tar.*` holds the files. Read in Rust, so that set-up needs no
//! `dpkg` tool and no root.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use super::decompress::decompressed;

/// Says why files could not be taken out of a package.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The package cannot be read.
    #[error("cannot read the package {}", path.display())]
    Read {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The package has no files.
    #[error("the package {} holds no data.tar", path.display())]
    NoData {
        /// The package.
        path: PathBuf,
    },
    /// A file of the package cannot be written.
    #[error("cannot unpack {} out of the package {}", name.display(), path.display())]
    Unpack {
        /// The package.
        path: PathBuf,
        /// The file's name in the package.
        name: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Unpacks the wanted regular files of a package below `into`, under the names they have in the package.
///
/// `wanted` sees names without the leading `./`. `on_read` is told how many bytes of the package have been read.
pub(super) fn unpack(
    deb: &Path,
    into: &Path,
    wanted: impl Fn(&Path) -> bool,
    on_read: &dyn Fn(u64),
) -> Result<(), DebError> {
    let read = |source| DebError::Read {
        path: deb.to_owned(),
        source,
    };
    let file = Counted {
        inner: File::open(deb).map_err(read)?,
        count: 0,
        on_read,
    };
    let mut archive = ar::Archive::new(file);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(read)?;
        if !member.header().identifier().starts_with(b"data.tar") {
            continue;
        }
        let mut files = tar::Archive::new(decompressed(member).map_err(read)?);
        for entry in files.entries().map_err(read)? {
            unpack_entry(deb, entry.map_err(read)?, into, &wanted)?;
        }
        return Ok(());
    }
    Err(DebError::NoData { path: deb.to_owned() })
}

fn unpack_entry<R: Read>(
    deb: &Path,
    mut entry: tar::Entry<'_, R>,
    into: &Path,
    wanted: impl Fn(&Path) -> bool,
) -> Result<(), DebError> {
    let path = entry.path().map_err(|source| DebError::Read {
        path: deb.to_owned(),
        source,
    })?;
    let name: PathBuf = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect();
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || !entry.header().entry_type().is_file() || !wanted(&name) {
        return Ok(());
    }
    let target = into.join(&name);
    let write = || -> io::Result<()> {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        io::copy(&mut entry, &mut File::create(&target)?)?;
        Ok(())
    };
    let mut write = write;
    write().map_err(|source| DebError::Unpack {
        path: deb.to_owned(),
        name,
        source,
    })
}

/// A reader that says how far it is.
struct Counted<'a, R> {
    inner: R,
    count: u64,
    on_read: &'a dyn Fn(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        (self.on_read)(self.count);
        Ok(count)
    }
}
