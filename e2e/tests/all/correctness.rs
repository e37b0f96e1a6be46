//! Clones and forks are machines of their own, also those of images in which there is no program: `hearth test fork-correctness`.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use e2e::archive::{Archive, Entry};
use e2e::handmade::{HandMade, Layer};
use e2e::{Driver, TestNode, check, debian_python, skip};
use hearth_api::v1::NetworkMode;

use crate::support::seconds;

/// What one duty came to.
#[derive(Debug)]
struct Duty {
    name: String,
    verdict: String,
    seen: String,
}

/// How often a machine is checked whose forks have clocks that are off: a host that is busy with other tests may let a guest wait
/// between the moment that it is told and the moment in which it sets its clock.
const CHECKED_AT_MOST: u32 = 4;

/// Checks a machine or an image, of which no duty may fail; returns what was seen.
fn checked(node: &TestNode, subject: &str) -> Result<Vec<Duty>> {
    for _ in 1..CHECKED_AT_MOST {
        let duties = judged(node, subject)?;
        let mut failed = duties.iter().filter(|duty| duty.verdict == "failed");
        match (failed.next(), failed.next()) {
            (None, _) => return Ok(duties),
            (Some(duty), None) if duty.name == "clock" => println!("once more: {duty:?}"),
            _ => anyhow::bail!("{duties:?}"),
        }
    }
    let duties = judged(node, subject)?;
    let failed: Vec<_> = duties.iter().filter(|duty| duty.verdict == "failed").collect();
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(duties)
}

fn judged(node: &TestNode, subject: &str) -> Result<Vec<Duty>> {
    let flags = ["test", "fork-correctness", "--json", subject];
    let outcome = node.hearth(flags).deadline(seconds(180)).run()?;
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let answer: Vec<serde_json::Value> = serde_json::from_str(&text).with_context(|| outcome.errors())?;
    let field = |duty: &serde_json::Value, name: &str| duty[name].as_str().unwrap_or_default().to_owned();
    let duties = answer.iter().map(|duty| Duty {
        name: field(duty, "name"),
        verdict: field(duty, "verdict"),
        seen: field(duty, "seen"),
    });
    let duties: Vec<Duty> = duties.collect();
    ensure!(duties.len() == 13, "{text}");
    for duty in &duties {
        println!("{subject}: {}: {}: {}", duty.name, duty.verdict, duty.seen);
    }
    let failed = duties.iter().any(|duty| duty.verdict == "failed");
    outcome.expect_code(i32::from(failed))?;
    Ok(duties)
}

fn skipped(duties: &[Duty]) -> Vec<&str> {
    let skipped = duties.iter().filter(|duty| duty.verdict == "skipped");
    skipped.map(|duty| duty.name.as_str()).collect()
}

pub(crate) fn forks_are_machines_of_their_own(node: &TestNode) -> Result<()> {
    let script = "echo 0123456789abcdef0123456789abcdef > /etc/machine-id; touch /there; exec sleep 3600";
    node.start(["-m", "80m", "--name", "m", "busybox", "sh", "-c", script])?;
    node.exec(["m", "sh", "-c", "while [ ! -e /there ]; do usleep 1000; done"])
        .ok()?;
    let duties = checked(node, "m")?;
    // Where nobody gets a network there is no card.
    let card = node.inspect("m")?.spec.network == Some(NetworkMode::None);
    let card = card.then_some("hardware address");
    assert_eq!(skipped(&duties), Vec::from_iter(card));
    // It goes on without what the test had in it.
    assert_eq!(
        node.exec(["m", "sh", "-c", "ls -A / /dev/shm | grep -c witness; true"])
            .ok()?,
        "0"
    );
    assert_eq!(node.machines()?.len(), 1);
    // The table says the same to people.
    let table = node
        .hearth(["test", "fork-correctness", "m"])
        .deadline(seconds(180))
        .run()?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    ensure!(
        table.contains("DUTY") && table.contains("stale connections"),
        "{table}"
    );

    node.hearth(["rm", "--force", "m"]).ok()?;
    let empty = HandMade::image(&[Layer::plain(Archive::new().with(&Entry::file("f", "x")).done())])?;
    let duties = checked(node, &empty.reference())?;
    assert_eq!(
        skipped(&duties),
        Vec::from_iter(["machine id"].into_iter().chain(card))
    );
    assert_eq!(node.machines()?, []);
    node.hearth(["test", "fork-correctness", "oci:/no/such/layout"])
        .run()?
        .expect_code(1)?;
    assert_eq!(node.machines()?, []);
    Ok(())
}

/// What must not come twice: a host key of SSH, 1,000 random numbers, a uuid.
const SECRETS: &str = "\
import os, struct, subprocess, uuid
subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', '/key'], check=True)
print(open('/key.pub').read().split()[1])
print(uuid.uuid4())
print(*struct.unpack('1000Q', os.urandom(8000)), sep='\\n')
";

#[test]
fn clones_and_forks_never_make_the_same_keys_and_numbers() -> Result<()> {
    let image = match debian_python() {
        Ok(image) => image,
        Err(error) => return skip!("no image of Debian can be made here: {error:#}"),
    };
    check(TestNode::ready(Driver::Qemu), |node| {
        let start = |name: &str| {
            let head = ["-m", "160m", "--name", name, "--entrypoint", "sleep"];
            node.start(head.into_iter().chain([image.as_str(), "3600"]))
        };
        for name in ["source", "clone-1", "clone-2"] {
            start(name)?;
        }
        node.hearth(["fork", "source", "-n", "3", "--name", "fork"])
            .ok()?;
        let names = ["source", "clone-1", "clone-2", "fork-1", "fork-2", "fork-3"];
        let mut seen = BTreeSet::new();
        for name in names {
            let made = node
                .exec([name, "python3", "-c", SECRETS])
                .deadline(seconds(120))
                .ok()?;
            let lines: Vec<_> = made.lines().map(str::to_owned).collect();
            assert_eq!(lines.len(), 1002, "{name}");
            for line in lines {
                ensure!(seen.insert(line.clone()), "{name} has made {line} again");
            }
        }
        Ok(())
    })
}
