//! Versions of Firecracker, and which of them this crate speaks to.

use std::fmt;
use std::str::FromStr;

/// A version of Firecracker: `1.12.1`.
///
/// What follows the three numbers (`-dev`, a commit) is not kept: it says nothing about the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Breaking changes.
    pub major: u16,
    /// New features.
    pub minor: u16,
    /// Fixes.
    pub patch: u16,
}

/// Says that a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version of Firecracker: {0:?}")]
pub struct InvalidVersion(String);

/// Says why a version is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Its API and its snapshots lack what is needed.
    #[error(
        "Firecracker {0} is too old: {OLDEST} or newer is needed",
        OLDEST = Version::OLDEST
    )]
    TooOld(Version),
    /// After a restore nothing reaches the guest over vsock.
    #[error("Firecracker {0} restores snapshots with a dead vsock: use 1.15 or 1.16.1 instead")]
    DeadVsock(Version),
    /// A major version that did not exist when this was written.
    #[error("Firecracker {0} has another API: only versions 1.x are known")]
    TooNew(Version),
}

impl Version {
    /// The version whose API this crate was written and tested against.
    pub const PINNED: Self = Self::new(1, 12, 1);

    /// The oldest version that is supported.
    pub const OLDEST: Self = Self::new(1, 10, 0);

    /// The version after whose restores vsock is dead.
    const DEAD_VSOCK: Self = Self::new(1, 16, 0);

    /// Makes a version.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// Reads what `firecracker --version` or `jailer --version` prints: the version is the last word of the first line.
    ///
    /// # Errors
    /// Returns [`InvalidVersion`] with that line, cut at 80 characters, when it is no such output.
    pub fn from_output(output: &str) -> Result<Self, InvalidVersion> {
        let line = output.lines().next().unwrap_or_default();
        let (name, version) = line.rsplit_once(' ').unwrap_or_default();
        let known = ["Firecracker", "Jailer", "firecracker", "jailer"].contains(&name);
        let parsed = known.then(|| version.parse().ok()).flatten();
        parsed.ok_or_else(|| InvalidVersion(line.chars().take(80).collect()))
    }

    /// Tells whether this crate speaks to it.
    ///
    /// # Errors
    /// Returns [`Unsupported`] with the reason.
    pub fn check(self) -> Result<Self, Unsupported> {
        match self {
            old if old < Self::OLDEST => Err(Unsupported::TooOld(old)),
            Self::DEAD_VSOCK => Err(Unsupported::DeadVsock(self)),
            new if new.major > Self::PINNED.major => Err(Unsupported::TooNew(new)),
            good => Ok(good),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Reads `1.12.1`, `v1.12.1` or `1.12.1-dev`.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let invalid = || InvalidVersion(text.chars().take(80).collect());
        let numbers = text.strip_prefix('v').unwrap_or(text);
        let numbers = numbers.split(['-', '+']).next().unwrap_or_default();
        let mut parts = numbers.split('.');
        let mut next = || {
            let part = parts
                .next()
                .filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
            part.and_then(|part| part.parse().ok()).ok_or_else(invalid)
        };
        let version = Self::new(next()?, next()?, next()?);
        match parts.next() {
            None => Ok(version),
            Some(_) => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_firecracker_writes_them() {
        let output = "Firecracker v1.12.1\n\n2026-11-24T13:16:04 [anonymous-instance:main] exiting\n";
        assert_eq!(Version::from_output(output), Ok(Version::PINNED));
        assert_eq!("1.13.0-dev".parse(), Ok(Version::new(1, 13, 0)));
        assert_eq!("v1.16.1".parse(), Ok(Version::new(1, 16, 1)));
    }

    #[test]
    fn what_is_no_version_is_refused_and_named() {
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "1.-2.3",
            "1.2.99999",
            "v",
            "1..2",
        ] {
            assert_eq!(
                text.parse::<Version>(),
                Err(InvalidVersion(text.into())),
                "{text:?}"
            );
        }
        assert!(Version::from_output("QEMU emulator version 7.2.0").is_err());
        assert!(Version::from_output("").is_err());
    }

    #[test]
    fn the_supported_range_is_this() {
        let check = |text: &str| text.parse::<Version>().unwrap().check();
        for good in ["1.10.0", "1.12.1", "1.15.1", "1.16.1", "1.17.0"] {
            assert!(check(good).is_ok(), "{good}");
        }
        assert!(matches!(check("1.9.9"), Err(Unsupported::TooOld(_))));
        assert!(matches!(check("2.0.0"), Err(Unsupported::TooNew(_))));
        let refused = check("1.16.0").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Firecracker 1.16.0 restores snapshots with a dead vsock: use 1.15 or 1.16.1 instead"
        );
    }
}
