//! Somebody else's page server, to hold `hearth pager` against: `FILE SOCKET IMAGE`, as the examples in Firecracker's own tree are
//! called. It serves one machine and ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::firecracker::{Machine, Memory, Subject};
use super::{Samples, VmmError, listens, one};

/// Restores a machine from it, and looks at each page that was filled.
pub(super) async fn restore(
    program: &Path,
    subject: &Subject,
    source: &Machine,
    samples: &mut Samples,
) -> Result<(), VmmError> {
    let socket: PathBuf = subject.directory.join("handler");
    // Of the one before.
    let _ = std::fs::remove_file(&socket);
    let started = Command::new(program)
        .arg(&socket)
        .arg(source.memory())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let _handler = started.map_err(|source| VmmError::Program {
        program: program.to_owned(),
        source,
    })?;
    listens(&socket).await?;
    one(subject, source, Memory::Pager(&socket), samples).await
}
