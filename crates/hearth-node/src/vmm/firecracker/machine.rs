//! A machine that Firecracker runs: its process, its API socket, its console.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hearth_firecracker::model::{InstanceState, VmState};
use hearth_firecracker::vsock::{self, VsockError};
use hearth_firecracker::{Client, ClientError};
use hearth_guest_protocol::VSOCK_PORT;
use tokio::sync::{Mutex, broadcast};
use tokio_util::task::AbortOnDropHandle;

use super::snapshot::{self, SnapshotFiles};
use crate::host::console::{self, ConsoleLog};
use crate::host::own;
use crate::host::process::Process;
use crate::vmm::{
    ControlError, EndCause, Exit, GuestStream, Machine, MachineDirs, ProcessId, SnapshotError, SnapshotKind,
    VmmEvent, VmmExit,
};

/// The names of the sockets.
pub(super) const API: &str = "api";
pub(super) const VSOCK: &str = "vsock";

/// How long one request may take on a busy host. All but snapshots are answered in a millisecond on an idle one.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// How long a guest may take to take a connection. Callers have limits of their own, and shorter ones.
const CONNECT_LIMIT: Duration = Duration::from_secs(600);

/// How often a guest that has its vsock and does not listen yet is asked again.
const NOT_YET: Duration = Duration::from_millis(5);

/// How long a killed Firecracker may take to end: the kernel gives back its memory first.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How many events a slow listener may be behind before it loses the oldest.
const EVENTS: usize = 64;

/// How much of Firecracker's log is shown, in bytes.
const LAST_WORDS: u64 = 4 << 10;

pub(super) fn console_pipe(dirs: &MachineDirs) -> PathBuf {
    dirs.run.join("console")
}

/// Returns a client of a machine's API socket.
pub(super) fn client(dirs: &MachineDirs) -> Client {
    Client::new(socket(dirs, API)).within(REQUEST_LIMIT)
}

/// Returns where a socket of a machine is. In a jail the run directory has a link of the node's to it, which the monitor cannot
/// reach. Nothing else is followed: what the monitor puts in the socket's place is refused by who connects.
pub(super) fn socket(dirs: &MachineDirs, name: &str) -> PathBuf {
    let path = dirs.run.join(name);
    match own::is_root() {
        true => std::fs::read_link(&path).unwrap_or(path),
        false => path,
    }
}

