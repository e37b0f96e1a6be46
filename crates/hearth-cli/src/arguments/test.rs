//! Arguments of `test`.

use clap::{Args, Subcommand};

/// Check what Hearth promises, on this host and with your image.
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  hearth test fork-correctness busybox"
)]
pub(crate) struct Test {
    #[command(subcommand)]
    pub(crate) command: TestCommand,
}

/// What can be checked.
#[derive(Debug, Subcommand)]
pub(crate) enum TestCommand {
    ForkCorrectness(ForkCorrectness),
}

/// Check that forks of a machine are machines of their own.
///
/// Forks the machine twice, or one that it makes of the image, and looks from inside at each duty of a fork: clock, random numbers,
/// names, addresses, connections, processes, files. Needs no program of the image. The forks are removed afterwards; exit code 1 says
/// that a duty was not kept.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth test fork-correctness busybox
  hearth test fork-correctness web          a machine that runs; it goes on
  hearth test fork-correctness debian:12 --json")]
pub(crate) struct ForkCorrectness {
    /// A machine that runs, by name or id; or an image
    #[arg(value_name = "MACHINE|IMAGE")]
    pub(crate) subject: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
