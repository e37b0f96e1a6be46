//! The files of the store. Blocking; no caller holds an async thread.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{FORMAT, Image, StoreError};
use crate::digest::Hasher;
use crate::manifest::{Blob, Manifest};
use crate::rootfs::{self, Job, LayerBlob, RootfsError};
use crate::{Digest, Limits, Phase, Progress, ProgressSink, step};

const COPY_BUFFER: usize = 256 << 10;

/// The directory of a store.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    dir: PathBuf,
}

/// Says why a blob did not get into the store.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source of the blob.
    #[error("cannot read {digest} from its source")]
    Read {
        /// The blob.
        digest: Digest,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It ended early.
    #[error("{digest} is truncated: {got} of {expected} bytes came")]
    Truncated {
        /// The blob.
        digest: Digest,
        /// Bytes it should have.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// It does not end where it should.
    #[error("{digest} is longer than the {expected} bytes that its manifest says")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Bytes it should have.
        expected: u64,
    },
    /// Its content is another.
    #[error("the content of {expected} has the digest {actual}")]
    WrongDigest {
        /// The digest it was asked for by.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
}

impl Blobs {
    /// Makes what is missing of the directories.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        let blobs = Self { dir: dir.to_owned() };
        for sub in ["blobs/sha256", "partial", "rootfs", "tmp"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(|source| StoreError::Io {
                action: "make",
                path,
                source,
            })?;
        }
        let layout = dir.join("oci-layout");
        if !layout.exists() {
            blobs.replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(blobs)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn blob_dir(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// Returns the directory of what came of blobs so far.
    pub(super) fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_dir().join(digest.hex())
    }

    pub(super) fn rootfs_path(&self, manifest: &Digest) -> PathBuf {
        self.dir
            .join("rootfs")
            .join(format!("{}.v{FORMAT}.erofs", manifest.hex()))
    }

    pub(super) fn open_lock(&self, name: &str) -> Result<(PathBuf, File), StoreError> {
        let path = self.dir.join(name);
        match File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
        {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(StoreError::Io {
                action: "open",
                path,
                source,
            }),
        }
    }

    /// Makes a file that vanishes unless it is kept.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        let path = self.dir.join("tmp");
        NamedTempFile::new_in(&path).map_err(|source| StoreError::Io {
            action: "write in",
            path,
            source,
        })
    }

    /// Syncs a temporary file and gives it its final name; an old file of that name is replaced.
    pub(crate) fn keep(&self, file: NamedTempFile, path: &Path) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        };
        file.as_file().sync_data().map_err(failed)?;
        file.persist(path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    /// Replaces a file at once.
    pub(super) fn replace(&self, path: &Path, content: &[u8]) -> Result<(), StoreError> {
        let mut file = self.temporary()?;
        let written = file.write_all(content);
        written.map_err(|source| StoreError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })?;
        self.keep(file, path)
    }

    /// Tells whether a blob is there. Its digest was checked when it came.
    pub(crate) fn has(&self, blob: &Blob) -> bool {
        fs::metadata(self.blob_path(&blob.digest)).is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
    }

    /// Stores bytes that are in memory.
    pub(crate) fn put(&self, content: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(content);
        self.replace(&self.blob_path(&digest), content)?;
        Ok(digest)
    }

    /// Copies a blob from a local source, and checks it.
    pub(crate) fn copy(
        &self,
        blob: &Blob,
        source: &mut dyn Read,
        progress: &ProgressSink,
    ) -> Result<(), BlobError> {
        let mut sink = BlobSink::new(self, blob.clone(), progress.clone())?;
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => return sink.finish(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(BlobError::Read {
                        digest: blob.digest,
                        source,
                    });
                }
            };
            sink.write(&buffer[..count])?;
        }
    }

    /// Reads a manifest or configuration.
    pub(super) fn read_small(&self, digest: &Digest, limits: &Limits) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        read_bounded(&path, limits.manifest_bytes).map_err(|source| StoreError::Io {
            action: "read",
            path,
            source,
        })
    }

    /// Makes the root file system of an image whose blobs are all there.
    pub(super) fn make_rootfs(
        &self,
        image: &Image,
        (manifest, diff_ids): (&Manifest, &[Digest]),
        limits: &Limits,
        progress: &ProgressSink,
    ) -> Result<(), StoreError> {
        let temporary = self.temporary()?;
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| LayerBlob {
                digest: layer.digest,
                path: self.blob_path(&layer.digest),
                diff_id: Some(*diff_id),
            })
            .collect();
        let report = |digest: &Digest, done: u64| {
            let total = manifest
                .layers
                .iter()
                .find(|layer| layer.digest == *digest)
                .map_or(0, |layer| layer.size);
            progress(Progress {
                blob: *digest,
                done,
                total,
                already: 0,
                phase: Phase::Unpack,
            });
        };
        let path = image.rootfs.as_path();
        let reopened = temporary.reopen();
        let output = reopened.map_err(|source| StoreError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&image.digest.bytes()[..16]);
        let job = Job {
            layers: &layers,
            output,
            output_path: path,
            uuid,
            limits: *limits,
            progress: &report,
        };
        let failed = |source: RootfsError| StoreError::Rootfs {
            reference: image.reference.to_string(),
            source,
        };
        rootfs::build(job).map_err(failed)?;
        step::reached("pull-rootfs-written").map_err(StoreError::at("write", path))?;
        self.keep(temporary, path)?;
        step::reached("pull-rootfs-stored").map_err(StoreError::at("write", path))
    }
}

