//! One Rust file: where it lies, which module it is, and what is in it.

use anyhow::{Context, Result};

use super::functions::{self, Function};
use super::mentions::{self, Mention};

/// A parsed file, and what it names and defines.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the repository's root.
    pub(crate) path: String,
    /// The crate's name as code writes it, and the modules down to this file: `["hearth_node", "vmm", "qemu"]`.
    pub(crate) module: Vec<String>,
    pub(crate) lines: usize,
    pub(crate) mentions: Vec<Mention>,
    pub(crate) functions: Vec<Function>,
    pub(crate) tokens: proc_macro2::TokenStream,
}

impl Source {
    /// Parses a file of a crate, which is the folder above `src`, `tests`, `examples` or `targets`.
    ///
    /// # Errors
    ///
    /// It is no Rust.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Self> {
        let wrong = || format!("cannot parse {path}");
        let syntax = syn::parse_file(text).with_context(wrong)?;
        let tokens = text
            .parse()
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(wrong)?;
        let module = module(path);
        let test = is_test(path);
        Ok(Self {
            mentions: mentions::collect(&syntax, &module, test),
            functions: functions::collect(&syntax),
            path: path.to_owned(),
            module,
            lines: text.lines().count(),
            tokens,
        })
    }

    /// Returns the crate's name as code writes it.
    pub(crate) fn crate_name(&self) -> &str {
        &self.module[0]
    }

    /// Tells whether the file is the module `home` or lies below it; `home` is written as a path.
    pub(crate) fn is_in(&self, home: &str) -> bool {
        let home: Vec<_> = home.split("::").collect();
        self.module.iter().map(String::as_str).take(home.len()).eq(home)
    }
}

/// Test code by its place: an integration test, or the file of a `mod tests`.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| ["tests", "tests.rs"].contains(&part))
}

fn module(path: &str) -> Vec<String> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let parts: Vec<_> = stem.split('/').collect();
    let kinds = ["src", "tests", "examples", "targets"];
    let at = parts
        .iter()
        .position(|part| kinds.contains(part))
        .unwrap_or(parts.len() - 1);
    let name = parts[..at].last().unwrap_or(&"").replace('-', "_");
    let kind = parts.get(at).filter(|kind| **kind != "src");
    let modules = parts
        .iter()
        .skip(at + 1)
        .filter(|part| !["lib", "main", "mod"].contains(part));
    let modules = kind.into_iter().chain(modules).map(|part| (*part).to_owned());
    std::iter::once(name).chain(modules).collect()
}

#[cfg(test)]
pub(crate) mod sample {
    use super::Source;

    /// Parses a sample as if it lay at `path`.
    pub(crate) fn source(path: &str, text: &str) -> Source {
        Source::parse(path, text).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_module_follows_from_its_path() {
        for (path, expected) in [
            ("crates/hearth-node/src/lib.rs", "hearth_node"),
            ("crates/hearth-node/src/vmm/mod.rs", "hearth_node::vmm"),
            (
                "crates/hearth-node/src/vmm/qemu/qmp.rs",
                "hearth_node::vmm::qemu::qmp",
            ),
            ("e2e/tests/all/main.rs", "e2e::tests::all"),
            ("xtask/src/main.rs", "xtask"),
            ("crates/hearth-image/fuzz/targets/x.rs", "fuzz::targets::x"),
        ] {
            assert_eq!(module(path).join("::"), expected, "{path}");
        }
    }

    #[test]
    fn a_file_is_in_its_module_and_in_those_above() {
        let source = sample::source("crates/hearth-node/src/host/kvm.rs", "");
        assert!(source.is_in("hearth_node::host") && source.is_in("hearth_node"));
        assert!(!source.is_in("hearth_node::vmm") && !source.is_in("hearth"));
    }

    #[test]
    fn what_is_no_rust_is_an_error() {
        assert!(Source::parse("crates/a/src/lib.rs", "fn").is_err());
    }
}
