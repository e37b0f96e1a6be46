//! `run`: create, pull if need be, attach and start in one request, and stay until the end.

use std::process::ExitCode;

use hearth_api::ClientError;
use hearth_api::client::AttachOptions;
use hearth_api::v1::{ErrorCode, Machine};

use super::exit_code;
use super::image::fetch;
use crate::arguments::Pull;
use crate::error::CliError;
use crate::node::Node;
use crate::print;
use crate::resolve::{Attachment, RunRequest};
use crate::stream::{Bypass, Session, check_terminal};

/// Runs a machine.
pub(super) async fn run(node: &Node, request: RunRequest) -> Result<ExitCode, CliError> {
    if let Some(attachment) = request.attachment {
        check_terminal(attachment)?;
    }
    let machine = create(node, &request).await?;
    match request.attachment {
        Some(attachment) => start_attached(node, &machine.id, attachment).await,
        None => {
            node.call(async |client| client.start(&machine.id).await).await?;
            print::line(&machine.id)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Creates a machine and leaves it at that.
pub(super) async fn create_only(node: &Node, request: RunRequest) -> Result<ExitCode, CliError> {
    print::line(&create(node, &request).await?.id)?;
    Ok(ExitCode::SUCCESS)
}

/// Creates the machine; with its image fetched first, or when it turns out to be missing.
pub(super) async fn create(node: &Node, request: &RunRequest) -> Result<Machine, CliError> {
    let create = async || {
        node.call(async |client| client.create(&request.create).await)
            .await
    };
    if request.pull == Pull::Always {
        fetch(node, request.create.spec.image.clone()).await?;
    }
    match create().await {
        Err(CliError::Client(ClientError::Refused(body)))
            if body.code == ErrorCode::ImageNotFound && request.pull == Pull::Missing =>
        {
            fetch(node, request.create.spec.image.clone()).await?;
            create().await
        }
        result => result,
    }
}

/// Starts a machine with this process attached, so that nothing it prints is missed.
pub(super) async fn start_attached(
    node: &Node,
    machine: &str,
    attachment: Attachment,
) -> Result<ExitCode, CliError> {
    connect(node, machine, attachment, Start::Yes).await
}

/// Whether attaching starts the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It does.
    Yes,
    /// It runs already.
    No,
}

/// Attaches to a machine and stays until its end.
pub(super) async fn connect(
    node: &Node,
    machine: &str,
    attachment: Attachment,
    start: Start,
) -> Result<ExitCode, CliError> {
    let session = Session::prepare(attachment)?;
    let options = AttachOptions {
        start: start == Start::Yes,
        stdin: attachment.stdin,
        terminal: session.size(),
    };
    let connection = node
        .call(async |client| client.attach(machine, &options).await)
        .await?;
    let bypass = Bypass {
        client: node.client().clone(),
        machine: machine.to_owned(),
    };
    Ok(exit_code(session.run(connection, Some(bypass)).await?))
}
