//! Images that hearth has not made: OCI layouts written by umoci, of Debian's busybox and of a Debian with Python.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::command::Invocation;
use crate::setup::{cache, made_once};

/// Packages come from a mirror, and dpkg unpacks them on a busy host.
const BUILD_DEADLINE: Duration = Duration::from_secs(600);

/// Changes with what the image is made of, so that an older one is not taken.
const DEBIAN_PYTHON: &str = "debian-python-2";

/// The applets that tests use.
const APPLETS: [&str; 24] = [
    "cat",
    "chmod",
    "cmp",
    "cut",
    "dd",
    "echo",
    "env",
    "false",
    "head",
    "hostname",
    "id",
    "ls",
    "mkdir",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "sh",
    "sha256sum",
    "sleep",
    "stat",
    "test",
    "true",
    "wc",
];

/// An OCI layout in a directory of its own.
#[derive(Debug)]
pub struct Layout {
    directory: TempDir,
}

impl Layout {
    /// Makes a layout with one image, `base`: busybox, two users, and nothing configured but a path.
    ///
    /// # Errors
    /// umoci fails, or there is no static busybox.
    pub fn busybox() -> Result<Self> {
        let layout = Self {
            directory: tempfile::Builder::new().prefix("hearth-oci-").tempdir()?,
        };
        let path = layout.path();
        umoci(["init", "--layout", &path])?;
        umoci(["new", "--image", &format!("{path}:base")])?;
        let tree = busybox_tree()?;
        layout.add_layer("base", tree.path())?;
        layout.configure("base", "base", &["--config.env", "PATH=/bin"])?;
        Ok(layout)
    }

    /// Returns the layout's directory.
    pub fn path(&self) -> String {
        self.directory
            .path()
            .join("layout")
            .to_string_lossy()
            .into_owned()
    }

    /// Returns the reference of an image in it.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path())
    }

    /// Adds a directory's tree as one more layer of an image.
    ///
    /// # Errors
    /// umoci or tar fails.
    pub fn add_layer(&self, tag: &str, tree: &Path) -> Result<()> {
        add_layer(&self.path(), tag, tree, &["."], &[])
    }

    /// Adds a file as one more layer, as `umoci insert` writes it.
    ///
    /// # Errors
    /// umoci fails.
    pub fn insert(&self, tag: &str, file: &Path, place: &str) -> Result<()> {
        let image = format!("{}:{tag}", self.path());
        umoci(["insert", "--image", &image, &file.to_string_lossy(), place])
    }

    /// Makes an image `to` of `from` with other settings: arguments of `umoci config`.
    ///
    /// # Errors
    /// umoci fails.
    pub fn configure(&self, from: &str, to: &str, settings: &[&str]) -> Result<()> {
        let image = format!("{}:{from}", self.path());
        let head = ["config", "--image", &image, "--tag", to];
        umoci(head.into_iter().chain(settings.iter().copied()))
    }

    /// Returns the files of its blobs, largest first: the layers, then configurations and manifests.
    ///
    /// # Errors
    /// The layout cannot be read.
    pub fn blobs(&self) -> Result<Vec<PathBuf>> {
        let directory = Path::new(&self.path()).join("blobs/sha256");
        let mut blobs = Vec::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            blobs.push((entry.metadata()?.len(), entry.path()));
        }
        blobs.sort();
        Ok(blobs.into_iter().rev().map(|(_, path)| path).collect())
    }
}

fn umoci<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    Invocation::new("umoci", arguments).ok().map(drop)
}

fn add_layer(layout: &str, tag: &str, tree: &Path, members: &[&str], excluded: &[&str]) -> Result<()> {
    let archive = tempfile::NamedTempFile::new()?;
    let excluded = excluded.iter().map(|pattern| format!("--exclude={pattern}"));
    let head = ["--create", "--numeric-owner", "--owner=0", "--group=0", "--file"].map(String::from);
    let arguments = head
        .into_iter()
        .chain([
            archive.path().to_string_lossy().into_owned(),
            "--directory".into(),
        ])
        .chain([tree.to_string_lossy().into_owned()])
        .chain(excluded)
        .chain(members.iter().map(|member| (*member).to_owned()));
    Invocation::new("tar", arguments).deadline(BUILD_DEADLINE).ok()?;
    let arguments = [OsStr::new("raw"), OsStr::new("add-layer"), OsStr::new("--image")];
    let image = format!("{layout}:{tag}");
    Invocation::new(
        "umoci",
        arguments
            .into_iter()
            .chain([OsStr::new(&image), archive.path().as_os_str()]),
    )
    .deadline(BUILD_DEADLINE)
    .ok()
    .map(drop)
}

fn busybox_tree() -> Result<TempDir> {
    let tree = tempfile::tempdir()?;
    let root = tree.path();
    // A temporary directory is its owner's alone; a root directory is everybody's.
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    for directory in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "home/ada"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("no /bin/busybox (package busybox-static)")?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nada:x:1815:1852:Ada:/home/ada:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nada:x:1852:\nengine:x:1843:ada\n",
    )?;
    Ok(tree)
}

/// Returns the reference of a Debian with Python in three layers, the last of which removes what the first brought:
/// some 220 MB. It is made once, of packages, and kept under `target/e2e`.
///
/// # Errors
/// The packages cannot be had here, or one of mmdebstrap, tar and umoci fails.
pub fn debian_python() -> Result<String> {
    let layout = cache()?.join(DEBIAN_PYTHON);
    made_once(&layout, make_debian_python)?;
    Ok(format!("oci:{}:latest", layout.join("layout").display()))
}

fn make_debian_python(place: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let tree = work.path().join("tree");
    let packages = "--include=python3,ca-certificates,openssh-client";
    let arguments = [
        "--quiet",
        "--variant=minbase",
        packages,
        "--format=directory",
        "bookworm",
    ];
    Invocation::new(
        "mmdebstrap",
        arguments.iter().map(OsStr::new).chain([tree.as_os_str()]),
    )
    .deadline(BUILD_DEADLINE)
    .ok()?;
    let layout = place.join("layout").to_string_lossy().into_owned();
    umoci(["init", "--layout", &layout])?;
    umoci(["new", "--image", &format!("{layout}:latest")])?;
    let python = [
        "./usr/lib/python3.11",
        "./usr/lib/python3",
        "./usr/bin/python3.11",
    ];
    let without: Vec<_> = python.iter().copied().chain(["./dev/*"]).collect();
    add_layer(&layout, "latest", &tree, &["."], &without)?;
    add_layer(&layout, "latest", &tree, &python, &[])?;
    let change = work.path().join("change");
    fs::create_dir_all(change.join("usr/share"))?;
    fs::create_dir_all(change.join("srv"))?;
    ensure!(
        tree.join("usr/share/doc").exists(),
        "mmdebstrap made a Debian without documents"
    );
    fs::write(change.join("usr/share/.wh.doc"), "")?;
    fs::write(
        change.join("srv/app.py"),
        "import json, sys\nprint(json.dumps(sys.argv[1:]))\n",
    )?;
    fs::set_permissions(&change, fs::Permissions::from_mode(0o755))?;
    add_layer(&layout, "latest", &change, &["."], &[])?;
    let image = format!("{layout}:latest");
    umoci([
        "config",
        "--image",
        &image,
        "--config.entrypoint",
        "python3",
        "--config.entrypoint",
        "/srv/app.py",
    ])
}
