//! Writable disks of machines. A disk is an empty ext4 of the size asked for; the agent lays it over the image.
//!
//! The file system is made once per size, by mkfs.ext4, and kept as a sparse file; a machine's disk is a copy of it (a reflink
//! where the file system can), so that no program runs when a machine starts.

use std::io;
use std::path::{Path, PathBuf};

use hearth_machine::ByteSize;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::host::command::{CommandError, HostCommand};
use crate::host::launch::HostUser;
use crate::host::{failpoint, files};

/// The format of what is cached: part of its name, so that a change of options makes new ones.
const FORMAT: &str = "ext4-v2";

/// The directories that the agent makes an overlay of. They are there from the start: making them would take the guest
/// longer than mounting the disk.
const SKELETON: [&str; 2] = ["upper", "work"];

/// The empty disks, by size.
#[derive(Debug)]
pub struct Disks {
    directory: PathBuf,
    /// Guards the making of an empty disk: of two machines that need a new size, one makes it and one waits. Held across
    /// mkfs on purpose; nothing else is behind it.
    making: Mutex<()>,
}

/// Says why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The empty file system could not be made.
    #[error("cannot make an empty disk")]
    Make(#[source] CommandError),
    /// The host's file system refused.
    #[error("cannot write the disk {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

impl Disks {
    /// Keeps empty disks in `directory`, which is made when needed. What an earlier node had begun to make there is removed.
    pub fn new(directory: PathBuf) -> Self {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let removed = match path.extension() {
                Some(extension) if extension == "img" => Ok(()),
                _ if path.is_dir() => files::remove_tree(&path),
                _ => files::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "left behind");
            }
        }
        Self {
            directory,
            making: Mutex::new(()),
        }
    }

    /// Makes a machine's disk at `path`, for `owner` where that is not the node. One that is there is kept: a machine that
    /// starts again finds its files.
    ///
    /// # Errors
    /// Returns [`DiskError`]; nothing is left at `path` then.
    pub async fn prepare(
        &self,
        size: ByteSize,
        path: &Path,
        owner: Option<HostUser>,
    ) -> Result<(), DiskError> {
        if path.exists() {
            return Ok(());
        }
        let empty = self.empty(size).await?;
        self.copy(empty, path, owner).await
    }

    /// Makes a machine's disk at `path`, where there is none, a copy of another one, for `owner` where that is not the node. A disk that
    /// is there under its name is whole, whenever the node dies.
    ///
    /// # Errors
    /// Returns [`DiskError`]; nothing is left at `path` then.
    pub async fn copy(&self, from: PathBuf, path: &Path, owner: Option<HostUser>) -> Result<(), DiskError> {
        let target = path.to_owned();
        let copied = tokio::task::spawn_blocking(move || {
            let half_made = target.with_extension("new");
            // A node that died has left it.
            files::remove_file(&half_made)?;
            files::clone_file(&from, &half_made)?;
            owner.map_or(Ok(()), |user| {
                std::os::unix::fs::chown(&half_made, Some(user.uid), Some(user.gid))
            })?;
            std::fs::rename(&half_made, &target)
        })
        .await;
        copied
            .map_err(io::Error::other)
            .flatten()
            .map_err(DiskError::at(path))
    }

    async fn empty(&self, size: ByteSize) -> Result<PathBuf, DiskError> {
        let path = self.directory.join(format!("{FORMAT}-{}.img", size.bytes()));
        if path.exists() {
            return Ok(path);
        }
        let _turn = self.making.lock().await;
        if path.exists() {
            return Ok(path);
        }
        files::make_directory(&self.directory, 0o700).map_err(DiskError::at(&self.directory))?;
        let skeleton = self.skeleton().map_err(DiskError::at(&self.directory))?;
        let half_made = path.with_extension("new");
        let file = std::fs::File::create(&half_made).map_err(DiskError::at(&half_made))?;
        file.set_len(size.bytes()).map_err(DiskError::at(&half_made))?;
        format_ext4(&half_made, skeleton.path())
            .run()
            .await
            .map_err(DiskError::Make)?;
        failpoint::reach("disk-formatted").map_err(DiskError::at(&half_made))?;
        std::fs::rename(&half_made, &path).map_err(DiskError::at(&path))?;
        Ok(path)
    }

    /// Makes the tree that an empty disk holds.
    fn skeleton(&self) -> io::Result<TempDir> {
        let skeleton = tempfile::tempdir_in(&self.directory)?;
        for name in SKELETON {
            files::make_directory(&skeleton.path().join(name), 0o755)?;
        }
        Ok(skeleton)
    }
}

/// A small journal and lazy tables keep the empty file system under a MiB, so that copying it costs next to nothing. No blocks
/// are reserved for root, who is everybody in a machine.
fn format_ext4(path: &Path, content: &Path) -> HostCommand {
    HostCommand::new("mkfs.ext4", "e2fsprogs")
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4"])
        .args([
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,nodiscard",
        ])
        .arg("-d")
        .arg(content)
        .arg(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn a_disk_is_an_ext4_that_takes_little_room_and_is_kept_once_made() {
        let directory = tempfile::tempdir().unwrap();
        let disks = Disks::new(directory.path().join("empty"));
        let path = directory.path().join("disk");
        disks
            .prepare(ByteSize::from_mib(2048), &path, None)
            .await
            .unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 2048 << 20);
        assert!(metadata.blocks() * 512 < 2 << 20, "{} KiB", metadata.blocks() / 2);
        let check = HostCommand::new("e2fsck", "e2fsprogs")
            .args(["-f", "-n"])
            .arg(&path);
        check.run().await.unwrap();
        let before = metadata.ino();
        disks
            .prepare(ByteSize::from_mib(2048), &path, None)
            .await
            .unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), before);
    }

    #[tokio::test]
    async fn two_machines_that_need_a_new_size_share_one_empty_disk() {
        let directory = tempfile::tempdir().unwrap();
        let disks = Disks::new(directory.path().join("empty"));
        let (one, two) = (directory.path().join("1"), directory.path().join("2"));
        let size = ByteSize::from_mib(64);
        let (first, second) = tokio::join!(disks.prepare(size, &one, None), disks.prepare(size, &two, None));
        first.and(second).unwrap();
        assert_eq!(
            std::fs::read_dir(directory.path().join("empty")).unwrap().count(),
            1
        );
    }
}
