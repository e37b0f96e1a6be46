//! `exec`: a process beside the workload.

use std::process::ExitCode;

use super::exit_code;
use crate::arguments::Exec;
use crate::error::CliError;
use crate::node::Node;
use crate::resolve::System;
use crate::stream::Session;

/// The size that a terminal has whose own size nobody knows: rows and columns.
const UNKNOWN_SIZE: (u16, u16) = (24, 80);

/// Runs a command in a machine.
pub(super) async fn exec(node: &Node, arguments: Exec) -> Result<ExitCode, CliError> {
    let (machine, mut request, attachment) = crate::resolve::exec(arguments, &System)?;
    let session = Session::prepare(attachment)?;
    request.terminal = attachment
        .terminal
        .then(|| session.size().unwrap_or(UNKNOWN_SIZE));
    let connection = node
        .call(async |client| client.exec(&machine, &request).await)
        .await?;
    Ok(exit_code(session.run(connection, None).await?))
}
