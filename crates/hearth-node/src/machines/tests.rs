//! Registry, actors and lives over the driver without machines; the test plays the guests (`guest`).

mod guest;
mod restart;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_api::v1::MachineSpec;
use hearth_guest_protocol::message::Stop;
use hearth_machine::{ByteSize, DriverChoice, HostLimits, Signal, State};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::*;
use crate::host::cgroup::Groups;
use crate::images::Images;
use crate::layout::Layout;
use crate::setup::{Artefacts, KernelSource, SetupRequest, tests as samples};
use crate::snapshots::{Snapshots, Templates};
use crate::storage::Disks;
use crate::vmm::fake::{Behaviour, Fake};
use crate::vmm::{Driver, Exit};

const DISK: ByteSize = ByteSize::from_mib(16);
const GRACE: Duration = Duration::from_secs(7);

/// A node's machines, and what their guests were told.
struct Bench {
    layout: Layout,
    machines: Machines,
    stops: mpsc::UnboundedReceiver<Stop>,
}

fn layout(root: &Path) -> Layout {
    Layout::new(root.join("data"), root.join("run"), root.join("memory"))
}

/// Sets up what a node has before its first machine: a kernel, an agent, an image, an empty disk.
async fn prepare(root: &Path) {
    let layout = layout(root);
    let file = |name: &str, content: Vec<u8>| {
        let path = root.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let request = SetupRequest {
        kernel: KernelSource::File {
            kernel: file("vmlinux", samples::small_kernel("6.12.0-own")),
            modules: None,
        },
        agent: Some(file("agent", samples::small_agent(1))),
    };
    Artefacts::open(&layout).run(request, |_| {}).await.unwrap();
    std::fs::create_dir_all(root.join("image/bin")).unwrap();
    let images = Images::open(&layout).await.unwrap();
    images.pull(&image(root), None, Arc::new(|_| {})).await.unwrap();
    // Nothing mounts it, so mkfs need not be here.
    std::fs::create_dir_all(layout.empty_disks()).unwrap();
    let empty = layout.empty_disks().join(format!("ext4-v2-{}.img", DISK.bytes()));
    std::fs::File::create(empty)
        .unwrap()
        .set_len(DISK.bytes())
        .unwrap();
}

fn image(root: &Path) -> String {
    format!("dir:{}", root.join("image").display())
}

/// The driver of a bench's node.
struct OfFake(Arc<Driver>);

impl std::ops::Deref for OfFake {
    type Target = Fake;

    fn deref(&self) -> &Fake {
        match &*self.0 {
            Driver::Fake(fake) => fake,
            other => panic!("{other:?}"),
        }
    }
}

impl Bench {
    async fn new(root: &TempDir) -> Self {
        prepare(root.path()).await;
        Self::node(root.path(), Pace::default(), 4).await
    }

    /// Starts a node on what is there.
    async fn node(root: &Path, pace: Pace, processors: u32) -> Self {
        Self::node_in_boot(root, pace, processors, "this boot").await
    }

    /// Starts a node on what is there, in a named boot of the host.
    async fn node_in_boot(root: &Path, pace: Pace, processors: u32, host_boot: &str) -> Self {
        let layout = layout(root);
        let (fake, guests) = Fake::new();
        let (stops, told) = mpsc::unbounded_channel();
        tokio::spawn(guest::play(guests, stops));
        let tasks = TaskTracker::new();
        let parts = Parts {
            layout: layout.clone(),
            artefacts: Artefacts::open(&layout),
            images: Images::open(&layout).await.unwrap(),
            disks: Disks::new(layout.empty_disks()),
            templates: Templates::open(layout.templates()),
            standbys: Standbys::default(),
            snapshots: Arc::new(Snapshots::open(layout.snapshots())),
            drivers: Drivers::only(Driver::Fake(fake)),
            events: EventLog::open(layout.data().join("events.jsonl")),
            pagers: Pagers::open(layout.pagers(), tasks.clone()),
            networks: crate::network::Networks::open(&layout, tasks.clone()),
            tasks,
            pace,
            host_boot: host_boot.to_owned(),
            groups: Groups::default(),
        };
        let memory = ByteSize::from_mib(1024);
        let host = HostLimits {
            memory,
            guest_memory: memory,
            processors,
        };
        Self {
            layout,
            machines: Machines::new(Arc::new(parts), host),
            stops: told,
        }
    }

    async fn fake(&self) -> OfFake {
        let selected = self.machines.parts().drivers.select(DriverChoice::Auto).await;
        OfFake(selected.unwrap().driver)
    }

    async fn try_create(
        &self,
        name: &str,
        command: &str,
        change: impl FnOnce(&mut MachineSpec),
    ) -> Result<Machine, CreateError> {
        let root = self.layout.data().parent().unwrap();
        let mut spec = MachineSpec {
            image: image(root),
            command: vec![command.to_owned()],
            disk_bytes: Some(DISK.bytes()),
            ..MachineSpec::default()
        };
        change(&mut spec);
        let new = NewMachine {
            name: Some(name.to_owned()),
            spec,
            secrets: BTreeMap::new(),
            owner: None,
        };
        self.machines.create(new).await
    }

    async fn create(&self, name: &str, command: &str) -> Machine {
        self.try_create(name, command, |_| {}).await.unwrap()
    }

    /// Creates and starts a machine that runs until it is stopped.
    async fn running(&self, name: &str) -> Machine {
        let machine = self.create(name, "run").await;
        machine.start(None).await.unwrap();
        assert_eq!(machine.view().state, State::Running);
        machine
    }

    fn directory(&self, machine: &Machine) -> PathBuf {
        self.layout.machines_data().join(&machine.view().record.id)
    }

    /// Checks that nothing of a machine is in memory or among the sockets.
    fn assert_released(&self, machine: &Machine) {
        let id = machine.view().record.id.clone();
        assert!(!self.layout.run().join("m").join(&id).exists());
        assert!(!self.layout.memory().join(&id).exists());
    }
}

fn exited(machine: &Machine) -> u8 {
    match machine.view().state {
        State::Exited(ended) => ended.exit_code,
        other => panic!("{other:?}"),
    }
}

fn failure(machine: &Machine) -> String {
    match machine.view().state {
        State::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_workload_prints_and_ends() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.create("one", "exit").await;
    let mut output = machine.attach().await.unwrap().output;
    machine.start(None).await.unwrap();
    let (_, bytes) = output.recv().await.unwrap();
    assert_eq!(&bytes[..], b"hello");
    machine.ended().await;
    assert_eq!(exited(&machine), 3);
    bench.assert_released(&machine);
    let names: Vec<_> = machine
        .view()
        .record
        .stages
        .iter()
        .map(|s| s.name.clone())
        .collect();
    let expected = ["disk", "vmm", "kernel", "configure", "template", "renew", "start"];
    assert_eq!(names, expected);
}

#[tokio::test]
async fn stop_sends_the_stop_signal_and_ends_exited() {
    let root = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&root).await;
    let machine = bench
        .try_create("one", "run", |spec| spec.stop_signal = Some("SIGINT".to_owned()))
        .await
        .unwrap();
    machine.start(None).await.unwrap();
    machine.stop(GRACE).await.unwrap();
    let told = bench.stops.recv().await.unwrap();
    assert_eq!((told.signal, told.grace_ms), (2, 7000));
    assert_eq!(exited(&machine), 130);
    bench.assert_released(&machine);
    // What has stopped may be stopped again, and started again.
    machine.stop(GRACE).await.unwrap();
    machine.start(None).await.unwrap();
    assert_eq!(machine.view().state, State::Running);
}

#[tokio::test]
async fn kill_gives_the_workload_no_time() {
    let root = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(&root).await;
    let machine = bench.running("one").await;
    machine.kill(Signal::KILL).await.unwrap();
    assert_eq!(exited(&machine), 137);
    let told = bench.stops.recv().await.unwrap();
    assert_eq!((told.signal, told.grace_ms), (0, 0));
    bench.assert_released(&machine);
    let refused = machine.kill(Signal::KILL).await.unwrap_err();
    assert!(matches!(refused, MachineError::NotRunning { .. }), "{refused}");
}

#[tokio::test]
async fn a_monitor_that_dies_in_boot_leaves_its_last_words() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.create("one", "run").await;
    let behaviour = Behaviour::DieInBoot("no such disk".to_owned());
    bench.fake().await.behave(behaviour);
    assert!(machine.start(None).await.is_err());
    assert!(
        failure(&machine).contains("no such disk"),
        "{}",
        failure(&machine)
    );
    bench.assert_released(&machine);
    bench.fake().await.behave(Behaviour::Healthy);
    machine.start(None).await.unwrap();
    assert_eq!(machine.view().state, State::Running);
}

