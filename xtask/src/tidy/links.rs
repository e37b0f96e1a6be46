//! Relative links of the documents, and the paths that the specification names, lead somewhere.

use std::collections::BTreeSet;

use super::finding::Finding;
use super::markdown::Document;

/// The document whose code spans are checked as well: what it promises is in the files that it names.
const SPECIFICATION: &str = "SPECIFICATION.md";

/// What a code span with a slash ends in when it is a path of ours, wherever it begins.
const ENDINGS: [&str; 5] = [".rs", ".md", ".toml", ".sh", ".yml"];

/// Finds links and paths that lead nowhere. `files` has every file and folder of the repository.
pub(crate) fn check(documents: &[Document], files: &BTreeSet<String>) -> Vec<Finding> {
    let links = documents.iter().flat_map(|document| check_links(document, files));
    let specification = documents.iter().filter(|document| document.path == SPECIFICATION);
    links
        .chain(specification.flat_map(|document| check_paths(document, files)))
        .collect()
}

fn check_links(document: &Document, files: &BTreeSet<String>) -> Vec<Finding> {
    let folder = document.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let relative = document.links().into_iter().filter(|link| is_relative(link.text));
    let broken = relative.filter(|link| !leads_somewhere(folder, link.text, files));
    broken
        .map(|link| {
            Finding::new(
                &document.path,
                link.line,
                format!("the link `{}`", link.text),
                "it leads nowhere",
            )
        })
        .collect()
}

fn is_relative(target: &str) -> bool {
    let has_scheme = target.contains("://") || target.starts_with("mailto:");
    !target.is_empty() && !target.starts_with('#') && !has_scheme
}

fn leads_somewhere(folder: &str, target: &str, files: &BTreeSet<String>) -> bool {
    let path = target.split('#').next().unwrap_or(target);
    normal(folder, path).is_some_and(|path| path.is_empty() || files.contains(&path))
}

/// Joins a path to a folder; `None` when it leaves the repository.
fn normal(folder: &str, path: &str) -> Option<String> {
    // A leading slash means the repository's root, as forges have it.
    let folder = if path.starts_with('/') { "" } else { folder };
    let mut parts = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn check_paths(document: &Document, files: &BTreeSet<String>) -> Vec<Finding> {
    let code = document.code().into_iter();
    let paths = code.filter_map(|span| Some((span.line, path(span.text, files)?)));
    paths
        .filter(|(_, path)| !files.contains(path.trim_end_matches('/')))
        .map(|(line, path)| {
            Finding::new(
                &document.path,
                line,
                format!("the path `{path}`"),
                "there is no such file",
            )
        })
        .collect()
}

/// Returns the path that a code span is, up to `::test` or `:line`: it begins with a folder of the root, or ends as
/// our files do. Paths of hosts and of the API, patterns and commands are none.
fn path<'c>(code: &'c str, files: &BTreeSet<String>) -> Option<&'c str> {
    let path = code.split(':').next()?;
    let (first, _) = path.split_once('/')?;
    let is_plain = !path.contains([' ', '*', '<', '{', '$', '~', '\\']) && !first.is_empty();
    let is_ours = files.contains(first) || ENDINGS.iter().any(|ending| path.ends_with(ending));
    (is_plain && is_ours).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let files = [
            "README.md",
            "docs",
            "docs/a.md",
            "docs/b",
            "docs/b/c.png",
            "crates",
            "crates/x.rs",
        ];
        let files = files.into_iter().map(str::to_owned).collect();
        let documents = [Document::new(path, text.to_owned())];
        check(&documents, &files)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn links_that_lead_somewhere_are_accepted() {
        let text = "[1](../README.md#x) [2](b/) [3](b/c.png) [4](#a) [5](https://x.y/z) [6](/crates/x.rs)";
        assert_eq!(findings("docs/a.md", text), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_refused() {
        assert_eq!(
            findings("docs/a.md", "\n[1](c.md)"),
            ["docs/a.md:2: the link `c.md`, it leads nowhere"]
        );
        assert_eq!(findings("docs/a.md", "[1](../../README.md)").len(), 1);
    }

    #[test]
    fn paths_that_the_specification_names_are_accepted_when_they_exist() {
        let text =
            "`crates/x.rs` `docs/b/` `crates/x.rs:7` `/v1/machines` `a/b` `crates/*/x.rs` `cat crates/y`";
        assert_eq!(findings("SPECIFICATION.md", text), [""; 0]);
    }

    #[test]
    fn paths_that_the_specification_names_are_refused_when_they_do_not_exist() {
        let expected = "SPECIFICATION.md:1: the path `crates/y.rs`, there is no such file";
        assert_eq!(findings("SPECIFICATION.md", "`crates/y.rs::test`"), [expected]);
        assert_eq!(findings("SPECIFICATION.md", "`crate/x.rs`").len(), 1);
        assert_eq!(findings("README.md", "`crates/y.rs`").len(), 0);
    }
}
