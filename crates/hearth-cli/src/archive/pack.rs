//! From files here to an archive.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use hearth_api::v1::FileKind;

use crate::error::CliError;

/// Writes `source`, a file or a tree, as an archive whose top has the name `top`, or none. The symbolic link that
/// `source` may be is followed; those inside a tree are kept.
///
/// # Errors
/// Returns [`CliError::CopyFile`] for the first file that cannot be read.
pub(crate) fn pack(
    source: &Path,
    kind: FileKind,
    top: Option<&str>,
    writer: impl Write,
) -> Result<(), CliError> {
    let failed = |error| CliError::CopyFile {
        path: source.display().to_string(),
        action: "read",
        source: error,
    };
    let mut builder = tar::Builder::new(writer);
    builder.follow_symlinks(false);
    match kind {
        FileKind::Directory => builder.append_dir_all(top.unwrap_or_default(), source),
        _ => File::open(source).and_then(|mut file| builder.append_file(top.unwrap_or_default(), &mut file)),
    }
    .map_err(failed)?;
    builder
        .into_inner()
        .and_then(|mut writer| writer.flush())
        .map_err(failed)
}
