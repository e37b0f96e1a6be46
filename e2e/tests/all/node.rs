//! The node: started by whoever needs it, once; private; stopped when it may be.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::{DEADLINE, Driver, TestNode, check};

use crate::support::stay;

#[test]
fn node_is_started_once_by_whoever_comes_first() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["node", "status"]).run()?.expect_code(1)?;
        let calls: Vec<_> = (0..6)
            .map(|_| node.hearth(["ps", "--json"]).spawn())
            .collect::<Result<_>>()?;
        for call in calls {
            assert_eq!(call.finish(DEADLINE)?.success()?.text()?.trim(), "[]");
        }
        let first = node.status()?;
        assert_eq!(node.status()?.pid, first.pid);
        assert_eq!(Path::new(&first.socket), node.location().socket);
        assert_eq!((first.machines, first.running), (0, 0));
        Ok(())
    })
}

#[test]
fn node_is_its_owners_alone() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["ps"]).ok()?;
        let socket = node.location().socket.metadata()?.permissions().mode() & 0o777;
        assert_eq!(socket, 0o600, "{socket:o}");
        let run = node.location().run.metadata()?.permissions().mode() & 0o077;
        assert_eq!(run & 0o022, 0, "{run:o}");
        Ok(())
    })
}

#[test]
fn node_stops_with_its_machines_or_not_at_all() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        stay(node, "m")?;
        node.hearth(["node", "stop"]).run()?.expect_code(1)?;
        assert_eq!(node.status()?.running, 1);
        node.hearth(["node", "stop", "--stop-machines"]).ok()?;
        node.hearth(["node", "status"]).run()?.expect_code(1)?;
        // Its machines are still known to the next one, and start again.
        assert_eq!(node.machines()?.len(), 1);
        node.hearth(["start", "m"]).ok()?;
        node.exec(["m", "true"]).ok()?;
        Ok(())
    })
}

#[test]
fn node_is_small() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        node.run(["--rm", "busybox", "true"]).ok()?;
        let idle = node.status()?.rss_bytes;
        println!("node: {} KiB resident", idle >> 10);
        ensure!(idle <= 30 << 20, "{idle} bytes resident");
        Ok(())
    })
}
