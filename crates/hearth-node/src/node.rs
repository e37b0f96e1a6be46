//! One node from its start to its end: builds each part once, serves, and takes everything down in order.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_api::location::{Location, LocationError};
use hearth_machine::{ByteSize, HostLimits};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Identity, Service};
use crate::host::cgroup::Groups;
use crate::host::failpoint::{self, BadFailpoint};
use crate::host::lock::{self, Lock};
use crate::host::{files, own, peer};
use crate::images::{ImageError, Images};
use crate::layout::Layout;
use crate::machines::{Drivers, EventLog, Machines, Pace, Pagers, Parts, Standbys};
use crate::network::Networks;
use crate::pool::Pools;
use crate::records::RecordError;
use crate::setup::Artefacts;
use crate::snapshots::{Snapshots, Templates};
use crate::storage::Disks;

/// Says why a node did not come up, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The environment names no place for it.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A test's variable.
    #[error(transparent)]
    Failpoint(#[from] BadFailpoint),
    /// Another one is there.
    #[error("another node serves {}", .0.display())]
    Taken(PathBuf),
    /// A file or directory of its own.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its images.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// Its records.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The kernel refused a signal handler or a runtime.
    #[error("cannot set up the process")]
    Process(#[source] io::Error),
    /// The socket broke.
    #[error("cannot serve the API any longer")]
    Serve(#[source] io::Error),
}

impl NodeError {
    fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

/// How long the node that holds the lock may take to listen, or to end.
const SERVER_DEADLINE: Duration = Duration::from_secs(5);
/// How long streams have to tell their clients how their machines ended, once all have.
const LAST_STREAMS: Duration = Duration::from_secs(2);
/// Threads that run tasks. The work is waiting; bytes are moved by two processors as well as by sixty-four.
const WORKERS: usize = 2;

/// Runs a node until it is told to end, by its API, SIGTERM or SIGINT. `ready` is a descriptor that this process inherited, on
/// which one line says that the socket is served, or why it is not.
///
/// # Errors
/// Returns [`NodeError`].
pub fn run(ready: Option<RawFd>) -> Result<(), NodeError> {
    let mut starter = Starter::take(ready);
    own::raise_open_files();
    if ready.is_some() {
        own::leave_session();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(NodeError::Process)?;
    let result = runtime.block_on(serve(&mut starter));
    if let Err(error) = &result {
        starter.failed(error);
    }
    // A client's long work may be unpacking on a thread of its own. Dropping the runtime would wait for it, however long it
    // takes; what it leaves half done is swept at the next start.
    runtime.shutdown_timeout(LAST_STREAMS);
    result
}

/// Who waits for the node to be ready.
struct Starter(Option<File>);

impl Starter {
    fn take(descriptor: Option<RawFd>) -> Self {
        Self(descriptor.map(lock::inherited))
    }

    fn say(&mut self, line: &str) {
        if let Some(mut file) = self.0.take() {
            // Who started us has gone away.
            let _ = writeln!(file, "{line}");
        }
    }

    fn failed(&mut self, error: &NodeError) {
        let line = match error {
            NodeError::Taken(_) => "taken".to_owned(),
            other => serde_json::to_string(&api::start_error(other)).unwrap_or_default(),
        };
        self.say(&line);
    }
}

async fn serve(starter: &mut Starter) -> Result<(), NodeError> {
    failpoint::arm(&std::env::var(failpoint::VARIABLE).unwrap_or_default())?;
    let location = Location::resolve(|name| std::env::var_os(name), own::uid())?;
    let layout = Layout::new(&location.data, &location.run, &location.memory)
        .with_configuration(location.configuration.clone());
    for path in [layout.data(), layout.run(), layout.memory()] {
        // What is private has its own mode, too.
        files::make_directory(path, own::passage_mode()).map_err(NodeError::at(path))?;
    }
    // Root file systems in it are readable for monitors, by their links in the directories of machines.
    files::make_directory(&layout.images(), 0o700).map_err(NodeError::at(&layout.images()))?;
    let _lock = take_lock(&layout, &location).await?;
    // At once, so that who comes meanwhile waits to be served instead of finding nobody.
    let listener = listen(&location.socket)?;
    let machines = build(&layout).await?;
    machines.recover().await?;
    let shutdown = CancellationToken::new();
    let identity = Identity {
        socket: location.socket.clone(),
        started_at: jiff::Timestamp::now().to_string(),
    };
    let tasks = TaskTracker::new();
    let service = Service {
        machines: machines.clone(),
        pools: Pools::open(machines.clone(), &tasks, shutdown.clone())?,
        identity: Arc::new(identity),
        shutdown: shutdown.clone(),
        tasks,
    };
    let signals = tokio::spawn(end_on_signal(shutdown.clone()));
    starter.say("ready");
    tracing::info!(socket = %location.socket.display(), "serving");
    let served = api::serve(listener, service.clone())
        .await
        .map_err(NodeError::Serve);
    signals.abort();
    // Before the machines' own tasks: a stream holds on to its machine.
    service.finish(LAST_STREAMS).await;
    machines.parts().standbys.close().await;
    if machines.alive() == 0 {
        machines.close().await;
    } else {
        // Their monitors go on; the next node finds them by their records.
        tracing::info!(machines = machines.alive(), "machines stay");
    }
    // A socket that nobody serves only confuses; the lock is what counts.
    let _ = files::remove_file(&location.socket);
    // It is empty unless a machine's memory could not be removed, which was told.
    let _ = std::fs::remove_dir(layout.memory());
    served
}

/// Takes the lock, unless a node listens that has it. The one that has it may be a moment younger than this one, and not listen yet; or
/// it is about to end, or has died, and a child that was to execute a program has its files until it does.
async fn take_lock(layout: &Layout, location: &Location) -> Result<Lock, NodeError> {
    let path = layout.run().join("node.lock");
    let deadline = Instant::now() + SERVER_DEADLINE;
    loop {
        match lock::try_lock(&path) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => {}
            Err(source) => return Err(NodeError::Io { path, source }),
        }
        // Whoever asked finds out what is wrong when it connects.
        if is_served(&location.socket).await || Instant::now() > deadline {
            return Err(NodeError::Taken(location.socket.clone()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn is_served(socket: &Path) -> bool {
    let connected = UnixStream::connect(socket).await;
    connected.is_ok_and(|connection| peer::listener_lives(&connection).unwrap_or(true))
}

async fn build(layout: &Layout) -> Result<Machines, NodeError> {
    let artefacts = Artefacts::open(layout);
    let tasks = TaskTracker::new();
    let networks = Networks::open(layout, tasks.clone());
    let parts = Parts {
        layout: layout.clone(),
        drivers: Drivers::new(artefacts.clone()),
        artefacts,
        images: Images::open(layout).await?,
        disks: Disks::new(layout.empty_disks()),
        templates: Templates::open(layout.templates()),
        standbys: Standbys::default(),
        snapshots: Arc::new(Snapshots::open(layout.snapshots())),
        pagers: Pagers::open(layout.pagers(), tasks.clone()),
        networks,
        tasks,
        events: EventLog::open(layout.events()),
        pace: Pace::default(),
        host_boot: own::host_boot(),
        groups: groups(),
    };
    let memory = ByteSize::from_bytes(own::memory_bytes());
    let host = HostLimits {
        memory,
        // The registry looks again for each machine: it can be mounted anew with another size.
        guest_memory: memory,
        processors: own::processors(),
    };
    Ok(Machines::new(Arc::new(parts), host))
}

/// Finds out what limits machines here, and says once what does not.
fn groups() -> Groups {
    let groups = Groups::find();
    let absent = groups.absent();
    if !absent.is_empty() {
        let absent = absent.join(", ");
        tracing::warn!(%absent, "this node has no such cgroup controllers: machines run without these limits");
    }
    groups
}

/// Binds the socket, for its owner alone. Who holds the lock may replace what an earlier node left.
fn listen(path: &Path) -> Result<UnixListener, NodeError> {
    files::remove_file(path).map_err(NodeError::at(path))?;
    let listener = lock::bind_private(path).map_err(NodeError::at(path))?;
    UnixListener::from_std(listener).map_err(NodeError::at(path))
}

async fn end_on_signal(shutdown: CancellationToken) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to end");
    shutdown.cancel();
    Ok(())
}
