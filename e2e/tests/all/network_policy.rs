//! What machines may reach: rules of names and networks, what is told of denials, and changes while a machine runs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{DEADLINE, TestNode};
use serde_json::Value;

use crate::network::{MUTE, SILENCE, hear};
use crate::node::kill;
use crate::stage::{METADATA, OTHER, PRIVATE, Stage, WEB, WEB_V6, on_stage};
use crate::support::until;

/// How long a place may take to answer: what is refused is refused at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tells which of these places answer, as `HOST PORT`, asked for one after the other from within a machine.
fn answering(node: &TestNode, machine: &str, places: &[&str]) -> Result<Vec<String>> {
    let mut answered = Vec::new();
    for place in places {
        let script = format!("{MUTE}{} | grep -q '^at' && echo yes", hear(place, PATIENCE));
        if node
            .exec([machine, "sh", "-c", &script])
            .run()?
            .text()?
            .contains("yes")
        {
            answered.push((*place).to_owned());
        }
    }
    Ok(answered)
}

fn sleeper<'a>(name: &'a str, flags: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--name", name];
    arguments.extend(flags);
    arguments.extend(["busybox", "sleep", "3600"]);
    arguments
}

pub(crate) fn denials(node: &TestNode, machine: &str) -> Result<Vec<Value>> {
    let said = node.hearth(["policy", "log", "--json", machine]).ok()?;
    said.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

pub(crate) fn text<'a>(denial: &'a Value, field: &str) -> &'a str {
    denial[field].as_str().unwrap_or_default()
}

#[test]
fn names_that_are_allowed_are_reached_and_nothing_else() -> Result<()> {
    on_stage(|node, _| names(node))
}

pub(crate) fn names(node: &TestNode) -> Result<()> {
    let flags = [
        "--policy",
        "locked",
        "--allow",
        "web.example:80",
        "--allow",
        "*.sub.example",
        "--allow",
        "inner.example",
    ];
    node.start(sleeper("m", &flags))?;
    // Before its name was asked for, an address is nobody's.
    let places = [
        "203.0.113.10 80",
        "web.example 80",
        "web.example 443",
        // By now the name has led there.
        "203.0.113.10 80",
        "other.sub.example 25",
        "sub.example 80",
        "other.example 80",
        "inner.example 80",
        "dns.google 443",
    ];
    assert_eq!(
        answering(node, "m", &places)?,
        ["web.example 80", "203.0.113.10 80", "other.sub.example 25"]
    );
    let denials = denials(node, "m")?;
    let mut told: Vec<_> = denials
        .iter()
        .map(|denial| {
            (
                text(denial, "name"),
                text(denial, "address"),
                denial["port"].as_u64(),
                text(denial, "remedy"),
            )
        })
        .collect();
    // A guest sends a packet again that it has no answer to in time.
    told.dedup();
    assert_eq!(
        told,
        [
            ("", WEB, Some(80), "--allow 203.0.113.10:80"),
            ("web.example", WEB, Some(443), "--allow web.example:443"),
            ("sub.example", "", None, "--allow sub.example"),
            ("other.example", "", None, "--allow other.example"),
            ("inner.example", PRIVATE, None, "--allow 10.9.8.7"),
            ("dns.google", "", None, "--allow dns.google"),
        ]
    );
    ensure!(denials.iter().all(|denial| !text(denial, "reason").is_empty()));
    // The table for people has the same, a line each.
    let shown = node.hearth(["policy", "log", "m"]).ok()?;
    assert_eq!(shown.lines().count(), denials.len());
    ensure!(shown.contains("web.example (203.0.113.10) tcp 443: the preset 'locked' does not let it out [--allow web.example:443]"), "{shown}");
    let learnt = node.hearth(["policy", "learn", "m"]).ok()?;
    ensure!(
        learnt.contains("preset = \"locked\"")
            && learnt.contains("\"web.example:80\"")
            && learnt.contains("\"other.sub.example:25\""),
        "{learnt}"
    );
    ensure!(
        learnt.contains("# refused: other.example") && !learnt.contains(":443\""),
        "{learnt}"
    );
    // The next node knows it, too.
    kill(node)?;
    assert_eq!(node.hearth(["policy", "learn", "m"]).ok()?, learnt);
    Ok(())
}

#[test]
fn networks_are_allowed_and_denied_beside_the_preset() -> Result<()> {
    on_stage(|node, _| networks(node))
}

