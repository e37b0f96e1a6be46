//! Runs the fuzz targets of `crates/*/fuzz` with the stable toolchain.
//!
//! `cargo fuzz` asks for a nightly compiler, for AddressSanitizer only. The code that is fuzzed here has no `unsafe`:
//! what there is to find are panics, overflows and endless loops, and for those coverage is enough, which stable gives.
//!
//! `seeds/TARGET` is committed: one input for each thing that no mutation comes upon. `corpus/TARGET` grows beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use cargo_metadata::{MetadataCommand, TargetKind};

use crate::workspace::{Workspace, run};

/// With a target named, the flags below do not reach build scripts and procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `cargo fuzz` gives the compiler, less the sanitizer; overflows and debug assertions are findings.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// One input may take so many seconds and so much memory (MiB).
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

/// Builds a target and runs it; inputs that found something new are kept in its corpus.
///
/// # Errors
///
/// There is no such target, it does not build, or it found an input that breaks the code.
pub(crate) fn run_target(workspace: &Workspace, name: &str, seconds: u64) -> Result<()> {
    let manifest = find(workspace, name)?;
    let directory = manifest.parent().context("a manifest lies in a directory")?;
    let target_directory = workspace.target().join("fuzz");
    run(workspace
        .cargo()
        .args(["build", "--release", "--target", TARGET, "--bin", name])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target_directory)
        .env("RUSTFLAGS", RUSTFLAGS))?;
    let corpus = directory.join("corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let binary = target_directory.join(TARGET).join("release").join(name);
    run(Command::new(binary)
        .current_dir(directory)
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg("-print_final_stats=1")
        .arg(&corpus)
        .args(seeds(directory, name)))
}

/// The fuzzer reads them and leaves them as they are: it writes to the first directory only.
fn seeds(directory: &Path, name: &str) -> Option<PathBuf> {
    let seeds = directory.join("seeds").join(name);
    seeds.is_dir().then_some(seeds)
}

/// Prints the name of every fuzz target, one a line.
pub(crate) fn list(workspace: &Workspace) -> Result<()> {
    for (name, _) in all(workspace)? {
        println!("{name}");
    }
    Ok(())
}

fn find(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let targets = all(workspace)?;
    match targets.iter().find(|(other, _)| other == name) {
        Some((_, manifest)) => Ok(manifest.clone()),
        None => {
            let names: Vec<_> = targets.into_iter().map(|(name, _)| name).collect();
            bail!("no fuzz target {name:?}; there are: {}", names.join(", "))
        }
    }
}

/// Returns every fuzz target with its manifest.
fn all(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    for manifest in manifests(&workspace.root().join("crates"))? {
        all.extend(
            targets(&manifest)?
                .into_iter()
                .map(|name| (name, manifest.clone())),
        );
    }
    Ok(all)
}

fn manifests(crates: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(crates).with_context(|| format!("cannot list {}", crates.display()))? {
        let manifest = entry?.path().join("fuzz/Cargo.toml");
        if manifest.is_file() {
            found.push(manifest);
        }
    }
    found.sort();
    Ok(found)
}

fn targets(manifest: &Path) -> Result<Vec<String>> {
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let binaries = metadata.packages.iter().flat_map(|package| &package.targets);
    Ok(binaries
        .filter(|target| target.kind.contains(&TargetKind::Bin))
        .map(|target| target.name.clone())
        .collect())
}