/// Reads the end of what Firecracker and its jailer wrote, as text that can be shown.
pub(super) fn last_words(dirs: &MachineDirs) -> String {
    let words = console::tail(&dirs.vmm_log(), LAST_WORDS).unwrap_or_default();
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// A machine of Firecracker. Dropping it leaves the machine running.
#[derive(Debug)]
pub struct FirecrackerVm {
    process: Arc<Process>,
    client: Client,
    console: ConsoleLog,
    dirs: MachineDirs,
    events: broadcast::WeakSender<VmmEvent>,
    /// Orders pauses and resumes, and has what the last one came to: only this side changes it. Absent when that is not known; held
    /// across requests on purpose.
    state: Mutex<Option<InstanceState>>,
    /// Why the machine ends, when this side ends it: Firecracker itself does not tell.
    cause: Arc<OnceLock<EndCause>>,
    _telling: AbortOnDropHandle<()>,
}

impl FirecrackerVm {
    pub(super) fn new(
        process: Process,
        client: Client,
        console: ConsoleLog,
        dirs: MachineDirs,
        state: Option<InstanceState>,
    ) -> Self {
        let (process, cause) = (Arc::new(process), Arc::new(OnceLock::new()));
        let (events, _) = broadcast::channel(EVENTS);
        let telling = tell_the_end(Arc::clone(&process), Arc::clone(&cause), events.clone());
        Self {
            process,
            client,
            console,
            dirs,
            events: events.downgrade(),
            state: Mutex::new(state),
            cause,
            _telling: AbortOnDropHandle::new(tokio::spawn(telling)),
        }
    }

    /// Returns the recording of the machine's console.
    pub const fn console(&self) -> &ConsoleLog {
        &self.console
    }

    async fn ended(&self) -> io::Result<VmmExit> {
        let exit = self.process.wait().await?;
        self.console.finish().await;
        Ok(VmmExit {
            exit,
            cause: cause_of(exit, &self.cause),
            last_words: last_words(&self.dirs),
        })
    }

    /// Pauses the machine or lets it go on; what is so already stays so, and is not told.
    async fn set_state(&self, wanted: VmState) -> Result<(), ControlError> {
        let mut state = self.state.lock().await;
        self.change_state(&mut state, wanted).await.map(drop)
    }

    /// Returns whether there was anything to change. The caller has the turn.
    async fn change_state(
        &self,
        known: &mut Option<InstanceState>,
        wanted: VmState,
    ) -> Result<bool, ControlError> {
        let change = async {
            let state = match known.take() {
                Some(state) => state,
                None => self.client.instance().await?.state,
            };
            let (there, event) = match wanted {
                VmState::Paused => (InstanceState::Paused, VmmEvent::Paused),
                VmState::Resumed => (InstanceState::Running, VmmEvent::Resumed),
            };
            if state != there {
                self.client.set_vm_state(wanted).await?;
            }
            *known = Some(there);
            Ok((state != there).then_some(event))
        };
        match change.await {
            Ok(event) => {
                let changed = event.is_some();
                if let (Some(event), Some(events)) = (event, self.events.upgrade()) {
                    // Nobody has to listen.
                    let _ = events.send(event);
                }
                Ok(changed)
            }
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// A request that is not answered because Firecracker is gone says so, instead of naming its socket.
    async fn explain(&self, error: ClientError) -> ControlError {
        let gone = match &error {
            ClientError::Connect { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ),
            ClientError::Connection { .. } => true,
            _ => false,
        };
        if gone
            && tokio::time::timeout(REQUEST_LIMIT, self.process.wait())
                .await
                .is_ok()
        {
            return ControlError::Ended;
        }
        ControlError::Firecracker(error)
    }
}

/// Tells that the machine ends, once its process has; then there is nobody left to tell anything.
async fn tell_the_end(
    process: Arc<Process>,
    cause: Arc<OnceLock<EndCause>>,
    events: broadcast::Sender<VmmEvent>,
) {
    let Ok(exit) = process.wait().await else {
        return;
    };
    if let Some(cause) = cause_of(exit, &cause) {
        // Nobody has to listen.
        let _ = events.send(VmmEvent::Ending(cause));
    }
}

/// Firecracker ends with 0 when its guest resets the machine, whether it meant to or panicked.
fn cause_of(exit: Exit, ours: &OnceLock<EndCause>) -> Option<EndCause> {
    match (ours.get(), exit) {
        (Some(cause), _) => Some(*cause),
        (None, Exit::Code(0)) => Some(EndCause::GuestReset),
        (None, _) => None,
    }
}

impl Machine for FirecrackerVm {
    fn process(&self) -> ProcessId {
        self.process.id()
    }

    async fn connect_guest(&self) -> io::Result<GuestStream> {
        let socket = socket(&self.dirs, VSOCK);
        let connecting = async {
            loop {
                match vsock::connect(&socket, VSOCK_PORT, CONNECT_LIMIT).await {
                    Ok(stream) => return Ok(GuestStream::new(stream)),
                    // The guest has its driver, and its agent comes up right now.
                    Err(VsockError::NobodyListens { .. }) => tokio::time::sleep(NOT_YET).await,
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
        };
        tokio::select! {
            connected = tokio::time::timeout(CONNECT_LIMIT, connecting) => connected?,
            _ = self.process.wait() => Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the monitor has ended")),
        }
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.set_state(VmState::Paused).await
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.set_state(VmState::Resumed).await
    }

    async fn snapshot(&self, directory: &Path, kind: SnapshotKind) -> Result<(), SnapshotError> {
        let mut state = self.state.lock().await;
        let files = SnapshotFiles::begin(&self.dirs, directory)?;
        let paused = self.change_state(&mut state, VmState::Paused).await?;
        let client = self.client.within(snapshot::LIMIT);
        let written = match client.create_snapshot(&SnapshotFiles::request(kind)).await {
            Ok(()) => files.finish().await,
            Err(error) => Err(self.explain(error).await.into()),
        };
        if written.is_err() && paused {
            // A machine that has ended has nothing to go on with, and that error says so.
            let _ = self.change_state(&mut state, VmState::Resumed).await;
        }
        written
    }

    fn events(&self) -> broadcast::Receiver<VmmEvent> {
        match self.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Firecracker has no order for it: its disks are written by the time a request of the guest is answered, so that nothing is lost
    /// by killing it that a cut of power would have kept.
    async fn quit(&self, _grace: Duration) -> io::Result<VmmExit> {
        let _ = self.cause.set(EndCause::Quit);
        self.kill().await
    }

    async fn kill(&self) -> io::Result<VmmExit> {
        self.process.kill()?;
        let still_there = || {
            let message = format!(
                "process {} is still there {KILL_LIMIT:?} after SIGKILL",
                self.process()
            );
            io::Error::new(io::ErrorKind::TimedOut, message)
        };
        tokio::time::timeout(KILL_LIMIT, self.ended())
            .await
            .map_err(|_| still_there())?
    }

    async fn wait(&self) -> io::Result<VmmExit> {
        self.ended().await
    }
}
