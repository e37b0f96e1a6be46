//! docker's `config.json` and podman's `auth.json`, as far as they are about logins. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use hearth_api::v1::Login;
use serde::Deserialize;

/// The user under whose name an identity token is kept.
pub(super) const TOKEN_USER: &str = "<token>";

/// What Docker Hub is called in these files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A file with logins.
#[derive(Deserialize)]
pub(super) struct LoginFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// What a file has for a registry.
pub(super) enum Entry {
    /// Nothing.
    Absent,
    /// A login.
    Login(Login),
    /// Something that is none.
    Broken,
}

impl LoginFile {
    pub(super) fn parse(content: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(content)
    }

    /// Returns the helper for a registry, and what the helper calls the registry.
    pub(super) fn helper<'a>(&'a self, registry: &'a str) -> Option<(&'a str, &'a str)> {
        let own = self.helpers.iter().find(|(name, _)| same(name, registry));
        let common = || {
            let store = self.store.as_deref().filter(|store| !store.is_empty())?;
            Some((
                store,
                if registry == "docker.io" {
                    DOCKER_HUB
                } else {
                    registry
                },
            ))
        };
        own.map(|(name, helper)| (helper.as_str(), name.as_str()))
            .or_else(common)
    }

    /// Returns the login for a repository: podman's names may end in a part of it, and the longest counts.
    pub(super) fn entry(&self, registry: &str, repository: &str) -> Entry {
        let mut path = format!("{registry}/{repository}");
        loop {
            let found = self
                .auths
                .iter()
                .find(|(name, auth)| same(name, &path) && !auth.is_empty());
            if let Some((_, auth)) = found {
                return auth.login().map_or(Entry::Broken, Entry::Login);
            }
            match path.rfind('/') {
                Some(end) => path.truncate(end),
                None => return Entry::Absent,
            }
        }
    }
}

impl Auth {
    /// With a store, docker leaves an empty entry behind.
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identity_token]
            .iter()
            .all(|text| text.is_empty())
    }

    fn login(&self) -> Option<Login> {
        if !self.identity_token.is_empty() {
            return Some(Login::IdentityToken(self.identity_token.clone()));
        }
        if self.auth.is_empty() {
            return Some(login(self.username.clone(), self.password.clone()));
        }
        let pair = base64::engine::general_purpose::STANDARD
            .decode(self.auth.trim())
            .ok()?;
        let pair = String::from_utf8(pair).ok()?;
        // docker has been seen to write NUL bytes behind it.
        let (user, password) = pair.trim_end_matches('\0').split_once(':')?;
        Some(login(user.to_owned(), password.to_owned()))
    }
}

/// Returns a login from a user and a secret, which may be an identity token.
pub(super) fn login(user: String, secret: String) -> Login {
    match user.as_str() {
        TOKEN_USER => Login::IdentityToken(secret),
        _ => Login::Password {
            user,
            password: secret,
        },
    }
}

/// Tells whether a name in these files means a registry, or a part of one: they may have a scheme and a version.
fn same(name: &str, registry: &str) -> bool {
    let bare = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"));
    let bare = match bare {
        Some(address) => {
            let address = address.trim_end_matches('/');
            ["/v1", "/v2"]
                .iter()
                .find_map(|version| address.strip_suffix(version))
                .unwrap_or(address)
        }
        None => name,
    };
    match bare {
        "index.docker.io" | "registry-1.docker.io" => registry == "docker.io",
        bare => bare == registry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str) -> LoginFile {
        LoginFile::parse(json.as_bytes()).unwrap()
    }

    fn user(file: &LoginFile, registry: &str, repository: &str) -> String {
        match file.entry(registry, repository) {
            Entry::Absent => "absent".into(),
            Entry::Broken => "broken".into(),
            Entry::Login(Login::Password { user, .. }) => user,
            Entry::Login(Login::IdentityToken(token)) => format!("token {token}"),
        }
    }

    #[test]
    fn a_registry_has_several_names() {
        // The users are a, b, c, d.
        let file = file(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"YTp4"},"https://one.example/v2/":{"auth":"Yjp4"},
            "two.example:5000":{"auth":"Yzp4"},"http://three.example":{"auth":"ZDp4"}},"HttpHeaders":{}}"#,
        );
        for (registry, expected) in [
            ("docker.io", "a"),
            ("one.example", "b"),
            ("two.example:5000", "c"),
            ("three.example", "d"),
            ("two.example", "absent"),
            ("example", "absent"),
        ] {
            assert_eq!(user(&file, registry, "x/y"), expected, "{registry}");
        }
    }

    #[test]
    fn the_longest_part_of_a_repository_counts() {
        let file = file(
            r#"{"auths":{"q.io":{"auth":"YTp4"},"q.io/team":{"auth":"Yjp4"},"q.io/team/app":{"auth":"Yzp4"}}}"#,
        );
        assert_eq!(user(&file, "q.io", "team/app"), "c");
        assert_eq!(user(&file, "q.io", "team/other"), "b");
        assert_eq!(user(&file, "q.io", "teams"), "a");
    }

    #[test]
    fn all_kinds_of_entries_are_read() {
        let file = file(
            r#"{"auths":{"a":{"auth":"","identitytoken":"t"},"b":{"auth":"PHRva2VuPjp0"},"c":{"username":"u","password":"p"},
            "d":{},"e":{"auth":"?"},"f":{"auth":"YTpiOmM="}}}"#,
        );
        for (registry, expected) in [
            ("a", "token t"),
            ("b", "token t"),
            ("c", "u"),
            ("d", "absent"),
            ("e", "broken"),
            ("f", "a"),
        ] {
            assert_eq!(user(&file, registry, "x"), expected, "{registry}");
        }
    }

    #[test]
    fn a_registrys_own_helper_comes_before_the_store() {
        let file = file(r#"{"credHelpers":{"gcr.io":"gcloud"},"credsStore":"pass"}"#);
        assert_eq!(file.helper("gcr.io"), Some(("gcloud", "gcr.io")));
        assert_eq!(file.helper("quay.io"), Some(("pass", "quay.io")));
        assert_eq!(file.helper("docker.io"), Some(("pass", DOCKER_HUB)));
        assert_eq!(super::LoginFile::parse(b"{}").unwrap().helper("quay.io"), None);
    }
}
