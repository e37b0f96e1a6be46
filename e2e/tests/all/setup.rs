//! Set-up and its absence; what this host can do.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{Driver, TestNode, check, sha256};
use hearth_api::v1::{ArtefactKind, DoctorReport, DoctorState, SetupReport};

#[test]
fn setup_lists_what_it_has_verified() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let report: SetupReport = serde_json::from_str(&node.hearth(["setup", "--list", "--json"]).ok()?)?;
        for kind in [ArtefactKind::Kernel, ArtefactKind::Agent, ArtefactKind::Initramfs] {
            let artefact = report.artefacts.iter().find(|artefact| artefact.kind == kind);
            let artefact = artefact.with_context(|| format!("no {kind:?}"))?;
            let bytes = fs::read(&artefact.path)?;
            assert_eq!(artefact.digest, format!("sha256:{}", sha256(&bytes)));
            assert_eq!(artefact.size_bytes, bytes.len() as u64);
            assert_ne!(artefact.version, "");
        }
        // Again: nothing changes.
        node.hearth(["setup"]).ok()?;
        let again: SetupReport = serde_json::from_str(&node.hearth(["setup", "--json", "--list"]).ok()?)?;
        assert_eq!(report, again);
        Ok(())
    })
}

#[test]
fn setup_that_has_not_happened_is_asked_for() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        node.hearth(["image", "build", "busybox", "-t", "busybox"]).ok()?;
        node.run(["--rm", "busybox", "true"])
            .run()?
            .expect_code(125)?
            .complains("hearth setup")?;
        let report: SetupReport = serde_json::from_str(&node.hearth(["setup", "--list", "--json"]).ok()?)?;
        assert_eq!(report.artefacts, []);
        Ok(())
    })
}

#[test]
fn setup_refuses_a_kernel_that_is_none() -> Result<()> {
    check(TestNode::bare(Driver::Auto), |node| {
        for kernel in ["/bin/busybox", "/etc/passwd", "/no/such/file"] {
            let outcome = node.hearth(["setup", "--kernel", kernel]).run()?;
            outcome.expect_code(1)?.complains(kernel)?;
        }
        Ok(())
    })
}

#[test]
fn doctor_judges_this_host() -> Result<()> {
    check(TestNode::ready(Driver::Auto), |node| {
        let report: DoctorReport = serde_json::from_str(&node.hearth(["doctor", "--json"]).ok()?)?;
        ensure!(report.can_run, "machines do run here");
        for check in &report.checks {
            if check.state != DoctorState::Ok {
                ensure!(
                    check.cause.is_some() && check.remedy.is_some(),
                    "no cause or remedy: {check:?}"
                );
            }
        }
        let text = node.hearth(["doctor"]).ok()?;
        for check in &report.checks {
            ensure!(text.contains(&check.name), "no {:?} in:\n{text}", check.name);
        }
        Ok(())
    })
}
