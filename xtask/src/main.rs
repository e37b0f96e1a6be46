//! `cargo xtask`: builds what cargo alone does not, and checks the shape of the code.

mod build;
mod fuzz;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::build::{Lint, Profile};
use crate::workspace::Workspace;

/// Builds and checks Hearth.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds `hearth` and the guest agent that it hands to its machines.
    Build {
        /// Optimised, as it is shipped.
        #[arg(long)]
        release: bool,
    },
    /// Builds the guest agent and puts it beside the `hearth` binary.
    Guest {
        /// Beside the binary of this profile.
        #[arg(long, value_enum, default_value_t = Profile::Dev)]
        profile: Profile,
    },
    /// Builds the guest without a kernel, which tests boot where KVM cannot run Linux.
    BareGuest {
        /// Its format and clippy's findings are errors.
        #[arg(long)]
        lint: bool,
    },
    /// Runs a fuzz target for a while; a finding fails the task.
    Fuzz {
        /// The target: the name of a binary in a `crates/*/fuzz`. Without it, all names are listed.
        name: Option<String>,
        /// How long it runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Checks the structure: layers, crates, fences, sizes, documents, and that every promise has its test.
    Tidy,
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    let workspace = Workspace::load()?;
    match task {
        Task::Build { release: false } => build::everything(&workspace, Profile::Dev),
        Task::Build { release: true } => build::everything(&workspace, Profile::Release),
        Task::Guest { profile } => build::guest(&workspace, profile).map(drop),
        Task::BareGuest { lint: false } => build::bare_guest(&workspace, Lint::No),
        Task::BareGuest { lint: true } => build::bare_guest(&workspace, Lint::Yes),
        Task::Fuzz { name: None, .. } => fuzz::list(&workspace),
        Task::Fuzz {
            name: Some(name),
            seconds,
        } => fuzz::run_target(&workspace, &name, seconds),
        Task::Tidy => tidy::run(&workspace),
    }
}
