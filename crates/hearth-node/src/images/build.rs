//! Images made of the distribution's packages, for those who have no registry at hand.

use std::io;
use std::path::Path;
use std::time::Duration;

use hearth_image::{ImageConfig, ImportError, ProgressSink, Reference, Store};
use tokio_util::io::SyncIoBridge;

use crate::host::command::{CommandError, HostCommand};

/// What an image starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// A minimal Debian.
    Debian,
    /// Static busybox.
    Busybox,
}

/// Says why an image was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A program failed.
    #[error("cannot collect the image's files")]
    Command(#[from] CommandError),
    /// A file of the host could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host does not say which release it is.
    #[error("{0} does not name a release (VERSION_CODENAME)")]
    NoRelease(&'static str),
    /// busybox has no packages.
    #[error("a busybox image takes no packages: build a debian image for {}", .0.join(", "))]
    Packages(Vec<String>),
    /// A package's name could be taken for an option.
    #[error("{0:?} is not the name of a package")]
    PackageName(String),
    /// The archive did not become an image.
    #[error(transparent)]
    Import(#[from] ImportError),
}

const BUSYBOX: &str = "/bin/busybox";
const OS_RELEASE: &str = "/etc/os-release";
/// Downloading and unpacking a Debian with many packages over a slow line.
const DEBIAN_LIMIT: Duration = Duration::from_secs(30 * 60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) async fn build(
    store: &Store,
    recipe: Recipe,
    packages: &[String],
    reference: &Reference,
    progress: ProgressSink,
) -> Result<(), BuildError> {
    match recipe {
        Recipe::Busybox if !packages.is_empty() => Err(BuildError::Packages(packages.to_vec())),
        Recipe::Busybox => busybox(store, reference, progress).await,
        Recipe::Debian => debian(store, packages, reference, progress).await,
    }
}

fn config(command: &str) -> ImageConfig {
    ImageConfig {
        cmd: vec![command.to_owned()],
        env: vec![("PATH".to_owned(), PATH.to_owned())],
        ..ImageConfig::default()
    }
}

async fn debian(
    store: &Store,
    packages: &[String],
    reference: &Reference,
    progress: ProgressSink,
) -> Result<(), BuildError> {
    if let Some(name) = packages.iter().find(|name| !is_package_name(name)) {
        return Err(BuildError::PackageName(name.clone()));
    }
    let source = |source| BuildError::Read {
        path: OS_RELEASE,
        source,
    };
    let release = release(&std::fs::read_to_string(OS_RELEASE).map_err(source)?)?;
    let mut command = HostCommand::new("mmdebstrap", "mmdebstrap")
        .args(["--variant=minbase", "--format=tar", "--quiet"])
        .time_limit(DEBIAN_LIMIT);
    if !packages.is_empty() {
        command = command.arg(format!("--include={}", packages.join(",")));
    }
    let mut running = command.args([release.as_str(), "-"]).start()?;
    let (archive, mut pipe) = tokio::io::duplex(1 << 20);
    let archive = SyncIoBridge::new(archive);
    let import = store.import_layer_tar(reference, archive, config("bash"), progress);
    let feed = async move {
        // A pipe that broke means that the import failed, and that error says why.
        let _ = tokio::io::copy(&mut running, &mut pipe).await;
        // The archive's end is told only once the program has ended well: half a tree is no image.
        let finished = running.finish().await;
        drop(pipe);
        finished
    };
    let (fed, imported) = tokio::join!(feed, import);
    fed?;
    imported?;
    Ok(())
}

fn is_package_name(name: &str) -> bool {
    // Debian policy 5.6.1, with a version or architecture behind it as apt takes them.
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-.:=~".contains(&b);
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(allowed)
}

fn release(os_release: &str) -> Result<String, BuildError> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = value.map(|value| value.trim_matches('"').to_owned());
    name.filter(|name| is_package_name(name))
        .ok_or(BuildError::NoRelease(OS_RELEASE))
}

async fn busybox(store: &Store, reference: &Reference, progress: ProgressSink) -> Result<(), BuildError> {
    if !Path::new(BUSYBOX).exists() {
        return Err(CommandError::NotFound {
            program: BUSYBOX.to_owned(),
            package: "busybox-static",
        }
        .into());
    }
    let applets = HostCommand::new(BUSYBOX, "busybox-static")
        .arg("--list")
        .run()
        .await?;
    let applets = String::from_utf8_lossy(&applets).into_owned();
    let program = std::fs::read(BUSYBOX).map_err(|source| BuildError::Read {
        path: BUSYBOX,
        source,
    })?;
    let archive = busybox_archive(&program, applets.lines()).map_err(|source| BuildError::Read {
        path: BUSYBOX,
        source,
    })?;
    let archive = io::Cursor::new(archive);
    store
        .import_layer_tar(reference, archive, config("sh"), progress)
        .await?;
    Ok(())
}

const DIRECTORIES: [(&str, u32); 12] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
];
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// The tree of a busybox image as a tar archive: the program, a link per applet, and what libc looks up.
fn busybox_archive<'a>(program: &[u8], applets: impl Iterator<Item = &'a str>) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(program.len() + (1 << 20)));
    for (path, mode) in DIRECTORIES {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        archive.append_data(&mut header, path, io::empty())?;
    }
    for (path, mode, content) in [
        ("bin/busybox", 0o755, program),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
        ("etc/group", 0o644, GROUP.as_bytes()),
    ] {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        archive.append_data(&mut header, path, content)?;
    }
    for applet in applets.filter(|name| !name.is_empty() && !name.contains('/') && *name != "busybox") {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    archive.into_inner()
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    // Always the same, so that the same busybox makes the same image.
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_same_busybox_makes_the_same_archive() {
        let make = || busybox_archive(b"program", ["sh", "ls", "busybox", "../evil"].into_iter()).unwrap();
        assert_eq!(make(), make());
        let bytes = make();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().into_owned())
            .collect();
        assert!(paths.contains(&"bin/sh".into()) && paths.contains(&"etc/passwd".into()));
        assert!(paths.iter().all(|path| !path.starts_with("..")));
        let mut program = String::new();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive
            .entries()
            .unwrap()
            .map(Result::unwrap)
            .find(|e| e.size() == 7)
            .unwrap();
        entry.read_to_string(&mut program).unwrap();
        assert_eq!(program, "program");
    }

    #[test]
    fn what_could_be_an_option_is_no_package() {
        for name in ["git", "g++", "libc6:amd64", "python3=3.11.2-1"] {
            assert!(is_package_name(name), "{name}");
        }
        for name in ["", "-o", "--hook=x", "a,b", "a b", "$(x)"] {
            assert!(!is_package_name(name), "{name}");
        }
    }

    #[test]
    fn the_release_is_the_hosts() {
        assert_eq!(
            release("ID=debian\nVERSION_CODENAME=bookworm\n").unwrap(),
            "bookworm"
        );
        assert_eq!(release("VERSION_CODENAME=\"trixie\"").unwrap(), "trixie");
        assert!(release("ID=arch\n").is_err());
    }
}
