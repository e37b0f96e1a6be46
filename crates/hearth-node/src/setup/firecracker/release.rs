//! The official releases: where they are, and what is known of the pinned one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_firecracker::Version;

use super::super::digest::Digest;
use super::super::progress::{Listener, Step};
use super::super::run::blocking;
use super::FirecrackerError;
use super::index::Installed;
use crate::host::command::HostCommand;

const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases/download";

/// The digests of the pinned release's programs.
const FIRECRACKER: &str = "sha256:b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930";
const JAILER: &str = "sha256:86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5";

/// How long a download may take, and how long to connect.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);
const CONNECT_SECONDS: &str = "20";

/// The most that a release holds, in bytes; they have about 12 MiB.
const RELEASE_LIMIT: &str = "268435456";

/// Downloads a release into a directory, holds it to its published checksum, and returns its file and address.
pub(super) async fn fetch(
    place: &Path,
    version: Option<Version>,
    listener: &Listener,
) -> Result<(PathBuf, String), FirecrackerError> {
    let url = address(version.unwrap_or(Version::PINNED));
    let (file, sum) = (place.join("release.tgz"), place.join("release.sha256"));
    listener.begin(Step::Download);
    let sum_url = format!("{url}.sha256.txt");
    download(&sum_url, &sum).await?;
    download(&url, &file).await?;
    let (archive, what) = (file.clone(), url.clone());
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| FirecrackerError::Read { path, source }
    };
    let text = std::fs::read_to_string(&sum).map_err(read(&sum))?;
    let found = blocking(move || Digest::of_file(&archive))
        .await
        .map_err(read(&file))?;
    // `sha256sum`'s form: the digits, then the file's name.
    let published = text.split_whitespace().next().unwrap_or_default();
    let wanted = format!("sha256:{published}");
    if found.to_string() != wanted {
        return Err(FirecrackerError::Checksum { what, found, wanted });
    }
    listener.finish(Step::Download, &url);
    Ok((file, url))
}

fn address(version: Version) -> String {
    format!("{RELEASES}/v{version}/firecracker-v{version}-x86_64.tgz")
}

async fn download(url: &str, file: &Path) -> Result<(), FirecrackerError> {
    let curl = HostCommand::new("curl", "curl")
        .args([
            "--fail",
            "--location",
            "--silent",
            "--show-error",
            "--proto",
            "=https",
        ])
        .args([
            "--connect-timeout",
            CONNECT_SECONDS,
            "--max-filesize",
            RELEASE_LIMIT,
        ])
        .arg("--output")
        .arg(file)
        .arg(url)
        .time_limit(DOWNLOAD_LIMIT);
    curl.run()
        .await
        .map(drop)
        .map_err(|source| FirecrackerError::Download {
            url: url.to_owned(),
            source,
        })
}

/// Holds what came from the official place to the digests that are known here.
pub(super) fn verify(installed: &Installed) -> Result<(), FirecrackerError> {
    if installed.version != Version::PINNED.to_string() {
        return Ok(());
    }
    let jailer = installed.jailer.as_ref().map(|jailer| ("jailer", jailer, JAILER));
    let main = ("firecracker", &installed.firecracker, FIRECRACKER);
    for (what, stored, wanted) in std::iter::once(main).chain(jailer) {
        if stored.digest.to_string() != wanted {
            return Err(FirecrackerError::Checksum {
                what: what.to_owned(),
                found: stored.digest,
                wanted: wanted.to_owned(),
            });
        }
    }
    Ok(())
}

/// Returns a version as people see it: a build that says it is the pinned one and is another one is told apart.
pub(super) fn describe(version: Version, digest: &Digest) -> String {
    if version == Version::PINNED && digest.to_string() != FIRECRACKER {
        format!("{version} (not the release's)")
    } else {
        version.to_string()
    }
}
