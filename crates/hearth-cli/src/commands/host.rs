//! `doctor`.

use std::process::ExitCode;

use hearth_api::v1::{DoctorCheck, DoctorReport, DoctorState};

use crate::arguments::Doctor;
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, FAILURE, GOOD, Screen, WARNING, plain};

/// Examines the host; fails when machines cannot run here.
pub(super) async fn doctor(node: &Node, arguments: &Doctor) -> Result<ExitCode, CliError> {
    let report = node.call(async |client| client.doctor().await).await?;
    if arguments.json {
        print::json(&report)?;
    } else {
        print::out(&render(&report, Screen::stdout()))?;
    }
    Ok(if report.can_run {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn render(report: &DoctorReport, screen: Screen) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max();
    let mut text: String = report
        .checks
        .iter()
        .map(|check| render_check(check, width.unwrap_or_default(), screen))
        .collect();
    text.push_str(&match report.can_run {
        true => screen.paint(GOOD, "Machines can run here."),
        false => screen.paint(FAILURE, "Machines cannot run here."),
    });
    text.push('\n');
    text
}

fn render_check(check: &DoctorCheck, width: usize, screen: Screen) -> String {
    let state = match check.state {
        DoctorState::Ok => screen.paint(GOOD, "ok     "),
        DoctorState::Warning => screen.paint(WARNING, "warning"),
        // Neither good nor bad: no colour.
        DoctorState::Absent => "absent ".to_owned(),
        DoctorState::Missing => screen.paint(FAILURE, "missing"),
    };
    let mut text = format!(
        "{state}  {:width$}  {}\n",
        plain(&check.name),
        plain(&check.detail)
    );
    for (label, more) in [("cause", &check.cause), ("try", &check.remedy)] {
        if let Some(more) = more {
            text.push_str(&format!("           {label}: {}\n", plain(more)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_cause_and_remedy() {
        let check = |name: &str, state, remedy: Option<&str>| DoctorCheck {
            name: name.into(),
            state,
            detail: "found".into(),
            cause: remedy.map(|_| "because".into()),
            remedy: remedy.map(str::to_owned),
        };
        let report = DoctorReport {
            can_run: false,
            checks: vec![
                check("kvm", DoctorState::Ok, None),
                check("tun", DoctorState::Absent, None),
                check("qemu-system", DoctorState::Missing, Some("apt-get install")),
            ],
        };
        let expected = "\
ok       kvm          found
absent   tun          found
missing  qemu-system  found
           cause: because
           try: apt-get install
Machines cannot run here.
";
        let screen = Screen {
            width: None,
            colour: false,
        };
        assert_eq!(render(&report, screen), expected);
    }
}
