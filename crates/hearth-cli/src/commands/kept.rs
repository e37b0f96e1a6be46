//! What `snapshot` and `template` print alike.

use std::process::ExitCode;

use hearth_machine::ByteSize;
use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::{ListFlags, PruneFlags};
use crate::error::CliError;
use crate::print::{self, Screen, Table};

/// Prints a list; `name` is what other verbs take.
pub(super) fn list<T: Serialize>(
    flags: &ListFlags,
    all: &[T],
    name: fn(&T) -> &str,
    table: fn(&[T], Timestamp) -> Table,
) -> Result<ExitCode, CliError> {
    if flags.json {
        print::json(&all)?;
    } else if flags.quiet {
        let names: String = all.iter().map(|it| format!("{}\n", name(it))).collect();
        print::out(&names)?;
    } else {
        print::out(&table(all, Timestamp::now()).render(Screen::stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the answer to a request to prune, or what it says: who was removed, and what they took on the disk.
pub(super) fn pruned(
    flags: &PruneFlags,
    answer: &impl Serialize,
    names: &[String],
    freed_bytes: u64,
) -> Result<ExitCode, CliError> {
    if flags.json {
        print::json(answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    for name in names {
        print::line(name)?;
    }
    print::line(&format!("freed {}", ByteSize::from_bytes(freed_bytes)))?;
    Ok(ExitCode::SUCCESS)
}
