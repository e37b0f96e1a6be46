//! The modules of `hearth-node`: upper layers may use lower ones, never the reverse, and siblings do not see each other.

use super::finding::Finding;
use super::mentions::Mention;
use super::source::Source;

const CRATE: &str = "hearth_node";

/// The layers, the upper ones first. Modules that are yet to come have their place already.
const LAYERS: [&[&str]; 10] = [
    &["node"],
    &["api"],
    &["execute"],
    &["reconcile", "pool", "migrate"],
    &["machines"],
    // Judges what `setup` left on this host, so it is not beside it; only `api` asks for that judgement.
    &["doctor"],
    &[
        "vmm",
        "images",
        "storage",
        "network",
        "guest",
        "snapshots",
        "records",
        "setup",
        "pager",
    ],
    // Of which networks and machines keep some.
    &["ledger"],
    &["host"],
    // Names of paths, and what a person has set. `host` has no use for them, and everybody else has.
    &["layout", "configuration"],
];

/// Modules within modules that are siblings too: the drivers of `vmm` know the contract, not each other.
const BLIND: [(&str, &[&str]); 1] = [("vmm", &["fake", "firecracker", "qemu"])];

/// Finds uses that go up, or aside.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let [name, own, below @ ..] = &source.module[..] else {
        return Vec::new();
    };
    if name != CRATE {
        return Vec::new();
    }
    let Some(layer) = layer(own) else {
        let why = "every module has a place in the table LAYERS of xtask/src/tidy/layers.rs";
        return vec![Finding::new(
            &source.path,
            1,
            format!("the module `{own}` has no layer"),
            why,
        )];
    };
    let mentions = source.mentions.iter().filter(|mention| mention.path[0] == CRATE);
    mentions
        .filter_map(|mention| {
            let (what, why) = wrong(mention, own, layer).or_else(|| blind(mention, own, below))?;
            Some(Finding::new(&source.path, mention.line, what, &why))
        })
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn wrong(mention: &Mention, own: &str, layer_of_own: usize) -> Option<(String, String)> {
    let other = mention.path.get(1)?;
    let what = format!("`{own}` uses `{}`", mention.text());
    match layer(other) {
        None => Some((what, format!("`{other}` is no module with a layer"))),
        Some(other) if other > layer_of_own => None,
        Some(_) if other == own => None,
        Some(same) if same == layer_of_own => Some((what, "siblings do not see each other".to_owned())),
        Some(_) => Some((
            what,
            format!("`{other}` lies above `{own}`: only upper modules use lower ones"),
        )),
    }
}

fn blind(mention: &Mention, own: &str, below: &[String]) -> Option<(String, String)> {
    let (_, siblings) = BLIND.iter().find(|(parent, _)| *parent == own)?;
    let this = below.first().filter(|name| siblings.contains(&name.as_str()))?;
    let other = mention
        .path
        .get(2)
        .filter(|name| siblings.contains(&name.as_str()))?;
    (mention.path[1] == own && this != other).then(|| {
        let what = format!("the driver `{this}` uses `{}`", mention.text());
        (what, "drivers are blind to each other".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::super::source::sample::source;
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let path = format!("crates/hearth-node/src/{path}");
        check(&source(&path, text))
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    #[test]
    fn lower_modules_may_be_used() {
        assert_eq!(
            findings(
                "machines/actor.rs",
                "use crate::{vmm::Vmm, host::files, layout::Layout};"
            ),
            [""; 0]
        );
        assert_eq!(
            findings("vmm/qemu/mod.rs", "use super::contract; use crate::vmm::stream;"),
            [""; 0]
        );
        assert_eq!(findings("lib.rs", "pub use crate::node::run;"), [""; 0]);
    }

    #[test]
    fn upper_modules_may_not() {
        assert_eq!(
            findings("host/files.rs", "\nfn f() { crate::machines::f() }"),
            [
                "crates/hearth-node/src/host/files.rs:2: `host` uses `hearth_node::machines::f`, \
             `machines` lies above `host`: only upper modules use lower ones"
            ]
        );
    }

    #[test]
    fn siblings_may_not() {
        let found = findings("storage/mod.rs", "use super::guest::Channel;");
        assert!(found[0].ends_with("siblings do not see each other"), "{found:?}");
    }

    #[test]
    fn one_driver_may_not_use_another() {
        let found = findings("vmm/qemu/mod.rs", "use crate::vmm::fake::Fake;");
        assert!(found[0].ends_with("drivers are blind to each other"), "{found:?}");
    }

    #[test]
    fn a_module_without_a_layer_is_refused() {
        assert_eq!(findings("misc.rs", "").len(), 1);
        assert_eq!(findings("api/mod.rs", "use crate::misc::f;").len(), 1);
    }
}
