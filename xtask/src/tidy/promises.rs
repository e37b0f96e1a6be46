//! Promises: every row of the specification's tables of promises names a test that is there.
//!
//! A table of promises is one with a column whose head has the word "test". Each of its rows has in that column one
//! test at least, as `name`, `module::name` or `path/to/file.rs::name` in backquotes.

use super::finding::Finding;
use super::markdown::{self, Document, Table};
use super::source::Source;

const SPECIFICATION: &str = "SPECIFICATION.md";

/// Finds promises without a test, and tests that are not there.
pub(crate) fn check(documents: &[Document], sources: &[Source]) -> Vec<Finding> {
    let tests = tests(sources);
    let specification = documents.iter().filter(|document| document.path == SPECIFICATION);
    specification
        .flat_map(|document| check_document(document, &tests))
        .collect()
}

/// Where a test is: folders, file, modules, name.
type Place = Vec<String>;

fn tests(sources: &[Source]) -> Vec<Place> {
    let tests_of = |source: &Source| {
        let file = parts(&source.path);
        let tests = source.functions.iter().filter(|function| function.is_test);
        tests
            .map(|test| [&file[..], &test.path].concat())
            .collect::<Vec<_>>()
    };
    sources.iter().flat_map(tests_of).collect()
}

fn check_document(document: &Document, tests: &[Place]) -> Vec<Finding> {
    let tables = document.tables();
    let promises: Vec<_> = tables
        .iter()
        .filter_map(|table| Some((table, column(table)?)))
        .collect();
    if promises.is_empty() {
        let why = "it has no table with a column of tests";
        return vec![Finding::new(
            &document.path,
            1,
            "the specification promises nothing",
            why,
        )];
    }
    promises
        .into_iter()
        .flat_map(|(table, column)| check_table(document, table, column, tests))
        .collect()
}

fn column(table: &Table<'_>) -> Option<usize> {
    let is_test = |word: &str| ["test", "tests", "tested"].contains(&word.to_lowercase().as_str());
    table
        .head
        .iter()
        .position(|cell| cell.split(|c: char| !c.is_alphanumeric()).any(is_test))
}

fn check_table(document: &Document, table: &Table<'_>, column: usize, tests: &[Place]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in &table.rows {
        let names = markdown::code_of(row.cells.get(column).unwrap_or(&""));
        if names.is_empty() {
            let why = "a promise that no test keeps is a hope";
            findings.push(Finding::new(
                &document.path,
                row.line,
                "the promise names no test",
                why,
            ));
        }
        let missing = names.into_iter().filter(|name| !is_there(name, tests));
        findings.extend(missing.map(|name| {
            let why = "no function with `#[test]` is called that";
            Finding::new(&document.path, row.line, format!("the test `{name}`"), why)
        }));
    }
    findings
}

/// Tells whether a test has that name, and lies below all that is named before it, in that order.
fn is_there(name: &str, tests: &[Place]) -> bool {
    let wanted = parts(name);
    tests
        .iter()
        .any(|place| place.last() == wanted.last() && is_within(&wanted, place))
}

fn is_within(wanted: &[String], place: &[String]) -> bool {
    let mut place = place.iter();
    wanted.iter().all(|part| place.any(|other| other == part))
}

/// Cuts a path of files, modules or both into names; a crate's name is written as code writes it.
fn parts(path: &str) -> Vec<String> {
    let parts = path.split(['/', ':']).filter(|part| !part.is_empty());
    parts
        .map(|part| part.trim_end_matches(".rs").replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let sources = [
            source(
                "crates/hearth-image/src/rootfs/tar.rs",
                "mod tests { #[test] fn bombs_are_refused() {} }",
            ),
            source(
                "e2e/tests/all/main.rs",
                "on_driver!(qemu, e2e::Driver::Qemu, [process::exec_works,]);",
            ),
            source("e2e/tests/all/process.rs", "fn helper() {}"),
        ];
        let documents = [Document::new(SPECIFICATION, text.to_owned())];
        check(&documents, &sources)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn promise(cell: &str) -> Vec<String> {
        findings(&format!("| Promise | Tested by |\n|---|---|\n| P | {cell} |\n"))
    }

    #[test]
    fn tests_that_are_there_are_accepted_however_they_are_written() {
        for cell in [
            "`bombs_are_refused`",
            "`hearth_image::rootfs::tar::tests::bombs_are_refused`, `exec_works`",
            "`crates/hearth-image/src/rootfs/tar.rs::bombs_are_refused`",
            "`e2e::process::exec_works`",
        ] {
            assert_eq!(promise(cell), [""; 0], "{cell}");
        }
    }

    #[test]
    fn tests_that_are_not_there_are_refused() {
        for cell in ["`bombs`", "`store::bombs_are_refused`", "`helper`"] {
            assert_eq!(promise(cell).len(), 1, "{cell}");
        }
    }

    #[test]
    fn a_promise_without_a_test_is_refused() {
        let expected =
            "SPECIFICATION.md:3: the promise names no test, a promise that no test keeps is a hope";
        assert_eq!(promise("later"), [expected]);
        assert_eq!(findings("Words.").len(), 1);
    }
}
