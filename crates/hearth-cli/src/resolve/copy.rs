//! `cp`: which side is which, and where things land, by docker's rules. Pure: what exists is an argument.
//!
//! Between the sides goes a tar archive with one top: the file or tree under the name it had. Where it is unpacked, and
//! what becomes of the top's name, is a [`CopyPlan`]:
//! ```text
//! source      destination           directory             top
//! file        missing, or a file    the parent            destination's name
//! file        a directory           the destination       source's name
//! directory   missing               the parent            destination's name
//! directory   a directory           the destination       source's name, or nothing if the source ends in "/."
//! ```

use hearth_api::v1::FileKind;

use super::ResolveError;

/// One argument of `cp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path here.
    Local(String),
    /// A path in a machine, absolute.
    Machine {
        /// The machine, as given.
        machine: String,
        /// The path.
        path: String,
    },
    /// A tar archive on standard input or output.
    Stream,
}

/// What `cp` is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Side {
    /// From here into a machine.
    In {
        /// A local path, or the stream.
        source: Place,
        /// The machine.
        machine: String,
        /// The path there.
        path: String,
    },
    /// From a machine to here.
    Out {
        /// The machine.
        machine: String,
        /// The path there.
        path: String,
        /// A local path, or the stream.
        destination: Place,
    },
}

impl Side {
    /// Tells the sides apart.
    ///
    /// # Errors
    /// Returns [`ResolveError`] unless exactly one side is a machine's.
    pub(crate) fn parse(source: &str, destination: &str) -> Result<Self, ResolveError> {
        match (Place::parse(source)?, Place::parse(destination)?) {
            (Place::Machine { .. }, Place::Machine { .. }) => Err(ResolveError::CopyRemote),
            (source, Place::Machine { machine, path }) => Ok(Self::In {
                source,
                machine,
                path,
            }),
            (Place::Machine { machine, path }, destination) => Ok(Self::Out {
                machine,
                path,
                destination,
            }),
            _ => Err(ResolveError::CopyLocal),
        }
    }
}

impl Place {
    fn parse(text: &str) -> Result<Self, ResolveError> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let local = text.starts_with(['/', '.']);
        match text.split_once(':').filter(|_| !local) {
            Some((machine, path)) if !machine.is_empty() && !path.is_empty() => Ok(Self::Machine {
                machine: machine.to_owned(),
                path: format!("/{}", path.trim_start_matches('/')),
            }),
            None if !text.is_empty() => Ok(Self::Local(text.to_owned())),
            _ => Err(ResolveError::CopyPath(text.to_owned())),
        }
    }
}

/// Where an archive is unpacked and what its top is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyPlan {
    /// The directory to unpack in; it must exist.
    pub(crate) directory: String,
    /// The top's name; `None` when what is in it goes right into the directory.
    pub(crate) top: Option<String>,
}

/// Says why nothing can be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CopyRefused {
    /// A file under a name that says directory.
    #[error("{0} is not there, and a file cannot become a directory")]
    DirectoryMissing(String),
    /// A directory onto a file.
    #[error("{destination} is a file, and {source_path} a directory")]
    DirectoryOntoFile {
        /// Where from.
        source_path: String,
        /// Where to.
        destination: String,
    },
    /// What is neither file nor directory.
    #[error("{0} is neither a file nor a directory")]
    Special(String),
    /// "/." behind a file.
    #[error("{0} is not a directory")]
    NotADirectory(String),
}

/// Plans a copy of `source`, which is a `kind`, to `destination`, which is `there`, if anything.
///
/// # Errors
/// Returns [`CopyRefused`] when docker's rules do not allow it.
pub(crate) fn plan(
    source: &str,
    kind: FileKind,
    destination: &str,
    there: Option<FileKind>,
) -> Result<CopyPlan, CopyRefused> {
    let is_directory = match kind {
        FileKind::Directory => true,
        FileKind::File if says_directory(source) => {
            return Err(CopyRefused::NotADirectory(source.to_owned()));
        }
        FileKind::File => false,
        FileKind::Other => return Err(CopyRefused::Special(source.to_owned())),
    };
    match there {
        Some(FileKind::Directory) => Ok(CopyPlan {
            directory: destination.to_owned(),
            top: file_name(source),
        }),
        Some(_) if is_directory => Err(CopyRefused::DirectoryOntoFile {
            source_path: source.to_owned(),
            destination: destination.to_owned(),
        }),
        Some(_) | None if !is_directory && says_directory(destination) => {
            Err(CopyRefused::DirectoryMissing(destination.to_owned()))
        }
        Some(_) | None => Ok(beside(destination)),
    }
}

