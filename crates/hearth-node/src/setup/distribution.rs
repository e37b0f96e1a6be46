//! Packages of the distribution: finds and downloads them with apt, as any user.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::progress::{Listener, Progress, Step, Unit};
use crate::host::command::{CommandError, HostCommand, Line};
use crate::host::own;

/// The packages that stand for "the newest kernel for virtual machines", best first: Debian 12 has the first from its
/// security archive, later ones have the second.
pub(super) const KERNEL_PACKAGES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];

/// The packages that hold the source of a kernel, best first.
pub(super) const SOURCE_PACKAGES: [&str; 2] = ["linux-source-6.12", "linux-source"];

/// How long asking apt's own index may take.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// How long a download may take: the largest is 160 MB, and 200 kB/s are granted.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Says why a package of the distribution could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// None of the packages is known to apt.
    #[error(
        "apt knows none of the packages {}: run `apt-get update` as root, or give a kernel of your own \
         (`hearth setup --kernel FILE --modules DIR`)",
        names.join(", ")
    )]
    Unknown {
        /// The packages that were asked for.
        names: Vec<String>,
    },
    /// An apt program failed.
    #[error("cannot fetch the package {name}")]
    Apt {
        /// The package.
        name: String,
        /// What the program said.
        #[source]
        source: CommandError,
    },
    /// An apt program said something else than expected.
    #[error("cannot tell where apt would fetch the package {name} from: it says {said:?}")]
    Unclear {
        /// The package.
        name: String,
        /// What it said.
        said: String,
    },
}

/// One version of one package, as apt would download it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// The file's name, which tells name, version and architecture.
    pub(super) file: String,
    /// In bytes.
    pub(super) size: u64,
}

/// Finds the first of the packages that apt knows, through one step of dependency: a meta package has no files.
///
/// `prefix` is what the name of the package with the files starts with.
pub(super) async fn find(names: &[&str], prefix: &str, listener: &Listener) -> Result<Package, PackageError> {
    listener.begin(Step::FindPackage);
    // A fresh installation or container has no package lists yet, or old ones that know only an older kernel. Only root
    // may fetch them.
    let Some((&best, _)) = names.split_first() else {
        return Err(PackageError::Unknown { names: Vec::new() });
    };
    if let Some(package) = find_known(&[best], prefix).await? {
        return Ok(package);
    }
    if own::is_root() {
        let update = HostCommand::new("apt-get", "apt").arg("update");
        let updated = update.time_limit(DOWNLOAD_LIMIT).run().await;
        updated.map_err(|source| PackageError::Apt {
            name: names.join(" or "),
            source,
        })?;
    }
    if let Some(package) = find_known(names, prefix).await? {
        return Ok(package);
    }
    Err(PackageError::Unknown {
        names: names.iter().map(ToString::to_string).collect(),
    })
}

