//! Builds the two binaries: `hearth` for the host, `hearth-guest` for the guest, side by side.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::workspace::{Workspace, install, run};

/// The agent runs in any guest: static, and for no particular libc.
const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";

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
