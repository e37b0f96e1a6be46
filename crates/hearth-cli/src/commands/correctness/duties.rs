//! What a fork owes, judged by what the machines said. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

use super::probe::Report;

/// How far a clock may be off.
const CLOCK_MS: f64 = 5.0;
/// Digits of a random number of eight bytes.
const DIGITS: usize = 16;

/// What was said.
#[derive(Debug)]
pub(super) struct Reports {
    /// By the machine, before it was forked.
    pub(super) before: Report,
    /// By the machine, afterwards.
    pub(super) source: [Report; 2],
    /// By each fork.
    pub(super) forks: Vec<[Report; 2]>,
    /// How long the machine's processes stood still.
    pub(super) pause_us: u64,
}

impl Reports {
    fn all(&self) -> impl Iterator<Item = &[Report; 2]> {
        [&self.source].into_iter().chain(&self.forks)
    }

    /// Returns what the machine and each fork first said of something.
    fn first(&self, name: &str) -> Vec<&str> {
        self.all().map(|[first, _]| first.of(name)).collect()
    }
}

/// Whether a duty was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// It was.
    Passed,
    /// It was not.
    Failed,
    /// Nobody can tell here.
    Skipped,
}

/// One duty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Duty {
    /// What it is.
    pub(super) name: &'static str,
    /// Whether it was kept.
    pub(super) verdict: Verdict,
    /// What was seen, or why nothing could be.
    pub(super) seen: String,
}

type Judged = (Verdict, String);

fn when(kept: bool, seen: impl Into<String>) -> Judged {
    let verdict = if kept { Verdict::Passed } else { Verdict::Failed };
    (verdict, seen.into())
}

fn skipped(why: impl Into<String>) -> Judged {
    (Verdict::Skipped, why.into())
}

/// Judges every duty.
pub(super) fn judge(token: &str, reports: &Reports) -> Vec<Duty> {
    let duties = [
        ("clock", clock(reports)),
        ("random numbers", random(reports)),
        ("uuids", differ(reports, "uuid", "there are none")),
        ("host name", hostname(reports)),
        (
            "machine id",
            differ(reports, "machine_id", "the image has no /etc/machine-id"),
        ),
        (
            "hardware address",
            differ(reports, "mac", "there is no network interface"),
        ),
        ("environment", environment(reports)),
        ("stale connections", outward(reports)),
        ("connections within", within(reports)),
        ("sessions of the source", sessions(reports)),
        ("processes go on", processes(reports)),
        ("files", files(token, reports)),
        ("the source goes on", source(reports)),
    ];
    let duty = |(name, (verdict, seen))| Duty { name, verdict, seen };
    duties.into_iter().map(duty).collect()
}

fn clock(reports: &Reports) -> Judged {
    let off = |[first, _]: &[Report; 2]| (first.clock_ahead_ms, first.clock_exact_ms);
    let offs: Vec<_> = reports.forks.iter().map(off).collect();
    let seen = offs
        .iter()
        .map(|(ahead, exact)| format!("{ahead:+.1} ms (within {exact:.1})"));
    let seen = seen.collect::<Vec<_>>().join(", ");
    when(
        offs.iter().all(|(ahead, exact)| ahead.abs() - exact <= CLOCK_MS),
        seen,
    )
}

fn random(reports: &Reports) -> Judged {
    let (mut numbers, mut count) = (BTreeSet::new(), 0);
    for text in reports.first("random") {
        for number in text.as_bytes().chunks(DIGITS) {
            numbers.insert(number);
            count += 1;
        }
    }
    let again = count - numbers.len();
    when(
        again == 0 && count > 0,
        format!("{count} numbers, {again} of them twice"),
    )
}

/// Judges what must be another in every machine.
fn differ(reports: &Reports, name: &str, why_none: &str) -> Judged {
    let values = reports.first(name);
    if values.iter().all(|value| value.is_empty()) {
        return skipped(why_none);
    }
    let different: BTreeSet<_> = values.iter().collect();
    when(different.len() == values.len(), values.join(", "))
}

fn hostname(reports: &Reports) -> Judged {
    let is_whole = |[first, _]: &[Report; 2]| {
        let name = first.of("hostname");
        !name.is_empty() && first.of("hostname_file") == name && first.of("hosts_name_it") == "true"
    };
    let names = reports.first("hostname");
    let different: BTreeSet<_> = names.iter().collect();
    let kept = reports.all().all(is_whole);
    let seen = match kept {
        true => names.join(", "),
        false => format!("{}; /etc/hostname or /etc/hosts say another", names.join(", ")),
    };
    when(kept && different.len() == names.len(), seen)
}

fn environment(reports: &Reports) -> Judged {
    let source = &reports.source[0];
    if source.of("variable") != source.of("hostname") {
        return skipped("the machine's own HOSTNAME is not its host name");
    }
    let follows = |[first, _]: &[Report; 2]| first.of("variable") == first.of("hostname");
    let seen = reports
        .first("variable")
        .into_iter()
        .map(|it| format!("HOSTNAME={it}"));
    when(
        reports.forks.iter().all(follows),
        seen.collect::<Vec<_>>().join(", "),
    )
}

