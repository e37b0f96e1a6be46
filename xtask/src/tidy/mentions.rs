//! What a file names: every path of two segments or more, with `use` trees unfolded and local names resolved.
//!
//! Resolution is by file, not by scope: a name that a `use` brings in anywhere counts in the whole file. That errs
//! only where one file gives one name two meanings.

use std::collections::BTreeMap;

use proc_macro2::Span;
use syn::visit::{self, Visit};
use syn::{Attribute, File, ItemFn, ItemImpl, ItemMod, ItemUse, Macro, Meta, Path, UseTree};

use super::tokens;

/// One path in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mention {
    /// From a crate's name on; `*` ends a glob import.
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// Whether it stands in test code.
    pub(crate) test: bool,
}

impl Mention {
    /// Tells whether the path is `what` or below it, or a glob that brings it in. `core` and `alloc` count as `std`.
    pub(crate) fn reaches(&self, what: &str) -> bool {
        let what: Vec<_> = what.split("::").collect();
        let path = self.path.iter().map(|segment| match segment.as_str() {
            "core" | "alloc" => "std",
            other => other,
        });
        match self.path.split_last() {
            Some((last, above)) if last == "*" && above.len() < what.len() => {
                path.take(above.len()).eq(what[..above.len()].iter().copied())
            }
            _ => path.take(what.len()).eq(what.iter().copied()),
        }
    }

    /// Returns the path as code writes it.
    pub(crate) fn text(&self) -> String {
        self.path.join("::")
    }
}

/// Collects the paths of a file of the module `module`; `test` tells that all of it is test code.
pub(crate) fn collect(file: &File, module: &[String], test: bool) -> Vec<Mention> {
    let mut collector = Collector {
        module: module.to_vec(),
        test,
        names: BTreeMap::new(),
        found: Vec::new(),
    };
    collector.visit_file(file);
    let Collector { names, found, .. } = collector;
    found
        .into_iter()
        .map(|mention| resolve(mention, &names))
        .collect()
}

/// Tells whether an item is for tests only.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            let condition = list.tokens.to_string();
            condition == "test" || condition.starts_with("all (test") || condition.starts_with("all(test")
        }
        meta => is_test_marker(meta.path()),
    })
}

/// Tells whether an attribute makes a function a test: `test`, `tokio::test`.
pub(crate) fn is_test_marker(path: &Path) -> bool {
    path.segments
        .last()
        .is_some_and(|segment| segment.ident == "test")
}

fn resolve(mut mention: Mention, names: &BTreeMap<String, Vec<String>>) -> Mention {
    if let Some(full) = names.get(&mention.path[0])
        && mention.path.len() > 1
        && !mention.path.starts_with(full)
    {
        mention.path.splice(..1, full.iter().cloned());
    }
    mention
}

struct Collector {
    /// The module that is being visited, inline modules included.
    module: Vec<String>,
    test: bool,
    /// What local names stand for.
    names: BTreeMap<String, Vec<String>>,
    found: Vec<Mention>,
}

impl Collector {
    fn add(&mut self, segments: Vec<String>, span: Span) {
        if let Some(path) = self.absolute(segments) {
            self.found.push(Mention {
                path,
                line: span.start().line,
                test: self.test,
            });
        }
    }

    /// Replaces `crate`, `self` and `super`.
    fn absolute(&self, segments: Vec<String>) -> Option<Vec<String>> {
        let mut base: Vec<String> = Vec::new();
        let mut rest = segments.into_iter().peekable();
        while let Some(segment) =
            rest.next_if(|segment| ["crate", "self", "super"].contains(&segment.as_str()))
        {
            match segment.as_str() {
                "crate" => base = self.module[..1].to_vec(),
                _ if base.is_empty() => base = self.module.clone(),
                _ => {}
            }
            if segment == "super" {
                base.pop();
            }
        }
        base.extend(rest);
        (!base.is_empty()).then_some(base)
    }

