//! What every driver must keep to, as checks that each driver's tests run against a machine of its own.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Longer than anything here may take on a busy host.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Long enough for an echo on a busy host, short enough to wait for in vain.
const SILENCE: Duration = Duration::from_millis(500);

/// Runs `check` under the limit.
pub(super) async fn within<T>(check: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, check)
        .await
        .expect("it took too long")
}

pub(super) async fn next(events: &mut broadcast::Receiver<VmmEvent>) -> VmmEvent {
    within(events.recv()).await.expect("the monitor tells it")
}

/// A machine is paused and goes on, and each may be asked for twice.
pub(super) async fn pause_and_resume(vm: &Vm) {
    let mut events = vm.events();
    vm.pause().await.unwrap();
    assert_eq!(next(&mut events).await, VmmEvent::Paused);
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(next(&mut events).await, VmmEvent::Resumed);
    vm.resume().await.unwrap();
}

/// The guest answers with what it is sent, on this stream and on a second one, and not while it is paused.
pub(super) async fn stream(vm: &Vm) {
    for _ in 0..2 {
        let mut stream = within(vm.connect_guest()).await.unwrap();
        echo(&mut stream, b"hello\n").await;
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let mut back = vec![0; bytes.len()];
        let (sent, received) =
            within(async { tokio::join!(write.write_all(&bytes), read.read_exact(&mut back)) }).await;
        sent.unwrap();
        received.unwrap();
        assert!(back == bytes, "the stream changes what it carries");
    }
    let mut stream = within(vm.connect_guest()).await.unwrap();
    echo(&mut stream, b"before\n").await;
    vm.pause().await.unwrap();
    stream.write_all(b"after\n").await.unwrap();
    let mut answer = [0; 6];
    let early = tokio::time::timeout(SILENCE, stream.read(&mut answer)).await;
    assert!(early.is_err(), "a paused guest answers");
    vm.resume().await.unwrap();
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"after\n");
}

pub(super) async fn echo(stream: &mut GuestStream, words: &[u8]) {
    stream.write_all(words).await.unwrap();
    let mut answer = vec![0; words.len()];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, words);
}

/// A dropped machine is found again, and once it has been killed it is not. Returns how it ended.
pub(super) async fn adopt_and_kill(driver: &Driver, vm: Vm, dirs: &MachineDirs, id: MachineId) -> VmmExit {
    let request = AdoptRequest {
        id,
        process: vm.process(),
        dirs: dirs.clone(),
    };
    drop(vm);
    let vm = within(driver.adopt(&request)).await.unwrap();
    assert_eq!(vm.process(), request.process);
    pause_and_resume(&vm).await;
    let (killed, waited) = within(async { tokio::join!(vm.kill(), vm.wait()) }).await;
    let exit = killed.unwrap();
    assert_eq!(waited.unwrap(), exit, "two waiters see the same end");
    assert_eq!(
        within(vm.wait()).await.unwrap(),
        exit,
        "the end can be asked for again"
    );
    assert_eq!(within(vm.kill()).await.unwrap(), exit, "the dead can be killed");
    assert!(matches!(vm.pause().await, Err(ControlError::Ended)));
    assert!(vm.connect_guest().await.is_err());
    let gone = within(driver.adopt(&request)).await.unwrap_err();
    assert!(matches!(gone, AdoptError::Gone { .. }), "{gone}");
    exit
}

/// Makes an empty directory for a snapshot beside the files of a machine.
pub(super) fn place_for_snapshot(dirs: &MachineDirs, name: &str) -> PathBuf {
    let place = dirs.data.join(name);
    std::fs::create_dir(&place).unwrap();
    place
}

/// Makes the request for another machine of the same form, with directories of its own.
pub(super) fn another(request: &BootRequest, number: u8) -> BootRequest {
    let root = request.dirs.data.join(format!("another{number}"));
    let (data, run) = (root.join("data"), root.join("run"));
    for directory in [&data, &run] {
        std::fs::create_dir_all(directory).unwrap();
    }
    BootRequest {
        id: MachineId::from_random([number; 6]),
        dirs: MachineDirs {
            data,
            run,
            memory: root.join("memory"),
        },
        ..request.clone()
    }
}

/// A machine stands still behind a snapshot and goes on when it is told to; machines that are restored from it do so as well,
/// and snapshots of those are as good.
pub(super) async fn snapshots(driver: &Driver, vm: &Vm, request: &BootRequest) -> Vec<(BootRequest, Vm)> {
    let mut restored = Vec::new();
    let mut source = vm;
    for number in 1..=2 {
        let place = place_for_snapshot(&request.dirs, &format!("snapshot{number}"));
        let mut events = source.events();
        within(source.snapshot(&place, SnapshotKind::Full)).await.unwrap();
        assert_eq!(next(&mut events).await, VmmEvent::Paused);
        source.resume().await.unwrap();
        assert_eq!(next(&mut events).await, VmmEvent::Resumed);

        let boot = another(request, number);
        let asked = RestoreRequest {
            boot: boot.clone(),
            snapshot: place.clone(),
            memory: MemoryBackend::File,
            at_once: false,
        };
        let clone = within(driver.restore(&asked)).await.unwrap();
        std::fs::remove_dir_all(&place).unwrap();
        let mut events = clone.events();
        clone.pause().await.unwrap();
        assert!(events.try_recv().is_err(), "it stands still already");
        clone.resume().await.unwrap();
        assert_eq!(next(&mut events).await, VmmEvent::Resumed);
        restored.push((boot, clone));
        source = &restored[restored.len() - 1].1;
    }
    restored
}

