//! Secrets: in the workload's environment, and in no other place that outlives it or that others can see.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use e2e::{TestNode, contains, files_that_contain, random_bytes, sha256};

use crate::support::logged;

pub(crate) fn a_secret_is_in_the_environment_and_nowhere_else(node: &TestNode) -> Result<()> {
    let (secret, plain) = (sha256(&random_bytes(32)?), sha256(&random_bytes(32)?));
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("{secret}\n"))?;
    let given = format!("TOKEN=@{}", file.path().display());
    let variable = format!("PLAIN={plain}");
    // The workload proves that it has the value without printing it, and leaves files and output behind.
    let script = "printf %s \"$TOKEN\" | sha256sum; echo $PLAIN > /file; sync; exec sleep 3600";
    node.start([
        "--name", "m", "--secret", &given, "-e", &variable, "busybox", "sh", "-c", script,
    ])?;
    logged(node, "m", &sha256(secret.as_bytes()), 1)?;
    // An exec gets it like any other variable of the workload.
    let told = node
        .exec(["m", "sh", "-c", "printf %s \"$TOKEN\" | sha256sum"])
        .ok()?;
    assert!(told.starts_with(&sha256(secret.as_bytes())), "{told}");

    assert_eq!(node.inspect("m")?.secrets, ["TOKEN"]);
    // The search works: it finds what is no secret on the disk, in the record, in what is shown.
    ensure!(
        traces(node, &plain)?.len() >= 2,
        "a plain variable leaves {:?}",
        traces(node, &plain)?
    );
    assert_eq!(traces(node, &secret)?, [""; 0], "while it runs");

    node.hearth(["stop", "-t", "1", "m"]).ok()?;
    assert_eq!(traces(node, &secret)?, [""; 0], "after it was stopped");
    // What the node forgets with its end is gone; a start without it would run another workload.
    node.hearth(["start", "m"]).ok()?;
    logged(node, "m", &sha256(secret.as_bytes()), 2)?;
    node.hearth(["rm", "-f", "m"]).ok()?;
    assert_eq!(traces(node, &secret)?, [""; 0], "after it was removed");
    Ok(())
}

/// Returns where a value can be found: files of the node, command lines and environments of processes, answers of the
/// node. A guest's memory, on a tmpfs, is not looked at while it runs: that is where the workload has it.
fn traces(node: &TestNode, value: &str) -> Result<Vec<String>> {
    let needle = value.as_bytes();
    let mut found: Vec<_> = files_that_contain(node.home(), needle)?
        .into_iter()
        .map(|path| path.display().to_string())
        .collect();
    found.extend(
        processes_that_show(needle)?
            .into_iter()
            .map(|path| path.display().to_string()),
    );
    for verb in [
        &["inspect", "m"][..],
        &["logs", "m"],
        &["console", "m"],
        &["ps", "-a", "--json"],
    ] {
        // After its removal there is nothing to ask.
        let outcome = node.hearth(verb).run()?;
        if contains(&outcome.stdout, needle) || contains(&outcome.stderr, needle) {
            found.push(format!("hearth {}", verb.join(" ")));
        }
    }
    Ok(found)
}

fn processes_that_show(needle: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        for name in ["cmdline", "environ"] {
            let path = entry.path().join(name);
            if fs::read(&path).is_ok_and(|bytes| contains(&bytes, needle)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