    fn import(&mut self, tree: &UseTree, above: &[String]) {
        let with = |name: String| [above, &[name]].concat();
        match tree {
            UseTree::Path(path) => self.import(&path.tree, &with(path.ident.to_string())),
            UseTree::Name(name) if name.ident == "self" => {
                let local = above.last().cloned().unwrap_or_default();
                self.bring_in(local, above.to_vec(), name.ident.span());
            }
            UseTree::Name(name) => {
                let local = name.ident.to_string();
                self.bring_in(local.clone(), with(local), name.ident.span());
            }
            UseTree::Rename(rename) => {
                let path = with(rename.ident.to_string());
                self.bring_in(rename.rename.to_string(), path, rename.ident.span());
            }
            UseTree::Glob(glob) => self.add(with("*".to_owned()), glob.star_token.spans[0]),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, above)),
        }
    }

    fn bring_in(&mut self, local: String, path: Vec<String>, span: Span) {
        if let Some(full) = self.absolute(path.clone()) {
            self.names.entry(local).or_insert(full);
        }
        self.add(path, span);
    }

    fn add_tokens(&mut self, tokens: proc_macro2::TokenStream) {
        for path in tokens::paths(tokens) {
            let span = path[0].span();
            self.add(path.iter().map(ToString::to_string).collect(), span);
        }
    }

    fn within(&mut self, attributes: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let outside = self.test;
        self.test |= is_for_tests(attributes);
        visit(self);
        self.test = outside;
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.within(&item.attrs, |collector| {
            collector.module.push(item.ident.to_string());
            visit::visit_item_mod(collector, item);
            collector.module.pop();
        });
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.within(&item.attrs, |collector| visit::visit_item_fn(collector, item));
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        self.within(&item.attrs, |collector| visit::visit_item_impl(collector, item));
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.within(&item.attrs, |collector| collector.import(&item.tree, &[]));
    }

    fn visit_path(&mut self, path: &'ast Path) {
        if path.segments.len() > 1 {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string());
            self.add(segments.collect(), path.segments[0].ident.span());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.add_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
        visit::visit_attribute(self, attribute);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mentions(text: &str) -> Vec<(String, bool)> {
        let module = ["hearth_node".to_owned(), "vmm".to_owned()];
        let found = collect(&syn::parse_file(text).unwrap(), &module, false);
        found
            .iter()
            .map(|mention| (mention.text(), mention.test))
            .collect()
    }

    fn texts(text: &str) -> Vec<String> {
        mentions(text).into_iter().map(|(text, _)| text).collect()
    }

    #[test]
    fn imports_are_unfolded() {
        assert_eq!(
            texts("use crate::{host::{self, own}, records::*}; use super::guest as g;"),
            [
                "hearth_node::host",
                "hearth_node::host::own",
                "hearth_node::records::*",
                "hearth_node::guest"
            ]
        );
    }

    #[test]
    fn local_names_are_resolved_to_what_they_stand_for() {
        assert_eq!(
            texts("use std::process; fn f() { process::exit(1) }")[1],
            "std::process::exit"
        );
        assert_eq!(
            texts("use crate::host as h; fn f() { h::own() }")[1],
            "hearth_node::host::own"
        );
    }

    #[test]
    fn macros_and_attributes_are_read() {
        assert_eq!(
            texts("#[derive(thiserror::Error)] struct S; fn f() { println!(\"{}\", crate::node::f()) }"),
            ["thiserror::Error", "hearth_node::node::f"]
        );
    }

    #[test]
    fn inline_modules_count_for_super() {
        assert_eq!(texts("mod a { use super::super::host; }"), ["hearth_node::host"]);
    }

    #[test]
    fn test_code_is_told_apart() {
        let found =
            mentions("use a::b; #[cfg(test)] mod tests { use c::d; } #[tokio::test] async fn f() { e::g() }");
        let test: Vec<_> = found
            .iter()
            .filter(|(_, test)| *test)
            .map(|(text, _)| &**text)
            .collect();
        assert_eq!(test, ["c::d", "tokio::test", "e::g"]);
    }

    #[test]
    fn a_glob_reaches_what_it_brings_in() {
        let reaches = |path: &str, what| {
            let path = path.split("::").map(str::to_owned).collect();
            Mention {
                path,
                line: 1,
                test: false,
            }
            .reaches(what)
        };
        assert!(reaches("std::time::*", "std::time::Instant"));
        assert!(reaches("core::time::Instant::now", "std::time::Instant"));
        assert!(!reaches("std::time::Duration", "std::time::Instant"));
        assert!(!reaches("std::collections::*", "std::time::Instant"));
    }
}
