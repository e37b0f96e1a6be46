//! What a machine says on its serial console, kept in a file of bounded size.
//!
//! The monitor writes into a named pipe; a task of the node reads it and keeps the newest output in a file. A monitor that
//! wrote the file itself could fill the disk whenever no node is there to trim it, and a limit on the size of files
//! (`RLIMIT_FSIZE`) would hold for the machine's disks as well. The pipe bounds what a machine can say while no node
//! listens: 64 KiB, then the serial port drops. Those 64 KiB are not lost, the next node reads them.
//!
//! ```text
//!  monitor --write--> console pipe (64 KiB, in the kernel) --ConsoleLog task--> console.log (newest cap/2 to cap bytes)
//!     `- also holds it open for reading, so that it lives on without a node
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::launch::HostUser;

/// How much console output is kept unless configured otherwise, in bytes.
pub const DEFAULT_CAP: u64 = 1 << 20;

/// What stands where output was dropped.
const GAP: &[u8] = b"[earlier output was dropped]\n";

/// Says why a console is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The pipe cannot be made or opened.
    #[error("cannot open the console pipe {}", path.display())]
    Pipe {
        /// The pipe.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be opened.
    #[error("cannot open the console log {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Makes the pipe, in place of an old one, and gives it to the monitor's user.
///
/// Returns a descriptor that keeps the pipe alive. The monitor must inherit it: then what the machine says stays in the
/// pipe while no node is there to read it.
///
/// # Errors
/// [`ConsoleError::Pipe`].
pub fn make_pipe(path: &Path, owner: Option<HostUser>) -> Result<OwnedFd, ConsoleError> {
    let make = || -> io::Result<OwnedFd> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, path, Mode::RUSR | Mode::WUSR)?;
        if let Some(user) = owner {
            std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))?;
        }
        // Opening a pipe for both directions never blocks (fifo(7)).
        Ok(rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    };
    make().map_err(|source| ConsoleError::Pipe {
        path: path.to_owned(),
        source,
    })
}

