//! `unsafe` is in two places only: where the node meets its host, and in guests.

use proc_macro2::TokenTree;

use super::finding::Finding;
use super::source::Source;
use super::tokens;

/// The last is ring 0 itself: there is no other way.
const HOMES: [&str; 3] = ["hearth_node::host", "hearth_guest", "bare_guest"];

/// Finds the word elsewhere, in tests too.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    if HOMES.iter().any(|home| source.is_in(home)) {
        return Vec::new();
    }
    let why = "it is for hearth-node::host and the guests only, each with its SAFETY";
    let words = tokens::flat(source.tokens.clone()).into_iter();
    words
        .filter(|token| matches!(token, TokenTree::Ident(ident) if ident == "unsafe"))
        .map(|word| Finding::new(&source.path, word.span().start().line, "`unsafe`", why))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    #[test]
    fn the_host_may_be_unsafe() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(check(&source("crates/hearth-node/src/host/kvm.rs", text)), []);
        assert_eq!(
            check(&source("crates/hearth-guest/tests/qemu/machine.rs", text)),
            []
        );
    }

    #[test]
    fn others_may_not() {
        let path = "crates/hearth-node/src/vmm/mod.rs";
        assert_eq!(check(&source(path, "fn f() { m!(unsafe { g() }) }")).len(), 1);
        assert_eq!(
            check(&source(
                path,
                "#![forbid(unsafe_code)] // unsafe\nfn f() { g(\"unsafe\") }"
            )),
            []
        );
    }
}
