//! The doctor: looks at every prerequisite, says what state it is in, why, and what to do about it.
//!
//! Owns the judgement; the facts come from [`crate::host`]. It changes nothing and starts nothing but
//! `qemu-system-x86_64 --version` and `nft list`. A fact that cannot be had makes its own check say so, and no other. Called by
//! `hearth doctor` through the API.

mod checks;
mod forwarding;
mod programs;

use std::fmt;
use std::time::{Duration, Instant};

use crate::layout::Layout;

/// What the doctor found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Every check, in the order in which they are shown: what a machine needs first.
    pub checks: Vec<Check>,
    /// Whether a machine can run: nothing is [`State::Missing`].
    pub can_run: bool,
    /// How long it took.
    pub took: Duration,
}

/// One prerequisite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, stable for programs: `kvm`, `qemu`, `guest-kernel`.
    pub name: &'static str,
    /// What state it is in.
    pub state: State,
    /// What was found, in a few words.
    pub detail: String,
    /// Why it is not [`State::Ok`].
    pub cause: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// The state of a prerequisite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is as it should be.
    Ok,
    /// Machines run, and something is worse than it could be.
    Warning,
    /// It is not there, and no machine of this version needs it.
    Absent,
    /// It is not there, and machines cannot run without it.
    Missing,
}

impl State {
    /// Returns the state's name: `ok`, `warning`, `absent` or `missing`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Absent => "absent",
            Self::Missing => "missing",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            detail: detail.into(),
            cause: None,
            remedy: None,
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            state: State::Warning,
            ..Self::ok(name, detail)
        }
    }

    fn absent(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            state: State::Absent,
            ..Self::ok(name, detail)
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            state: State::Missing,
            ..Self::ok(name, detail)
        }
    }

    fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Looks at every prerequisite of machines under `layout`.
///
/// It takes a tenth of a second, most of it QEMU telling its version.
pub async fn examine(layout: &Layout) -> Report {
    let start = Instant::now();
    let subject = layout.clone();
    // Beside each other: two wait for a program, the other for the kernel.
    let (qemu, forwarding, rest) = tokio::join!(
        programs::qemu(),
        forwarding::forwarding(),
        tokio::task::spawn_blocking(move || checks::all(&subject))
    );
    let rest = rest.unwrap_or_else(|error| vec![Check::missing("doctor", error.to_string())]);
    let mut checks = rest;
    // Behind `kvm`, which decides what QEMU is good for.
    checks.insert(checks.len().min(1), qemu);
    checks.push(forwarding);
    Report {
        can_run: can_run(&checks),
        checks,
        took: start.elapsed(),
    }
}

fn can_run(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.state == State::Missing)
}

/// Writes an error with everything that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests;
