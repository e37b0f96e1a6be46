//! The `hearth` that is tested: the one that cargo has put beside this test, and not an older one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

/// Names another binary, of a release for example; its age is its owner's business.
const OVERRIDE: &str = "HEARTH_E2E_BINARY";

const REMEDY: &str = "please run `cargo xtask build`, or `make test`";

/// What `hearth` is not made of: it is made of everything else.
const OTHER_CRATES: [&str; 2] = ["bare-guest", "hearth-guest"];

/// What the guest agent is made of.
const AGENT_CRATES: [&str; 2] = ["hearth-guest", "hearth-guest-protocol"];

/// Returns the path of the `hearth` to test.
///
/// # Errors
/// It, or the guest agent beside it, is not built, or is older than its sources.
pub fn hearth_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return Ok(PathBuf::from(path));
    }
    let test = std::env::current_exe().context("cannot tell where this test lies")?;
    let directory = test
        .ancestors()
        .nth(2)
        .context("this test does not lie in cargo's target directory")?;
    let (hearth, agent) = (directory.join("hearth"), directory.join("hearth-guest"));
    let crates = repository().join("crates");
    check_age(
        &hearth,
        newest_source(&crates, |name| !OTHER_CRATES.contains(&name)),
    )?;
    check_age(
        &agent,
        newest_source(&crates, |name| AGENT_CRATES.contains(&name)),
    )?;
    Ok(hearth)
}

/// Returns the root of the repository.
pub(crate) fn repository() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

fn check_age(binary: &Path, newest: Option<(SystemTime, PathBuf)>) -> Result<()> {
    let built = modified(binary).with_context(|| format!("no {}: {REMEDY}", binary.display()))?;
    if let Some((changed, source)) = newest {
        ensure!(
            changed <= built,
            "{} is older than {}: {REMEDY}",
            binary.display(),
            source.display()
        );
    }
    Ok(())
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    path.metadata()?.modified()
}

/// Returns the youngest source file of some crates.
fn newest_source(crates: &Path, wanted: impl Fn(&str) -> bool) -> Option<(SystemTime, PathBuf)> {
    let directories = std::fs::read_dir(crates).ok()?.flatten();
    directories
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .flat_map(|entry| WalkDir::new(entry.path().join("src")))
        .flatten()
        .filter(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "rs")
        })
        .filter_map(|entry| Some((modified(entry.path()).ok()?, entry.into_path())))
        .max()
}
