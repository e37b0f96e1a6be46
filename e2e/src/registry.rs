//! A registry of one's own on the loopback interface: Debian's `docker-registry`, on a port that the kernel chooses.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::command::{Invocation, Running};

const START: Duration = Duration::from_secs(20);

/// The user whom a private registry knows.
pub const USER: &str = "ada";
/// The user's password.
pub const PASSWORD: &str = "open sesame";
/// The same, by bcrypt.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

/// A running registry; it ends, and its images go, when this is dropped.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    storage: TempDir,
    /// Held for its end.
    _server: Running,
}

fn temporary() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("hearth-registry-").tempdir()?)
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Errors
    /// `docker-registry` is not installed, or does not start.
    pub fn start() -> Result<Self> {
        Self::serve(temporary()?, "", "")
    }

    /// Starts a registry that knows one user: [`USER`] with [`PASSWORD`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn private() -> Result<Self> {
        let storage = temporary()?;
        let users = storage.path().join("users");
        fs::write(&users, format!("{USER}:{HASH}\n"))?;
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
            users.display()
        );
        Self::serve(storage, &auth, "")
    }

    /// Starts a registry that speaks TLS, with a certificate that an authority of its own has signed.
    ///
    /// # Errors
    /// As [`Self::start`], or openssl fails.
    pub fn with_tls() -> Result<Self> {
        let storage = temporary()?;
        let path = |name: &str| storage.path().join(name).to_string_lossy().into_owned();
        let request = |name: &str, more: &[&str]| {
            let (key, certificate) = (path(&format!("{name}.key")), path(&format!("{name}.pem")));
            let head = [
                "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt",
            ];
            let files = ["ec_paramgen_curve:P-256", "-keyout", &key, "-out", &certificate];
            let arguments = head.iter().chain(&files).chain(more);
            Invocation::new("openssl", arguments).ok().map(drop)
        };
        request("authority", &["-subj", "/CN=tests"])?;
        let signed = ["-CA", &path("authority.pem"), "-CAkey", &path("authority.key")];
        let of_a_server = [
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ];
        request("server", &[&signed[..], &of_a_server].concat())?;
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            path("server.pem"),
            path("server.key")
        );
        Self::serve(storage, "", &tls)
    }

    fn serve(storage: TempDir, more: &str, http: &str) -> Result<Self> {
        let configuration = storage.path().join("configuration.yml");
        let images = storage.path().join("images");
        fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 {more}http:\n  addr: 127.0.0.1:0\n{http}",
                images.display()
            ),
        )?;
        let configuration = configuration.to_string_lossy();
        let server = Invocation::new("docker-registry", ["serve", &configuration]).spawn()?;
        let announcement = "listening on 127.0.0.1:";
        server.stderr.wait_for(announcement, START)?;
        let log = String::from_utf8_lossy(&server.stderr.so_far()).into_owned();
        let port = log
            .split(announcement)
            .nth(1)
            .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>())
            .and_then(|digits| digits.parse().ok())
            .with_context(|| format!("the registry names no port: {log}"))?;
        Ok(Self {
            port,
            storage,
            _server: server,
        })
    }

    /// Returns its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the certificate of the authority of [`Self::with_tls`].
    pub fn authority(&self) -> PathBuf {
        self.storage.path().join("authority.pem")
    }

    /// Returns the full name of an image in it.
    pub fn name(&self, image: &str) -> String {
        format!("localhost:{}/{image}", self.port)
    }

    /// Has skopeo push an image (`oci:DIR:TAG`) under a name.
    ///
    /// # Errors
    /// skopeo fails.
    pub fn push(&self, from: &str, image: &str) -> Result<()> {
        let to = format!("docker://{}", self.name(image));
        let user = format!("{USER}:{PASSWORD}");
        let head = ["copy", "--dest-tls-verify=false", "--dest-creds", &user];
        Invocation::new("skopeo", head.into_iter().chain([from, &to]))
            .ok()
            .map(drop)
    }

    /// Returns the files in which it keeps its blobs, largest first: the layers, then configurations and manifests.
    pub fn blobs(&self) -> Vec<PathBuf> {
        let entries = WalkDir::new(self.storage.path().join("images"))
            .into_iter()
            .flatten();
        let mut blobs: Vec<_> = entries
            .filter(|entry| entry.file_name() == "data")
            .filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.into_path())))
            .collect();
        blobs.sort();
        blobs.into_iter().rev().map(|(_, path)| path).collect()
    }
}
