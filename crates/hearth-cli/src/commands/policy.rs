//! `policy show|check|allow|deny|set|log|learn`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;

use hearth_api::v1::{Contact, Denial, Network, NetworkPolicy, PolicyPreset, PolicyTarget, UpdateMachine};
use hearth_machine::policy::{Destination, PRIVATE, Policy, Reason};
use serde_json::json;

use crate::arguments::{
    PolicyAdd, PolicyCheck, PolicyCommand, PolicyLearn, PolicyLog, PolicySet, PolicyShow,
};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Table};
use crate::resolve::{self, Asked, ResolveError, System};

/// Runs a verb about policies.
pub(super) async fn policy(node: &Node, command: PolicyCommand) -> Result<ExitCode, CliError> {
    match command {
        PolicyCommand::Show(arguments) => show(node, &arguments).await,
        PolicyCommand::Check(arguments) => check(node, &arguments).await,
        PolicyCommand::Allow(arguments) => {
            add(node, &arguments, |policy| (&mut policy.allow, &mut policy.deny)).await
        }
        PolicyCommand::Deny(arguments) => {
            add(node, &arguments, |policy| (&mut policy.deny, &mut policy.allow)).await
        }
        PolicyCommand::Set(arguments) => set(node, &arguments).await,
        PolicyCommand::Log(arguments) => log(node, &arguments).await,
        PolicyCommand::Learn(arguments) => learn(node, &arguments).await,
    }
}

async fn policy_of(node: &Node, machine: &str) -> Result<Policy, CliError> {
    let found = node.call(async |client| client.inspect(machine).await).await?;
    let policy = resolve::policy_of(&found.spec)?;
    Ok(policy.ok_or_else(|| ResolveError::NoNetwork(machine.to_owned()))?)
}

