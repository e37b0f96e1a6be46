//! A registry of one's own on the loopback interface: Debian's `docker-registry`, on a port that the kernel chooses.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use walkdir::WalkDir;

use crate::command::{Invocation, Running};

const START: Duration = Duration::from_secs(20);

/// A running registry; it ends, and its images go, when this is dropped.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    storage: TempDir,
    /// Held for its end.
    _server: Running,
}

impl Registry {
    /// Starts an empty registry.
    ///
    /// # Errors
    /// `docker-registry` is not installed, or does not start.
    pub fn start() -> Result<Self> {
        let storage = tempfile::Builder::new().prefix("hearth-registry-").tempdir()?;
        let configuration = storage.path().join("configuration.yml");
        let images = storage.path().join("images");
        fs::write(
            &configuration,
            format!(
                "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: 127.0.0.1:0\n",
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
        Invocation::new("skopeo", ["copy", "--dest-tls-verify=false", from, &to])
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
