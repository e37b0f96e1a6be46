//! serde is derived only where bytes cross a border: in wire types, records and foreign formats.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

use super::finding::Finding;
use super::source::Source;

const TRAITS: [&str; 2] = ["Serialize", "Deserialize"];

/// Where bytes cross a border, and which one.
const HOMES: [(&str, &str); 22] = [
    ("hearth_api", "HTTP"),
    ("hearth_guest_protocol::message", "the channel to the guest"),
    (
        "hearth_guest::report",
        "the pipe between two processes of the agent",
    ),
    ("hearth_firecracker", "Firecracker's API socket"),
    ("hearth_image::config", "image configurations"),
    ("hearth_image::manifest", "manifests and indexes"),
    ("hearth_image::registry", "answers of token servers"),
    ("hearth_image::source::archive", "archives of `docker save`"),
    (
        "hearth_cli::commands::bench::figures",
        "what `bench --json` prints",
    ),
    (
        "hearth_cli::commands::correctness::duties",
        "what `test fork-correctness --json` prints",
    ),
    (
        "hearth_cli::credentials",
        "docker's configuration, and its helpers",
    ),
    ("hearth_node::configuration", "hearth.toml"),
    ("hearth_node::api", "queries of HTTP requests"),
    (
        "hearth_node::pager::handshake",
        "what Firecracker tells a page server",
    ),
    ("hearth_node::ledger", "the format of a record on the disk"),
    ("hearth_node::network::record", "records of networks on the disk"),
    ("hearth_node::records", "records on the disk"),
    ("hearth_node::snapshots::manifest", "manifests on the disk"),
    (
        "hearth_node::setup::digest",
        "digests in the index of what was set up",
    ),
    ("hearth_node::setup::index", "that index, on the disk"),
    ("hearth_node::setup::firecracker::index", "the index beside it"),
    ("hearth_node::vmm::qemu::qmp", "QEMU's monitor"),
];

/// Finds derives of serde's traits elsewhere; those that a macro makes count where the macro is written.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    if HOMES.iter().any(|(home, _)| source.is_in(home)) {
        return Vec::new();
    }
    let why = "serde is only where bytes cross a border (HOMES in xtask/src/tidy/derives.rs)";
    derived(source.tokens.clone())
        .iter()
        .map(|name| {
            Finding::new(
                &source.path,
                name.span().start().line,
                format!("`{name}` is derived"),
                why,
            )
        })
        .collect()
}

fn derived(tokens: TokenStream) -> Vec<Ident> {
    let mut found = Vec::new();
    let mut derive = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if derive && group.delimiter() == Delimiter::Parenthesis => {
                found.extend(group.stream().into_iter().filter_map(serde_trait));
                derive = false;
            }
            TokenTree::Group(group) => found.extend(derived(group.stream())),
            other => derive = matches!(other, TokenTree::Ident(ident) if ident == "derive"),
        }
    }
    found
}

fn serde_trait(token: TokenTree) -> Option<Ident> {
    match token {
        TokenTree::Ident(ident) if TRAITS.iter().any(|name| ident == name) => Some(ident),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&source(path, text)).len()
    }

    #[test]
    fn a_record_may_derive_serde() {
        let text = "#[derive(Debug, Serialize, serde::Deserialize)] struct S;";
        assert_eq!(findings("crates/hearth-node/src/records/machine.rs", text), 0);
        assert_eq!(findings("crates/hearth-node/src/setup/index.rs", text), 0);
    }

    #[test]
    fn a_driver_may_not() {
        let path = "crates/hearth-node/src/vmm/contract.rs";
        assert_eq!(
            findings(path, "#[derive(Debug, Serialize, serde::Deserialize)] struct S;"),
            2
        );
        assert_eq!(
            findings(
                path,
                "macro_rules! m { () => { #[derive(Serialize)] struct S; } }"
            ),
            1
        );
        assert_eq!(findings(path, "#[derive(Debug)] struct Serialize;"), 0);
    }
}