async fn show(node: &Node, arguments: &PolicyShow) -> Result<ExitCode, CliError> {
    let policy = resolve::policy_on_wire(&policy_of(node, &arguments.machine).await?);
    if arguments.json {
        print::json(&policy)?;
    } else {
        print::out(&file(policy))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file of a policy.
fn file(policy: NetworkPolicy) -> String {
    let list = |name: &str, rules: &[String]| match rules {
        [] => format!("{name} = []\n"),
        rules => {
            // What rules consist of needs no escape.
            let lines: String = rules.iter().map(|rule| format!("    \"{rule}\",\n")).collect();
            format!("{name} = [\n{lines}]\n")
        }
    };
    let preset = match policy.preset {
        Some(PolicyPreset::Locked) => "preset = \"locked\"\n",
        Some(PolicyPreset::Balanced) => "preset = \"balanced\"\n",
        Some(PolicyPreset::Open) => "preset = \"open\"\n",
        None => "",
    };
    format!(
        "{preset}{}{}",
        list("allow", &policy.allow),
        list("deny", &policy.deny)
    )
}

async fn check(node: &Node, arguments: &PolicyCheck) -> Result<ExitCode, CliError> {
    let asked: Vec<Asked> = arguments
        .destinations
        .iter()
        .map(|text| Asked::read(text))
        .collect::<Result<_, _>>()?;
    let (policy, networks) = if resolve::is_policy(&arguments.policy) {
        (resolve::policy_named(&arguments.policy, &System)?, Vec::new())
    } else {
        let policy = policy_of(node, &arguments.policy).await?;
        (policy, networks_of(node, &arguments.policy).await?)
    };
    let answers: Vec<Answer> = arguments
        .destinations
        .iter()
        .zip(&asked)
        .map(|(destination, asked)| answer(destination, asked, &policy, &networks))
        .collect();
    if arguments.json {
        let list: Vec<_> = answers
            .iter()
            .map(|answer| {
                json!({
                    "destination": answer.destination,
                    "allowed": answer.allowed,
                    "reason": answer.reason,
                })
            })
            .collect();
        print::json(&list)?;
    } else {
        let mut table = Table::new(&[("DESTINATION", None), ("VERDICT", None), ("DECIDED BY", None)]);
        for answer in &answers {
            let word = if answer.allowed { "allowed" } else { "denied" };
            table.push([
                Cell::from(answer.destination),
                Cell::from(word),
                Cell::from(answer.reason.clone()),
            ]);
        }
        print::out(&table.render(print::Screen::stdout()))?;
    }
    Ok(if answers.iter().all(|answer| answer.allowed) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What becomes of a connection.
struct Answer<'a> {
    destination: &'a String,
    allowed: bool,
    reason: String,
}

/// Machines of its networks are reached whatever the preset, unless a rule denies it.
fn answer<'a>(destination: &'a String, asked: &Asked, policy: &Policy, networks: &[Network]) -> Answer<'a> {
    let verdict = policy.judge(&asked.connection());
    let neighbour = networks
        .iter()
        .find_map(|network| Some((asked.member(network)?, network)));
    match neighbour {
        Some((member, network)) if !matches!(verdict.reason, Reason::Deny(_)) => Answer {
            destination,
            allowed: true,
            reason: format!(
                "the network {}, which the machine {member} is on, too",
                network.name
            ),
        },
        _ => Answer {
            destination,
            allowed: verdict.allowed,
            reason: verdict.to_string(),
        },
    }
}

/// Returns the networks that a machine is on.
async fn networks_of(node: &Node, machine: &str) -> Result<Vec<Network>, CliError> {
    let spec = node
        .call(async |client| client.inspect(machine).await)
        .await?
        .spec;
    if spec.networks.is_empty() {
        return Ok(Vec::new());
    }
    let mut networks = node.call(async |client| client.networks().await).await?;
    networks.retain(|network| spec.networks.contains(&network.name));
    Ok(networks)
}

type Rules = Vec<Destination>;

/// Adds rules to one list, and takes them out of the other.
async fn add(
    node: &Node,
    arguments: &PolicyAdd,
    lists: impl Fn(&mut Policy) -> (&mut Rules, &mut Rules),
) -> Result<ExitCode, CliError> {
    let rules = resolve::destinations(&arguments.destinations)?;
    let mut policy = policy_of(node, &arguments.machine).await?;
    let (own, contrary) = lists(&mut policy);
    contrary.retain(|rule| !rules.contains(rule));
    own.extend(rules);
    change(node, &arguments.machine, resolve::policy_on_wire(&policy)).await
}

async fn set(node: &Node, arguments: &PolicySet) -> Result<ExitCode, CliError> {
    let policy = resolve::policy(&arguments.policy, &System)?;
    let policy = policy.ok_or(ResolveError::NoPolicy)?;
    change(node, &arguments.machine, policy).await
}

async fn change(node: &Node, machine: &str, policy: NetworkPolicy) -> Result<ExitCode, CliError> {
    let request = UpdateMachine {
        policy: Some(policy),
        ..UpdateMachine::default()
    };
    node.call(async |client| client.update(machine, &request).await)
        .await?;
    print::line(machine)?;
    Ok(ExitCode::SUCCESS)
}

async fn log(node: &Node, arguments: &PolicyLog) -> Result<ExitCode, CliError> {
    let (machine, follow) = (&arguments.machine, arguments.follow);
    let mut denials = node
        .call(async |client| client.denials(machine, follow).await)
        .await?;
    while let Some(denial) = denials.next().await? {
        if arguments.json {
            print::line(&serde_json::to_string(&denial)?)?;
        } else {
            print::line(&shown(&denial))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One line: when, what, why, and what would allow it.
fn shown(denial: &Denial) -> String {
    let target = &denial.target;
    let place = match (&target.name, &target.address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    };
    let port = target.port.map(|port| format!(" {port}")).unwrap_or_default();
    let remedy = denial
        .remedy
        .as_ref()
        .map(|remedy| format!(" [{remedy}]"))
        .unwrap_or_default();
    let line = format!(
        "{} {place} {}{port}: {}{remedy}",
        denial.time, target.protocol, denial.reason
    );
    print::plain(&line)
}

async fn learn(node: &Node, arguments: &PolicyLearn) -> Result<ExitCode, CliError> {
    let machine = &arguments.machine;
    let found = node.call(async |client| client.contacts(machine).await).await?;
    if arguments.json {
        print::json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rules = |allowed: bool| -> BTreeSet<String> {
        let contacts = found.contacts.iter().filter(|contact| contact.allowed == allowed);
        contacts.map(rule).collect()
    };
    let policy = NetworkPolicy {
        preset: Some(PolicyPreset::Locked),
        allow: rules(true).into_iter().collect(),
        deny: Vec::new(),
    };
    print::out(&file(policy))?;
    for refused in rules(false) {
        print::line(&format!("# refused: {}", print::plain(&refused)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the rule that lets somebody be reached: by name, where one leads there.
fn rule(contact: &Contact) -> String {
    let PolicyTarget {
        name, address, port, ..
    } = &contact.target;
    let address: Option<IpAddr> = address.as_ref().and_then(|text| text.parse().ok());
    // Names do not lead to private addresses.
    let is_private = address.is_some_and(|address| PRIVATE.contain(address));
    let host = match (name, address) {
        (Some(name), _) if !is_private => name.clone(),
        (_, Some(IpAddr::V6(address))) if port.is_some() => format!("[{address}]"),
        (_, Some(address)) => address.to_string(),
        (name, None) => name.clone().unwrap_or_default(),
    };
    match port {
        Some(port) => format!("{host}:{port}"),
        None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(name: Option<&str>, address: &str, port: Option<u16>) -> Contact {
        Contact {
            target: PolicyTarget {
                name: name.map(ToOwned::to_owned),
                address: Some(address.to_owned()),
                protocol: "tcp".to_owned(),
                port,
            },
            allowed: true,
        }
    }

    #[test]
    fn rules_name_hosts_where_names_lead_to_them() {
        for (contact, expected) in [
            (contact(Some("a.com"), "203.0.113.1", Some(443)), "a.com:443"),
            (contact(Some("a.com"), "10.0.0.1", Some(443)), "10.0.0.1:443"),
            (contact(None, "2001:db8::1", Some(80)), "[2001:db8::1]:80"),
            (contact(None, "2001:db8::1", None), "2001:db8::1"),
        ] {
            let written = rule(&contact);
            assert_eq!(written, expected);
            assert!(written.parse::<Destination>().is_ok());
        }
    }

    #[test]
    fn a_file_is_read_as_it_is_written() {
        let policy = NetworkPolicy {
            preset: Some(PolicyPreset::Locked),
            allow: vec!["*.a.com:443".to_owned(), "[2001:db8::]/32:80".to_owned()],
            deny: Vec::new(),
        };
        let read: NetworkPolicy = toml::from_str(&file(policy.clone())).unwrap();
        assert_eq!(read, policy);
    }

    #[test]
    fn a_denial_is_one_line_without_control_bytes() {
        let denial = Denial {
            sequence: 1,
            time: "2026-01-01T00:00:00Z".to_owned(),
            machine: "0123456789ab".to_owned(),
            target: contact(Some("a\u{1b}[2J.com"), "203.0.113.1", Some(25)).target,
            reason: "why".to_owned(),
            remedy: Some("--allow a.com:25".to_owned()),
        };
        let line = shown(&denial);
        assert!(line.ends_with("tcp 25: why [--allow a.com:25]"), "{line}");
        assert!(!line.contains(['\n', '\u{1b}']), "{line:?}");
    }
}