pub(crate) fn networks(node: &TestNode) -> Result<()> {
    let flags = [
        "--network",
        "filtered",
        "--allow",
        "10.9.0.0/16:8080",
        "--allow",
        "*:25",
        "--deny",
        OTHER,
        "--deny",
        "denied.example",
    ];
    node.start(sleeper("m", &flags))?;
    let private = format!("{PRIVATE} 8080");
    let private_web = format!("{PRIVATE} 80");
    let metadata = format!("{METADATA} 80");
    let (v6, v6_mail) = (format!("{WEB_V6} 443"), format!("{WEB_V6} 25"));
    let places = [
        private.as_str(),
        &private_web,
        &metadata,
        &v6,
        &v6_mail,
        "web.example 443",
        "web.example 8080",
        "other.example 443",
        "denied.example 443",
        "alias.example 443",
    ];
    assert_eq!(
        answering(node, "m", &places)?,
        [private.as_str(), &v6, &v6_mail, "web.example 443"]
    );
    let reasons: Vec<_> = denials(node, "m")?
        .iter()
        .map(|denial| text(denial, "reason").to_owned())
        .collect();
    assert_eq!(
        reasons,
        [
            "a private address, and no --allow names it",
            "metadata services and link-local addresses are never reached",
            "the preset 'balanced' does not let it out",
            "--deny 203.0.113.20",
            "--deny denied.example",
            "--deny denied.example",
        ]
    );
    // No rule names what is no host's name, and so none could deny it.
    let odd = node
        .exec(["m", "sh", "-c", "timeout 10 nslookup 'a!b.denied.example'"])
        .run()?;
    ensure!(odd.code != 0, "{}", odd.text()?);
    // What is asked of the policy is what the machine has seen.
    let asked = node
        .hearth([
            "policy",
            "check",
            "--json",
            "m",
            "10.9.8.7:8080",
            "10.9.8.7:80",
            "169.254.169.254:80",
            "web.example",
            "denied.example",
        ])
        .run()?;
    assert_eq!(asked.code, 1, "something is denied");
    let verdicts: Vec<Value> = serde_json::from_str(&asked.text()?)?;
    let allowed: Vec<_> = verdicts
        .iter()
        .map(|verdict| verdict["allowed"].as_bool().unwrap_or_default())
        .collect();
    assert_eq!(allowed, [true, false, false, true, false]);
    Ok(())
}

/// A connection that is open, line by line: each line that goes in comes back.
const ECHO: &str = "mkfifo /tmp/in; (nc -w 60 OTHER 7 </tmp/in >/tmp/out; echo over >>/tmp/over) & exec 3>/tmp/in; exec sleep 3600";

#[test]
fn a_policy_changes_at_once_and_what_it_allows_goes_on() -> Result<()> {
    on_stage(changes)
}

pub(crate) fn changes(node: &TestNode, stage: &Stage) -> Result<()> {
    stage.echo(&[OTHER, WEB])?;
    let flags = ["--policy", "locked", "--allow", "203.0.113.0/24:7"];
    for (name, peer) in [("stays", OTHER), ("goes", WEB)] {
        let script = ECHO.replace("OTHER", peer);
        let mut arguments = vec!["--name", name];
        arguments.extend(flags);
        arguments.extend(["busybox", "sh", "-c", &script]);
        node.start(arguments)?;
    }
    let echoes = |machine: &str, word: &str, patience: Duration| -> Result<bool> {
        let script = format!(
            "echo {word} >/tmp/in; for i in $(seq {}); do grep -q {word} /tmp/out && exit 0; sleep 0.2; done; exit 1",
            patience.as_secs() * 5
        );
        Ok(node.exec([machine, "sh", "-c", &script]).run()?.code == 0)
    };
    for machine in ["stays", "goes"] {
        ensure!(echoes(machine, "first", PATIENCE)?, "{machine} does not talk");
    }
    for machine in ["stays", "goes"] {
        let begun = Instant::now();
        node.hearth([
            "policy",
            "set",
            machine,
            "--policy",
            "locked",
            "--allow",
            "203.0.113.20:7",
        ])
        .ok()?;
        println!("the policy of {machine} was changed in {:?}", begun.elapsed());
    }
    ensure!(
        echoes("stays", "second", PATIENCE)?,
        "a connection that is allowed ended"
    );
    ensure!(
        !echoes("goes", "second", SILENCE)?,
        "a connection that is denied goes on"
    );
    // What the log tells leads to what lets it go on.
    let denied = denials(node, "goes")?;
    let denial = denied.first().context("nothing was told of")?;
    assert_eq!((text(denial, "address"), denial["port"].as_u64()), (WEB, Some(7)));
    let remedy = text(denial, "remedy")
        .strip_prefix("--allow ")
        .context("no remedy")?;
    node.hearth(["policy", "allow", "goes", remedy]).ok()?;
    let talk = format!(
        "{MUTE}echo third >&3; mkfifo /tmp/third; {} >/tmp/third & read line </tmp/third; echo $line; kill $!",
        hear(&format!("{WEB} 7"), PATIENCE)
    );
    assert_eq!(node.exec(["goes", "sh", "-c", &talk]).ok()?.trim(), "third");
    let shown = node.hearth(["policy", "show", "goes"]).ok()?;
    ensure!(
        shown.contains("\"203.0.113.10:7\"") && shown.contains("\"203.0.113.20:7\""),
        "{shown}"
    );
    Ok(())
}

/// What the machine sends or receives while the rate is measured, in bytes, and how long it may be off.
pub(crate) const CARRIED: u64 = 4_000_000;
pub(crate) const RATE: f64 = 1_250_000.0;

