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

/// Returns the registry that a reference names, and the repository there; `None` when it is a path, or no reference at all,
/// which the node then says.
///
/// docker's rule: what is before the first slash is a registry when it has a dot, a colon or a capital, or is `localhost`.
pub(crate) fn registry_and_repository(reference: &str) -> Option<(String, String)> {
    const HUB: &str = "docker.io";
    if ["oci:", "docker-archive:", "dir:"]
        .iter()
        .any(|scheme| reference.starts_with(scheme))
    {
        return None;
    }
    let name = reference.split_once('@').map_or(reference, |(name, _)| name);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    let is_registry = |host: &str| {
        host.contains(['.', ':']) || host == "localhost" || host.chars().any(|c| c.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((host, rest)) if is_registry(host) => (host, rest),
        _ => (HUB, name),
    };
    match registry {
        HUB | "index.docker.io" if !repository.contains('/') => {
            Some((HUB.into(), format!("library/{repository}")))
        }
        "index.docker.io" => Some((HUB.into(), repository.into())),
        _ => Some((registry.into(), repository.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeHost;
    use super::*;

    #[test]
    fn references_name_their_registry() {
        for (reference, expected) in [
            ("debian", "docker.io library/debian"),
            ("team/app:1", "docker.io team/app"),
            ("index.docker.io/debian", "docker.io library/debian"),
            ("ghcr.io/a/b@sha256:0", "ghcr.io a/b"),
            ("localhost/x", "localhost x"),
            ("localhost:5000/a/b:1@sha256:0", "localhost:5000 a/b"),
            ("[::1]:5000/x", "[::1]:5000 x"),
        ] {
            let (registry, repository) = registry_and_repository(reference).unwrap();
            assert_eq!(format!("{registry} {repository}"), expected);
        }
        assert_eq!(registry_and_repository("oci:ghcr.io/x"), None);
    }

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