#[tokio::test]
async fn a_monitor_that_dies_later_fails_the_machine() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.running("one").await;
    let id = machine.view().record.id.parse().unwrap();
    bench.fake().await.end(id, Exit::Signal(11), None);
    machine.ended().await;
    assert_eq!(failure(&machine), "the virtual machine died");
    bench.assert_released(&machine);
}

#[tokio::test]
async fn a_guest_that_never_says_hello_is_given_up() {
    let root = tempfile::tempdir().unwrap();
    prepare(root.path()).await;
    let pace = Pace::expecting(Duration::from_millis(50));
    let bench = Bench::node(root.path(), pace, 4).await;
    let machine = bench.create("one", "run").await;
    bench.fake().await.behave(Behaviour::NeverSayHello);
    let error = machine.start(None).await.unwrap_err();
    assert!(
        matches!(error, MachineError::Start(StartError::NoHello { .. })),
        "{error}"
    );
    assert!(failure(&machine).contains("did not say hello"));
    bench.assert_released(&machine);
}

#[tokio::test]
async fn what_runs_is_removed_by_force_only() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.running("one").await;
    let refused = machine.remove(false).await.unwrap_err();
    assert!(matches!(refused, MachineError::Refused(_)), "{refused}");
    machine.remove(true).await.unwrap();
    assert!(!bench.directory(&machine).exists());
    bench.assert_released(&machine);
    assert!(matches!(
        bench.machines.find("one"),
        Err(MachineError::NotFound(_))
    ));
}

