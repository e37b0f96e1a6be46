//! What may be named in some modules only: HTTP, the wire types, the operating system.

use super::finding::Finding;
use super::source::Source;

/// Some paths, and the modules that may name them.
struct Fence {
    paths: &'static [&'static str],
    /// The crate that the fence stands in; `None` for all.
    within: Option<&'static str>,
    homes: &'static [&'static str],
    tests: Tests,
    why: &'static str,
}

#[derive(PartialEq, Eq)]
enum Tests {
    /// Tests may name them anywhere: they have to look at a host to know what happened.
    Free,
    /// The fence holds in tests too.
    Fenced,
}

/// The file system is not behind the fence: records, disks, logs and artefacts are files, and `std::fs` on a path
/// of the layout is portable, checked by types and without `unsafe`. `host::files` has what is more than that.
const FENCES: [Fence; 4] = [
    Fence {
        paths: &[
            "axum",
            "hyper",
            "hyper_util",
            "http",
            "http_body",
            "http_body_util",
            "tower",
        ],
        within: None,
        homes: &["hearth_api", "hearth_node::api", "hearth_firecracker::client"],
        tests: Tests::Fenced,
        why: "only hearth-api, hearth-node::api and the client of Firecracker know HTTP",
    },
    Fence {
        paths: &["reqwest"],
        within: None,
        homes: &["hearth_image::registry"],
        tests: Tests::Fenced,
        why: "only hearth-image::registry talks to registries",
    },
    Fence {
        paths: &["hearth_api::v1"],
        within: Some("hearth_node"),
        // A record keeps the accepted v1 spec as it came, and `machines` hands it there; it also has no `Border` of its
        // own. Pools are recorded as they are told, and make machines of specs, as executions do. Everything below deals in
        // domain types.
        homes: &[
            "hearth_node::api",
            "hearth_node::execute",
            "hearth_node::machines",
            "hearth_node::pool",
            "hearth_node::records",
        ],
        tests: Tests::Fenced,
        why: "drivers and state know domain types, no wire types; hearth-node::api converts",
    },
    Fence {
        paths: &[
            "rustix",
            "libc",
            "nix",
            "kvm_bindings",
            "kvm_ioctls",
            "landlock",
            "linux_raw_sys",
            "seccompiler",
            "std::process::Child",
            "std::process::Command",
            "std::process::Stdio",
            "std::process::abort",
            "std::process::exit",
            "tokio::process",
        ],
        within: Some("hearth_node"),
        homes: &["hearth_node::host"],
        tests: Tests::Free,
        why: "only hearth-node::host calls the operating system",
    },
];

/// Finds paths that are named outside their homes.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    FENCES.iter().flat_map(|fence| check_one(source, fence)).collect()
}

fn check_one(source: &Source, fence: &Fence) -> Vec<Finding> {
    let elsewhere = fence.within.is_some_and(|name| source.crate_name() != name);
    if elsewhere || fence.homes.iter().any(|home| source.is_in(home)) {
        return Vec::new();
    }
    let mentions = source.mentions.iter();
    let fenced = mentions.filter(|mention| !mention.test || fence.tests == Tests::Fenced);
    let refused = fenced.filter(|mention| fence.paths.iter().any(|path| mention.reaches(path)));
    refused
        .map(|mention| {
            Finding::new(
                &source.path,
                mention.line,
                format!("`{}`", mention.text()),
                fence.why,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&source(&format!("crates/{path}"), text)).len()
    }

    #[test]
    fn http_is_for_the_api_only() {
        let text = "use axum::Router; fn f(status: hyper::StatusCode) {}";
        assert_eq!(findings("hearth-node/src/api/mod.rs", text), 0);
        assert_eq!(findings("hearth-node/src/machines/mod.rs", text), 2);
    }

    #[test]
    fn registries_are_for_the_registry_client_only() {
        assert_eq!(
            findings("hearth-image/src/registry/token.rs", "use reqwest::Client;"),
            0
        );
        assert_eq!(
            findings("hearth-image/src/store/pull.rs", "use reqwest::Client;"),
            1
        );
    }

    #[test]
    fn wire_types_are_not_for_drivers() {
        let text = "use hearth_api::v1;";
        assert_eq!(findings("hearth-node/src/records/spec.rs", text), 0);
        assert_eq!(findings("hearth-node/src/vmm/contract.rs", text), 1);
        assert_eq!(
            findings("hearth-node/src/node.rs", "use hearth_api::location;"),
            0
        );
    }

    #[test]
    fn the_operating_system_is_for_the_host_and_for_tests_only() {
        let text = "use std::process; fn f() { process::Command::new(\"x\"); }";
        assert_eq!(findings("hearth-node/src/host/launch.rs", text), 0);
        assert_eq!(findings("hearth-node/src/vmm/qemu/tests.rs", text), 0);
        assert_eq!(findings("hearth-node/src/vmm/qemu/mod.rs", text), 1);
        assert_eq!(
            findings(
                "hearth-node/src/api/node.rs",
                "fn f() -> u32 { std::process::id() }"
            ),
            0
        );
    }
}
