//! `node status|stop`; neither starts a node.

use std::process::ExitCode;
use std::time::Duration;

use hearth_api::v1::{NodeStatus as Status, StopNode};
use hearth_machine::ByteSize;
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::arguments::{NodeCommand, NodeStatus, NodeStop};
use crate::error::CliError;
use crate::node::{Node, nobody_answers};
use crate::print::{self, ago, note};

/// How long a node may take to end once it has agreed to; machines were stopped before that.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// Runs a verb about the node.
pub(super) async fn node(node: &Node, command: Option<NodeCommand>) -> Result<ExitCode, CliError> {
    match command {
        Some(NodeCommand::Status(arguments)) => status(node, &arguments).await,
        Some(NodeCommand::Stop(arguments)) => stop(node, &arguments).await,
        None => Err(CliError::NodeWithFlags(
            node.client().socket().display().to_string(),
        )),
    }
}

/// Returns the status of the node, if one runs.
pub(super) async fn running(node: &Node) -> Result<Option<Status>, CliError> {
    match node.client().node_status().await {
        Ok(status) => Ok(Some(status)),
        Err(error) if nobody_answers(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn status(node: &Node, arguments: &NodeStatus) -> Result<ExitCode, CliError> {
    let Some(status) = running(node).await? else {
        return Err(CliError::NoNode(node.client().socket().display().to_string()));
    };
    if arguments.json {
        print::json(&status)?;
    } else {
        print::out(&render(&status, Timestamp::now()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn render(status: &Status, now: Timestamp) -> String {
    let rss = ByteSize::from_bytes(status.rss_bytes);
    format!(
        "process   {}\nversion   {}\nsocket    {}\ndata      {}\nstarted   {}\nmachines  {} ({} running, {} standing by)\nmemory    {rss}\n",
        status.pid,
        status.version,
        status.socket,
        status.data,
        ago(&status.started_at, now),
        status.machines,
        status.running,
        status.standing_by,
    )
}

/// Ends the node, and returns when its process is gone.
async fn stop(node: &Node, arguments: &NodeStop) -> Result<ExitCode, CliError> {
    let Some(status) = running(node).await? else {
        note("hearth: no node is running");
        return Ok(ExitCode::SUCCESS);
    };
    let process = watch(status.pid)?;
    let request = StopNode {
        stop_machines: arguments.stop_machines,
    };
    node.client().node_stop(&request).await?;
    if let Some(process) = process {
        wait_for_end(status.pid, &process)?;
    }
    if arguments.json {
        print::json(&status)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens the node's process, so that its end is seen; `None` when it is not among the processes seen from here.
fn watch(pid: u32) -> Result<Option<OwnedFd>, CliError> {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(None);
    };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => Ok(Some(process)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(CliError::Watch {
            pid,
            source: error.into(),
        }),
    }
}

/// Blocks until the process has ended; nothing else goes on then.
fn wait_for_end(pid: u32, process: &OwnedFd) -> Result<(), CliError> {
    let deadline = Timespec::try_from(END_DEADLINE).ok();
    match poll(&mut [PollFd::new(process, PollFlags::IN)], deadline.as_ref()) {
        Ok(0) => Err(CliError::NodeStays {
            pid,
            seconds: END_DEADLINE.as_secs(),
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(CliError::Watch {
            pid,
            source: error.into(),
        }),
    }
}
