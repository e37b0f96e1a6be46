//! Which file a command means: looked up in the PATH of its own environment, as execvp does.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hearth_guest_protocol::message::FailureCode;
use rustix::fs::{Access, AtFlags, CWD, FileType, Stat, accessat, stat};
use rustix::io::Errno;

/// The PATH of an environment that has none.
pub(crate) const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProgramError {
    /// There is no such file in PATH.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    Unlisted(String),
    /// There is no such file, or no interpreter for it.
    #[error("exec: {0:?}: no such file or directory")]
    Missing(String),
    /// It is there and cannot be executed.
    #[error("exec: {0:?}: {1}")]
    Refused(String, &'static str),
}

impl ProgramError {
    /// Returns what programs need to know of it.
    pub(crate) fn code(&self) -> FailureCode {
        match self {
            Self::Refused(..) => FailureCode::CommandNotExecutable,
            Self::Unlisted(_) | Self::Missing(_) => FailureCode::CommandNotFound,
        }
    }
}

/// Finds the file of a command.
///
/// # Errors
/// Returns [`ProgramError`] when there is none that this process may execute.
pub(crate) fn find(command: &[u8], path: &[u8]) -> Result<PathBuf, ProgramError> {
    let name = || String::from_utf8_lossy(command).into_owned();
    if command.is_empty() {
        return Err(ProgramError::Unlisted(name()));
    }
    if command.contains(&b'/') {
        let file = PathBuf::from(OsStr::from_bytes(command));
        return check(&file)
            .map(|()| file)
            .map_err(|errno| refusal(name(), errno));
    }
    let mut refused = None;
    for directory in path.split(|&byte| byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let file = Path::new(OsStr::from_bytes(directory)).join(OsStr::from_bytes(command));
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(errno @ (Errno::ACCESS | Errno::ISDIR)) => refused = refused.or(Some(errno)),
            Err(_) => {}
        }
    }
    Err(match refused {
        Some(errno) => refusal(name(), errno),
        None => ProgramError::Unlisted(name()),
    })
}

/// Says what an error of looking at or executing a program means.
pub(crate) fn refusal(name: String, errno: Errno) -> ProgramError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG => ProgramError::Missing(name),
        Errno::NOEXEC => ProgramError::Refused(name, "exec format error"),
        Errno::ISDIR => ProgramError::Refused(name, "is a directory"),
        Errno::TXTBSY => ProgramError::Refused(name, "text file busy"),
        Errno::TOOBIG => ProgramError::Refused(name, "argument list too long"),
        Errno::NOMEM => ProgramError::Refused(name, "cannot allocate memory"),
        _ => ProgramError::Refused(name, "permission denied"),
    }
}

fn check(file: &Path) -> Result<(), Errno> {
    let Stat { st_mode, .. } = stat(file)?;
    if FileType::from_raw_mode(st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    if FileType::from_raw_mode(st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            for (file, mode) in [("a/tool", 0o644), ("b/tool", 0o755), ("a/plain", 0o644)] {
                let file = root.path().join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, "").unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            }
            fs::create_dir_all(root.path().join("a/folder")).unwrap();
            Self(root)
        }

        fn find(&self, command: &str) -> Result<PathBuf, ProgramError> {
            let at = self.0.path().display();
            find(command.as_bytes(), format!("{at}/none:{at}/a:{at}/b").as_bytes())
        }
    }

    #[test]
    fn the_first_executable_file_in_path_is_taken() {
        let root = Root::new();
        assert_eq!(root.find("tool"), Ok(root.0.path().join("b/tool")));
    }

    #[test]
    fn what_is_found_but_cannot_be_executed_is_told_apart_from_what_is_not_there() {
        let root = Root::new();
        let not_executable = |name: &str, why| Err(ProgramError::Refused(name.into(), why));
        assert_eq!(root.find("plain"), not_executable("plain", "permission denied"));
        assert_eq!(root.find("folder"), not_executable("folder", "is a directory"));
        assert_eq!(root.find("other"), Err(ProgramError::Unlisted("other".into())));
        assert_eq!(root.find(""), Err(ProgramError::Unlisted(String::new())));
    }

    #[test]
    fn a_command_with_a_slash_is_not_looked_up() {
        let root = Root::new();
        let file = root.0.path().join("b/tool");
        assert_eq!(root.find(file.to_str().unwrap()), Ok(file));
        assert_eq!(root.find("./tool"), Err(ProgramError::Missing("./tool".into())));
        assert!(matches!(root.find("/dev/null"), Err(ProgramError::Refused(..))));
    }
}
