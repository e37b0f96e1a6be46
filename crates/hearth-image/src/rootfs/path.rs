//! Names within an image: what an archive wrote, made into components that are safe to build a tree from.
//!
//! Nothing here ever becomes a path of the host: the tree is in memory, and the image is one file.

use crate::Limits;
use crate::erofs::NAME_MAX;

/// A path below the root of an image, without `.`, `..`, empty components and NUL; the root itself is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TreePath(Box<[u8]>);

/// Says why a name in an archive is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` leads out of the root file system.
    #[error("its path leads out of the image")]
    Escapes,
    /// A NUL byte; no Linux path has one.
    #[error("its path contains a NUL byte")]
    Nul,
    /// Longer than [`Limits::path_bytes`].
    #[error("its path is longer than {0} bytes")]
    TooLong(usize),
    /// A component longer than 255 bytes.
    #[error("a component of its path is longer than 255 bytes")]
    NameTooLong,
    /// Deeper than [`Limits::depth`].
    #[error("it lies more than {0} directories deep")]
    TooDeep(usize),
}

impl TreePath {
    /// Cleans a path as docker and containerd do: leading slashes are dropped, `.` and inner `..` are resolved as
    /// text, and only a `..` above the root is refused.
    pub(crate) fn clean(raw: &[u8], limits: &Limits) -> Result<Self, PathError> {
        if raw.len() > limits.path_bytes {
            return Err(PathError::TooLong(limits.path_bytes));
        }
        if raw.contains(&0) {
            return Err(PathError::Nul);
        }
        let mut components: Vec<&[u8]> = Vec::new();
        for component in raw.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    components.pop().ok_or(PathError::Escapes)?;
                }
                name if name.len() > NAME_MAX => return Err(PathError::NameTooLong),
                name => components.push(name),
            }
        }
        if components.len() > limits.depth {
            return Err(PathError::TooDeep(limits.depth));
        }
        Ok(Self(components.join(&b'/').into()))
    }

    /// Returns the components from the root on.
    pub(crate) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Splits the last component off; `None` for the root.
    pub(crate) fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (Self(self.0[..slash].into()), &self.0[slash + 1..]),
            None => (Self(Box::default()), &self.0),
        })
    }

    /// Returns the path for messages.
    pub(crate) fn display(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(raw: &str) -> Result<String, PathError> {
        TreePath::clean(raw.as_bytes(), &Limits::default()).map(|path| path.display())
    }

    #[test]
    fn paths_are_cleaned_as_docker_does() {
        for (raw, expected) in [
            ("", "/"),
            ("./", "/"),
            ("/etc/passwd", "/etc/passwd"),
            ("./usr//bin/", "/usr/bin"),
            ("a/../b", "/b"),
            ("a/b/../../c/.", "/c"),
        ] {
            assert_eq!(clean(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn paths_out_of_the_image_are_refused() {
        for raw in ["..", "../x", "/../x", "a/../../x"] {
            assert_eq!(clean(raw), Err(PathError::Escapes), "{raw}");
        }
        assert_eq!(clean("a\0b"), Err(PathError::Nul));
        assert_eq!(clean(&"x".repeat(256)), Err(PathError::NameTooLong));
        assert_eq!(clean(&"x/".repeat(600)), Err(PathError::TooDeep(512)));
        assert_eq!(clean(&"x".repeat(5000)), Err(PathError::TooLong(4095)));
    }

    #[test]
    fn the_last_component_splits_off() {
        let path = TreePath::clean(b"a/b/c", &Limits::default()).unwrap();
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.display().as_str(), name), ("/a/b", &b"c"[..]));
        assert!(
            TreePath::clean(b"/", &Limits::default())
                .unwrap()
                .split()
                .is_none()
        );
    }
}
