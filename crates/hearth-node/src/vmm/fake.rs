//! A driver without machines, for tests of what is above: it keeps the contract, and the test plays the guest.
//!
//! Whoever connects to the guest of a fake machine makes the other end of the stream arrive at the test, by way of
//! [`Guests`]. Pausing stalls the stream, killing closes it. What a driver can do wrong is asked for with [`Behaviour`].

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::MachineId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;

use super::snapshot::{MEMORY_FILE, STATE_FILE};
use super::{
    AdoptError, AdoptRequest, BootError, BootRequest, Border, Capabilities, ControlError, EndCause, Exit,
    GuestStream, Machine, MemoryBackend, ProcessId, RestoreError, RestoreRequest, SnapshotError,
    SnapshotKind, Vmm, VmmEvent, VmmExit,
};

/// What goes wrong with the machines that are booted from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Nothing.
    Healthy,
    /// The monitor ends in boot with these last words.
    DieInBoot(String),
    /// The machine runs, and its guest never opens its end of the stream.
    NeverSayHello,
    /// The machine runs, and its snapshots fail as on a full disk.
    FailSnapshots,
}

/// The guest's end of a stream that somebody opened.
#[derive(Debug)]
pub struct GuestEnd {
    /// The machine.
    pub id: MachineId,
    /// What the guest reads and writes.
    pub stream: UnixStream,
}

/// Where the guests' ends of streams arrive, in the order of their opening.
pub type Guests = mpsc::Receiver<GuestEnd>;

/// The driver.
#[derive(Debug)]
pub struct Fake {
    capabilities: Capabilities,
    guests: mpsc::Sender<GuestEnd>,
    /// Guards the machines and what happens to the next one; tests and machine actors share it, and none of them is its owner.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    machines: HashMap<MachineId, Arc<Running>>,
    next_pid: i32,
}

#[derive(Debug)]
struct Running {
    id: MachineId,
    process: ProcessId,
    paused: watch::Sender<bool>,
    exit: watch::Sender<Option<VmmExit>>,
    events: broadcast::Sender<VmmEvent>,
    guests: mpsc::Sender<GuestEnd>,
    says_hello: bool,
    fails_snapshots: bool,
    pumps: Mutex<JoinSet<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    /// Makes a healthy driver, and the place where guests' ends arrive.
    pub fn new() -> (Self, Guests) {
        let (guests, arrived) = mpsc::channel(64);
        let fake = Self {
            capabilities: Capabilities {
                driver: "fake",
                version: "1".to_owned(),
                border: Border::Emulated,
                max_vcpus: 4,
                max_disks: 2,
                fingerprint: String::new(),
                snapshots: true,
                diff_snapshots: false,
                memory_changes: false,
                pager: false,
                devices: super::DeviceSupport::None,
                snapshots_end_stream: false,
            },
            guests,
            state: Mutex::new(State {
                behaviour: Behaviour::Healthy,
                machines: HashMap::new(),
                next_pid: 1_000_000_000,
            }),
        };
        (fake, arrived)
    }

    /// Sets what goes wrong with the machines that are booted from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        lock(&self.state).behaviour = behaviour;
    }

    /// Ends a machine the way its guest or its monitor would. A machine that is not there is passed over.
    pub fn end(&self, id: MachineId, exit: Exit, cause: Option<EndCause>) {
        let running = lock(&self.state).machines.get(&id).cloned();
        if let Some(running) = running {
            running.end(exit, cause);
        }
    }
}

impl Fake {
    fn begin(&self, request: &BootRequest, paused: bool) -> Result<FakeVm, BootError> {
        let mut state = lock(&self.state);
        if let Behaviour::DieInBoot(last_words) = &state.behaviour {
            return Err(BootError::Died {
                id: request.id,
                exit: Exit::Code(1),
                last_words: last_words.clone(),
            });
        }
        state.next_pid += 1;
        let running = Arc::new(Running {
            id: request.id,
            process: ProcessId {
                pid: state.next_pid,
                start_time: 1,
            },
            paused: watch::Sender::new(paused),
            exit: watch::Sender::new(None),
            events: broadcast::Sender::new(64),
            guests: self.guests.clone(),
            says_hello: state.behaviour != Behaviour::NeverSayHello,
            fails_snapshots: state.behaviour == Behaviour::FailSnapshots,
            pumps: Mutex::new(JoinSet::new()),
        });
        state.machines.insert(request.id, Arc::clone(&running));
        Ok(FakeVm(running))
    }
}

