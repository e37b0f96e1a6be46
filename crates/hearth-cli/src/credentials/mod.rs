//! Who the caller is to a registry: what `docker login` and `podman login` have written, and the programs they name.
//!
//! ```text
//! $REGISTRY_AUTH_FILE                                   alone, where it is set (podman)
//! $DOCKER_CONFIG/config.json, or ~/.docker/config.json
//! $XDG_RUNTIME_DIR/containers/auth.json                 (podman)
//! $XDG_CONFIG_HOME/containers/auth.json, or ~/.config/containers/auth.json
//! ```
//! The first file that knows the registry counts. It is the caller's home that is looked at, not the node's; the node gets
//! what is for this one registry, with the request, and keeps nothing.

mod file;
mod helper;

use std::path::PathBuf;

use hearth_api::v1::{Login, RegistryCredentials};

use crate::resolve::{Host, registry_and_repository};
use file::{Entry, LoginFile};
pub(crate) use helper::HelperError;

/// Says why the caller's credentials cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// A file cannot be read.
    #[error("{} with the logins to registries cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is none of its kind.
    #[error("{} with the logins to registries makes no sense", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An entry of a file is not user and password.
    // What is in it is not shown: it may be the password.
    #[error("the login to {registry} in {} is not user and password in base64", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
    },
    /// A helper that a file names.
    #[error("the login to {registry} cannot be had from the program that {} names", path.display())]
    Helper {
        /// The file.
        path: PathBuf,
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: HelperError,
    },
}

impl CredentialsError {
    /// Says what the user can do about it.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Read { path, .. } | Self::Parse { path, .. } => {
                format!("mend {}; REGISTRY_AUTH_FILE names another file", path.display())
            }
            Self::Entry { registry, .. } => format!("log in again: docker login {registry}"),
            Self::Helper { path, source, .. } => source.remedy(path),
        }
    }
}

/// Returns what the caller has for the registry of a reference, if the reference names one.
///
/// # Errors
/// [`CredentialsError`]. That there are no credentials is none.
pub(crate) async fn find(
    reference: &str,
    host: &impl Host,
) -> Result<Option<RegistryCredentials>, CredentialsError> {
    let Some((registry, repository)) = registry_and_repository(reference) else {
        return Ok(None);
    };
    for path in files(host) {
        let content = match host.read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(CredentialsError::Read { path, source }),
        };
        let file = LoginFile::parse(&content).map_err(|source| CredentialsError::Parse {
            path: path.clone(),
            source,
        })?;
        if let Some(login) = login(&file, &path, &registry, &repository, host).await? {
            return Ok(Some(RegistryCredentials { registry, login }));
        }
    }
    Ok(None)
}

async fn login(
    file: &LoginFile,
    path: &std::path::Path,
    registry: &str,
    repository: &str,
    host: &impl Host,
) -> Result<Option<Login>, CredentialsError> {
    if let Some((helper, server)) = file.helper(registry) {
        let asked = helper::get(helper, server, host).await;
        let found = asked.map_err(|source| CredentialsError::Helper {
            path: path.to_owned(),
            registry: registry.to_owned(),
            source,
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match file.entry(registry, repository) {
        Entry::Absent => Ok(None),
        Entry::Login(login) => Ok(Some(login)),
        Entry::Broken => Err(CredentialsError::Entry {
            path: path.to_owned(),
            registry: registry.to_owned(),
        }),
    }
}

fn files(host: &impl Host) -> Vec<PathBuf> {
    let directory = |name: &str| {
        let value = host.variable(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    if let Some(only) = directory("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let below_home = |name: &str| directory("HOME").map(|home| home.join(name));
    let docker = directory("DOCKER_CONFIG").or_else(|| below_home(".docker"));
    let configuration = directory("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
    let podman = [directory("XDG_RUNTIME_DIR"), configuration]
        .into_iter()
        .flatten();
    let docker = docker.map(|directory| directory.join("config.json"));
    docker
        .into_iter()
        .chain(podman.map(|directory| directory.join("containers/auth.json")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resolve::fake::FakeHost;

    fn host(files: &[(&'static str, &'static str)]) -> FakeHost {
        let mut host = FakeHost::default();
        host.variables
            .extend([("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")]);
        host.files
            .extend(files.iter().map(|(path, content)| (*path, content.as_bytes())));
        host
    }

    fn password(user: &str, password: &str) -> Login {
        Login::Password {
            user: user.into(),
            password: password.into(),
        }
    }

    #[tokio::test]
    async fn the_first_file_that_knows_the_registry_counts() {
        let host = host(&[
            (
                "/h/.docker/config.json",
                r#"{"auths":{"ghcr.io":{"auth":"YTpi"}}}"#,
            ),
            (
                "/run/user/7/containers/auth.json",
                r#"{"auths":{"ghcr.io":{"auth":"Yzpk"},"quay.io":{"auth":"Yzpk"}}}"#,
            ),
        ]);
        let found = find("ghcr.io/x", &host).await.unwrap().unwrap();
        assert!(found.registry == "ghcr.io" && found.login == password("a", "b"));
        let found = find("quay.io/x", &host).await.unwrap().unwrap();
        assert!(found.login == password("c", "d"));
        assert_eq!(find("debian:12", &host).await.unwrap(), None);
        assert_eq!(find("dir:/srv", &host).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_file_that_is_named_counts_alone() {
        let mut host = host(&[
            (
                "/h/.docker/config.json",
                r#"{"auths":{"ghcr.io":{"auth":"YTpi"}}}"#,
            ),
            ("/other", "{}"),
        ]);
        host.variables.insert("REGISTRY_AUTH_FILE", "/other");
        assert_eq!(find("ghcr.io/x", &host).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_that_shows_no_secret() {
        let broken = host(&[(
            "/h/.docker/config.json",
            r#"{"auths":{"ghcr.io":{"auth":"aHVzaA=="}}}"#,
        )]);
        let error = find("ghcr.io/x", &broken).await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(
            told.contains("ghcr.io") && !told.contains("aHVzaA") && !told.contains("hush"),
            "{told}"
        );
        let nonsense = host(&[("/h/.docker/config.json", "{")]);
        assert!(matches!(
            find("x", &nonsense).await,
            Err(CredentialsError::Parse { .. })
        ));
    }
}
