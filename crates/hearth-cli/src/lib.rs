//! The command line: arguments to a resolved request, to the API client, to print.
//!
//! ```text
//! arguments   what a person may type, and its help                       (clap)
//! resolve     arguments and the caller's environment -> requests         (pure)
//! credentials the caller's logins to registries, for a pull
//! node        reaches the node; starts one when none answers
//! commands    one module for each family of verbs
//! stream      a session with a process: terminal, signals, output
//! archive     trees of files as tar archives, for cp
//! print, progress, error   what a person sees
//! ```
//! There is no engine here: whatever a verb does, it asks the node for, over [`hearth_api`]. `hearth`'s main calls
//! [`main`].

#![forbid(unsafe_code)]

mod archive;
mod arguments;
mod commands;
mod credentials;
mod error;
mod node;
mod print;
mod progress;
mod resolve;
mod stream;
mod terminal;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::Cli;
use error::CliError;

/// docker's exit code for flags that make no sense before a workload could run.
const USAGE_OF_A_WORKLOAD: u8 = 125;

/// Runs one verb to its end; arguments are the process's own.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => return usage(&refusal, std::env::args_os().skip(1)),
    };
    let voice = cli.command.voice();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            if !error.is_broken_pipe() {
                print::note(&error.message());
            }
            ExitCode::from(error.exit_code(voice))
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let result = runtime.block_on(commands::dispatch(cli));
    // A write to an output that nobody reads must not keep a person who has left.
    runtime.shutdown_background();
    result
}

/// Prints help, a version, or what is wrong with the arguments.
fn usage(refusal: &clap::Error, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    // Nobody reads: there is nothing else to say it with.
    drop(refusal.print());
    if !refusal.use_stderr() {
        return ExitCode::SUCCESS;
    }
    match verb(arguments).as_deref() {
        Some("run" | "create" | "exec" | "execute") => ExitCode::from(USAGE_OF_A_WORKLOAD),
        _ => ExitCode::from(2),
    }
}

/// Returns the first argument that is neither a global flag nor its value.
fn verb(mut arguments: impl Iterator<Item = OsString>) -> Option<String> {
    while let Some(argument) = arguments.next() {
        let argument = argument.into_string().ok()?;
        if argument == "--socket" {
            arguments.next();
        } else if !argument.starts_with('-') {
            return Some(argument);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_found_behind_global_flags() {
        let found = |text: &str| verb(text.split(' ').map(OsString::from));
        assert_eq!(found("--socket run exec -x").as_deref(), Some("exec"));
        assert_eq!(found("--socket=run ps").as_deref(), Some("ps"));
        assert_eq!(found("--nope"), None);
    }
}
