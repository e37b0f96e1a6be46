//! `version` and `completions`: about this program.

use std::process::ExitCode;

use clap::CommandFactory as _;
use serde_json::json;

use super::node::running;
use crate::arguments::{Cli, Completions, Version};
use crate::error::CliError;
use crate::node::Node;
use crate::print;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints this program's version, and the node's if one runs.
pub(super) async fn version(node: &Node, arguments: &Version) -> Result<ExitCode, CliError> {
    // A node that cannot be asked is no reason to keep one's own version back.
    let status = running(node).await.unwrap_or_default();
    if arguments.json {
        let node = status.map(|status| json!({ "version": status.version, "pid": status.pid }));
        print::json(&json!({ "version": VERSION, "api": "v1", "node": node }))?;
    } else {
        let node = status.map_or("not running".to_owned(), |status| status.version);
        print::out(&format!("hearth {VERSION}\nnode   {node}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a completion script.
pub(super) fn completions(arguments: &Completions) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "hearth", &mut script);
    print::out(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_gets_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in ["run", "exec", "ps", "image", "doctor", "completions"] {
                assert!(script.contains(verb), "{shell}: {verb}");
            }
        }
    }
}
