//! Builds a guest kernel from the distribution's source, with a small configuration that has everything built in.
//!
//! It boots in about half the time of the distribution's kernel: no hardware is probed for but virtio, and no module
//! is loaded. The build works in a scratch directory below the artefacts, which is removed at its end; it takes
//! 3 GB there while it lasts, and several minutes. The same source gives the same kernel.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::deb::{self, DebError};
use super::decompress::decompressed;
use super::digest::Digest;
use super::distribution::{self, Package, PackageError};
use super::index::Origin;
use super::kernel::{KernelError, KernelSet, scratch, take_in};
use super::progress::{Listener, Progress, Step, Unit};
use super::run::blocking;
use crate::host::command::{CommandError, HostCommand, Line};
use crate::host::facts;

/// What the kernel is to have; what it does not name is off.
const CONFIGURATION: &str = include_str!("../../assets/kernel.config");

/// What a build needs, each with the file that shows it is there and the Debian package that brings it.
const TOOLS: [(Tool, &str); 7] = [
    (Tool::Program("gcc"), "gcc"),
    (Tool::Program("strip"), "binutils"),
    (Tool::Program("make"), "make"),
    (Tool::Program("flex"), "flex"),
    (Tool::Program("bison"), "bison"),
    (Tool::Program("bc"), "bc"),
    (Tool::Header("/usr/include/gelf.h"), "libelf-dev"),
];

/// How long configuring may take: a few seconds on an idle host.
const CONFIGURE_LIMIT: Duration = Duration::from_secs(10 * 60);

/// How long compiling may take: seven minutes on two idle processors, and an hour and more on busy ones.
const COMPILE_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

