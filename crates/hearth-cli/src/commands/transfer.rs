//! Archives between a file or pipe on this side and the API.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use hearth_api::ClientError;
use hearth_api::client::BodyPieces;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::JoinHandle;

use super::copy::pieces;
use super::output::print_bytes;
use crate::archive::{PieceWriter, channel};
use crate::error::CliError;

/// How much of an archive is read at once, in bytes.
const PIECE: usize = 256 * 1024;

/// Refuses to write an archive to somebody's screen.
pub(super) fn check_output(path: Option<&Path>) -> Result<(), CliError> {
    match path.is_none() && io::stdout().is_terminal() {
        true => Err(CliError::ArchiveToTerminal),
        false => Ok(()),
    }
}

/// Writes an archive to a file, or to standard output.
pub(super) async fn save(path: Option<&Path>, archive: impl AsyncRead + Unpin) -> Result<(), CliError> {
    match path {
        Some(path) => write_file(path, archive).await,
        None => print_bytes(archive).await.map(drop),
    }
}

/// Writes a file that is whole or not there; an older one stays until then.
async fn write_file(path: &Path, archive: impl AsyncRead + Unpin) -> Result<(), CliError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = write_partial(&partial, archive).await;
    let done =
        written.and_then(|()| std::fs::rename(&partial, path).map_err(|source| unwritable(path, source)));
    if done.is_err() {
        // It may not even have come into being.
        let _ = std::fs::remove_file(&partial);
    }
    done
}

async fn write_partial(path: &Path, mut archive: impl AsyncRead + Unpin) -> Result<(), CliError> {
    let mut file = File::create(path).map_err(|source| unwritable(path, source))?;
    let mut piece = vec![0; PIECE];
    loop {
        let count = archive.read(&mut piece).await;
        match count.map_err(|error| ClientError::Stream(error.into()))? {
            0 => return file.sync_data().map_err(|source| unwritable(path, source)),
            count => file
                .write_all(&piece[..count])
                .map_err(|source| unwritable(path, source))?,
        }
    }
}

fn unwritable(path: &Path, source: io::Error) -> CliError {
    CliError::CopyFile {
        path: path.display().to_string(),
        action: "written",
        source,
    }
}

/// An archive on its way to the node.
pub(super) struct Upload {
    reading: JoinHandle<io::Result<()>>,
}

impl Upload {
    /// Opens a file, or standard input where there is none or `-`. The body can be sent once.
    pub(super) fn begin(path: Option<&Path>) -> Result<(Self, BodyPieces), CliError> {
        let path = path.filter(|path| *path != Path::new("-"));
        let mut input: Box<dyn io::Read + Send> = match path {
            Some(path) => match File::open(path) {
                Ok(file) => Box::new(file),
                Err(source) => {
                    return Err(CliError::CopyFile {
                        path: path.display().to_string(),
                        action: "read",
                        source,
                    });
                }
            },
            None => Box::new(io::stdin()),
        };
        let (sender, receiver) = channel();
        // Input that nobody needs any more, after a refusal, may never end: the thread is left with it.
        let reading = tokio::task::spawn_blocking(move || {
            let mut writer = PieceWriter::new(sender);
            let copied = io::copy(&mut input, &mut writer).and_then(|_| writer.flush());
            if copied.is_err() {
                writer.abort();
            }
            copied
        });
        Ok((Self { reading }, pieces(receiver)))
    }

    /// Makes sure that all was read that the node wanted.
    pub(super) async fn finish(self) -> Result<(), CliError> {
        match self.reading.await {
            Ok(Ok(())) => Ok(()),
            // The node had all that it needed.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(Err(error)) => Err(CliError::Input(error)),
            Err(error) => Err(CliError::Runtime(io::Error::other(error))),
        }
    }
}
