//! Builds the two binaries: `hearth` for the host, `hearth-guest` for the guest, side by side.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::workspace::{Workspace, install, run};

/// The agent runs in any guest: static, and for no particular libc.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";

/// The test guest's package: outside the workspace, since it is for a target of its own.
const BARE_GUEST: &str = "crates/bare-guest";

/// How the host's binary is built. The agent has one profile of its own: `guest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// As it is shipped.
    Release,
}

impl Profile {
    /// Returns the name that cargo takes.
    const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }

    /// Returns the directory under the target directory.
    const fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds `hearth`, and the agent beside it.
pub(crate) fn everything(workspace: &Workspace, profile: Profile) -> Result<()> {
    run(workspace
        .cargo()
        .args(["build", "--package", "hearth", "--profile", profile.name()]))?;
    let agent = guest(workspace, profile)?;
    let hearth = agent.with_file_name("hearth");
    println!("{}\n{}", hearth.display(), agent.display());
    Ok(())
}

/// Builds the agent and puts it where `hearth setup` looks for it. Returns that path.
///
/// A copy with the same bytes is left alone: set-up would take a new one for a change.
pub(crate) fn guest(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    run(workspace.cargo().args([
        "build",
        "--package",
        "hearth-guest",
        "--target",
        GUEST_TARGET,
        "--profile",
        "guest",
    ]))?;
    let target = workspace.target();
    let built = target.join(GUEST_TARGET).join("guest").join("hearth-guest");
    let place = target.join(profile.directory()).join("hearth-guest");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if fs::read(&place).is_ok_and(|present| present == bytes) {
        return Ok(place);
    }
    install(&built, &place)?;
    Ok(place)
}

/// Whether the test guest is looked at, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lint {
    /// It is built.
    No,
    /// Its format and clippy's findings are errors.
    Yes,
}

/// Builds the test guest, for tests of monitors. Prints its path.
pub(crate) fn bare_guest(workspace: &Workspace, lint: Lint) -> Result<()> {
    let target = workspace.target().join("bare-guest");
    let cargo = || {
        let mut cargo = workspace.cargo();
        // Its configuration has the flags of the linker; a caller's would replace them.
        cargo
            .current_dir(workspace.root().join(BARE_GUEST))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo
    };
    if lint == Lint::Yes {
        run(cargo().args(["fmt", "--check"]))?;
        run(cargo()
            .args(["clippy", "--quiet", "--release", "--locked", "--target-dir"])
            .arg(&target)
            .args(["--", "-D", "warnings"]))?;
    }
    run(cargo()
        .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(&target))?;
    let built = target.join("x86_64-unknown-none/release/bare-guest");
    println!("{}", built.display());
    Ok(())
}
