//! One row of the matrix.

use anyhow::Result;

use super::subject::{Subject, seen};

/// What is asked, and what must be seen.
#[derive(Clone, Copy)]
pub(super) struct Case {
    /// Its name in the matrix.
    pub(super) name: &'static str,
    ask: Ask,
    /// Exit code, a space, and what was printed, where [`Ask`] does not say otherwise.
    expected: &'static str,
    differs: Option<Difference>,
}

/// A difference that stays.
#[derive(Clone, Copy)]
struct Difference {
    /// What the reference shows; `None` where that depends on its version.
    reference: Option<&'static str>,
    reason: &'static str,
}

/// How a subject is asked.
#[derive(Clone, Copy)]
enum Ask {
    /// `exec FLAGS m COMMAND`.
    Exec(&'static [&'static str], &'static [&'static str]),
    /// `exec FLAGS w COMMAND`: in the machine with settings.
    World(&'static [&'static str], &'static [&'static str]),
    /// `run --rm FLAGS IMAGE COMMAND`.
    Run(&'static [&'static str], &'static [&'static str]),
    /// Anything; what it returns is seen.
    By(fn(&Subject<'_>) -> Result<String>),
}

/// A command beside the workload, with flags of `exec`.
pub(super) const fn exec(
    name: &'static str,
    flags: &'static [&'static str],
    command: &'static [&'static str],
    expected: &'static str,
) -> Case {
    case(name, Ask::Exec(flags, command), expected)
}

/// A command beside the workload of the machine with settings.
pub(super) const fn world(
    name: &'static str,
    flags: &'static [&'static str],
    command: &'static [&'static str],
    expected: &'static str,
) -> Case {
    case(name, Ask::World(flags, command), expected)
}

/// A machine of its own.
pub(super) const fn run(
    name: &'static str,
    flags: &'static [&'static str],
    command: &'static [&'static str],
    expected: &'static str,
) -> Case {
    case(name, Ask::Run(flags, command), expected)
}

/// A longer exchange.
pub(super) const fn by(
    name: &'static str,
    act: fn(&Subject<'_>) -> Result<String>,
    expected: &'static str,
) -> Case {
    case(name, Ask::By(act), expected)
}

const fn case(name: &'static str, ask: Ask, expected: &'static str) -> Case {
    Case {
        name,
        ask,
        expected,
        differs: None,
    }
}

impl Case {
    /// Writes down what the reference shows instead, and why that stays.
    pub(super) const fn but(self, reference: &'static str, reason: &'static str) -> Self {
        Self {
            differs: Some(Difference {
                reference: Some(reference),
                reason,
            }),
            ..self
        }
    }

    /// Writes down why the reference shows something else, which depends on its version.
    pub(super) const fn unlike(self, reason: &'static str) -> Self {
        Self {
            differs: Some(Difference {
                reference: None,
                reason,
            }),
            ..self
        }
    }

    /// Returns what a subject shows; an error is shown, too.
    pub(super) fn ask(&self, subject: &Subject<'_>) -> String {
        let shown = match self.ask {
            Ask::Exec(flags, command) => subject.exec(flags, command).run().map(|outcome| seen(&outcome)),
            Ask::World(flags, command) => subject.world(flags, command).run().map(|outcome| seen(&outcome)),
            Ask::Run(flags, command) => subject.run(flags, command).run().map(|outcome| seen(&outcome)),
            Ask::By(act) => act(subject),
        };
        shown.unwrap_or_else(|error| format!("error: {error:#}"))
    }

    /// Says how both sides stand to each other, or what is not as written.
    pub(super) fn judge(&self, here: &str, there: Option<&str>) -> Result<String, String> {
        if here != self.expected {
            return Err(format!("Hearth shows {here:?} instead of {:?}", self.expected));
        }
        match (there, self.differs) {
            (None, _) => Ok("not compared".to_owned()),
            (Some(there), None) if there == self.expected => Ok("equal".to_owned()),
            (Some(there), None) => Err(format!("the reference shows {there:?}")),
            (Some(there), Some(Difference { reference, reason })) if there == self.expected => {
                match reference {
                    Some(_) => Err(format!("the difference is gone: {reason}")),
                    None => Ok("equal here".to_owned()),
                }
            }
            (Some(there), Some(Difference { reference, reason })) => match reference {
                Some(reference) if reference != there => {
                    Err(format!("the reference shows {there:?}, not {reference:?}"))
                }
                _ => Ok(format!("different: {reason}")),
            },
        }
    }
}
