//! `cargo xtask tidy`: checks of the architecture that neither the compiler nor clippy makes.
//!
//! Each check is a pure function from what was read to its findings. The rules are tables in the files of the checks;
//! ARCHITECTURE.md explains them. Nothing is built and nothing is fetched, so this takes a second.
//!
//! ```text
//! tree (files) --> source (a parsed file) --> mentions, functions (what it names, what it defines)
//!                                                 --> layers, purity, fences, derives, unsafety, sizes
//! cargo metadata ------------------------------------> crates, purity
//! *.md ----------------------------------------------> documents, links, promises
//! ```

mod crates;
mod derives;
mod documents;
mod fences;
mod finding;
mod functions;
mod layers;
mod links;
mod markdown;
mod mentions;
mod promises;
mod purity;
mod sizes;
mod source;
mod tokens;
mod tree;
mod unsafety;

use anyhow::{Result, bail};

use self::crates::Manifest;
use self::finding::Finding;
use self::tree::Tree;
use crate::workspace::Workspace;

/// Runs every check and prints what was found, one a line.
///
/// # Errors
///
/// Something cannot be read, or there is a finding.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let tree = Tree::load(workspace.root())?;
    let manifests = crates::manifests(workspace)?;
    let mut findings = all(&tree, &manifests);
    findings.sort();
    findings.dedup();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("the structure checks found {count} things to mend"),
    }
}

fn all(tree: &Tree, manifests: &[Manifest]) -> Vec<Finding> {
    let mut findings = crates::check(manifests);
    findings.extend(purity::check_dependencies(manifests));
    for source in &tree.sources {
        findings.extend(layers::check(source));
        findings.extend(purity::check(source));
        findings.extend(fences::check(source));
        findings.extend(derives::check(source));
        findings.extend(unsafety::check(source));
    }
    findings.extend(sizes::check(&tree.sources));
    findings.extend(documents::check(&tree.files));
    findings.extend(links::check(&tree.documents, &tree.files));
    findings.extend(promises::check(&tree.documents, &tree.sources));
    findings
}
