//! Waits for a file to grow, or for one to appear, by inotify(7).

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Watches one file for writes, and for a new name: then what is written later may go to another file.
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
        let descriptor = instance()?;
        inotify::add_watch(
            &descriptor,
            path,
            inotify::WatchFlags::MODIFY | inotify::WatchFlags::MOVE_SELF,
        )?;
        Ok(Self {
            events: register(descriptor)?,
        })
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

fn instance() -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    Ok(inotify::init(flags)?)
}

fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the value that watches it, and is closed after it is deregistered.
    Ok(unsafe { AsyncFd::register(descriptor)? })
}

/// Watches any number of directories for what is new in them, by one instance of inotify. To close one takes the kernel some 10 ms,
/// and a user may have 128 of them; a watch is given back at once.
#[derive(Debug, Default)]
pub struct Directories {
    /// Guards that the first watch makes it. It needs the runtime, which is not there when this value is made.
    instance: Mutex<Option<Arc<Instance>>>,
}

#[derive(Debug)]
struct Instance {
    events: AsyncFd<OwnedFd>,
    /// Who is told of a watch's events. Whoever waits reads the events of all, so that nobody owns this.
    waiting: Mutex<HashMap<i32, Arc<Notify>>>,
}

/// A directory that is watched as long as this value is there.
#[derive(Debug)]
pub struct DirectoryWatch {
    instance: Arc<Instance>,
    number: i32,
    told: Arc<Notify>,
}

impl Directories {
    /// Starts to watch a directory, which nobody else watches here; what appears in it from here on is seen.
    ///
    /// # Errors
    /// Returns the kernel's error, also when the directory does not exist.
    pub fn watch(&self, path: &Path) -> io::Result<DirectoryWatch> {
        let instance = self.instance()?;
        let told = Arc::new(Notify::new());
        let number = {
            // Held over the call: an event may be read before it returns.
            let mut waiting = instance.waiting();
            let wanted = inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR;
            let number = inotify::add_watch(instance.events.get_ref(), path, wanted)?;
            waiting.insert(number, Arc::clone(&told));
            number
        };
        Ok(DirectoryWatch {
            instance,
            number,
            told,
        })
    }

    fn instance(&self) -> io::Result<Arc<Instance>> {
        let mut made = self.instance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = &*made {
            return Ok(Arc::clone(instance));
        }
        let new = Instance {
            events: register(instance()?)?,
            waiting: Mutex::default(),
        };
        Ok(Arc::clone(made.insert(Arc::new(new))))
    }
}

impl Instance {
    fn waiting(&self) -> MutexGuard<'_, HashMap<i32, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for events, and tells those whom they are for.
    async fn read(&self) -> io::Result<()> {
        let mut ready = self.events.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.events.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                // Events of a watch that has been given back are nobody's.
                Ok(event) => {
                    if let Some(told) = self.waiting().get(&event.wd()) {
                        told.notify_one();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl DirectoryWatch {
    /// Waits until something has appeared in the directory since the last call.
    ///
    /// # Errors
    /// Returns the kernel's error.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = self.told.notified() => return Ok(()),
                read = self.instance.read() => read?,
            }
        }
    }
}

impl Drop for DirectoryWatch {
    fn drop(&mut self) {
        let mut waiting = self.instance.waiting();
        waiting.remove(&self.number);
        // The kernel has done so already where the directory is gone.
        let _ = inotify::remove_watch(self.instance.events.get_ref(), self.number);
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

    async fn soon<T>(waited_for: impl Future<Output = T>) -> T {
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, waited_for).await.unwrap()
    }

    #[tokio::test]
    async fn each_watcher_of_a_directory_hears_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "c"].map(|name| root.path().join(name));
        for path in &paths {
            std::fs::create_dir(path).unwrap();
        }
        let directories = Directories::default();
        let watches = paths.each_ref().map(|path| directories.watch(path).unwrap());
        // Before anybody waits, and read by one whom it is not for.
        std::fs::write(paths[0].join("x"), "").unwrap();
        std::fs::write(paths[1].join("x"), "").unwrap();
        soon(watches[1].changed()).await.unwrap();
        soon(watches[0].changed()).await.unwrap();
        let nothing = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(nothing, watches[2].changed()).await.is_err());
        let [first, second, third] = watches;
        drop((first, second));
        let waiting = tokio::spawn(async move { third.changed().await });
        std::fs::write(paths[0].join("y"), "").unwrap();
        std::fs::write(paths[2].join("y"), "").unwrap();
        soon(waiting).await.unwrap().unwrap();
        // What is given back can be watched once more, also by another of that name.
        std::fs::remove_dir_all(&paths[0]).unwrap();
        std::fs::create_dir(&paths[0]).unwrap();
        let again = directories.watch(&paths[0]).unwrap();
        std::fs::write(paths[0].join("z"), "").unwrap();
        soon(again.changed()).await.unwrap();
        assert!(directories.watch(&paths[0].join("z")).is_err());
    }
}
