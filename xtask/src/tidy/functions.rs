//! What a file defines: its functions, how long they are, and which of them are tests.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Block, File, ImplItemFn, ItemFn, ItemMod, Macro, Signature, TraitItemFn};

use super::{mentions, tokens};

/// The macro of the end-to-end tests that makes functions tests of a driver: `on_driver!(m, d, [subject::name, ...])`.
const DRIVER_TESTS: &str = "on_driver";

/// A function, or a test that a macro makes; then it has no size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    /// The inline modules around it, and its name.
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// From `fn` to the closing brace.
    pub(crate) lines: usize,
    pub(crate) parameters: usize,
    pub(crate) is_test: bool,
}

impl Function {
    /// Returns its name without modules.
    pub(crate) fn name(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }
}

/// Collects the functions of a file.
pub(crate) fn collect(file: &File) -> Vec<Function> {
    let mut collector = Collector::default();
    collector.visit_file(file);
    collector.found
}

#[derive(Default)]
struct Collector {
    modules: Vec<String>,
    found: Vec<Function>,
}

impl Collector {
    fn add(&mut self, attributes: &[Attribute], signature: &Signature, block: Option<&Block>) {
        let line = signature.fn_token.span.start().line;
        let last = block.map_or(line, |block| block.brace_token.span.close().end().line);
        self.found.push(Function {
            path: self.path_of(signature.ident.to_string()),
            line,
            lines: last + 1 - line,
            parameters: signature.inputs.len(),
            is_test: attributes
                .iter()
                .any(|attribute| mentions::is_test_marker(attribute.path())),
        });
    }

    fn add_made(&mut self, path: Vec<String>, line: usize) {
        self.found.push(Function {
            path,
            line,
            lines: 0,
            parameters: 0,
            is_test: true,
        });
    }

    fn path_of(&self, name: String) -> Vec<String> {
        [&self.modules[..], &[name]].concat()
    }

    /// Finds `#[test] fn name` within a macro call, as in `proptest!`.
    fn add_marked(&mut self, call: TokenStream) {
        let mut marked = false;
        let mut named = false;
        for token in tokens::flat(call) {
            let TokenTree::Ident(ident) = token else {
                continue;
            };
            if named && marked {
                self.add_made(self.path_of(ident.to_string()), ident.span().start().line);
                marked = false;
            }
            named = ident == "fn";
            marked |= ident == "test";
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.modules.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.modules.pop();
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.add(&item.attrs, &item.sig, Some(&item.block));
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.add(&item.attrs, &item.sig, Some(&item.block));
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        self.add(&item.attrs, &item.sig, item.default.as_ref());
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        if call.path.is_ident(DRIVER_TESTS) {
            for path in tokens::paths(call.tokens.clone()) {
                let line = path[0].span().start().line;
                self.add_made(path.iter().map(ToString::to_string).collect(), line);
            }
        } else if !call.path.is_ident("macro_rules") {
            self.add_marked(call.tokens.clone());
        }
        visit::visit_macro(self, call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn functions(text: &str) -> Vec<Function> {
        collect(&syn::parse_file(text).unwrap())
    }

    fn tests(text: &str) -> Vec<String> {
        let functions = functions(text);
        let tests = functions.iter().filter(|function| function.is_test);
        tests.map(|function| function.path.join("::")).collect()
    }

    #[test]
    fn lines_and_parameters_are_counted() {
        let found = functions("\nimpl S {\n    fn f(&self, a: u8) {\n        g()\n    }\n}\n");
        assert_eq!((found[0].line, found[0].lines, found[0].parameters), (3, 3, 2));
    }

    #[test]
    fn tests_are_found_with_their_modules() {
        assert_eq!(
            tests("mod tests { #[test] fn a() {} fn b() {} #[tokio::test] async fn c() {} }"),
            ["tests::a", "tests::c"]
        );
    }

    #[test]
    fn tests_that_macros_make_are_found() {
        assert_eq!(
            tests("proptest! { #[test] fn a(x in 0..3) { } fn b() {} }"),
            ["a"]
        );
        assert_eq!(
            tests("on_driver!(qemu, e2e::Driver::Qemu, [process::a, logs::b]);")[1..],
            ["process::a", "logs::b"]
        );
    }
}