fn outward(reports: &Reports) -> Judged {
    let before = reports.before.of("witness_outward");
    if before != "open" {
        return skipped(format!("no connection could be left open: {before}"));
    }
    let closed = |[_, second]: &[Report; 2]| second.of("witness_outward").starts_with("closed");
    let seen = reports.all().map(|[_, second]| second.of("witness_outward"));
    let seen = seen.collect::<Vec<_>>().join(", ");
    when(reports.forks.iter().all(closed) && !closed(&reports.source), seen)
}

fn within(reports: &Reports) -> Judged {
    let states: Vec<_> = reports
        .all()
        .map(|[_, second]| second.of("witness_within"))
        .collect();
    when(states.iter().all(|state| *state == "open"), states.join(", "))
}

fn sessions(reports: &Reports) -> Judged {
    let waiting: Vec<_> = reports.all().map(|[first, _]| first.of("waiting")).collect();
    let seen = format!("of one process: {} left", waiting.join(", "));
    when(waiting[1..].iter().all(|left| *left == "0"), seen)
}

fn processes(reports: &Reports) -> Judged {
    let from = reports.before.count();
    let goes_on = |[first, second]: &[Report; 2]| first.count() >= from && second.count() > first.count();
    let seen = reports
        .all()
        .map(|[first, second]| format!("{} to {}", first.count(), second.count()));
    let seen = format!("counted {from}, then {}", seen.collect::<Vec<_>>().join(", "));
    when(reports.all().all(goes_on), seen)
}

fn files(token: &str, reports: &Reports) -> Judged {
    if reports.before.of("left") != token {
        return skipped("the machine cannot write to its disk");
    }
    let has_it = |[first, _]: &[Report; 2]| first.of("left") == token;
    let count = reports.all().filter(|reports| has_it(reports)).count();
    when(
        reports.all().all(has_it),
        format!("{count} of {} have what was written", reports.all().count()),
    )
}

fn source(reports: &Reports) -> Judged {
    let [_, last] = &reports.source;
    let gap: f64 = last.of("witness_gap_us").parse().unwrap_or(0.0);
    let seen = format!(
        "stood still for {:.0} ms; a timer of 10 ms was late by {:.0} ms at most",
        reports.pause_us as f64 / 1e3,
        gap / 1e3
    );
    let goes_on = last.count() > reports.before.count() && last.of("witness_within") == "open";
    when(goes_on, seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, count: u64, outward: &str) -> Report {
        let said = [
            (
                "random",
                format!("{:016x}{:016x}", name.len(), name.as_ptr() as usize),
            ),
            ("uuid", format!("uuid-{name}")),
            ("hostname", name.to_owned()),
            ("hostname_file", name.to_owned()),
            ("hosts_name_it", "true".to_owned()),
            ("variable", name.to_owned()),
            ("waiting", "0".to_owned()),
            ("left", "token".to_owned()),
            ("witness_count", count.to_string()),
            ("witness_outward", outward.to_owned()),
            ("witness_within", "open".to_owned()),
        ];
        Report {
            clock_ahead_ms: -6.0,
            clock_exact_ms: 1.5,
            said: said.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    fn machine(name: &str, outward: &str) -> [Report; 2] {
        [report(name, 20, outward), report(name, 30, outward)]
    }

    fn reports() -> Reports {
        Reports {
            before: report("s", 10, "open"),
            source: machine("s", "open"),
            forks: vec![machine("ab", "closed: x"), machine("abc", "closed: x")],
            pause_us: 1,
        }
    }

    fn verdict(reports: &Reports, name: &str) -> Verdict {
        let duties = judge("token", reports);
        duties.iter().find(|duty| duty.name == name).unwrap().verdict
    }

    #[test]
    fn machines_of_their_own_keep_every_duty() {
        let duties = judge("token", &reports());
        let failed: Vec<_> = duties
            .iter()
            .filter(|duty| duty.verdict == Verdict::Failed)
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
        let skipped = duties.iter().filter(|duty| duty.verdict == Verdict::Skipped);
        let skipped: Vec<_> = skipped.map(|duty| duty.name).collect();
        assert_eq!(skipped, ["machine id", "hardware address"]);
    }

    #[test]
    fn each_duty_that_is_not_kept_is_told() {
        let change = |name: &str, value: &str| {
            let mut reports = reports();
            for report in &mut reports.forks[1] {
                report.said.insert(name.to_owned(), value.to_owned());
            }
            reports
        };
        let other = reports().forks[0][0].of("random").to_owned();
        for (name, value, duty) in [
            ("random", other.as_str(), "random numbers"),
            ("uuid", "uuid-s", "uuids"),
            ("hostname", "s", "host name"),
            ("hostname_file", "s", "host name"),
            ("hosts_name_it", "false", "host name"),
            ("variable", "s", "environment"),
            ("witness_outward", "open", "stale connections"),
            ("witness_within", "broken pipe", "connections within"),
            ("waiting", "1", "sessions of the source"),
            ("witness_count", "9", "processes go on"),
            ("left", "", "files"),
        ] {
            assert_eq!(verdict(&change(name, value), duty), Verdict::Failed, "{duty}");
        }
        let mut late = reports();
        late.forks[1][0].clock_ahead_ms = -6.6;
        assert_eq!(verdict(&late, "clock"), Verdict::Failed);
        let mut ended = reports();
        ended.source = machine("s", "closed: x");
        assert_eq!(verdict(&ended, "stale connections"), Verdict::Failed);
    }
}
