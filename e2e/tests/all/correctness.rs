//! `hearth test fork-correctness`: forks are machines of their own, also those of images in which there is no program.

use anyhow::{Context as _, Result, ensure};
use e2e::TestNode;
use e2e::archive::{Archive, Entry};
use e2e::handmade::{HandMade, Layer};
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