async fn find_known(names: &[&str], prefix: &str) -> Result<Option<Package>, PackageError> {
    for &name in names {
        let asked = HostCommand::new("apt-cache", "apt").args(["depends", name]);
        match asked.time_limit(ASK_LIMIT).run().await {
            Ok(output) => {
                let output = String::from_utf8_lossy(&output);
                let concrete = depends(&output).find(|dependency| dependency.starts_with(prefix));
                return locate(concrete.unwrap_or(name)).await.map(Some);
            }
            Err(CommandError::Failed { .. }) => {}
            Err(source) => {
                return Err(PackageError::Apt {
                    name: name.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(None)
}

/// Reads the dependencies out of what `apt-cache depends` prints.
fn depends(output: &str) -> impl Iterator<Item = &str> {
    output
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
}

async fn locate(name: &str) -> Result<Package, PackageError> {
    let asked = HostCommand::new("apt-get", "apt").args(["download", "--print-uris", name]);
    let output = asked
        .time_limit(ASK_LIMIT)
        .run()
        .await
        .map_err(|source| PackageError::Apt {
            name: name.to_owned(),
            source,
        })?;
    let output = String::from_utf8_lossy(&output);
    parse_location(name, &output).ok_or_else(|| PackageError::Unclear {
        name: name.to_owned(),
        said: output.into_owned(),
    })
}

/// Reads what `apt-get download --print-uris` prints: `'URI' FILE SIZE HASH`.
fn parse_location(name: &str, output: &str) -> Option<Package> {
    let line = output.lines().find(|line| line.starts_with('\''))?;
    let mut words = line.split(' ').skip(1);
    let (file, size) = (words.next()?, words.next()?.parse().ok()?);
    // The name becomes a path below; apt writes no other than this, and nothing else is accepted.
    let plain = file.starts_with(name) && file.ends_with(".deb") && !file.contains('/');
    plain.then(|| Package {
        name: name.to_owned(),
        file: file.to_owned(),
        size,
    })
}

/// Downloads a package into a directory; apt checks its signature chain.
pub(super) async fn download(
    package: &Package,
    directory: &Path,
    listener: &Listener,
) -> Result<PathBuf, PackageError> {
    let command = HostCommand::new("apt-get", "apt")
        .args(["download", "-q", "-o", "APT::Status-Fd=1"])
        // As root apt would fetch as the user _apt, who cannot write here, and warn about it.
        .args(["-o", "APT::Sandbox::User=root"])
        .arg(&package.name)
        .directory(directory)
        .time_limit(DOWNLOAD_LIMIT);
    let progress = |done| Progress::Running {
        step: Step::Download,
        done,
        total: Some(package.size),
        unit: Unit::Bytes,
    };
    listener.say(progress(0));
    let fetched = command.run_lines(|line| {
        if let Line::Output(line) = line
            && let Some(share) = download_share(line)
        {
            listener.say(progress((package.size as f64 * share) as u64));
        }
    });
    fetched.await.map_err(|source| PackageError::Apt {
        name: package.name.clone(),
        source,
    })?;
    listener.finish(Step::Download, &package.file);
    Ok(directory.join(&package.file))
}

/// Reads how much is done, 0 to 1, out of apt's status line `dlstatus:1:37.5000:Retrieving file 1 of 1`.
fn download_share(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_location_is_read_as_apt_prints_it() {
        let output = "'http://deb.debian.org/x/linux-image-6.12.1%2bdeb12_6.12.1-1%7edeb12u1_amd64.deb' \
                      linux-image-6.12.1+deb12_6.12.1-1~deb12u1_amd64.deb 34307256 SHA256:5195b2\n";
        let package = parse_location("linux-image-6.12.1+deb12", output).unwrap();
        assert_eq!(
            package.file,
            "linux-image-6.12.1+deb12_6.12.1-1~deb12u1_amd64.deb"
        );
        assert_eq!(package.size, 34_307_256);
    }

    #[test]
    fn a_location_that_leads_elsewhere_is_refused() {
        for file in ["linux/../../../etc/x.deb", "other_1_all.deb", "linux_1_all.exe"] {
            let output = format!("'http://deb.debian.org/x' {file} 12 SHA256:00\n");
            assert_eq!(parse_location("linux", &output), None, "{file}");
        }
    }

    #[test]
    fn dependencies_are_read_as_apt_prints_them() {
        let output = "linux-image-6.12-cloud-amd64\n  Depends: linux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(
            depends(output).collect::<Vec<_>>(),
            ["linux-image-6.12.117+deb12-cloud-amd64"]
        );
    }

    #[test]
    fn the_download_status_is_a_share() {
        assert_eq!(
            download_share("dlstatus:1:50.0000:Retrieving file 1 of 1"),
            Some(0.5)
        );
        for line in [
            "Get:1 http://deb.debian.org",
            "dlstatus:1:x:y",
            "dlstatus:1:400:y",
            "dlstatus:1",
        ] {
            assert_eq!(download_share(line), None, "{line}");
        }
    }
}
