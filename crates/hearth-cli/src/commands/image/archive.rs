//! `image save` and `image load`: the archive goes through the API, file or pipe on this side.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hearth_api::ClientError;
use hearth_api::client::reader;
use hearth_api::v1::SaveImages;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::archive::{PieceWriter, channel};
use crate::arguments::{ImageLoad, ImageSave};
use crate::commands::copy::pieces;
use crate::commands::output::print_bytes;
use crate::error::CliError;
use crate::node::Node;
use crate::print;
use crate::resolve::{System, image_reference};

/// How much of an archive is read at once, in bytes.
const PIECE: usize = 256 * 1024;

pub(super) async fn save(node: &Node, arguments: &ImageSave) -> Result<ExitCode, CliError> {
    if arguments.output.is_none() && io::stdout().is_terminal() {
        return Err(CliError::ArchiveToTerminal);
    }
    let references = arguments.references.iter();
    let references: Vec<_> = references
        .map(|reference| image_reference(reference, &System))
        .collect::<Result<_, _>>()?;
    let request = SaveImages { references };
    let body = node.call(async |client| client.image_save(&request).await);
    let archive = reader(body.await?);
    match &arguments.output {
        Some(path) => write_file(path, archive).await?,
        None => print_bytes(archive).await?,
    }
    Ok(ExitCode::SUCCESS)
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

pub(super) async fn load(node: &Node, arguments: &ImageLoad) -> Result<ExitCode, CliError> {
    let path = arguments.input.as_deref().filter(|path| *path != Path::new("-"));
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
    // A body cannot be sent twice: the node is up before.
    node.call(async |client| client.node_status().await).await?;
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
    let client = node.client();
    let loaded = client
        .image_load(arguments.tag.as_deref(), pieces(receiver))
        .await?;
    match reading.await {
        Ok(Ok(())) => {}
        // The node had all that it needed.
        Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Ok(Err(error)) => return Err(CliError::Input(error)),
        Err(error) => return Err(CliError::Runtime(io::Error::other(error))),
    }
    if arguments.json {
        print::json(&loaded)?;
    } else {
        for image in &loaded {
            print::line(&image.reference)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