/// A snapshot that cannot be written leaves the machine as it was.
pub(super) async fn a_snapshot_that_fails_changes_nothing(vm: &Vm, nowhere: &Path) {
    let refused = within(vm.snapshot(nowhere, SnapshotKind::Full))
        .await
        .unwrap_err();
    assert!(matches!(refused, SnapshotError::Write { .. }), "{refused}");
    pause_and_resume(vm).await;
}

/// What a driver says that it cannot do is refused.
pub(super) async fn what_it_cannot_do_is_refused(driver: &Driver, vm: &Vm, request: &BootRequest) {
    let place = place_for_snapshot(&request.dirs, "refused");
    if !driver.capabilities().diff_snapshots {
        let refused = vm.snapshot(&place, SnapshotKind::Diff).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::Unsupported { .. }), "{refused}");
    }
    let asked = |memory| RestoreRequest {
        boot: another(request, 77),
        snapshot: place.clone(),
        memory,
        at_once: false,
    };
    if !driver.capabilities().pager {
        let socket = place.join("pager");
        let refused = driver.restore(&asked(MemoryBackend::Pager { socket })).await;
        assert!(matches!(refused, Err(RestoreError::Unsupported { .. })));
    }
    let nothing = driver.restore(&asked(MemoryBackend::File)).await;
    assert!(matches!(nothing, Err(RestoreError::Read { .. })));
}

/// A process with the same number and another start time is somebody else.
pub(super) async fn a_reused_number_is_not_adopted(
    driver: &Driver,
    vm: &Vm,
    dirs: &MachineDirs,
    id: MachineId,
) {
    let mut process = vm.process();
    process.start_time += 1;
    let request = AdoptRequest {
        id,
        process,
        dirs: dirs.clone(),
    };
    assert!(matches!(
        driver.adopt(&request).await,
        Err(AdoptError::Gone { .. })
    ));
}

mod of_the_fake {
    use super::super::fake::{Behaviour, Fake, Guests};
    use super::*;

    fn request() -> BootRequest {
        BootRequest {
            id: MachineId::from_random([7; 6]),
            shape: Shape {
                vcpus: 1,
                memory_mib: 64,
            },
            kernel: "/kernel".into(),
            initramfs: Some("/initramfs".into()),
            append: String::new(),
            tracked: false,
            disks: Vec::new(),
            devices: crate::vmm::Devices::default(),
            dirs: MachineDirs {
                data: "/data".into(),
                run: "/run".into(),
                memory: "/memory".into(),
            },
            user: None,
        }
    }

    fn driver() -> (Driver, Guests) {
        let (fake, guests) = Fake::new();
        (Driver::Fake(fake), guests)
    }

    /// Plays guests that answer with what they are sent.
    async fn play(mut guests: Guests) {
        while let Some(mut guest) = guests.recv().await {
            let (mut read, mut write) = guest.stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    }

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let (driver, guests) = driver();
        let request = request();
        let mut playing = tokio::task::JoinSet::new();
        playing.spawn(play(guests));
        let vm = driver.boot(&request).await.unwrap();
        pause_and_resume(&vm).await;
        stream(&vm).await;
        a_reused_number_is_not_adopted(&driver, &vm, &request.dirs, request.id).await;
        let exit = adopt_and_kill(&driver, vm, &request.dirs, request.id).await;
        assert_eq!(exit.exit, Exit::Signal(9));
    }

    #[tokio::test]
    async fn the_fake_takes_snapshots_and_restores() {
        let (driver, guests) = driver();
        let directory = tempfile::tempdir().unwrap();
        let request = BootRequest {
            dirs: MachineDirs {
                data: directory.path().to_owned(),
                ..request().dirs
            },
            ..request()
        };
        let mut playing = tokio::task::JoinSet::new();
        playing.spawn(play(guests));
        let vm = driver.boot(&request).await.unwrap();
        what_it_cannot_do_is_refused(&driver, &vm, &request).await;
        for (_, clone) in snapshots(&driver, &vm, &request).await {
            stream(&clone).await;
        }
        let Driver::Fake(fake) = &driver else {
            unreachable!()
        };
        fake.behave(Behaviour::FailSnapshots);
        let vm = driver.boot(&request).await.unwrap();
        a_snapshot_that_fails_changes_nothing(&vm, directory.path()).await;
    }

    #[tokio::test]
    async fn the_fake_dies_in_boot_when_told_to() {
        let (fake, _guests) = Fake::new();
        fake.behave(Behaviour::DieInBoot("no such device".to_owned()));
        let error = Driver::Fake(fake).boot(&request()).await.unwrap_err();
        assert!(
            error.to_string().ends_with("(exit code 1): no such device"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_silent_guest_takes_a_stream_and_says_nothing() {
        let (fake, mut guests) = Fake::new();
        fake.behave(Behaviour::NeverSayHello);
        let vm = Driver::Fake(fake).boot(&request()).await.unwrap();
        let mut stream = vm.connect_guest().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        assert!(tokio::time::timeout(SILENCE, stream.read_u8()).await.is_err());
        assert!(guests.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_fake_guest_can_end_its_machine() {
        let (fake, _guests) = Fake::new();
        let vm = fake.boot(&request()).await.unwrap();
        let mut events = vm.events();
        fake.end(request().id, Exit::Code(0), Some(EndCause::GuestShutdown));
        assert_eq!(next(&mut events).await, VmmEvent::Ending(EndCause::GuestShutdown));
        assert_eq!(
            within(vm.wait()).await.unwrap().cause,
            Some(EndCause::GuestShutdown)
        );
    }
}