/// Plans to unpack in the destination's parent, under its name.
fn beside(destination: &str) -> CopyPlan {
    let trimmed = destination
        .strip_suffix("/.")
        .unwrap_or(destination)
        .trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
    CopyPlan {
        directory: if parent.is_empty() { "/" } else { parent }.to_owned(),
        top: Some(name.to_owned()),
    }
}

/// Whether a path can only mean a directory.
fn says_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// The last component's name; `None` for "x/.", "." and "/": what is in them is meant, not they.
fn file_name(path: &str) -> Option<String> {
    if path.ends_with("/.") || path == "." {
        return None;
    }
    let last = path.trim_end_matches('/').rsplit('/').next();
    last.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Returns the path that a machine is asked for: without the "/." that only says how to unpack, "." and ".." resolved.
pub(crate) fn place_in_machine(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use FileKind::{Directory, File, Other};

    use super::*;

    fn machine(path: &str) -> Place {
        Place::Machine {
            machine: "web".into(),
            path: path.into(),
        }
    }

    #[test]
    fn a_colon_makes_a_machine_unless_a_dot_or_slash_comes_first() {
        for (text, expected) in [
            ("web:/etc", machine("/etc")),
            ("web:etc/x", machine("/etc/x")),
            ("web:/a:b", machine("/a:b")),
            ("./web:/etc", Place::Local("./web:/etc".into())),
            ("/a:b", Place::Local("/a:b".into())),
            ("plain", Place::Local("plain".into())),
            ("-", Place::Stream),
        ] {
            assert_eq!(Place::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "web:", ":/etc"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn exactly_one_side_is_a_machine() {
        assert!(matches!(Side::parse("a", "b"), Err(ResolveError::CopyLocal)));
        assert!(matches!(Side::parse("a:x", "b:y"), Err(ResolveError::CopyRemote)));
        assert!(matches!(
            Side::parse("-", "b:y"),
            Ok(Side::In {
                source: Place::Stream,
                ..
            })
        ));
        let out = Side::parse("a:x", "-");
        assert!(matches!(
            out,
            Ok(Side::Out {
                destination: Place::Stream,
                ..
            })
        ));
    }

    #[test]
    fn things_land_where_docker_puts_them() {
        for (source, kind, destination, there, directory, top) in [
            ("a/f", File, "/d/new", None, "/d", Some("new")),
            ("a/f", File, "/d/old", Some(File), "/d", Some("old")),
            ("a/f", File, "/d", Some(Directory), "/d", Some("f")),
            ("a/f", File, "/d/", Some(Directory), "/d/", Some("f")),
            ("a/f", File, "/new", None, "/", Some("new")),
            ("f", File, "new", None, ".", Some("new")),
            ("f", File, "/dev/x", Some(Other), "/dev", Some("x")),
            ("t", Directory, "/d/new", None, "/d", Some("new")),
            ("t", Directory, "/d/new/", None, "/d", Some("new")),
            ("t/.", Directory, "/d/new", None, "/d", Some("new")),
            ("t", Directory, "/d", Some(Directory), "/d", Some("t")),
            ("t/", Directory, "/d", Some(Directory), "/d", Some("t")),
            ("t/.", Directory, "/d", Some(Directory), "/d", None),
            (".", Directory, "/d", Some(Directory), "/d", None),
            ("/", Directory, "d", Some(Directory), "d", None),
        ] {
            let planned = plan(source, kind, destination, there);
            let expected = CopyPlan {
                directory: directory.into(),
                top: top.map(str::to_owned),
            };
            assert_eq!(planned, Ok(expected), "{source} -> {destination}");
        }
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for (source, kind, destination, there) in [
            ("f", File, "/d/new/", None),
            ("f/.", File, "/d", Some(Directory)),
            ("f/", File, "/d", Some(Directory)),
            ("t", Directory, "/d/file", Some(File)),
            ("/dev/null", Other, "/d", Some(Directory)),
        ] {
            assert!(
                plan(source, kind, destination, there).is_err(),
                "{source} -> {destination}"
            );
        }
    }

    #[test]
    fn a_machine_is_asked_for_plain_paths() {
        for (path, expected) in [
            ("/srv/.", "/srv"),
            ("/srv/", "/srv"),
            ("/a/../b/./c", "/b/c"),
            ("/../..", "/"),
            ("/", "/"),
        ] {
            assert_eq!(place_in_machine(path), expected);
        }
    }
}
