//! Paths in requests: the node has another working directory, so they are made absolute here.

use std::path::Path;

use super::{Host, ResolveError};

/// Returns a path as the node understands it.
///
/// # Errors
/// Returns [`ResolveError`] when there is no working directory or the path is not text.
pub(crate) fn absolute(path: &Path, host: &impl Host) -> Result<String, ResolveError> {
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        let directory = host.directory().map_err(ResolveError::Directory)?;
        directory.join(path.strip_prefix(".").unwrap_or(path))
    };
    full.into_os_string()
        .into_string()
        .map_err(|full| ResolveError::PathNotText(full.into()))
}

/// Returns an image reference with the path in `oci:`, `docker-archive:` and `dir:` made absolute; a tag behind it stays.
///
/// # Errors
/// As [`absolute`].
pub(crate) fn image_reference(reference: &str, host: &impl Host) -> Result<String, ResolveError> {
    for scheme in ["oci:", "docker-archive:", "dir:"] {
        if let Some(path) = reference.strip_prefix(scheme) {
            return Ok(format!("{scheme}{}", absolute(Path::new(path), host)?));
        }
    }
    Ok(reference.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    #[test]
    fn paths_in_references_become_absolute() {
        let host = FakeHost::default();
        for (given, expected) in [
            ("debian:12", "debian:12"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("oci:layout:latest", "oci:/work/layout:latest"),
            ("oci:./layout", "oci:/work/layout"),
            ("oci:/srv/layout:1", "oci:/srv/layout:1"),
            ("docker-archive:../a.tar", "docker-archive:/work/../a.tar"),
            ("dir:x", "dir:/work/x"),
        ] {
            assert_eq!(image_reference(given, &host).unwrap(), expected);
        }
    }
}
