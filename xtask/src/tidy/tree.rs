//! Reads the repository: which files there are, the Rust sources, the documents. The only IO of the checks.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use walkdir::{DirEntry, WalkDir};

use super::markdown::Document;
use super::source::Source;

/// The folders that hold Rust sources of ours.
const SOURCES: [&str; 3] = ["crates/", "e2e/", "xtask/"];

/// The repository as the checks see it. All paths are relative to its root.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Every file and folder.
    pub(crate) files: BTreeSet<String>,
    pub(crate) sources: Vec<Source>,
    pub(crate) documents: Vec<Document>,
}

impl Tree {
    /// Reads everything below `root` but what is built, generated or hidden.
    pub(crate) fn load(root: &Path) -> Result<Self> {
        let files = files(root)?;
        let read = |path: &String| {
            std::fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
        };
        let sources = files.iter().filter(|path| is_source(path));
        let sources = sources.map(|path| Source::parse(path, &read(path)?));
        let documents = files.iter().filter(|path| path.ends_with(".md"));
        let documents = documents.map(|path| Ok(Document::new(path, read(path)?)));
        Ok(Self {
            sources: sources.collect::<Result<_>>()?,
            documents: documents.collect::<Result<_>>()?,
            files,
        })
    }
}

fn is_source(path: &str) -> bool {
    path.ends_with(".rs") && SOURCES.iter().any(|folder| path.starts_with(folder))
}

fn files(root: &Path) -> Result<BTreeSet<String>> {
    let entries = WalkDir::new(root).into_iter().filter_entry(is_wanted);
    let mut files = BTreeSet::new();
    for entry in entries {
        let entry = entry.context("cannot list the repository")?;
        let path = entry.path().strip_prefix(root)?;
        files.insert(path.to_string_lossy().into_owned());
    }
    Ok(files)
}

fn is_wanted(entry: &DirEntry) -> bool {
    let name = entry.file_name().to_string_lossy();
    let is_generated = entry.file_type().is_dir() && ["target", "corpus"].contains(&&*name);
    // The root may have any name.
    entry.depth() == 0 || !is_generated && (!name.starts_with('.') || [".ci", ".cargo"].contains(&&*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_or_hidden_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "crates/a/src/lib.rs",
            "target/x.rs",
            ".git/y.rs",
            "crates/a/README.md",
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let tree = Tree::load(root.path()).unwrap();
        let sources: Vec<_> = tree.sources.iter().map(|source| &*source.path).collect();
        assert_eq!(sources, ["crates/a/src/lib.rs"]);
        assert_eq!(tree.documents.len(), 1);
        assert!(!tree.files.iter().any(|path| path.starts_with("target")));
    }
}
