//! The command line itself, without a machine.

use anyhow::Result;
use e2e::{Driver, TestNode, check};

#[test]
fn cli_tells_its_version_and_its_verbs() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        let version = node.hearth(["version"]).ok()?;
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        let help = node.hearth(["--help"]).ok()?;
        for verb in [
            "run",
            "create",
            "exec",
            "execute",
            "prune",
            "rename",
            "update",
            "events",
            "top",
            "restart",
            "attach",
            "port",
            "ps",
            "start",
            "stop",
            "pause",
            "unpause",
            "kill",
            "rm",
            "wait",
            "logs",
            "stats",
            "console",
            "inspect",
            "cp",
            "pool",
            "image",
            "template",
            "setup",
            "doctor",
            "bench",
            "node",
            "completions",
            "version",
        ] {
            assert!(help.contains(&format!("\n  {verb} ")), "no {verb} in:\n{help}");
            node.hearth([verb, "--help"]).ok()?;
        }
        for shell in ["bash", "zsh", "fish"] {
            assert!(node.hearth(["completions", shell]).ok()?.contains("hearth"));
        }
        Ok(())
    })
}

#[test]
fn cli_tells_wrong_usage_from_failure() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["no-such-verb"])
            .run()?
            .expect_code(2)?
            .complains("no-such-verb")?;
        node.run(["--cpus", "0", "busybox"]).run()?.expect_code(125)?;
        node.run(["-e", "=x", "busybox"]).run()?.expect_code(125)?;
        node.run(["--env-file", "/no/such/file", "busybox"])
            .run()?
            .expect_code(125)?
            .complains("/no/such/file")?;
        node.run(["--timeout", "soon", "busybox"])
            .run()?
            .expect_code(125)?;
        Ok(())
    })
}
