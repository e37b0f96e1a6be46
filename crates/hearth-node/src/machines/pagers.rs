//! The pagers of a node: one for each memory image of which machines were made with `--memory-backend pager`.
//!
//! ```text
//! RUN/pagers/NAME/socket    where Firecracker connects
//! RUN/pagers/NAME/record    process, image and machines, one a line: for the next node
//! ```
//! A pager is started with the first machine of its image and ended with the last. It outlives the node, which then finds it by its
//! record. Machines of a pager that dies are killed by what is left of it, and by the node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_machine::{Event, MachineId};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use super::life::{self, LifeEvent, Plan, USERS, chain};
use crate::host::process::ProcessId;
use crate::host::{files, own};
use crate::pager::handle::StartError;
use crate::pager::{Pager, PagerStart};
use crate::vmm::snapshot::MEMORY_FILE;
use crate::vmm::{MemoryBackend, Vm};

/// How long a pager may take to end behind its machines.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The names of a pager's files.
const SOCKET: &str = "socket";
const RECORD: &str = "record";

/// Says why there is no pager for a machine.
#[derive(Debug, thiserror::Error)]
pub enum PagersError {
    /// A file of it.
    #[error("cannot prepare a pager: {}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process.
    #[error("the pager does not start")]
    Start(#[from] StartError),
}

/// The pagers of a node.
#[derive(Debug)]
pub struct Pagers {
    directory: PathBuf,
    tasks: TaskTracker,
    /// Guards which machine is served by which pager; held while a pager is started, so that ten clones at once start one.
    kept: Mutex<Vec<Kept>>,
}

/// A memory image: its file, whatever its name is. A pager holds it, so that no other file can have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ImageFile {
    device: u64,
    inode: u64,
}

/// A pager with machines.
#[derive(Debug)]
struct Kept {
    place: PathBuf,
    process: ProcessId,
    image: ImageFile,
    machines: BTreeSet<MachineId>,
    /// Tells the task that watches it to end it.
    unused: oneshot::Sender<()>,
    ended: Ended,
}

/// Becomes how a pager ended, when it does.
pub(super) type Ended = watch::Receiver<Option<String>>;

impl Pagers {
    /// Finds the pagers that an earlier node has left; those without machines are ended.
    pub fn open(directory: PathBuf, tasks: TaskTracker) -> Self {
        let pagers = Self {
            directory,
            tasks,
            kept: Mutex::default(),
        };
        for entry in fs::read_dir(&pagers.directory).into_iter().flatten().flatten() {
            match pagers.find(&entry.path()) {
                Ok(Some(kept)) if kept.machines.is_empty() => end(kept),
                Ok(Some(kept)) => pagers.lock().push(kept),
                Ok(None) => remove(&entry.path()),
                Err(error) => {
                    tracing::warn!(path = %entry.path().display(), %error, "a pager is not found again");
                    remove(&entry.path());
                }
            }
        }
        pagers
    }

    fn find(&self, place: &Path) -> io::Result<Option<Kept>> {
        let text = fs::read_to_string(place.join(RECORD))?;
        let (process, image, machines) =
            parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its record is none"))?;
        let found = Pager::find(process, place.join(SOCKET))?;
        Ok(found.map(|pager| self.keep(pager, place.to_owned(), image, machines)))
    }