impl Running {
    /// Ends the machine once; the first end counts.
    fn end(&self, exit: Exit, cause: Option<EndCause>) -> VmmExit {
        let ended = VmmExit {
            exit,
            cause,
            last_words: String::new(),
        };
        self.exit.send_if_modified(|exit| match exit {
            Some(_) => false,
            None => {
                *exit = Some(ended.clone());
                true
            }
        });
        if let Some(cause) = cause {
            let _ = self.events.send(VmmEvent::Ending(cause));
        }
        lock(&self.pumps).abort_all();
        self.exit.borrow().clone().unwrap_or(ended)
    }

    fn is_over(&self) -> bool {
        self.exit.borrow().is_some()
    }

    fn set_paused(&self, paused: bool) -> Result<(), ControlError> {
        if self.is_over() {
            return Err(ControlError::Ended);
        }
        if self.paused.send_replace(paused) != paused {
            let event = if paused {
                VmmEvent::Paused
            } else {
                VmmEvent::Resumed
            };
            let _ = self.events.send(event);
        }
        Ok(())
    }
}

/// Carries bytes one way while the machine runs.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut paused: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        let runs = paused.wait_for(|paused| !paused).await.is_ok();
        if count == 0 || !runs || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

impl Vmm for Fake {
    type Machine = FakeVm;

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn boot(&self, request: &BootRequest) -> Result<FakeVm, BootError> {
        self.begin(request, false)
    }

    async fn restore(&self, request: &RestoreRequest) -> Result<FakeVm, RestoreError> {
        if request.memory != MemoryBackend::File {
            return Err(RestoreError::Unsupported {
                driver: "fake",
                what: "from a pager",
            });
        }
        for name in [STATE_FILE, MEMORY_FILE] {
            let path = request.snapshot.join(name);
            std::fs::read(&path).map_err(RestoreError::read(&path))?;
        }
        Ok(self.begin(&request.boot, true)?)
    }

    async fn adopt(&self, request: &AdoptRequest) -> Result<FakeVm, AdoptError> {
        let found = lock(&self.state).machines.get(&request.id).cloned();
        found
            .filter(|running| running.process == request.process && !running.is_over())
            .map(FakeVm)
            .ok_or(AdoptError::Gone {
                id: request.id,
                process: request.process,
            })
    }
}

/// A machine that is not there.
#[derive(Debug)]
pub struct FakeVm(Arc<Running>);

impl Machine for FakeVm {
    fn process(&self) -> ProcessId {
        self.0.process
    }

    async fn connect_guest(&self) -> io::Result<GuestStream> {
        if self.0.is_over() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let ((node, node_side), (guest_side, guest)) = (UnixStream::pair()?, UnixStream::pair()?);
        let (from_node, to_node) = node_side.into_split();
        if !self.0.says_hello {
            // Held open, and never read.
            lock(&self.0.pumps).spawn(async move {
                let _held = (from_node, to_node);
                std::future::pending::<()>().await;
            });
            return Ok(GuestStream::new(node));
        }
        let (from_guest, to_guest) = guest_side.into_split();
        {
            let mut pumps = lock(&self.0.pumps);
            pumps.spawn(pump(from_node, to_guest, self.0.paused.subscribe()));
            pumps.spawn(pump(from_guest, to_node, self.0.paused.subscribe()));
        }
        let id = self.0.id;
        // A test that does not play guests has dropped the receiver; then nobody answers.
        let _ = self.0.guests.send(GuestEnd { id, stream: guest }).await;
        Ok(GuestStream::new(node))
    }

    async fn pause(&self) -> Result<(), ControlError> {
        self.0.set_paused(true)
    }

    async fn resume(&self) -> Result<(), ControlError> {
        self.0.set_paused(false)
    }

    async fn snapshot(&self, directory: &Path, kind: SnapshotKind) -> Result<(), SnapshotError> {
        if kind == SnapshotKind::Diff {
            return Err(SnapshotError::Unsupported {
                driver: "fake",
                what: "what has changed only",
            });
        }
        let path = directory.join(STATE_FILE);
        if self.0.fails_snapshots {
            return Err(SnapshotError::write(&path)(io::ErrorKind::StorageFull.into()));
        }
        self.0.set_paused(true)?;
        std::fs::write(&path, b"state").map_err(SnapshotError::write(&path))?;
        let path = directory.join(MEMORY_FILE);
        std::fs::write(&path, b"memory").map_err(SnapshotError::write(&path))
    }

    fn events(&self) -> broadcast::Receiver<VmmEvent> {
        self.0.events.subscribe()
    }

    async fn quit(&self, _grace: Duration) -> io::Result<VmmExit> {
        Ok(self.0.end(Exit::Code(0), Some(EndCause::Quit)))
    }

    async fn kill(&self) -> io::Result<VmmExit> {
        Ok(self.0.end(Exit::Signal(9), None))
    }

    async fn wait(&self) -> io::Result<VmmExit> {
        let mut exit = self.0.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        ended.clone().ok_or_else(|| io::ErrorKind::Other.into())
    }
}