#[test]
fn a_rate_is_kept_each_way() -> Result<()> {
    on_stage(rate)
}

fn rate(node: &TestNode, stage: &Stage) -> Result<()> {
    let counted = stage.count_and_pour(CARRIED)?;
    node.start(sleeper("m", &["--policy", "open", "--net-rate", "10mbit"]))?;
    let script =
        format!("head -c {CARRIED} /dev/zero | nc -w 30 {WEB} 9; nc -w 30 {WEB} 19 </dev/null | wc -c");
    let received = node.exec(["m", "sh", "-c", &script]).ok()?;
    assert_eq!(received.trim(), CARRIED.to_string());
    for (way, spans) in [("out", counted.recv()?), ("in", counted.recv()?)] {
        // The bucket is full at first: what is in it comes at once.
        let rate = spans.bytes as f64 / spans.took.as_secs_f64();
        println!(
            "{way}: {:.0} bytes a second, {:.3} of the rate",
            rate,
            rate / RATE
        );
        ensure!(
            (0.95..=1.05).contains(&(rate / RATE)),
            "{way}: {rate:.0} bytes a second"
        );
    }
    Ok(())
}

#[test]
fn denials_are_followed_as_they_come() -> Result<()> {
    on_stage(|node, _| {
        node.start(sleeper("m", &["--policy", "locked"]))?;
        let follower = node.hearth(["policy", "log", "-f", "--json", "m"]).spawn()?;
        node.exec(["m", "sh", "-c", "nc -w 1 203.0.113.10 80 </dev/null; true"])
            .ok()?;
        follower.stdout.wait_for("\n", DEADLINE)?;
        let line = String::from_utf8(follower.stdout.so_far())?;
        let denial: Value = serde_json::from_str(line.trim_end())?;
        assert_eq!(text(&denial, "address"), WEB);
        // The machine's removal is the stream's end.
        node.hearth(["rm", "-f", "m"]).ok()?;
        follower.finish(DEADLINE)?.success()?;
        Ok(())
    })
}

#[test]
fn denials_outlive_the_node_and_the_machines_end() -> Result<()> {
    on_stage(|node, _| {
        node.start(sleeper("m", &["--policy", "locked"]))?;
        let tries = |port: u16| -> Result<()> {
            let script = format!("nc -w 60 {WEB} {port} </dev/null; true");
            node.exec(["m", "sh", "-c", &script]).ok().map(drop)
        };
        tries(80)?;
        until("it is told of", || Ok(denials(node, "m")?.len() == 1))?;
        kill(node)?;
        let first = denials(node, "m")?;
        assert_eq!(
            first
                .iter()
                .map(|denial| text(denial, "address"))
                .collect::<Vec<_>>(),
            [WEB]
        );
        // Who follows hears of what was, and of what comes.
        let follower = node.hearth(["policy", "log", "-f", "--json", "m"]).spawn()?;
        tries(443)?;
        follower.stdout.wait_for_times("\n", 2, DEADLINE)?;
        drop(follower);
        let both = denials(node, "m")?;
        assert_eq!(both.len(), 2);
        assert_eq!(both[0], first[0]);
        assert_eq!(both[1]["sequence"].as_u64(), Some(2));
        node.hearth(["stop", "-t", "0", "m"]).ok()?;
        kill(node)?;
        assert_eq!(denials(node, "m")?, both);
        node.hearth(["rm", "m"]).ok()?;
        node.hearth(["policy", "log", "m"])
            .run()?
            .expect_code(1)?
            .complains("no machine \"m\"")?;
        Ok(())
    })
}

#[test]
fn a_policy_that_cannot_be_is_refused_and_leaves_nothing() -> Result<()> {
    on_stage(|node, _| {
        for (flags, expected) in [
            (&["--allow", "a b"][..], "no destination"),
            (&["--allow", "10.0.0.1/8"], "did you mean 10.0.0.0/8"),
            (&["--allow", METADATA], "cannot be allowed"),
            (&["--allow", "a.com", "--deny", "a.com"], "is allowed and denied"),
            (&["--policy", "wide"], "no preset"),
            (&["--network", "isolated", "--allow", "a.com"], "reaches nothing"),
            (&["--network", "open", "--policy", "locked"], "contradict"),
        ] {
            let run = ["run", "--rm"].iter().chain(flags).chain(&["busybox", "true"]);
            node.hearth(run).run()?.expect_code(125)?.complains(expected)?;
        }
        node.start(sleeper("none", &["--network", "none"]))?;
        for verb in [
            &["set", "none", "--policy", "locked"][..],
            &["check", "none", "a.com"],
            &["allow", "none", "a.com"],
        ] {
            let said = node.hearth(["policy"].iter().chain(verb)).run()?;
            said.expect_code(1)?.complains("reaches nothing")?;
        }
        node.hearth(["rm", "-f", "none"]).ok()?;
        assert_eq!(node.hearth(["ps", "-aq"]).ok()?, "");
        Ok(())
    })
}