    /// Has a machine's memory served, and returns where it connects. [`Pagers::release`] ends that.
    ///
    /// # Errors
    /// Returns [`PagersError`].
    pub(super) fn serve(
        &self,
        id: MachineId,
        snapshot: &Path,
        memory_bytes: u64,
    ) -> Result<PathBuf, PagersError> {
        let image = snapshot.join(MEMORY_FILE);
        let metadata = fs::metadata(&image).map_err(at(&image))?;
        let file = ImageFile {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        let mut all = self.lock();
        let index = match all.iter().position(|kept| kept.image == file && kept.runs()) {
            Some(index) => index,
            None => {
                all.push(self.start(snapshot, &image, file, memory_bytes)?);
                all.len() - 1
            }
        };
        let kept = &mut all[index];
        kept.machines.insert(id);
        kept.write().map_err(at(&kept.place))?;
        Ok(kept.place.join(SOCKET))
    }

    fn start(
        &self,
        snapshot: &Path,
        image: &Path,
        file: ImageFile,
        length: u64,
    ) -> Result<Kept, PagersError> {
        let mut name = [0; 6];
        getrandom::fill(&mut name)
            .map_err(io::Error::other)
            .map_err(at(&self.directory))?;
        let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let (place, learned) = (self.directory.join(name), snapshot.join("pager"));
        files::make_directory(&self.directory, own::passage_mode()).map_err(at(&place))?;
        files::make_directory(&place, own::passage_mode()).map_err(at(&place))?;
        files::make_directory(&learned, 0o700).map_err(at(&learned))?;
        let started = Pager::start(&PagerStart {
            image: image.to_owned(),
            length,
            socket: place.join(SOCKET),
            working_set: Some(learned.join("working-set")),
            users: own::is_root().then_some(USERS),
            log: snapshot.join("pager.log"),
        });
        let pager = started.inspect_err(|_| remove(&place))?;
        Ok(self.keep(pager, place, file, BTreeSet::new()))
    }

    fn keep(&self, pager: Pager, place: PathBuf, image: ImageFile, machines: BTreeSet<MachineId>) -> Kept {
        let (unused, told) = oneshot::channel();
        let (tell, ended) = watch::channel(None);
        let process = pager.id();
        self.tasks.spawn(watch(pager, place.clone(), told, tell));
        Kept {
            place,
            process,
            image,
            machines,
            unused,
            ended,
        }
    }

    /// Takes note that a machine is gone; the pager goes with its last one.
    pub(super) fn release(&self, id: MachineId) {
        let mut all = self.lock();
        while let Some(index) = all.iter().position(|kept| kept.machines.contains(&id)) {
            all[index].machines.remove(&id);
            if all[index].machines.is_empty() {
                end(all.swap_remove(index));
            } else if let Err(error) = all[index].write() {
                // The next node asks whether the machine is there.
                tracing::warn!(machine = %id, %error, "its pager still counts it");
            }
        }
    }

    /// Returns how to hear of the end of a machine's pager, where it has one.
    pub(super) fn of(&self, id: MachineId) -> Option<Ended> {
        let all = self.lock();
        let kept = all.iter().find(|kept| kept.machines.contains(&id));
        kept.map(|kept| kept.ended.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // Every update is one call on the list.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn runs(&self) -> bool {
        self.ended.borrow().is_none()
    }

    fn write(&self) -> io::Result<()> {
        let text = record(self.process, self.image, &self.machines);
        files::write_atomic(&self.place.join(RECORD), text.as_bytes(), files::PRIVATE)
    }
}

fn end(kept: Kept) {
    // Fails only when it has ended already.
    let _ = kept.unused.send(());
}

/// Waits for a pager's end, or until it has no machine any more.
async fn watch(
    pager: Pager,
    place: PathBuf,
    unused: oneshot::Receiver<()>,
    ended: watch::Sender<Option<String>>,
) {
    let unused = async {
        // The node ends, and pagers stay.
        if unused.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let exit = tokio::select! {
        exit = pager.ended() => Some(exit),
        () = unused => None,
    };
    match exit {
        Some(exit) => {
            let how = exit.map_or_else(|error| error.to_string(), |exit| exit.to_string());
            ended.send_replace(Some(format!(
                "the pager that its memory came from has ended ({how})"
            )));
        }
        None => {
            if let Err(error) = pager.stop().await {
                tracing::error!(pager = %place.display(), %error, "a pager does not end");
            }
        }
    }
    remove(&place);
}

/// Says where the memory of a machine that is restored comes from, and has it served there. The files must stay until its guest has
/// answered: then its pager has opened them.
///
/// # Errors
/// Returns [`PagersError`].
pub(super) fn memory(plan: &Plan, snapshot: &Path) -> Result<MemoryBackend, PagersError> {
    match plan.spec.memory_backend {
        hearth_machine::MemoryBackend::File => Ok(MemoryBackend::File),
        hearth_machine::MemoryBackend::Pager => {
            let bytes = plan.spec.shape().memory_mib << 20;
            let socket = plan.parts.pagers.serve(plan.id, snapshot, bytes)?;
            Ok(MemoryBackend::Pager { socket })
        }
    }
}

/// Kills a machine when its pager ends, and returns never: its life sees its end.
pub(super) async fn end_with(pager: Option<Ended>, vm: &Vm, id: MachineId) -> std::convert::Infallible {
    if let Some(mut pager) = pager
        && pager.wait_for(Option::is_some).await.is_ok()
    {
        life::end_vm(vm, id).await;
    }
    std::future::pending().await
}

/// Says why a machine died, where that is its pager's end.
pub(super) async fn explained(over: LifeEvent, pager: Option<Ended>) -> LifeEvent {
    let (
        LifeEvent::Over {
            event: Event::VmmDied { .. },
            ..
        },
        Some(mut pager),
    ) = (&over, pager)
    else {
        return over;
    };
    // Machines die first.
    let ended = tokio::time::timeout(LAST_BREATH, pager.wait_for(Option::is_some)).await;
    match ended.map(|ended| ended.map(|how| how.clone())) {
        Ok(Ok(Some(reason))) => life::over(Event::VmmDied { reason }),
        _ => over,
    }
}

fn record(process: ProcessId, image: ImageFile, machines: &BTreeSet<MachineId>) -> String {
    let ids: String = machines.iter().map(|id| format!("{id}\n")).collect();
    let ProcessId { pid, start_time } = process;
    format!("{pid} {start_time}\n{} {}\n{ids}", image.device, image.inode)
}

fn parse(text: &str) -> Option<(ProcessId, ImageFile, BTreeSet<MachineId>)> {
    let mut lines = text.lines();
    let (pid, start_time) = lines.next()?.split_once(' ')?;
    let (device, inode) = lines.next()?.split_once(' ')?;
    let process = ProcessId {
        pid: pid.parse().ok()?,
        start_time: start_time.parse().ok()?,
    };
    let image = ImageFile {
        device: device.parse().ok()?,
        inode: inode.parse().ok()?,
    };
    let machines = lines.map(|line| line.parse().ok()).collect::<Option<_>>()?;
    Some((process, image, machines))
}

fn remove(place: &Path) {
    if let Err(error) = files::remove_tree(place) {
        tracing::error!(path = %place.display(), error = %chain(&error), "left behind");
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PagersError {
    let path = path.to_owned();
    move |source| PagersError::Prepare { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_of_a_pager_is_read_again() {
        let process = ProcessId {
            pid: 7,
            start_time: 99,
        };
        let image = ImageFile { device: 3, inode: 4 };
        for machines in [vec![], vec!["0123456789ab"], vec!["0123456789ab", "00000000000f"]] {
            let machines = machines.into_iter().map(|id| id.parse().unwrap()).collect();
            let text = record(process, image, &machines);
            assert_eq!(parse(&text), Some((process, image, machines)));
        }
        for text in ["", "7 99", "7 99\n3", "7 x\n3 4", "7 99\n3 4\nno machine\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[tokio::test]
    async fn what_is_left_of_a_pager_that_has_ended_is_swept() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [("gone", "1 1\n2 3\n0123456789ab\n"), ("broken", "?")] {
            let place = root.path().join(name);
            fs::create_dir(&place).unwrap();
            fs::write(place.join(RECORD), text).unwrap();
        }
        let pagers = Pagers::open(root.path().to_owned(), TaskTracker::new());
        assert!(pagers.of("0123456789ab".parse().unwrap()).is_none());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
