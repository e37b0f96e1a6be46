//! `cp`: archives between a machine and here. The rules are in `resolve`, the files in `archive`.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hearth_api::ClientError;
use hearth_api::client::{BodyPieces, reader};
use hearth_api::v1::{ErrorCode, FileKind};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use super::output::print_bytes;
use crate::archive::{Owners, PieceReader, PieceWriter, Unpack, channel, pack};
use crate::arguments::Copy;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{note, plain};
use crate::resolve::{CopyPlan, Place, Side, place_in_machine, plan_copy};

/// How much of an archive is read at once, in bytes.
const PIECE: usize = 256 * 1024;

/// A path in a machine.
struct There<'a> {
    node: &'a Node,
    machine: &'a str,
    /// As given: what is behind its last slash matters to the rules.
    path: &'a str,
}

/// Copies files.
pub(super) async fn copy(node: &Node, arguments: &Copy) -> Result<ExitCode, CliError> {
    let owners = if arguments.archive {
        Owners::Kept
    } else {
        Owners::Mine
    };
    let side = Side::parse(&arguments.source, &arguments.destination)?;
    let (machine, path) = match &side {
        Side::In { machine, path, .. } | Side::Out { machine, path, .. } => (machine, path),
    };
    let there = There { node, machine, path };
    match &side {
        Side::In {
            source: Place::Local(source),
            ..
        } => there.upload(source, owners).await?,
        Side::In { .. } => there.upload_stream(owners).await?,
        Side::Out {
            destination: Place::Local(destination),
            ..
        } => there.download(destination, owners).await?,
        Side::Out { .. } => print_bytes(there.archive().await?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what a local path is, links followed; `None` for nothing.
fn kind_here(path: &str) -> Result<Option<FileKind>, CliError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Some(FileKind::Directory)),
        Ok(found) if found.is_file() => Ok(Some(FileKind::File)),
        Ok(_) => Ok(Some(FileKind::Other)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn unreadable(path: &str, source: io::Error) -> CliError {
    CliError::CopyFile {
        path: path.to_owned(),
        action: "read",
        source,
    }
}

impl There<'_> {
    /// Returns what the path is; `None` for nothing.
    async fn kind(&self) -> Result<Option<FileKind>, CliError> {
        let path = place_in_machine(self.path);
        let stat = self
            .node
            .call(async |client| client.file_stat(self.machine, &path).await);
        match stat.await {
            Ok(found) => Ok(Some(found.kind)),
            Err(CliError::Client(ClientError::Refused(body))) if body.code == ErrorCode::FileNotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the path's archive.
    async fn archive(&self) -> Result<impl AsyncRead + Unpin, CliError> {
        let path = place_in_machine(self.path);
        let get = self
            .node
            .call(async |client| client.file_get(self.machine, &path).await);
        Ok(reader(get.await?))
    }

    async fn download(&self, destination: &str, owners: Owners) -> Result<(), CliError> {
        let path = place_in_machine(self.path);
        let found = self
            .node
            .call(async |client| client.file_stat(self.machine, &path).await);
        let kind = found.await?.kind;
        let CopyPlan { directory, top } = plan_copy(self.path, kind, destination, kind_here(destination)?)?;
        if !Path::new(&directory).is_dir() {
            return Err(unreadable(&directory, io::ErrorKind::NotFound.into()));
        }
        // An archive of the root has no top of its own.
        let strip = usize::from(path != "/");
        let archive = self.archive().await?;
        let (sender, receiver) = channel();
        let files = tokio::task::spawn_blocking(move || {
            Unpack::new(directory, top, strip, owners).run(PieceReader::new(receiver))
        });
        let (sent, unpacked) = tokio::join!(feed(archive, sender), files);
        let skipped = match (sent, joined(unpacked)) {
            (Err(broken), _) => return Err(broken),
            (Ok(()), unpacked) => unpacked?,
        };
        for name in skipped {
            note(&format!(
                "hearth: {} is no file or directory and was left out",
                plain(&name)
            ));
        }
        Ok(())
    }

    async fn upload(&self, source: &str, owners: Owners) -> Result<(), CliError> {
        let missing = || unreadable(source, io::ErrorKind::NotFound.into());
        let kind = kind_here(source)?.ok_or_else(missing)?;
        let named = with_own_name(source, kind)?;
        let CopyPlan { directory, top } = plan_copy(&named, kind, self.path, self.kind().await?)?;
        let (sender, receiver) = channel();
        let path = source.to_owned();
        let files = tokio::task::spawn_blocking(move || {
            let mut writer = PieceWriter::new(sender);
            let packed = pack(Path::new(&path), kind, top.as_deref(), &mut writer);
            if packed.is_err() {
                writer.abort();
            }
            packed
        });
        let (put, packed) = tokio::join!(self.put(&directory, owners, pieces(receiver)), files);
        match (put, joined(packed)) {
            // The node's answer came first, and nobody took the rest.
            (Err(refused), Err(CliError::CopyFile { source, .. }))
                if source.kind() == io::ErrorKind::BrokenPipe =>
            {
                Err(refused)
            }
            (_, Err(error)) => Err(error),
            (put, Ok(())) => put,
        }
    }

    async fn upload_stream(&self, owners: Owners) -> Result<(), CliError> {
        let (sender, receiver) = channel();
        // Input that nobody needs any more, after a refusal, may never end: the thread is left with it.
        let reading = tokio::task::spawn_blocking(move || {
            let mut writer = PieceWriter::new(sender);
            let copied =
                io::copy(&mut io::stdin().lock(), &mut writer).and_then(|_| io::Write::flush(&mut writer));
            if copied.is_err() {
                writer.abort();
            }
            copied.map_err(CliError::Input)
        });
        self.put(self.path, owners, pieces(receiver)).await?;
        joined(reading.await)
    }

    async fn put(&self, directory: &str, owners: Owners, archive: BodyPieces) -> Result<(), CliError> {
        let keep = owners == Owners::Kept;
        let directory = place_in_machine(directory);
        // Whether a node runs is known: it has told what the path is. A body cannot be sent twice.
        let client = self.node.client();
        client
            .file_put(self.machine, &directory, keep, archive)
            .await
            .map_err(CliError::from)
    }
}

/// Gives a source like ".." a name that the rules can use.
fn with_own_name(source: &str, kind: FileKind) -> Result<String, CliError> {
    let last = source.trim_end_matches('/').rsplit('/').next();
    if kind != FileKind::Directory || last != Some("..") {
        return Ok(source.to_owned());
    }
    let real = std::fs::canonicalize(source).map_err(|error| unreadable(source, error))?;
    Ok(real.display().to_string())
}

/// Feeds a thread; one that has given up is asked why later.
async fn feed(
    mut archive: impl AsyncRead + Unpin,
    queue: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), CliError> {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        match archive.read_buf(&mut piece).await {
            Ok(0) => return Ok(()),
            Ok(_) => {
                if queue.send(Ok(piece.into())).await.is_err() {
                    return Ok(());
                }
            }
            Err(source) => {
                drop(queue.send(Err(io::ErrorKind::UnexpectedEof.into())).await);
                return Err(ClientError::Stream(source.into()).into());
            }
        }
    }
}

/// Returns a queue's pieces as a request's body.
pub(super) fn pieces(queue: mpsc::Receiver<io::Result<Bytes>>) -> BodyPieces {
    let next = |mut queue: mpsc::Receiver<_>| async { queue.recv().await.map(|piece| (piece, queue)) };
    stream::unfold(queue, next).boxed()
}

/// Flattens a thread's result.
fn joined<T>(result: Result<Result<T, CliError>, tokio::task::JoinError>) -> Result<T, CliError> {
    result.map_err(|error| CliError::Runtime(io::Error::other(error)))?
}
