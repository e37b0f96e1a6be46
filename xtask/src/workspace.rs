//! Where the workspace lies, what is in it, and the one way to call a program.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package};

/// The workspace that this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    metadata: Metadata,
}

impl Workspace {
    /// Asks cargo about the workspace; dependencies are not resolved, so nothing is fetched.
    pub(crate) fn load() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in no workspace")?
            .join("Cargo.toml");
        let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec()?;
        Ok(Self { metadata })
    }

    /// Returns the repository's root.
    pub(crate) fn root(&self) -> &Path {
        self.metadata.workspace_root.as_std_path()
    }

    /// Returns cargo's target directory (`CARGO_TARGET_DIR`, or `target`).
    pub(crate) fn target(&self) -> &Path {
        self.metadata.target_directory.as_std_path()
    }

    /// Returns the crates of the workspace.
    pub(crate) fn packages(&self) -> &[Package] {
        &self.metadata.packages
    }

    /// Returns a cargo command that runs in the root, with the environment that a person's cargo has.
    ///
    /// `cargo xtask` describes itself in variables. Build scripts that look at such variables (ring's does) would run anew, and with them
    /// all that needs them be built, each time that one cargo follows the other.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(self.root());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if OWN_VARIABLES.iter().any(|own| text.starts_with(own)) {
                command.env_remove(&name);
            }
        }
        command
    }
}

/// What the names of variables begin with by which cargo describes the package whose program it runs.
const OWN_VARIABLES: [&str; 5] = [
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
    "CARGO_PRIMARY_",
];

/// Runs a program to its end.
///
/// # Errors
///
/// It cannot be started, or it fails; the whole command line is in the error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

fn command_line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Puts a copy of a file in place by a rename, so that nobody ever runs half of it.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("no directory to install in")?;
    std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mut name = to.as_os_str().to_owned();
    name.push(".new");
    let beside = PathBuf::from(name);
    std::fs::copy(from, &beside)
        .with_context(|| format!("cannot copy {} to {}", from.display(), beside.display()))?;
    std::fs::rename(&beside, to).with_context(|| format!("cannot put {} in place", to.display()))
}
