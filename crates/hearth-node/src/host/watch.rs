//! Waits for a file to grow, or for one to appear, by inotify(7).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Watches one file for writes, and for a new name: then what is written later may go to another file. Or a directory, for
/// what is new in it.
#[derive(Debug)]
pub struct FileWatch {
    events: AsyncFd<OwnedFd>,
}

impl FileWatch {
    /// Starts to watch; writes from here on are seen.
    ///
    /// # Errors
    /// Returns the kernel's error, also when the file does not exist.
    pub fn new(path: &Path) -> io::Result<Self> {
        Self::watch(path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVE_SELF)
    }

    /// Starts to watch a directory; what appears in it from here on is seen.
    ///
    /// # Errors
    /// Returns the kernel's error, also when the directory does not exist.
    pub fn of_directory(path: &Path) -> io::Result<Self> {
        Self::watch(path, inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR)
    }

    fn watch(path: &Path, wanted: inotify::WatchFlags) -> io::Result<Self> {
        let descriptor = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&descriptor, path, wanted)?;
        // SAFETY: the descriptor is owned by the value that watches it, and is closed after it is deregistered.
        let events = unsafe { AsyncFd::register(descriptor)? };
        Ok(Self { events })
    }

    /// Waits until the file was written or renamed since the last call.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.events.readable().await?;
            let drained = ready.try_io(|descriptor| {
                let mut buffer = [MaybeUninit::uninit(); 1024];
                rustix::io::read(descriptor.get_ref(), &mut buffer)
                    .map(drop)
                    .map_err(io::Error::from)
            });
            if let Ok(result) = drained {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_write_wakes_the_watcher() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let watch = FileWatch::new(file.path()).unwrap();
        let wait = tokio::spawn(async move { watch.changed().await });
        file.write_all(b"x").unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), wait)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_new_name_wakes_the_watcher() {
        let directory = tempfile::tempdir().unwrap();
        let (file, renamed) = (directory.path().join("file"), directory.path().join("renamed"));
        std::fs::write(&file, "x").unwrap();
        let watch = FileWatch::new(&file).unwrap();
        std::fs::rename(&file, renamed).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), watch.changed())
            .await
            .unwrap()
            .unwrap();
    }
}
