//! The memory of snapshots, loaded once and shared by all machines that are restored from it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use crate::host::memory_image::{self, MemoryFiles};
use crate::host::own;

/// The part of the host's memory that loaded images may take, of those that the driver keeps for the next machine. Machines
/// hold what they run on all the same.
const PART_OF_MEMORY: u64 = 8;

/// The images, the one used last at the end.
///
/// The mutex guards the list; the driver is shared by all starts and none of them owns it. Loading happens outside of it, in the
/// cell, where a second start of the same image waits for the first.
#[derive(Debug, Default)]
pub(super) struct MemoryImages {
    images: Mutex<Vec<Image>>,
}

#[derive(Debug, Clone)]
struct Image {
    files: (Identity, Option<Identity>),
    loaded: Arc<OnceCell<Arc<OwnedFd>>>,
}

/// Says that two files are one, and unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = File::open(path)?.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

impl MemoryImages {
    /// Returns the memory in these files, sealed; none if they are empty.
    pub(super) async fn open(&self, files: &MemoryFiles) -> io::Result<Option<OwnedFd>> {
        let whole = Identity::of(&files.whole)?;
        if whole.length == 0 {
            return Ok(None);
        }
        let changes = files.changes.as_deref().map(Identity::of).transpose()?;
        let image = self.entry((whole, changes));
        let load = || async {
            let files = files.clone();
            let loaded = tokio::task::spawn_blocking(move || memory_image::sealed(&files)).await;
            loaded.map_err(io::Error::other).flatten().map(Arc::new)
        };
        let descriptor = image.loaded.get_or_try_init(load).await?.try_clone()?;
        self.trim(own::memory_bytes() / PART_OF_MEMORY);
        Ok(Some(descriptor))
    }

    fn entry(&self, files: (Identity, Option<Identity>)) -> Image {
        let mut images = self.lock();
        let known = images.iter().position(|image| image.files == files);
        let image = known.map_or_else(
            || Image {
                files,
                loaded: Arc::default(),
            },
            |at| images.remove(at),
        );
        images.push(image.clone());
        image
    }

    /// Lets go of the images that were not used for longest, until the rest fits. The last one stays.
    fn trim(&self, limit: u64) {
        let mut images = self.lock();
        let mut total: u64 = images.iter().map(Image::bytes).sum();
        while total > limit && images.len() > 1 {
            total -= images.remove(0).bytes();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Image>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    fn bytes(&self) -> u64 {
        let loaded = self.loaded.get();
        loaded
            .and_then(|loaded| memory_image::bytes(loaded).ok())
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_is_loaded_once_and_again_when_its_file_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        std::fs::write(&path, [7; 8192]).unwrap();
        let images = MemoryImages::default();
        let files = MemoryFiles {
            whole: path.clone(),
            changes: None,
        };
        let inode = |descriptor: &OwnedFd| {
            let file = File::from(descriptor.try_clone().unwrap());
            file.metadata().unwrap().ino()
        };
        let first = images.open(&files).await.unwrap().unwrap();
        let second = images.open(&files).await.unwrap().unwrap();
        assert_eq!(inode(&first), inode(&second));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [8; 4096]).unwrap();
        let other = images.open(&files).await.unwrap().unwrap();
        assert_ne!(inode(&first), inode(&other));
        images.trim(0);
        assert_eq!(images.lock().len(), 1);
        std::fs::write(&path, []).unwrap();
        assert!(images.open(&files).await.unwrap().is_none());
    }
}
