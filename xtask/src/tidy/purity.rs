//! `hearth-machine` cannot fail for outside reasons: the outside comes as arguments.

use super::crates::Manifest;
use super::finding::Finding;
use super::source::Source;

const CRATE: &str = "hearth-machine";
const MODULE: &str = "hearth_machine";

/// All that it may depend on; tests may have more.
const DEPENDENCIES: [&str; 2] = ["ipnet", "thiserror"];

/// The outside: operating system, clock, threads, randomness, formats.
const OUTSIDE: [&str; 17] = [
    "std::fs",
    "std::process",
    // Addresses are values; what uses them is not.
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::env",
    "std::os",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "rand",
    "getrandom",
    "serde",
    "serde_json",
    "tracing",
];

/// Finds code that reaches outside, in tests too: a pure crate has pure tests.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    if !source.is_in(MODULE) {
        return Vec::new();
    }
    let reaches_out = |what: &&str| source.mentions.iter().find(|mention| mention.reaches(what));
    let mentions = OUTSIDE.iter().filter_map(reaches_out);
    let why = "the domain is pure: what it needs of the outside is an argument";
    mentions
        .map(|mention| Finding::new(&source.path, mention.line, format!("`{}`", mention.text()), why))
        .collect()
}

/// Finds dependencies that could bring the outside in.
pub(crate) fn check_dependencies(manifests: &[Manifest]) -> Vec<Finding> {
    let pure = manifests.iter().filter(|manifest| manifest.name == CRATE);
    let why = "the domain is pure: DEPENDENCIES in xtask/src/tidy/purity.rs lists all that it may have";
    pure.flat_map(|manifest| {
        let dependencies = manifest
            .dependencies
            .iter()
            .filter(|dependency| !dependency.for_tests);
        let refused = dependencies.filter(|dependency| !DEPENDENCIES.contains(&dependency.name.as_str()));
        refused.map(|dependency| {
            let what = format!("`{CRATE}` depends on `{}`", dependency.name);
            Finding::new(&manifest.path, dependency.line, what, why)
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::crates::sample::manifest;
    use super::super::source::sample::source;
    use super::*;

    fn findings(text: &str) -> usize {
        check(&source("crates/hearth-machine/src/spec.rs", text)).len()
    }

    #[test]
    fn pure_code_is_accepted() {
        assert_eq!(
            findings("use std::{collections::BTreeMap, fmt, time::Duration};"),
            0
        );
        assert_eq!(check(&source("crates/hearth-image/src/x.rs", "use std::fs;")), []);
    }

    #[test]
    fn code_that_reaches_outside_is_refused() {
        assert_eq!(findings("use std::time::{Duration, Instant};"), 1);
        assert_eq!(findings("fn f() -> u32 { std::process::id() }"), 1);
        assert_eq!(findings("use std::time; fn f() { time::SystemTime::now(); }"), 1);
        assert_eq!(findings("#[derive(serde::Serialize)] struct S;"), 1);
    }

    #[test]
    fn a_dependency_of_the_list_is_accepted_and_any_other_refused() {
        assert_eq!(check_dependencies(&[manifest("hearth-machine", "thiserror")]), []);
        assert_eq!(check_dependencies(&[manifest("hearth-image", "tokio")]), []);
        assert_eq!(
            check_dependencies(&[manifest("hearth-machine", "tokio")]).len(),
            1
        );
    }
}
