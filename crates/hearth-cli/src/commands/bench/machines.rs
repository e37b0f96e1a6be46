//! The bench's own machines, and verbs as a user runs them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::BenchError;
use crate::error::CliError;
use crate::node::Node;

/// By this label its machines are found again.
const LABEL: &str = "hearth.bench";

/// Runs verbs of this very program against the node, and knows the machines that came of it.
pub(super) struct Machines<'n> {
    node: &'n Node,
    program: PathBuf,
    /// Tells this bench's machines from another's.
    tag: String,
}

impl<'n> Machines<'n> {
    pub(super) fn new(node: &'n Node) -> Result<Self, BenchError> {
        let program = std::env::current_exe().map_err(|source| BenchError::Program {
            line: "hearth".to_owned(),
            source,
        })?;
        Ok(Self {
            node,
            program,
            tag: std::process::id().to_string(),
        })
    }

    /// Returns a machine's name.
    pub(super) fn name(&self, suffix: impl std::fmt::Display) -> String {
        format!("bench-{}-{suffix}", self.tag)
    }

    /// Returns the arguments of `run` up to its image.
    pub(super) fn run_arguments(&self, name: &str, memory_bytes: u64) -> Vec<String> {
        let label = format!("{LABEL}={}", self.tag);
        let memory = memory_bytes.to_string();
        ["run", "--name", name, "--label", &label, "--memory", &memory]
            .map(str::to_owned)
            .into()
    }

    /// Runs a verb to its end; returns how long that took.
    pub(super) async fn time<S: AsRef<str>>(&self, arguments: &[S]) -> Result<Duration, BenchError> {
        let begun = Instant::now();
        let mut command = self.command(arguments);
        let output = command.stdin(Stdio::null()).output().await;
        let took = begun.elapsed();
        let line = line(arguments);
        match output {
            Ok(output) if output.status.success() => Ok(took),
            Ok(output) => Err(failed(line, output.status, &output.stderr)),
            Err(source) => Err(BenchError::Program { line, source }),
        }
    }

    /// Starts a verb with pipes to its input and its output.
    pub(super) fn pipes<S: AsRef<str>>(&self, arguments: &[S]) -> Result<Child, BenchError> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(|source| BenchError::Program {
            line: line(arguments),
            source,
        })
    }

    fn command<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        // The node that answers: whichever way it was found, the verbs are to find the same.
        command.arg("--socket").arg(self.node.client().socket());
        command.args(arguments.iter().map(AsRef::as_ref));
        command.kill_on_drop(true);
        command
    }

    /// Removes whatever is left of this bench's machines.
    pub(super) async fn remove_all(&self) -> Result<(), CliError> {
        let machines = self
            .node
            .call(async |client| client.machines(true, &[]).await)
            .await?;
        let is_ours =
            |labels: &std::collections::BTreeMap<String, String>| labels.get(LABEL) == Some(&self.tag);
        for machine in machines.iter().filter(|machine| is_ours(&machine.spec.labels)) {
            self.node
                .call(async |client| client.remove(&machine.id, true).await)
                .await?;
        }
        Ok(())
    }
}

/// Waits for a verb; its failure is an error.
pub(super) async fn finish<S: AsRef<str>>(child: Child, arguments: &[S]) -> Result<(), BenchError> {
    let line = line(arguments);
    match child.wait_with_output().await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(failed(line, output.status, &output.stderr)),
        Err(source) => Err(BenchError::Program { line, source }),
    }
}

/// Returns what a user would type.
pub(super) fn line<S: AsRef<str>>(arguments: &[S]) -> String {
    let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    format!("hearth {}", words.join(" "))
}

fn failed(line: String, status: std::process::ExitStatus, said: &[u8]) -> BenchError {
    BenchError::Verb {
        line,
        status,
        words: String::from_utf8_lossy(said).trim().to_owned(),
    }
}
