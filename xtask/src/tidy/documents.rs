//! The documents that the repository promises to have.

use std::collections::BTreeSet;

use super::finding::Finding;

const REQUIRED: [(&str, &str); 6] = [
    ("README.md", "it says what Hearth is and how to start"),
    (
        "SPECIFICATION.md",
        "it says what Hearth promises, and which tests hold it to that",
    ),
    ("ARCHITECTURE.md", "it says why the code has its shape"),
    ("CONTRIBUTING.md", "it says how to change it"),
    ("CHANGELOG.md", "it says what changed for users"),
    (
        "COMPATIBILITY.md",
        "it says what stays as it is, and on which hosts it runs",
    ),
];

/// Finds documents that are not there.
pub(crate) fn check(files: &BTreeSet<String>) -> Vec<Finding> {
    let missing = REQUIRED.iter().filter(|(path, _)| !files.contains(*path));
    missing
        .map(|(path, why)| Finding::new(path, 1, "the document is missing", why))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_documents_are_accepted_and_a_missing_one_is_named() {
        let mut files: BTreeSet<_> = REQUIRED.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(check(&files), []);
        files.remove("CHANGELOG.md");
        assert!(
            check(&files)[0]
                .to_string()
                .starts_with("CHANGELOG.md:1: the document is missing")
        );
    }
}
