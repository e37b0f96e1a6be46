//! The parity matrix: the same calls to Hearth and to a reference runtime, each with one expectation. A difference is a row
//! of its own: what the reference does is written down with the reason, and checked, too.
//!
//! ```text
//! mod        runs both sides at once, prints the matrix, fails on what is not as written
//! case       what a row is
//! subject    who is asked: Hearth, or podman
//! processes  exit codes, environment, users, directories, what a process finds
//! streams    bytes both ways, and their ends
//! terminals  terminals, and what is typed there
//! lives      run: settings, signals, what is left behind
//! ```

mod case;
mod lives;
mod processes;
mod streams;
mod subject;
mod terminals;

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use e2e::{Layout, Podman, TestNode, report_skipped};

use case::Case;
use subject::Subject;

/// The least number of rows: fewer would not be a comparison.
const ROWS_MIN: usize = 60;

pub(crate) fn run_and_exec_behave_as_the_reference_does(node: &TestNode) -> Result<()> {
    let layout = Layout::busybox()?;
    let podman = Podman::with_image(&layout, "base");
    let hearth = Subject::hearth(node, layout.reference("base"));
    let reference = match &podman {
        Ok(podman) => Some(Subject::podman(podman)),
        Err(error) => {
            report_skipped(&format!("the reference half: {error:#}"))?;
            None
        }
    };
    let cases: Vec<Case> = [processes::CASES, streams::CASES, terminals::CASES, lives::CASES].concat();
    ensure!(cases.len() >= ROWS_MIN, "{} cases are too few", cases.len());
    let (here, there) = std::thread::scope(|scope| {
        let there = scope.spawn(|| reference.as_ref().map(|subject| ask(subject, &cases)));
        (ask(&hearth, &cases), there.join())
    });
    let there = there
        .ok()
        .context("the reference's thread panicked")?
        .transpose()?;
    let (mut here, mut there) = (here?, there);
    ask_again(&hearth, reference.as_ref(), &cases, &mut here, &mut there);
    judge(&cases, &here, there.as_deref())
}

/// Asks once more for each row that is not as written, and prints what was seen first: on a busy host a client of podman's may end
/// before it has told everything, and keys may be typed too early. What is wrong twice is wrong.
fn ask_again(
    hearth: &Subject<'_>,
    reference: Option<&Subject<'_>>,
    cases: &[Case],
    here: &mut [String],
    there: &mut Option<Vec<String>>,
) {
    for (index, case) in cases.iter().enumerate() {
        let other = there.as_ref().map(|there| there[index].as_str());
        let Err(wrong) = case.judge(&here[index], other) else {
            continue;
        };
        println!("{}: asked again, since {wrong}", case.name);
        here[index] = case.ask(hearth);
        if let (Some(there), Some(reference)) = (there.as_mut(), reference) {
            there[index] = case.ask(reference);
        }
    }
}

/// Starts a subject's two machines, and returns what it shows for each case.
fn ask(subject: &Subject<'_>, cases: &[Case]) -> Result<Vec<String>> {
    subject.prepare()?;
    Ok(cases.iter().map(|case| case.ask(subject)).collect())
}

fn judge(cases: &[Case], here: &[String], there: Option<&[String]>) -> Result<()> {
    let (mut matrix, mut wrong) = (String::new(), Vec::new());
    for (index, case) in cases.iter().enumerate() {
        let there = there.map(|there| there[index].as_str());
        let verdict = case.judge(&here[index], there);
        if verdict.is_err() {
            wrong.push(case.name);
        }
        let shown = |text: &str| format!("{:.60}", text.escape_debug().to_string());
        writeln!(
            matrix,
            "| {} | {} | {} | {} |",
            case.name,
            shown(&here[index]),
            shown(there.unwrap_or("-")),
            verdict.unwrap_or_else(|wrong| format!("WRONG: {wrong}"))
        )?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "| Case | Hearth | Reference | |\n|---|---|---|---|\n{matrix}"
    )?;
    drop(out);
    ensure!(
        wrong.is_empty(),
        "{} of {} cases are not as written: {}\n{matrix}",
        wrong.len(),
        cases.len(),
        wrong.join(", ")
    );
    println!("{} cases", cases.len());
    Ok(())
}
