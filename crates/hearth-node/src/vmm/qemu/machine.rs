//! A machine that QEMU runs: its process, its control connection, its console.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::migration::{self, SaveError};
use super::qmp::message::{Continue, Event, Quit, ShutdownCause, Stop};
use super::qmp::{Client, QmpError};
use crate::host::console::{self, ConsoleLog};
use crate::host::process::Process;
use crate::vmm::{
    ControlError, EndCause, GuestStream, Machine, MachineDirs, ProcessId, SnapshotError, SnapshotKind,
    VmmEvent, VmmExit,
};

/// How long QEMU may take for a command that it answers at once.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// How long a killed QEMU may take to end: the kernel gives back its memory first.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long the last events of a QEMU that has ended may be under way.
const TELLING_LIMIT: Duration = Duration::from_secs(5);

/// How many events a slow listener may be behind before it loses the oldest.
const EVENTS: usize = 64;

/// How much of QEMU's log is shown, in bytes.
const LAST_WORDS: u64 = 4 << 10;

pub(super) fn control_socket(dirs: &MachineDirs) -> PathBuf {
    dirs.run.join("qmp")
}

pub(super) fn guest_socket(dirs: &MachineDirs) -> PathBuf {
    dirs.run.join("guest")
}

pub(super) fn console_pipe(dirs: &MachineDirs) -> PathBuf {
    dirs.run.join("console")
}

/// Reads the end of what QEMU wrote, as text that can be shown.
pub(super) fn last_words(dirs: &MachineDirs) -> String {
    let words = console::tail(&dirs.vmm_log(), LAST_WORDS).unwrap_or_default();
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// A machine of QEMU. Dropping it leaves the machine running.
#[derive(Debug)]
pub struct QemuVm {
    process: Process,
    control: Client,
    console: ConsoleLog,
    dirs: MachineDirs,
    events: broadcast::WeakSender<VmmEvent>,
    /// Why the machine ends, once QEMU has told; closed when its control connection is.
    cause: watch::Receiver<Option<EndCause>>,
    _translation: AbortOnDropHandle<()>,
}

impl QemuVm {
    pub(super) fn new(
        process: Process,
        control: Client,
        from_qemu: broadcast::Receiver<Event>,
        console: ConsoleLog,
        dirs: MachineDirs,
    ) -> Self {
        let (events, _) = broadcast::channel(EVENTS);
        let (told, cause) = watch::channel(None);
        Self {
            process,
            control,
            console,
            dirs,
            events: events.downgrade(),
            cause,
            _translation: AbortOnDropHandle::new(tokio::spawn(translate(from_qemu, events, told))),
        }
    }

    /// Returns the recording of the machine's console.
    pub const fn console(&self) -> &ConsoleLog {
        &self.console
    }

    async fn ended(&self) -> io::Result<VmmExit> {
        let exit = self.process.wait().await?;
        self.console.finish().await;
        // What QEMU told last may still be under way here, when its process is already gone.
        let mut cause = self.cause.clone();
        let told = async { while cause.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(TELLING_LIMIT, told).await;
        Ok(VmmExit {
            exit,
            cause: *cause.borrow(),
            last_words: last_words(&self.dirs),
        })
    }

    /// A command that cannot be answered because QEMU is gone says so, instead of naming its socket.
    async fn explain(&self, error: QmpError) -> ControlError {
        let gone = matches!(error, QmpError::Closed { .. });
        if gone
            && tokio::time::timeout(COMMAND_LIMIT, self.process.wait())
                .await
                .is_ok()
        {
            return ControlError::Ended;
        }
        ControlError::Qmp(error)
    }
}

impl Machine for QemuVm {
    fn process(&self) -> ProcessId {
        self.process.id()
    }

    async fn connect_guest(&self) -> io::Result<GuestStream> {
        UnixStream::connect(guest_socket(&self.dirs))
            .await
            .map(GuestStream::new)
    }

    async fn pause(&self) -> Result<(), ControlError> {
        match self.control.execute(&Stop {}, COMMAND_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn resume(&self) -> Result<(), ControlError> {
        match self.control.execute(&Continue {}, COMMAND_LIMIT).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error).await),
        }
    }

    async fn snapshot(&self, directory: &Path, kind: SnapshotKind) -> Result<(), SnapshotError> {
        if kind == SnapshotKind::Diff {
            return Err(SnapshotError::Unsupported {
                driver: "qemu",
                what: "what has changed only",
            });
        }
        match migration::save(&self.control, self.process(), &self.dirs, directory).await {
            Ok(()) => Ok(()),
            Err(SaveError::File(error)) => Err(error),
            Err(SaveError::Qmp(error)) => Err(self.explain(error).await.into()),
        }
    }

    fn events(&self) -> broadcast::Receiver<VmmEvent> {
        match self.events.upgrade() {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    async fn quit(&self, grace: Duration) -> io::Result<VmmExit> {
        let orderly = async {
            match self.control.execute(&Quit {}, grace).await {
                // Closed: it ended before it could answer, which is what is wanted.
                Ok(_) | Err(QmpError::Closed { .. }) => self.ended().await.map(Some),
                Err(error) => {
                    tracing::warn!(%error, process = %self.process(), "QEMU is killed, since it does not quit");
                    Ok(None)
                }
            }
        };
        match tokio::time::timeout(grace, orderly).await {
            Ok(Ok(Some(exit))) => Ok(exit),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => self.kill().await,
        }
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

/// Turns QEMU's events into the driver's, until the control connection ends.
async fn translate(
    mut from_qemu: broadcast::Receiver<Event>,
    events: broadcast::Sender<VmmEvent>,
    cause: watch::Sender<Option<EndCause>>,
) {
    loop {
        let event = match from_qemu.recv().await {
            Ok(event) => translated(event),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                tracing::warn!(lost, "events of QEMU were lost");
                None
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if let Some(VmmEvent::Ending(why)) = event {
            cause.send_replace(Some(why));
        }
        if let Some(event) = event {
            // Nobody has to listen.
            let _ = events.send(event);
        }
    }
}

fn translated(event: Event) -> Option<VmmEvent> {
    match event {
        Event::Stop => Some(VmmEvent::Paused),
        Event::Resume => Some(VmmEvent::Resumed),
        Event::GuestPanicked {} => Some(VmmEvent::Ending(EndCause::GuestPanic)),
        Event::Shutdown { reason, .. } => Some(VmmEvent::Ending(match reason {
            ShutdownCause::GuestShutdown => EndCause::GuestShutdown,
            ShutdownCause::GuestReset => EndCause::GuestReset,
            ShutdownCause::GuestPanic => EndCause::GuestPanic,
            ShutdownCause::HostQmpQuit => EndCause::Quit,
            ShutdownCause::HostSignal | ShutdownCause::HostError | ShutdownCause::Other => EndCause::Other,
        })),
        Event::BlockIoError {
            node_name,
            operation,
            reason,
        } => Some(VmmEvent::DiskError {
            disk: node_name
                .strip_prefix("disk")
                .and_then(|number| number.parse().ok()),
            operation,
            reason,
        }),
        Event::Reset { .. } | Event::Migration { .. } => None,
    }
}