#[tokio::test]
async fn a_name_belongs_to_one_machine() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let first = bench.create("one", "run").await;
    let taken = bench.try_create("one", "run", |_| {}).await.unwrap_err();
    assert!(matches!(taken, CreateError::NameTaken { .. }), "{taken}");
    let left = std::fs::read_dir(bench.layout.machines_data()).unwrap().count();
    assert_eq!(left, 1, "the refused one left its directory");
    first.remove(false).await.unwrap();
    bench.create("one", "run").await;
}

#[tokio::test]
async fn a_machine_of_rm_leaves_no_directory() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench
        .try_create("one", "exit", |spec| spec.auto_remove = true)
        .await
        .unwrap();
    let directory = bench.directory(&machine);
    machine.start(None).await.unwrap();
    machine.removed().await;
    assert!(!directory.exists());
    // The exit code is told all the same.
    let end = machine.ended().await.end;
    assert!(
        matches!(&end, Some(State::Exited(ended)) if ended.exit_code == 3),
        "{end:?}"
    );
}

#[tokio::test]
async fn every_change_is_written_with_a_higher_generation() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.create("one", "run").await;
    let written = || {
        let bytes = std::fs::read(bench.directory(&machine).join("record.json")).unwrap();
        let record: crate::records::MachineRecord = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(record, *machine.view().record);
        record.generation
    };
    let mut generations = vec![written()];
    machine.start(None).await.unwrap();
    generations.push(written());
    machine.stop(GRACE).await.unwrap();
    generations.push(written());
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
}

/// Runs a node until `work` has returned, and then nothing of it any more: as `kill -9` does it.
fn killed_after<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(work)
}

#[test]
fn a_new_node_brings_machines_back_and_releases_what_the_dead_had() {
    let root = tempfile::tempdir().unwrap();
    let (removed, kept) = killed_after(async {
        let bench = Bench::new(&root).await;
        bench.running("alive").await;
        let ended = bench.create("ended", "exit").await;
        ended.start(None).await.unwrap();
        ended.ended().await;
        let removed = bench
            .try_create("removed", "run", |spec| spec.auto_remove = true)
            .await
            .unwrap();
        removed.start(None).await.unwrap();
        bench
            .try_create("large", "run", |spec| spec.cpu_milli = Some(4000))
            .await
            .unwrap();
        let run = bench.layout.run().join("m").join(&removed.view().record.id);
        assert!(run.exists());
        // As of a node that dies in a rollback.
        std::fs::write(bench.directory(&ended).join("disk.rollback"), "a disk").unwrap();
        (bench.directory(&removed), bench.directory(&ended))
    });
    killed_after(async {
        let bench = Bench::node(root.path(), Pace::default(), 1).await;
        bench.machines.recover().await.unwrap();
        let find = |name: &str| bench.machines.find(name).unwrap();
        // This driver's machines die with their node.
        assert!(failure(&find("alive")).contains("is gone"));
        bench.assert_released(&find("alive"));
        assert_eq!(exited(&find("ended")), 3);
        if let Ok(machine) = bench.machines.find("removed") {
            machine.removed().await;
        }
        assert!(!removed.exists());
        assert!(kept.exists() && !kept.join("disk.rollback").exists());
        let refused = find("large").start(None).await.unwrap_err();
        assert!(
            matches!(refused, MachineError::Start(StartError::HostShrank(_))),
            "{refused}"
        );
        find("alive").start(None).await.unwrap();
        assert_eq!(find("alive").view().state, State::Running);
    });
}