/// Something that must be there before a build begins.
#[derive(Clone, Copy)]
enum Tool {
    Program(&'static str),
    Header(&'static str),
}

/// Says why a kernel could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Programs or headers are missing.
    #[error("a kernel build needs {}: `apt-get install {}`", missing.join(", "), packages.join(" "))]
    Tools {
        /// What is missing.
        missing: Vec<String>,
        /// The Debian packages that have it.
        packages: Vec<String>,
    },
    /// The source could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The source package could not be unpacked.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// The source package holds no source.
    #[error("the package {package} holds no usr/src/linux-source-*.tar.*")]
    NoSource {
        /// The package's file name.
        package: String,
    },
    /// The source could not be unpacked, or a file of the build not be written or read.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The kernel's own rules drop something of the configuration.
    #[error("this kernel source does not take the lines {} of the configuration", lines.join(", "))]
    Dropped {
        /// The lines.
        lines: Vec<String>,
    },
    /// A program of the build failed.
    #[error("the kernel cannot be built")]
    Command(#[from] CommandError),
}

/// Builds a kernel, unless `current` was built from the same source and configuration.
pub(super) async fn build(
    directory: &Path,
    current: Option<KernelSet>,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    check_tools(listener)?;
    let names = &distribution::SOURCE_PACKAGES;
    let package = distribution::find(names, "linux-source-", listener)
        .await
        .map_err(BuildError::from)?;
    listener.finish(Step::FindPackage, &package.file);
    let origin = Origin::Built {
        source: package.file.clone(),
        configuration: Digest::of(CONFIGURATION.as_bytes()),
    };
    if let Some(current) = current.filter(|current| current.kernel.origin == origin) {
        return Ok(current);
    }
    let scratch = scratch(directory)?;
    let source = fetch(&package, scratch.path(), listener).await?;
    let build = Build {
        source,
        output: scratch.path().join("build"),
    };
    build.configure(listener).await?;
    let image = build.compile(listener).await?;
    let (directory, listener) = (directory.to_owned(), listener.clone());
    blocking(move || {
        let taken = take_in(&directory, &image, None, origin, &listener);
        // Gigabytes in a hundred thousand files: removed here, where it may block.
        drop(scratch);
        taken
    })
    .await
}

/// Tells whether a kernel was built here with another configuration than this version's.
pub(super) fn is_outdated(origin: &Origin) -> bool {
    let now = Digest::of(CONFIGURATION.as_bytes());
    matches!(origin, Origin::Built { configuration, .. } if *configuration != now)
}

fn check_tools(listener: &Listener) -> Result<(), BuildError> {
    listener.begin(Step::CheckTools);
    let absent = TOOLS.into_iter().filter(|(tool, _)| match tool {
        Tool::Program(name) => facts::find_program(name).is_none(),
        Tool::Header(path) => !Path::new(path).exists(),
    });
    let (missing, packages): (Vec<_>, Vec<_>) = absent
        .map(|(Tool::Program(name) | Tool::Header(name), package)| (name.to_owned(), package.to_owned()))
        .unzip();
    if missing.is_empty() {
        listener.finish(Step::CheckTools, "all there");
        Ok(())
    } else {
        Err(BuildError::Tools { missing, packages })
    }
}

/// Downloads and unpacks the source; returns its root.
async fn fetch(package: &Package, scratch: &Path, listener: &Listener) -> Result<PathBuf, BuildError> {
    let deb = distribution::download(package, scratch, listener).await?;
    let (package, scratch, listener) = (package.clone(), scratch.to_owned(), listener.clone());
    blocking(move || {
        let is_source = |name: &Path| name.starts_with("usr/src") && name.to_string_lossy().contains(".tar");
        deb::unpack(&deb, &scratch, is_source, &|_| {})?;
        let nothing = || BuildError::NoSource {
            package: package.file,
        };
        let tarball = only_entry(&scratch.join("usr/src")).ok_or_else(nothing)?;
        let root = scratch.join("source");
        unpack_source(&tarball, &root, &listener).map_err(|source| BuildError::Prepare {
            path: tarball,
            source,
        })?;
        let inner = only_entry(&root).unwrap_or(root);
        listener.finish(Step::Unpack, inner.file_name().unwrap_or_default().display());
        Ok(inner)
    })
    .await
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(directory).ok()?;
    entries.next()?.ok().map(|entry| entry.path())
}

fn unpack_source(tarball: &Path, into: &Path, listener: &Listener) -> io::Result<()> {
    let file = std::fs::File::open(tarball)?;
    let mut archive = tar::Archive::new(decompressed(file)?);
    std::fs::create_dir(into)?;
    for (done, entry) in archive.entries()?.enumerate() {
        entry?.unpack_in(into)?;
        listener.say(Progress::Running {
            step: Step::Unpack,
            done: done as u64,
            total: None,
            unit: Unit::Items,
        });
    }
    Ok(())
}

/// A build: where its source is, and where its output goes.
struct Build {
    source: PathBuf,
    output: PathBuf,
}

impl Build {
    /// Runs `make` in the source; other work on the host goes first. Time, user and host of the build are told to be
    /// nobody's, as they would be in the kernel's banner and change its digest.
    fn make(&self) -> HostCommand {
        let mut output = std::ffi::OsString::from("O=");
        output.push(&self.output);
        HostCommand::new("nice", "coreutils")
            .args(["-n", "10", "make", "ARCH=x86_64"])
            .arg(output)
            .directory(&self.source)
            .env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970")
            .env("KBUILD_BUILD_USER", "hearth")
            .env("KBUILD_BUILD_HOST", "hearth")
    }

    async fn configure(&self, listener: &Listener) -> Result<(), BuildError> {
        listener.begin(Step::Configure);
        let fragment = self.output.join("hearth.config");
        let prepare = |path: PathBuf| move |source| BuildError::Prepare { path, source };
        std::fs::create_dir_all(&self.output).map_err(prepare(self.output.clone()))?;
        std::fs::write(&fragment, CONFIGURATION).map_err(prepare(fragment.clone()))?;
        let mut given = std::ffi::OsString::from("KCONFIG_ALLCONFIG=");
        given.push(&fragment);
        let configure = self.make().arg(given).arg("allnoconfig");
        configure.time_limit(CONFIGURE_LIMIT).run().await?;
        let made = self.output.join(".config");
        let configuration = std::fs::read_to_string(&made).map_err(prepare(made))?;
        let lines = dropped(CONFIGURATION, &configuration);
        if !lines.is_empty() {
            return Err(BuildError::Dropped { lines });
        }
        let count = configuration.lines().filter(|line| line.ends_with("=y")).count();
        listener.finish(Step::Configure, format_args!("{count} options"));
        Ok(())
    }

    /// Compiles, and returns the ELF kernel without its symbols: they are half of it, and no guest reads them.
    async fn compile(&self, listener: &Listener) -> Result<PathBuf, BuildError> {
        listener.begin(Step::Compile);
        let jobs = format!("-j{}", facts::processors());
        let mut done = 0;
        let compile = self.make().arg(jobs).arg("vmlinux").time_limit(COMPILE_LIMIT);
        let progress = |line: Line<'_>| {
            // Two spaces, then what is done: `  CC      kernel/fork.o`.
            if matches!(line, Line::Output(line) if line.starts_with("  ")) {
                done += 1;
                listener.say(Progress::Running {
                    step: Step::Compile,
                    done,
                    total: None,
                    unit: Unit::Items,
                });
            }
        };
        compile.run_lines(progress).await?;
        let image = self.output.join("vmlinux.stripped");
        HostCommand::new("strip", "binutils")
            .args(["--strip-all", "-o"])
            .args([&image, &self.output.join("vmlinux")])
            .run()
            .await?;
        listener.finish(Step::Compile, format_args!("{done} files"));
        Ok(image)
    }
}

/// Lists the lines of a fragment that a configuration does not hold.
fn dropped(fragment: &str, configuration: &str) -> Vec<String> {
    let held: std::collections::HashSet<&str> = configuration.lines().collect();
    let holds = |line: &str| match line.strip_suffix("=n") {
        // What is off is either commented out, or not mentioned as nothing it depends on is on.
        Some(name) => !held.contains(format!("{name}=y").as_str()),
        None => held.contains(line),
    };
    fragment
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !holds(line))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_the_kernel_drops_is_named() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\nCONFIG_E=64\n";
        let configuration = "CONFIG_A=y\n# CONFIG_C is not set\nCONFIG_D=y\nCONFIG_E=64\n";
        assert_eq!(dropped(fragment, configuration), ["CONFIG_B=y", "CONFIG_D=n"]);
    }

    #[test]
    fn the_configuration_has_what_guests_need() {
        for name in [
            "PVH",
            "VIRTIO_BLK",
            "VIRTIO_CONSOLE",
            "EROFS_FS",
            "EXT4_FS",
            "OVERLAY_FS",
            "VIRTIO_NET",
            // By which a clone closes the TCP connections of the machine that it was.
            "INET_TCP_DIAG",
            "INET_DIAG_DESTROY",
        ] {
            let line = format!("CONFIG_{name}=y");
            assert!(CONFIGURATION.lines().any(|known| known == line), "{line}");
        }
        assert!(
            !CONFIGURATION.lines().any(|line| line.ends_with("=m")),
            "no modules"
        );
    }
}
