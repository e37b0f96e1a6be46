//! `hearth uplink`: stays beside the pasta of one machine and ends it when the machine has ended, or the node, where the machine never
//! began.
//!
//! It is in the user namespace that the machine's network belongs to and has rights over nothing else; its network is the node's. The
//! kernel kills pasta when this process is killed.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use super::pasta;
use crate::host::fork;
use crate::host::launch::FIRST_PASSED_FD;
use crate::host::process::Exit;

/// Says why a machine has no way out any more.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The command line.
    #[error("`hearth uplink` is started by the node: its command line makes no sense")]
    Arguments,
    /// What it was started with is not there, or pasta does not start.
    #[error("cannot start pasta")]
    Start(#[source] io::Error),
    /// The kernel.
    #[error("cannot watch pasta")]
    Watch(#[source] io::Error),
    /// Before the machine.
    #[error("pasta ended ({0})")]
    Ended(Exit),
}

/// Is the program `hearth uplink PASTA`. It is given what becomes readable or hangs up at the machine's end, and the machine's network.
///
/// # Errors
/// [`KeeperError`].
pub fn run(words: &[OsString]) -> Result<(), KeeperError> {
    let [program] = words else {
        return Err(KeeperError::Arguments);
    };
    let tied = fork::inherited(FIRST_PASSED_FD).map_err(KeeperError::Start)?;
    let network = fork::inherited(FIRST_PASSED_FD + 1).map_err(KeeperError::Start)?;
    // By this process's number: some versions of pasta close what they inherit.
    let path = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
    let pasta = fork::start_bound(program, &pasta::arguments(&path)).map_err(KeeperError::Start)?;
    let ended = fork::wait_for_any(&[tied.as_fd(), pasta.as_fd()], None).map_err(KeeperError::Watch)?;
    let is_over = ended.first() == Some(&true);
    pasta.kill().map_err(KeeperError::Watch)?;
    let exit = fork::reap(&pasta).map_err(KeeperError::Watch)?;
    match is_over {
        true => Ok(()),
        false => Err(KeeperError::Ended(exit)),
    }
}
