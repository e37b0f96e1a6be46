//! Long work on standard error: bars for a person, a line for each finished step otherwise.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};

use hearth_api::v1::{Progress, Unit};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use hearth_machine::ByteSize;

use crate::print::plain;

/// Shows the steps of one piece of work.
#[derive(Debug)]
pub(crate) struct Steps {
    bars: Option<MultiProgress>,
    shown: HashMap<String, ProgressBar>,
}

impl Steps {
    /// Begins; bars are shown when standard error is a terminal.
    pub(crate) fn new() -> Self {
        let bars = io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self {
            bars,
            shown: HashMap::new(),
        }
    }

    /// Shows how far a step is.
    pub(crate) fn update(&mut self, progress: &Progress) {
        match &self.bars {
            Some(bars) => {
                let bar = self
                    .shown
                    .entry(progress.step.clone())
                    .or_insert_with(|| added(bars, progress));
                show(bar, progress);
            }
            // Nobody reads standard error: the work goes on.
            None if progress.finished => drop(writeln!(io::stderr(), "{}", finished_line(progress))),
            None => {}
        }
    }
}

/// Adds a bar that begins where the work does: what was there already is no speed.
fn added(bars: &MultiProgress, progress: &Progress) -> ProgressBar {
    let bar = bars.add(ProgressBar::no_length());
    bar.set_position(progress.done);
    bar.reset_eta();
    bar
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let template = match (progress.finished, progress.unit, progress.total) {
        (true, Unit::Bytes, _) => "  {msg:32!} {bytes}",
        (true, Unit::Items, _) => "  {msg:32!} done",
        (false, Unit::Bytes, Some(_)) => "  {msg:32!} [{bar:28}] {bytes}/{total_bytes} {bytes_per_sec}",
        (false, Unit::Bytes, None) => "  {msg:32!} {spinner} {bytes} {bytes_per_sec}",
        (false, Unit::Items, Some(_)) => "  {msg:32!} [{bar:28}] {pos}/{len}",
        (false, Unit::Items, None) => "  {msg:32!} {spinner}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    if let Some(total) = progress.total {
        bar.set_length(total);
    }
    bar.set_message(plain(&progress.step));
    bar.set_position(progress.done);
    if progress.finished {
        bar.abandon();
    }
}

/// Returns what a log gets of a finished step.
fn finished_line(progress: &Progress) -> String {
    let step = plain(&progress.step);
    let size = ByteSize::from_bytes;
    match progress.unit {
        Unit::Bytes if progress.already == 0 => format!("{step}: {}", size(progress.done)),
        Unit::Bytes if progress.already >= progress.done => {
            format!("{step}: {}, there already", size(progress.done))
        }
        Unit::Bytes => {
            format!(
                "{step}: {}, {} of it there already",
                size(progress.done),
                size(progress.already)
            )
        }
        Unit::Items => format!("{step}: done"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_gets_a_line_of_plain_text() {
        let mut progress = Progress {
            step: "layer \x1b[31m1".into(),
            done: 3 << 19,
            already: 0,
            total: None,
            unit: Unit::Bytes,
            finished: true,
        };
        assert_eq!(finished_line(&progress), "layer \u{fffd}[31m1: 1.5 MiB");
        progress.already = 1 << 20;
        assert!(finished_line(&progress).ends_with(": 1.5 MiB, 1 MiB of it there already"));
        progress.already = 3 << 19;
        assert!(finished_line(&progress).ends_with(": 1.5 MiB, there already"));
        progress.unit = Unit::Items;
        assert_eq!(finished_line(&progress), "layer \u{fffd}[31m1: done");
    }
}
