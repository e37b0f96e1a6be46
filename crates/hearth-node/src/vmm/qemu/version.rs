//! Which QEMU is installed, and whether it is new enough.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::command::{CommandError, HostCommand};

/// The oldest version that is used: Debian 12's, the one that all measurements were made with.
pub(super) const OLDEST: Version = Version {
    major: 7,
    minor: 2,
    micro: 0,
};

/// The program's name, looked for in `PATH` unless configured.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes once a year.
    pub major: u32,
    /// Changes three times a year.
    pub minor: u32,
    /// Counts corrections.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Says why there is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It is not in `PATH`.
    #[error("{PROGRAM} is not installed: `apt-get install qemu-system-x86` brings it")]
    Missing,
    /// It cannot be run.
    #[error("cannot ask {} for its version", program.display())]
    Ask {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// What it says about itself is not understood.
    #[error("{} says {said:?} instead of its version", program.display())]
    Unknown {
        /// The program.
        program: PathBuf,
        /// The beginning of what it said.
        said: String,
    },
    /// It is too old.
    #[error("{} is QEMU {found}, and {OLDEST} is the oldest that will do", program.display())]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        found: Version,
    },
}

/// Finds the program in the directories of `PATH`.
///
/// # Errors
/// [`VersionError::Missing`].
pub fn find() -> Result<PathBuf, VersionError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or(VersionError::Missing)
}

/// Asks the program for its version (which takes it 20 to 40 ms), and refuses one that is too old.
///
/// # Errors
/// [`VersionError`].
pub(super) async fn check(program: &Path) -> Result<Version, VersionError> {
    let output = HostCommand::new(program, "qemu-system-x86")
        .arg("--version")
        .time_limit(Duration::from_secs(20))
        .run()
        .await
        .map_err(|source| VersionError::Ask {
            program: program.to_owned(),
            source,
        })?;
    let said = String::from_utf8_lossy(&output);
    let found = parse(&said).ok_or_else(|| VersionError::Unknown {
        program: program.to_owned(),
        said: said.chars().take(80).collect(),
    })?;
    if found < OLDEST {
        return Err(VersionError::TooOld {
            program: program.to_owned(),
            found,
        });
    }
    Ok(found)
}

/// Reads `QEMU emulator version 7.2.22 (Debian ...)`. Development versions leave nothing out, some builds leave out the micro.
fn parse(said: &str) -> Option<Version> {
    let number = said.strip_prefix("QEMU emulator version ")?;
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(number.len());
    let mut parts = number[..end].split('.').map(str::parse);
    Some(Version {
        major: parts.next()?.ok()?,
        minor: parts.next()?.ok()?,
        micro: parts.next().transpose().ok()?.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (said, version) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright",
                "7.2.22",
            ),
            ("QEMU emulator version 10.0.2\n", "10.0.2"),
            ("QEMU emulator version 8.1 (x)", "8.1.0"),
            ("QEMU emulator version 9.0.50 (v9.0.0-1-gabc)", "9.0.50"),
        ] {
            assert_eq!(parse(said).unwrap().to_string(), version);
        }
        for said in [
            "",
            "QEMU emulator version ",
            "QEMU emulator version x.y",
            "bash: no",
        ] {
            assert_eq!(parse(said), None, "{said}");
        }
    }

    #[test]
    fn ten_is_newer_than_seven() {
        assert!(parse("QEMU emulator version 10.0.0").unwrap() > OLDEST);
        assert!(parse("QEMU emulator version 7.1.9").unwrap() < OLDEST);
    }
}
