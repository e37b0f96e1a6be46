//! `execute`: one request, output as it comes, and what the code left.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_api::ClientError;
use hearth_api::v1::{ErrorCode, ExecuteLine, ExecuteResult, FileKind};

use super::image::fetch;
use crate::archive::{Owners, Unpack, pack};
use crate::arguments::Pull;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, note, plain};
use crate::resolve::ExecuteOrder;

/// The most input, in bytes; it travels as base64 in one request of 96 MiB.
const INPUT_MAX: usize = 64 << 20;

/// Runs code once.
pub(super) async fn execute(node: &Node, order: ExecuteOrder) -> Result<ExitCode, CliError> {
    let mut request = order.request;
    if let Some(workspace) = &order.workspace {
        request.input_archive = input(workspace)?;
    }
    let ask = async || {
        node.call(async |client| {
            let mut heard = Heard::default();
            let result = client.execute(&request, &mut |line| heard.hear(&line)).await?;
            Ok((result, heard))
        })
        .await
    };
    let missing = request.image.clone();
    if let (Some(image), Pull::Always) = (&missing, order.pull) {
        fetch(node, image.clone()).await?;
    }
    let (mut result, mut heard) = match (ask().await, missing) {
        (Err(CliError::Client(ClientError::Refused(body))), Some(image))
            if body.code == ErrorCode::ImageNotFound && order.pull == Pull::Missing =>
        {
            fetch(node, image).await?;
            ask().await?
        }
        (done, _) => done?,
    };
    if let Some(error) = heard.broken.take() {
        return Err(CliError::Output(error));
    }
    if let Some(workspace) = &order.workspace {
        let whole = result.output_archive.take().map(|text| STANDARD.decode(text));
        let archive = whole.map_or(Ok(heard.archive), |decoded| decoded.map_err(CliError::Base64))?;
        output(workspace, &archive)?;
    }
    if request.stream {
        tell(&result);
    } else {
        print::json(&result)?;
    }
    Ok(ExitCode::from(result.exit_code))
}

/// What came before the result.
#[derive(Default)]
struct Heard {
    archive: Vec<u8>,
    /// Why output could not be written; what comes then is not.
    broken: Option<std::io::Error>,
}

impl Heard {
    fn hear(&mut self, line: &ExecuteLine) {
        let (text, mut target): (_, Box<dyn std::io::Write>) = match line {
            ExecuteLine::Stdout(text) => (text, Box::new(std::io::stdout())),
            ExecuteLine::Stderr(text) => (text, Box::new(std::io::stderr())),
            ExecuteLine::OutputArchive(text) => {
                self.archive.extend(STANDARD.decode(text).unwrap_or_default());
                return;
            }
            _ => return,
        };
        let bytes = STANDARD.decode(text).unwrap_or_default();
        if self.broken.is_none() {
            self.broken = target.write_all(&bytes).and_then(|()| target.flush()).err();
        }
    }
}

/// Packs `DIR/input`, where there is one.
fn input(workspace: &Path) -> Result<Option<String>, CliError> {
    let unreadable = |path: &Path, source| CliError::CopyFile {
        path: path.display().to_string(),
        action: "read",
        source,
    };
    if !workspace.is_dir() {
        return Err(unreadable(workspace, std::io::ErrorKind::NotADirectory.into()));
    }
    let directory = workspace.join("input");
    if !directory.exists() {
        return Ok(None);
    }
    let mut archive = Vec::new();
    pack(&directory, FileKind::Directory, None, Bounded(&mut archive)).map_err(|error| match error {
        CliError::CopyFile { source, .. } if source.kind() == std::io::ErrorKind::FileTooLarge => {
            CliError::InputTooLarge(directory.display().to_string(), INPUT_MAX >> 20)
        }
        error => error,
    })?;
    Ok(Some(STANDARD.encode(archive)))
}

/// Takes [`INPUT_MAX`] bytes and no more.
struct Bounded<'a>(&'a mut Vec<u8>);

impl std::io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > INPUT_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Unpacks what came back into `DIR/output`, as 'cp' does.
fn output(workspace: &Path, archive: &[u8]) -> Result<(), CliError> {
    if archive.is_empty() {
        return Ok(());
    }
    let directory = workspace.join("output");
    // In the machine it is open to everybody, whom there is nobody of.
    let mode = std::fs::symlink_metadata(&directory).map_or(0o755, |found| match found.is_dir() {
        true => found.permissions().mode() & 0o7777,
        false => 0o755,
    });
    let skipped = Unpack::new(workspace, Some("output".to_owned()), 1, Owners::Mine).run(archive)?;
    if let Err(source) = std::fs::set_permissions(&directory, Permissions::from_mode(mode)) {
        return Err(CliError::CopyFile {
            path: directory.display().to_string(),
            action: "written",
            source,
        });
    }
    for name in skipped {
        note(&format!(
            "hearth: {} is no file or directory and was left out",
            plain(&name)
        ));
    }
    Ok(())
}

fn tell(result: &ExecuteResult) {
    if result.timed_out {
        note(&format!(
            "hearth: its time was over after {} ms",
            result.duration_ms
        ));
    }
    if let Some(reason) = &result.output_missing {
        note(&format!(
            "hearth: its output did not come back: {}",
            plain(reason)
        ));
    }
}
