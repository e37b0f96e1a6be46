//! Locks: among tasks by name, among processes by file.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Blobs, StoreError};

/// One lock per name, made when it is asked for and forgotten when nobody holds it.
#[derive(Default)]
pub(super) struct KeyedLocks {
    /// Guards the table only, never across an await; an owner task would need the same table behind a channel.
    table: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl KeyedLocks {
    /// Waits until nobody else holds the lock of this name.
    pub(super) async fn lock(&self, name: String) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.entry(name);
        lock.lock_owned().await
    }

    fn entry(&self, name: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = table.get(&name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        table.insert(name, Arc::downgrade(&lock));
        lock
    }
}

/// A lock on a file of the store; released when dropped, and by the kernel when the process dies.
pub(super) struct ProcessLock {
    file: File,
}

impl Drop for ProcessLock {
    /// Closing the file is not enough: a child that another thread is just about to start has it until it executes its program
    /// (flock(2)).
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl ProcessLock {
    /// Locks the store against deletion; waits while a deletion is under way, which is short.
    pub(super) fn shared(blobs: &Blobs) -> Result<Self, StoreError> {
        let (path, file) = blobs.open_lock("lock")?;
        let locked = file.lock_shared();
        locked.map_err(|source| StoreError::Io {
            action: "lock",
            path,
            source,
        })?;
        Ok(Self { file })
    }

    /// Locks the store for deletion, unless somebody writes.
    pub(super) fn try_exclusive(blobs: &Blobs) -> Result<Option<Self>, StoreError> {
        let (path, file) = blobs.open_lock("lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(StoreError::Io {
                action: "lock",
                path,
                source,
            }),
        }
    }

    /// Locks the index for a change; waits for its turn, which is short.
    pub(super) fn index(blobs: &Blobs) -> Result<Self, StoreError> {
        let (path, file) = blobs.open_lock("index.lock")?;
        file.lock().map_err(|source| StoreError::Io {
            action: "lock",
            path,
            source,
        })?;
        Ok(Self { file })
    }
}