#[test]
fn machines_of_an_earlier_boot_of_the_host_are_not_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let brief = killed_after(async {
        let bench = Bench::new(&root).await;
        bench.running("alive").await;
        let brief = bench
            .try_create("brief", "run", |spec| spec.auto_remove = true)
            .await
            .unwrap();
        brief.start(None).await.unwrap();
        bench.directory(&brief)
    });
    killed_after(async {
        let bench = Bench::node_in_boot(root.path(), Pace::default(), 4, "the next boot").await;
        bench.machines.recover().await.unwrap();
        let alive = bench.machines.find("alive").unwrap();
        assert_eq!(failure(&alive), "the host was restarted");
        bench.assert_released(&alive);
        assert!(bench.machines.find("brief").is_err() && !brief.exists());
        alive.start(None).await.unwrap();
        assert_eq!(alive.view().state, State::Running);
    });
    killed_after(async {
        // Started in that boot, it is looked for again.
        let bench = Bench::node_in_boot(root.path(), Pace::default(), 4, "the next boot").await;
        bench.machines.recover().await.unwrap();
        assert!(failure(&bench.machines.find("alive").unwrap()).contains("is gone"));
    });
}

#[tokio::test]
async fn a_start_that_cannot_be_written_down_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.create("m", "run").await;
    let in_the_way = bench.directory(&machine).join("record.new");
    std::fs::create_dir(&in_the_way).unwrap();
    let refused = machine.start(None).await.unwrap_err();
    assert!(
        matches!(refused, MachineError::Start(StartError::Record(_))),
        "{refused}"
    );
    assert_eq!(machine.view().state, State::Created);
    std::fs::remove_dir(&in_the_way).unwrap();
    machine.start(None).await.unwrap();
    assert_eq!(machine.view().state, State::Running);
}

#[tokio::test]
async fn a_record_that_could_not_be_written_is_written_once_it_can_be() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    let machine = bench.running("m").await;
    let directory = bench.directory(&machine);
    std::fs::create_dir(directory.join("record.new")).unwrap();
    machine.stop(GRACE).await.unwrap();
    let written = || std::fs::read_to_string(directory.join("record.json")).unwrap();
    assert!(written().contains("alive"), "{}", written());
    std::fs::remove_dir(directory.join("record.new")).unwrap();
    let told = async {
        while written().contains("alive") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    assert!(written().contains("exited"), "{}", written());
}

#[tokio::test]
async fn a_name_is_taken_before_anything_is_written_down() {
    let root = tempfile::tempdir().unwrap();
    let bench = Bench::new(&root).await;
    bench.create("m", "run").await;
    let before = std::fs::read_dir(bench.layout.machines_data()).unwrap().count();
    // In the way of any directory that would be made for it.
    let data = bench.layout.machines_data();
    let aside = bench.layout.data().join("aside");
    std::fs::rename(&data, &aside).unwrap();
    std::fs::write(&data, "").unwrap();
    let taken = bench.try_create("m", "run", |_| {}).await.unwrap_err();
    assert!(matches!(taken, CreateError::NameTaken { .. }), "{taken}");
    let unwritten = bench.try_create("n", "run", |_| {}).await.unwrap_err();
    assert!(matches!(unwritten, CreateError::Directory { .. }), "{unwritten}");
    std::fs::remove_file(&data).unwrap();
    std::fs::rename(&aside, &data).unwrap();
    bench.create("n", "run").await;
    assert_eq!(std::fs::read_dir(&data).unwrap().count(), before + 1);
}
