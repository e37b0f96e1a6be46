//! `hearth cp`: files and trees into a machine and out of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use anyhow::Result;
use e2e::{TestNode, random_bytes, sha256};

use crate::support::stay;

pub(crate) fn a_file_survives_both_ways(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let here = node.home().join("user");
    fs::write(here.join("in"), "content\n")?;
    fs::set_permissions(here.join("in"), fs::Permissions::from_mode(0o750))?;
    let copy = |from: &str, to: &str| node.hearth(["cp", from, to]).current_dir(&here).ok();
    copy("in", "m:/tmp/")?;
    copy("in", "m:/tmp/renamed")?;
    let told = node
        .exec(["m", "stat", "-c", "%a %s %u", "/tmp/in", "/tmp/renamed"])
        .ok()?;
    assert_eq!(told, "750 8 0\n750 8 0");
    copy("m:/tmp/in", "out")?;
    assert_eq!(fs::read(here.join("out"))?, b"content\n");
    assert_eq!(here.join("out").metadata()?.permissions().mode() & 0o777, 0o750);
    // An existing file is replaced, in both directions.
    fs::write(here.join("in"), "other\n")?;
    copy("in", "m:/tmp/renamed")?;
    copy("m:/tmp/renamed", "out")?;
    assert_eq!(fs::read(here.join("out"))?, b"other\n");
    Ok(())
}

pub(crate) fn a_tree_survives_both_ways(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let here = node.home().join("user");
    fs::create_dir_all(here.join("tree/deep/empty"))?;
    fs::write(here.join("tree/deep/file"), random_bytes(100_000)?)?;
    symlink("deep/file", here.join("tree/link"))?;
    symlink("/nowhere", here.join("tree/dangling"))?;
    let copy = |from: &str, to: &str| node.hearth(["cp", from, to]).current_dir(&here).ok();
    copy("tree", "m:/srv-new")?;
    copy("tree", "m:/tmp")?;
    copy("tree/.", "m:/tmp/tree/deep/empty")?;
    let told = node
        .exec([
            "m",
            "sh",
            "-c",
            "readlink /srv-new/link; readlink /tmp/tree/dangling",
        ])
        .ok()?;
    assert_eq!(told, "deep/file\n/nowhere");
    node.exec(["m", "test", "-f", "/tmp/tree/deep/empty/deep/file"])
        .ok()?;
    copy("m:/srv-new", "back")?;
    assert_eq!(
        fs::read(here.join("back/deep/file"))?,
        fs::read(here.join("tree/deep/file"))?
    );
    assert_eq!(fs::read_link(here.join("back/link"))?.to_str(), Some("deep/file"));
    assert!(here.join("back/deep/empty").is_dir());
    Ok(())
}

pub(crate) fn archives_go_through_pipes(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let there_and_back =
        "mkdir a && echo text > a/file && tar c a | hearth cp - m:/tmp && hearth cp m:/tmp/a - | tar xO";
    let told = node
        .script(there_and_back)
        .current_dir(node.home().join("user"))
        .ok()?;
    assert_eq!(told, "text");
    Ok(())
}

pub(crate) fn a_large_file_survives_both_ways(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let here = node.home().join("user");
    let bytes = random_bytes(256 << 20)?;
    fs::write(here.join("large"), &bytes)?;
    let copy = |from: &str, to: &str| node.hearth(["cp", from, to]).current_dir(&here).run()?.success();
    let into = copy("large", "m:/large")?;
    let out = copy("m:/large", "back")?;
    println!("256 MiB: in {:.1?}, out {:.1?}", into.took, out.took);
    assert_eq!(sha256(&fs::read(here.join("back"))?), sha256(&bytes));
    Ok(())
}

pub(crate) fn what_is_not_there_is_refused(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let here = node.home().join("user");
    let refused = |from: &str, to: &str, what: &str| {
        let outcome = node.hearth(["cp", from, to]).current_dir(&here).run()?;
        outcome.expect_code(1)?.complains(what)
    };
    refused("m:/no-such-file", ".", "no-such-file")?;
    refused("no-such-file", "m:/tmp", "no-such-file")?;
    refused("no-such-machine:/etc", ".", "no-such-machine")?;
    fs::write(here.join("file"), "")?;
    refused("file", "m:/no/such/directory/", "/no/such/directory")?;
    Ok(())
}