/// Takes the bytes of a blob as they come, and stores it if they are the right ones.
pub(crate) struct BlobSink {
    blobs: Blobs,
    blob: Blob,
    file: NamedTempFile,
    hasher: Hasher,
    got: u64,
    progress: ProgressSink,
}

impl BlobSink {
    pub(crate) fn new(blobs: &Blobs, blob: Blob, progress: ProgressSink) -> Result<Self, StoreError> {
        let file = blobs.temporary()?;
        Ok(Self {
            blobs: blobs.clone(),
            blob,
            file,
            hasher: Hasher::new(),
            got: 0,
            progress,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let Blob { digest, size, .. } = self.blob;
        self.got += bytes.len() as u64;
        if self.got > size {
            return Err(BlobError::TooLong {
                digest,
                expected: size,
            });
        }
        self.hasher.update(bytes);
        let path = self.file.path().to_owned();
        let written = self.file.write_all(bytes);
        written.map_err(StoreError::at("write", &path))?;
        if self.got == bytes.len() as u64 {
            step::reached("pull-blob-begun").map_err(StoreError::at("write", path))?;
        }
        (self.progress)(Progress {
            blob: digest,
            done: self.got,
            total: size,
            already: 0,
            phase: Phase::Fetch,
        });
        Ok(())
    }

    /// Checks length and digest, and gives the blob its name.
    pub(crate) fn finish(self) -> Result<(), BlobError> {
        let Blob { digest, size, .. } = self.blob;
        if self.got < size {
            return Err(BlobError::Truncated {
                digest,
                expected: size,
                got: self.got,
            });
        }
        let actual = self.hasher.finish();
        if actual != digest {
            return Err(BlobError::WrongDigest {
                expected: digest,
                actual,
            });
        }
        let path = self.blobs.blob_path(&digest);
        step::reached("pull-blob-written").map_err(StoreError::at("write", &path))?;
        self.blobs.keep(self.file, &path)?;
        step::reached("pull-blob-stored").map_err(StoreError::at("write", &path))?;
        (self.progress)(Progress {
            blob: digest,
            done: size,
            total: size,
            already: 0,
            phase: Phase::Stored,
        });
        Ok(())
    }
}

pub(super) fn file_size(path: &Path) -> Result<u64, StoreError> {
    let meta = fs::metadata(path);
    let meta = meta.map_err(|source| StoreError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok(meta.len())
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is longer than {limit} bytes"),
        ));
    }
    Ok(content)
}
