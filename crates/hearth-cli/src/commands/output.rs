//! `logs` and `console`.

use std::process::ExitCode;

use hearth_api::ClientError;
use hearth_api::client::{LogOptions, reader};
use tokio::io::AsyncReadExt as _;

use crate::arguments::{Console, Logs};
use crate::error::CliError;
use crate::node::Node;
use crate::resolve::{ResolveError, moment};
use crate::stream::{Output, Target, copy_frames};

/// How much of a console is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Prints what a workload has printed.
pub(super) async fn logs(node: &Node, arguments: &Logs) -> Result<ExitCode, CliError> {
    let now = jiff::Timestamp::now();
    let options = LogOptions {
        follow: arguments.follow,
        tail: lines(&arguments.tail)?,
        timestamps: arguments.timestamps,
        since: arguments
            .since
            .as_deref()
            .map(|text| moment(text, now))
            .transpose()?,
        until: arguments
            .until
            .as_deref()
            .map(|text| moment(text, now))
            .transpose()?,
    };
    let body = node
        .call(async |client| client.logs(&arguments.machine, &options).await)
        .await?;
    copy_frames(reader(body)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Parses `--tail`; `None` is all.
fn lines(text: &str) -> Result<Option<u64>, ResolveError> {
    match text {
        "all" => Ok(None),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| ResolveError::Tail(number.to_owned())),
    }
}

/// Prints a serial console, as it is.
pub(super) async fn console(node: &Node, arguments: &Console) -> Result<ExitCode, CliError> {
    let body = node
        .call(async |client| client.console(&arguments.machine, arguments.follow).await)
        .await?;
    print_bytes(reader(body)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Copies bytes to standard output.
pub(super) async fn print_bytes(mut source: impl tokio::io::AsyncRead + Unpin) -> Result<(), CliError> {
    let (mut output, mut piece) = (Output::new(), vec![0; PIECE]);
    loop {
        let count = source.read(&mut piece).await;
        let count = count.map_err(|error| ClientError::Stream(error.into()))?;
        if count == 0 {
            return Ok(());
        }
        output.push(Target::Stdout, &piece[..count]).await?;
        output.flush().await?;
    }
}
