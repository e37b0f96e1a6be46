//! Samples, what is made of them, and how they are shown.

use std::time::Duration;

use serde::Serialize;

use crate::print::{Cell, Screen, Table};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    /// Less is better.
    Milliseconds,
    /// 10^6 bytes a second; more is better.
    MegabytesPerSecond,
    /// 2^10 bytes; less is better.
    Kibibytes,
    /// How often in a second; more is better.
    PerSecond,
}

impl Unit {
    const fn text(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::MegabytesPerSecond => "MB/s",
            Self::Kibibytes => "KiB",
            Self::PerSecond => "1/s",
        }
    }
}

/// The distribution of a series of samples; quantiles by nearest rank, where p99 is the worst one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Spread {
    runs: usize,
    p50: f64,
    p99: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Summarises samples; `None` when there are none.
    fn of(samples: &[f64], unit: Unit) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = sorted.first().zip(sorted.last())?;
        // The bad end of a rate is the low one.
        if matches!(unit, Unit::MegabytesPerSecond | Unit::PerSecond) {
            sorted.reverse();
        }
        let rank = |quantile: f64| {
            let rank = (quantile * sorted.len() as f64).ceil() as usize;
            sorted[rank.clamp(1, sorted.len()) - 1]
        };
        Some(Self {
            runs: sorted.len(),
            p50: rank(0.5),
            p99: rank(0.99),
            min,
            max,
        })
    }
}

/// One figure, with what it is to be held against.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    name: String,
    unit: Unit,
    #[serde(flatten)]
    spread: Spread,
    baseline: Option<Baseline>,
    /// The figure's p50 to its baseline's.
    ratio: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct Baseline {
    name: String,
    #[serde(flatten)]
    spread: Spread,
}

/// All figures of one bench.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    image: String,
    figures: Vec<Figure>,
}

impl Report {
    /// Makes an empty report.
    pub(super) fn new(version: &'static str, image: &str) -> Self {
        Self {
            version,
            image: image.to_owned(),
            figures: Vec::new(),
        }
    }

    /// Adds a figure; without samples there is none.
    pub(super) fn add(&mut self, name: &str, unit: Unit, samples: &[f64]) {
        self.add_against(name, unit, samples, "", &[]);
    }

    /// Adds a figure and its baseline.
    pub(super) fn add_against(
        &mut self,
        name: &str,
        unit: Unit,
        samples: &[f64],
        against: &str,
        baseline: &[f64],
    ) {
        let Some(spread) = Spread::of(samples, unit) else {
            return;
        };
        let baseline = Spread::of(baseline, unit).map(|spread| Baseline {
            name: against.to_owned(),
            spread,
        });
        let ratio = baseline.as_ref().map(|baseline| spread.p50 / baseline.spread.p50);
        self.figures.push(Figure {
            name: name.to_owned(),
            unit,
            spread,
            baseline,
            ratio,
        });
    }

    /// Returns a table for a person.
    pub(super) fn render(&self, screen: Screen) -> String {
        let mut table = Table::new(&[
            ("FIGURE", None),
            ("UNIT", None),
            ("RUNS", None),
            ("P50", None),
            ("P99", None),
            ("RATIO", None),
            ("BASELINE", Some(20)),
        ]);
        for figure in &self.figures {
            let spread = &figure.spread;
            table.push([
                Cell::from(&figure.name),
                Cell::from(figure.unit.text()),
                Cell::from(spread.runs.to_string()),
                Cell::from(short(spread.p50)),
                Cell::from(short(spread.p99)),
                Cell::from(
                    figure
                        .ratio
                        .map(|ratio| format!("{ratio:.2}"))
                        .unwrap_or_default(),
                ),
                Cell::from(figure.baseline.as_ref().map(baseline).unwrap_or_default()),
            ]);
        }
        table.render(screen)
    }
}

fn baseline(baseline: &Baseline) -> String {
    format!("{} ({})", short(baseline.spread.p50), baseline.name)
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// Returns a time as a sample.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Returns a rate as a sample.
pub(super) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_and_the_worst_end_is_p99() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let times = Spread::of(&samples, Unit::Milliseconds).unwrap();
        assert_eq!(
            (times.p50, times.p99, times.min, times.max),
            (100.0, 198.0, 1.0, 200.0)
        );
        let rates = Spread::of(&samples, Unit::MegabytesPerSecond).unwrap();
        assert_eq!((rates.p50, rates.p99), (101.0, 3.0));
        assert_eq!(Spread::of(&[], Unit::Kibibytes), None);
    }

    #[test]
    fn a_figure_stands_beside_its_baseline() {
        let mut report = Report::new("1", "busybox");
        report.add_against("run", Unit::Milliseconds, &[150.0], "bare", &[100.0]);
        report.add("run: disk", Unit::Milliseconds, &[0.75]);
        let screen = Screen {
            width: None,
            colour: false,
        };
        let expected = "\
FIGURE      UNIT   RUNS   P50    P99    RATIO   BASELINE
run         ms     1      150    150    1.50    100 (bare)
run: disk   ms     1      0.75   0.75
";
        assert_eq!(report.render(screen), expected);
    }
}
