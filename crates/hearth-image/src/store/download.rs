//! A blob on its way from a registry. What came is kept in `partial/`, whatever ends the way: a later download goes on there.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::OwnedMutexGuard;

use super::{BlobError, Blobs, ProcessLock, StoreError};
use crate::digest::Hasher;
use crate::manifest::Blob;
use crate::{Digest, Phase, Progress, ProgressSink, step};

const READ_BUFFER: usize = 1 << 20;
/// How long what came of a blob is kept for a later download, from its last byte on.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Takes the bytes of a blob as they come, and stores it if they are the right ones. Its methods are blocking.
pub(crate) struct Download {
    blobs: Blobs,
    blob: Blob,
    path: PathBuf,
    /// Locked: another process that wants the same blob waits.
    file: File,
    hasher: Hasher,
    got: u64,
    /// Bytes that were there already.
    already: u64,
    progress: ProgressSink,
    /// Nobody deletes from the store, and nobody in this process fetches the same blob, for as long as there is a file open.
    _guards: Guards,
}

/// What a download holds until its file is closed, even when who asked for it has gone away.
pub(super) type Guards = (OwnedMutexGuard<()>, ProcessLock);

impl Download {
    /// Takes up what an earlier download left; `None` when the blob has come meanwhile.
    pub(super) fn open(
        blobs: &Blobs,
        blob: Blob,
        guards: Guards,
        progress: ProgressSink,
    ) -> Result<Option<Self>, StoreError> {
        let path = blobs.partial_dir().join(blob.digest.hex());
        let file = open_locked(&path)?;
        if blobs.has(&blob) {
            // Nothing is in it; if it stays, it is swept.
            let _ = fs::remove_file(&path);
            return Ok(None);
        }
        let mut download = Self {
            blobs: blobs.clone(),
            blob,
            path,
            file,
            hasher: Hasher::new(),
            got: 0,
            already: 0,
            progress,
            _guards: guards,
        };
        download.read_up()?;
        Ok(Some(download))
    }

    /// Hashes what is there: a digest's state is not kept on the disk, where it could disagree with the file.
    fn read_up(&mut self) -> Result<(), StoreError> {
        let length = self
            .file
            .metadata()
            .map_err(|source| self.failed("read", source))?
            .len();
        if length > self.blob.size {
            return self.restart();
        }
        let mut buffer = vec![0; READ_BUFFER.min(length as usize)];
        while self.got < length {
            let read = self.file.read(&mut buffer);
            let count = read.map_err(|source| self.failed("read", source))?;
            if count == 0 {
                break;
            }
            self.hasher.update(&buffer[..count]);
            self.got += count as u64;
        }
        self.already = self.got;
        if self.already > 0 {
            self.tell(Phase::Fetch);
        }
        Ok(())
    }

    pub(crate) fn digest(&self) -> Digest {
        self.blob.digest
    }

    /// Returns the number of bytes that are there.
    pub(crate) fn got(&self) -> u64 {
        self.got
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.got == self.blob.size
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if self.got + bytes.len() as u64 > self.blob.size {
            return Err(BlobError::TooLong {
                digest: self.blob.digest,
                expected: self.blob.size,
            });
        }
        if let Err(source) = self.file.write_all(bytes) {
            let full = source.kind() == std::io::ErrorKind::StorageFull;
            let failed = self.failed("write", source);
            if full {
                // What cannot be ended must not keep the disk full.
                self.restart()?;
            }
            return Err(failed.into());
        }
        if self.got == 0 {
            step::reached("pull-blob-begun").map_err(StoreError::at("write", &self.path))?;
        }
        self.hasher.update(bytes);
        self.got += bytes.len() as u64;
        self.tell(Phase::Fetch);
        Ok(())
    }

    /// Forgets everything that came.
    pub(crate) fn restart(&mut self) -> Result<(), StoreError> {
        let reopened = File::options().write(true).truncate(true).open(&self.path);
        drop(reopened.map_err(|source| self.failed("write", source))?);
        let rewound = std::io::Seek::rewind(&mut self.file);
        rewound.map_err(|source| self.failed("write", source))?;
        (self.hasher, self.got, self.already) = (Hasher::new(), 0, 0);
        Ok(())
    }

    /// Checks length and digest, and gives the blob its name. Bytes of another digest are kept until [`Self::restart`].
    pub(crate) fn finish(&mut self) -> Result<(), BlobError> {
        let Blob { digest, size, .. } = self.blob;
        if self.got < size {
            return Err(BlobError::Truncated {
                digest,
                expected: size,
                got: self.got,
            });
        }
        let actual = std::mem::replace(&mut self.hasher, Hasher::new()).finish();
        if actual != digest {
            return Err(BlobError::WrongDigest {
                expected: digest,
                actual,
            });
        }
        let path = self.blobs.blob_path(&digest);
        step::reached("pull-blob-written").map_err(StoreError::at("write", &path))?;
        self.file
            .sync_data()
            .map_err(|source| self.failed("write", source))?;
        fs::rename(&self.path, &path).map_err(|source| self.failed("rename", source))?;
        step::reached("pull-blob-stored").map_err(StoreError::at("write", &path))?;
        self.tell(Phase::Stored);
        Ok(())
    }

    fn tell(&self, phase: Phase) {
        (self.progress)(Progress {
            blob: self.blob.digest,
            done: self.got,
            total: self.blob.size,
            already: self.already,
            phase,
        });
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> StoreError {
        StoreError::Io {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if self.got == 0 && self.blob.size > 0 {
            // Nothing came, or nothing of use. If it stays, it is swept with the rest.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a file and locks it; waits while another process has it.
fn open_locked(path: &Path) -> Result<File, StoreError> {
    let open = || -> std::io::Result<Option<File>> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        // Who had it before may have given it its final name, or deleted it.
        let same = fs::metadata(path).is_ok_and(|there| {
            file.metadata()
                .is_ok_and(|ours| (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
        });
        Ok(same.then_some(file))
    };
    loop {
        match open() {
            Ok(Some(file)) => return Ok(file),
            Ok(None) => {}
            Err(source) => {
                return Err(StoreError::Io {
                    action: "write",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Deletes what came of blobs that nobody has asked for since [`KEPT`]. The caller holds the lock for deletion.
pub(super) fn sweep_partial(blobs: &Blobs) -> Result<(), StoreError> {
    sweep_older(blobs, KEPT, SystemTime::now())
}

fn sweep_older(blobs: &Blobs, kept: Duration, now: SystemTime) -> Result<(), StoreError> {
    let dir = blobs.partial_dir();
    let failed = |action, path: &Path, source| StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    for entry in fs::read_dir(&dir).map_err(|source| failed("list", &dir, source))? {
        let path = entry.map_err(|source| failed("list", &dir, source))?.path();
        let changed = fs::metadata(&path).and_then(|meta| meta.modified());
        let changed = changed.map_err(|source| failed("read", &path, source))?;
        if now.duration_since(changed).is_ok_and(|age| age >= kept) {
            fs::remove_file(&path).map_err(|source| failed("delete", &path, source))?;
        }
    }
    Ok(())
}
