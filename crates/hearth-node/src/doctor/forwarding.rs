//! Rules of others that keep machines from getting out: what one chain drops, no other one lets through.

use serde_json::Value;

use super::{Check, chain};
use crate::host::command::HostCommand;
use crate::host::facts::find_program;
use crate::host::own;

const NAME: &str = "forwarding";
/// What the name of the node's bridge begins with; those of networks of machines with `hn`.
const OWN: &str = "hearth";

/// Judges whether this host passes on what machines send. For root; nobody else sees rules.
pub(super) async fn forwarding() -> Check {
    let Some(nft) = find_program("nft").filter(|_| own::is_root()) else {
        return Check::absent(NAME, "not looked at")
            .because("only root sees the rules of this host, with nft")
            .remedy("as root: apt-get install nftables");
    };
    let asked = HostCommand::new(nft, "nftables").args(["-j", "list", "ruleset"]);
    let listed = match asked.run().await {
        Ok(output) => output,
        Err(error) => return Check::warning(NAME, "unknown").because(chain(&error)),
    };
    match serde_json::from_slice(&listed) {
        Ok(rules) => judge(&rules),
        Err(error) => Check::warning(NAME, "unknown").because(error.to_string()),
    }
}

fn judge(rules: &Value) -> Check {
    let objects = rules["nftables"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let drops = |chain: &&Value| chain["hook"] == "forward" && chain["policy"] == "drop";
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let blocking = chains.filter(drops).find(|chain| !knows_machines(objects, chain));
    let Some(chain) = blocking else {
        return Check::ok(NAME, "no chain of this host's drops what machines send");
    };
    let text = |field: &str| chain[field].as_str().unwrap_or_default().to_owned();
    let (family, table, name) = (text("family"), text("table"), text("name"));
    Check::warning(NAME, format!("the chain {name} of the table {family} {table} drops it"))
        .because("its policy is to drop, and no rule of its table names interfaces of machines (hearth*)")
        .remedy(format!(
            "as root: `nft insert rule {family} {table} {name} iifname '{{ \"{OWN}*\", \"hn*\" }}' accept` and the same with oifname; docker's \
             chain for that is DOCKER-USER. Machines may be filtered all the same: each has rules of its own"
        ))
}

/// Tells whether somebody has let machines through in a chain's table.
fn knows_machines(objects: &[Value], chain: &Value) -> bool {
    let is_of_table = |rule: &&Value| rule["family"] == chain["family"] && rule["table"] == chain["table"];
    let rules = objects.iter().filter_map(|object| object.get("rule"));
    let mut rules = rules.filter(is_of_table);
    rules.any(|rule| rule["expr"].to_string().contains(OWN))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::*;

    fn chain(table: &str, policy: &str, hook: &str) -> Value {
        json!({"chain": {
            "family": "ip", "table": table, "name": "FORWARD", "type": "filter", "hook": hook, "prio": 0, "policy": policy
        }})
    }

    fn rule(table: &str, interface: &str) -> Value {
        let matched = json!({"op": "==", "left": {"meta": {"key": "iifname"}}, "right": interface});
        json!({"rule": {
            "family": "ip", "table": table, "chain": "FORWARD", "expr": [{"match": matched}, {"accept": null}]
        }})
    }

    #[test]
    fn a_chain_that_drops_what_it_does_not_know_is_found() {
        let found =
            judge(&json!({"nftables": [chain("filter", "drop", "forward"), rule("filter", "docker0")]}));
        assert_eq!(found.state, State::Warning);
        assert!(
            found.detail.contains("FORWARD of the table ip filter"),
            "{}",
            found.detail
        );
        for fine in [
            json!({"nftables": []}),
            json!({"nftables": [chain("filter", "accept", "forward"), chain("filter", "drop", "input")]}),
            json!({"nftables": [chain("filter", "drop", "forward"), rule("filter", "hearth*")]}),
        ] {
            assert_eq!(judge(&fine).state, State::Ok, "{fine}");
        }
        let another = json!({"nftables": [chain("filter", "drop", "forward"), rule("other", "hearth*")]});
        assert_eq!(judge(&another).state, State::Warning);
    }
}
