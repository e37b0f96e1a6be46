//! What goes wrong on the host: what the user is told, and that nothing is left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use e2e::{Driver, TestNode, check};

use crate::lifecycle::nothing_of_machines;
use crate::support::seconds;

/// Passes for QEMU until a machine is to be started.
const DYING_MONITOR: &str = "#!/bin/sh
case \"$1\" in
--version|-version) echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)'; exit 0 ;;
esac
echo 'qemu-system-x86_64: the moon is not in the sky' >&2
exit 1
";

const MONITOR: &str = "qemu-system-x86_64";

/// Returns a `PATH` on which another program, or none, passes for QEMU.
fn path_with(directory: &Path, monitor: Option<&str>) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").context("there is no PATH")?;
    let mut kept = vec![directory.to_owned()];
    // A directory with QEMU in it is replaced by links to everything else in it.
    for (number, original) in std::env::split_paths(&path).enumerate() {
        if !original.join(MONITOR).exists() {
            kept.push(original);
            continue;
        }
        let copy = directory.join(format!("path{number}"));
        fs::create_dir(&copy)?;
        for entry in fs::read_dir(&original)?.flatten() {
            if entry.file_name() != MONITOR {
                std::os::unix::fs::symlink(entry.path(), copy.join(entry.file_name()))?;
            }
        }
        kept.push(copy);
    }
    if let Some(script) = monitor {
        let file = directory.join(MONITOR);
        fs::write(&file, script)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    Ok(std::env::join_paths(kept)?)
}

pub(crate) fn a_monitor_that_dies_says_why(node: &TestNode) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = path_with(directory.path(), Some(DYING_MONITOR))?;
    // The node takes its environment from the first call.
    node.run(["--rm", "busybox", "true"])
        .env("PATH", path)
        .run()?
        .expect_code(125)?
        .complains("the moon is not in the sky")?;
    nothing_of_machines(node)
}

#[test]
fn qemu_is_not_installed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = path_with(directory.path(), None)?;
    let node = TestNode::ready(Driver::Qemu).map(|node| node.with_env("PATH", path));
    check(node, |node| {
        node.run(["--rm", "busybox", "true"])
            .run()?
            .expect_code(125)?
            .complains("qemu")?;
        node.hearth(["doctor"]).run()?.expect_code(1)?;
        nothing_of_machines(node)
    })
}

/// Busybox passes for an agent as far as set-up can see; as PID 1 it waits for somebody to press a key.
pub(crate) fn a_silent_guest_is_given_up(node: &TestNode) -> Result<()> {
    node.hearth(["setup", "--agent", "/bin/busybox"])
        .deadline(seconds(300))
        .ok()?;
    let outcome = node
        .run(["--rm", "busybox", "true"])
        .deadline(seconds(300))
        .run()?
        .expect_code(125)?;
    println!("given up after {:.1?}: {}", outcome.took, outcome.errors());
    outcome.complains("console")?;
    nothing_of_machines(node)
}

pub(crate) fn memory_out_of_bounds_is_refused(node: &TestNode) -> Result<()> {
    for (memory, what) in [("32m", "64"), ("100000g", "memory"), ("0", "64")] {
        node.run(["--rm", "-m", memory, "busybox", "true"])
            .run()?
            .expect_code(125)?
            .complains(what)?;
    }
    node.run(["--rm", "-m", "much", "busybox", "true"])
        .run()?
        .expect_code(125)?;
    node.run(["--rm", "-m", "80m", "busybox", "true"]).ok()?;
    nothing_of_machines(node)
}
