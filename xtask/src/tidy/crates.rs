//! The crates of the workspace: which may depend on which.

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Package};

use super::finding::Finding;
use crate::workspace::Workspace;

/// Each crate with the crates of the workspace that it may depend on, in tests too. Some are yet to come.
const EDGES: [(&str, &[&str]); 12] = [
    ("hearth-machine", &[]),
    ("hearth-api", &[]),
    ("hearth-guest-protocol", &[]),
    // Its tests greet the test guest.
    ("hearth-firecracker", &["hearth-guest-protocol"]),
    ("hearth-image", &[]),
    ("hearth-guest", &["hearth-guest-protocol"]),
    ("bare-guest", &["hearth-guest-protocol"]),
    (
        "hearth-node",
        &[
            "hearth-api",
            "hearth-firecracker",
            "hearth-guest-protocol",
            "hearth-image",
            "hearth-machine",
        ],
    ),
    // No engine: what it can do, anybody can do over the API.
    (
        "hearth-cli",
        // The two in the middle are for `bench vmm`, which measures Firecracker beside Hearth.
        &[
            "hearth-api",
            "hearth-firecracker",
            "hearth-guest-protocol",
            "hearth-machine",
        ],
    ),
    (
        "hearth",
        // The last two are for the tests of its pager.
        &[
            "hearth-cli",
            "hearth-node",
            "hearth-firecracker",
            "hearth-guest-protocol",
        ],
    ),
    // Goes through the binary and the API, as a user does.
    ("e2e", &["hearth-api"]),
    ("xtask", &[]),
];

/// A crate's manifest, as far as the checks ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) name: String,
    /// Relative to the repository's root.
    pub(crate) path: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// What a crate depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// In the manifest; 1 when it is written in another way.
    pub(crate) line: usize,
    /// Whether it is a crate of this repository.
    pub(crate) ours: bool,
    /// Whether only tests have it.
    pub(crate) for_tests: bool,
}

/// Reads the manifests of the workspace.
///
/// # Errors
///
/// One cannot be read.
pub(crate) fn manifests(workspace: &Workspace) -> Result<Vec<Manifest>> {
    workspace
        .packages()
        .iter()
        .map(|package| manifest(workspace, package))
        .collect()
}

fn manifest(workspace: &Workspace, package: &Package) -> Result<Manifest> {
    let path = package.manifest_path.as_std_path();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let dependencies = package.dependencies.iter().map(|dependency| Dependency {
        name: dependency.name.clone(),
        line: line(&text, &dependency.name),
        ours: dependency.path.is_some(),
        for_tests: dependency.kind == DependencyKind::Development,
    });
    Ok(Manifest {
        name: package.name.to_string(),
        path: path
            .strip_prefix(workspace.root())?
            .to_string_lossy()
            .into_owned(),
        dependencies: dependencies.collect(),
    })
}

fn line(manifest: &str, dependency: &str) -> usize {
    let names = |line: &str| {
        line.strip_prefix(dependency)
            .is_some_and(|rest| rest.starts_with([' ', '.', '=']))
    };
    manifest.lines().position(names).map_or(1, |index| index + 1)
}

/// Finds dependencies that the table does not have.
pub(crate) fn check(manifests: &[Manifest]) -> Vec<Finding> {
    manifests.iter().flat_map(check_one).collect()
}

fn check_one(manifest: &Manifest) -> Vec<Finding> {
    let Some((_, allowed)) = EDGES.iter().find(|(name, _)| *name == manifest.name) else {
        let what = format!("the crate `{}` is not in the table EDGES", manifest.name);
        let why = "xtask/src/tidy/crates.rs says of every crate what it may depend on";
        return vec![Finding::new(&manifest.path, 1, what, why)];
    };
    let ours = manifest.dependencies.iter().filter(|dependency| dependency.ours);
    let refused = ours.filter(|dependency| !allowed.contains(&dependency.name.as_str()));
    refused
        .map(|dependency| {
            let what = format!("`{}` depends on `{}`", manifest.name, dependency.name);
            let why = "the table EDGES of xtask/src/tidy/crates.rs does not have that edge";
            Finding::new(&manifest.path, dependency.line, what, why)
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod sample {
    use super::{Dependency, Manifest};

    /// Makes a manifest with one dependency, of this repository if it is called after it.
    pub(crate) fn manifest(name: &str, dependency: &str) -> Manifest {
        Manifest {
            name: name.to_owned(),
            path: format!("crates/{name}/Cargo.toml"),
            dependencies: vec![Dependency {
                name: dependency.to_owned(),
                line: 7,
                ours: dependency.starts_with("hearth"),
                for_tests: false,
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sample::manifest;
    use super::*;

    #[test]
    fn an_edge_of_the_table_is_accepted() {
        assert_eq!(
            check(&[
                manifest("hearth-cli", "hearth-api"),
                manifest("hearth-cli", "clap")
            ]),
            []
        );
    }

    #[test]
    fn any_other_edge_is_refused() {
        let found = check(&[manifest("hearth-cli", "hearth-node")]);
        let text = found[0].to_string();
        assert!(
            text.starts_with("crates/hearth-cli/Cargo.toml:7: `hearth-cli` depends on `hearth-node`"),
            "{text}"
        );
    }

    #[test]
    fn a_crate_that_the_table_does_not_know_is_refused() {
        assert_eq!(check(&[manifest("hearth-misc", "clap")]).len(), 1);
    }

    #[test]
    fn a_dependency_is_found_in_the_text_of_its_manifest() {
        let text = "[dependencies]\nserde_json.workspace = true\nserde = \"1\"\n";
        assert_eq!(
            (line(text, "serde"), line(text, "serde_json"), line(text, "x")),
            (3, 2, 1)
        );
    }
}