/// Opens the pipe for a monitor whose serial port it is to be as it is: one that is full refuses what more the guest says, and
/// keeps neither monitor nor guest waiting. It keeps the pipe alive.
///
/// # Errors
/// [`ConsoleError::Pipe`].
pub fn writer(path: &Path) -> Result<OwnedFd, ConsoleError> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| ConsoleError::Pipe {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// The task that records one machine's console. Dropping it stops the recording and loses nothing: what is not yet read
/// stays in the pipe.
#[derive(Debug)]
pub struct ConsoleLog {
    recorded: watch::Receiver<u64>,
    last_call: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl ConsoleLog {
    /// Starts to record `pipe` into `log`, of which it keeps the newest `cap` bytes at most; output already there stays.
    ///
    /// # Errors
    /// [`ConsoleError`].
    pub fn start(pipe: &Path, log: &Path, cap: u64) -> Result<Self, ConsoleError> {
        let mut options = pipe::OpenOptions::new();
        let receiver = options
            .read_write(true)
            .open_receiver(pipe)
            .map_err(|source| ConsoleError::Pipe {
                path: pipe.to_owned(),
                source,
            })?;
        let file = CappedFile::open(log, cap).map_err(|source| ConsoleError::Log {
            path: log.to_owned(),
            source,
        })?;
        let (progress, recorded) = watch::channel(0);
        let last_call = CancellationToken::new();
        let recording = record(receiver, file, progress, last_call.clone());
        Ok(Self {
            recorded,
            last_call,
            _task: AbortOnDropHandle::new(tokio::spawn(recording)),
        })
    }

    /// Returns a counter of the bytes recorded by this value, which changes whenever the log has grown.
    pub fn recorded(&self) -> watch::Receiver<u64> {
        self.recorded.clone()
    }

    /// Records what is left in the pipe, and ends the recording. For use after the monitor's end; may be called again.
    pub async fn finish(&self) {
        self.last_call.cancel();
        // The task owns the sender, so the channel closes when the task has ended.
        let mut recorded = self.recorded.clone();
        while recorded.changed().await.is_ok() {}
    }
}

async fn record(
    receiver: pipe::Receiver,
    mut file: CappedFile,
    progress: watch::Sender<u64>,
    last_call: CancellationToken,
) {
    let mut buffer = vec![0; 4 << 10];
    let mut keep = |bytes: &[u8]| {
        // A full disk must not stop the machine, nor the reading that keeps its serial port going.
        if let Err(error) = file.append(bytes) {
            tracing::warn!(log = %file.path.display(), %error, "console output is lost");
        }
        progress.send_modify(|recorded| *recorded += bytes.len() as u64);
    };
    let lost = loop {
        match receiver.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => keep(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let ready = tokio::select! {
                    ready = receiver.readable() => Some(ready),
                    () = last_call.cancelled() => None,
                };
                match ready {
                    Some(Ok(())) => {}
                    Some(Err(error)) => break error,
                    // The runtime may not have noticed yet what is in the pipe: ask the kernel itself.
                    None => loop {
                        match rustix::io::read(&receiver, &mut buffer) {
                            Ok(count) if count > 0 => keep(&buffer[..count]),
                            _ => return,
                        }
                    },
                }
            }
            Err(error) => break error,
        }
        // A machine that talks without end leaves the node to others between two chunks.
        tokio::task::yield_now().await;
    };
    tracing::warn!(error = %lost, "the console is no longer recorded");
}

/// A file that holds the newest bytes written to it. Between half the cap and the cap, so that dropping the oldest is rare.
#[derive(Debug)]
struct CappedFile {
    path: PathBuf,
    file: File,
    length: u64,
    cap: u64,
}

impl CappedFile {
    fn open(path: &Path, cap: u64) -> io::Result<Self> {
        let file = Self::options().open(path)?;
        // The mode of a file that was there before is not the one above.
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
        let length = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            cap,
        })
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        options
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length + bytes.len() as u64 > self.cap {
            self.drop_oldest()?;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Writes the newest half to a new file and puts that in place, so that a reader sees the old content or the new.
    fn drop_oldest(&mut self) -> io::Result<()> {
        let kept = tail(&self.path, self.cap / 2)?;
        let from = kept
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let beside = self.path.with_extension("new");
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = Self::options().open(&beside)?;
        file.write_all(GAP)?;
        file.write_all(&kept[from..])?;
        std::fs::rename(&beside, &self.path)?;
        self.length = file.metadata()?.len();
        self.file = file;
        Ok(())
    }
}

/// Reads the last `bytes` of a file; all of it when it is shorter.
///
/// # Errors
/// When the file cannot be read.
pub fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut content = Vec::new();
    file.take(bytes).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capped_file_keeps_the_newest_whole_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut file = CappedFile::open(&path, 1000).unwrap();
        for number in 0..1000 {
            file.append(format!("line {number}\n").as_bytes()).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("line 998\nline 999\n"), "{text}");
        assert!(text.starts_with("[earlier output was dropped]\nline "), "{text}");
    }

    #[test]
    fn one_line_longer_than_the_cap_does_not_break_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console.log");
        let mut file = CappedFile::open(&path, 1000).unwrap();
        for _ in 0..100 {
            file.append(&[b'x'; 400]).unwrap();
            assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
        }
    }

    #[tokio::test]
    async fn what_is_said_without_a_node_is_recorded_by_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let (pipe, log) = (
            directory.path().join("console"),
            directory.path().join("console.log"),
        );
        let monitor = make_pipe(&pipe, None).unwrap();
        let mut writer = File::from(monitor.try_clone().unwrap());
        let first = ConsoleLog::start(&pipe, &log, DEFAULT_CAP).unwrap();
        writer.write_all(b"with the first node\n").unwrap();
        first.recorded().wait_for(|bytes| *bytes == 20).await.unwrap();
        drop(first);
        writer.write_all(b"without a node\n").unwrap();
        let second = ConsoleLog::start(&pipe, &log, DEFAULT_CAP).unwrap();
        drop((writer, monitor));
        second.finish().await;
        assert_eq!(
            std::fs::read_to_string(&log).unwrap(),
            "with the first node\nwithout a node\n"
        );
    }
}
