//! Several machines of one snapshot, and chains of snapshots. `HEARTH_E2E_SOAK=1` makes the counts large.

use std::os::unix::fs::MetadataExt;
use std::time::Instant;

use super::*;
use crate::host::command::HostCommand;
use crate::host::files;

fn is_soak() -> bool {
    std::env::var_os("HEARTH_E2E_SOAK").is_some_and(|value| value == "1")
}

/// Boots a machine, lets it answer, and takes a snapshot.
async fn snapshot_of(bench: &Bench) -> PathBuf {
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    let place = contract::place_for_snapshot(&bench.request.dirs, "template");
    within(vm.snapshot(&place, SnapshotKind::Full)).await.unwrap();
    within(vm.kill()).await.unwrap();
    bench.request.dirs.release().unwrap();
    place
}

/// Makes the request for a clone: a user, directories and a disk of its own.
fn clone_request(bench: &Bench, snapshot: &Path, number: u8) -> RestoreRequest {
    let mut boot = contract::another(&bench.request, number);
    // Another than that of any other test's clone.
    let mut id = bench.request.id.bytes();
    id[0] ^= number;
    boot.id = MachineId::from_random(id);
    boot.user = bench.request.user.map(|user| HostUser {
        uid: user.uid + 1 + u32::from(number),
        gid: user.gid + 1 + u32::from(number),
    });
    let disk = boot.dirs.data.join("disk.img");
    let _ = std::fs::remove_file(&disk);
    std::fs::copy(&bench.request.disks[0].path, &disk).unwrap();
    if let Some(user) = boot.user {
        std::os::unix::fs::chown(&disk, Some(user.uid), Some(user.gid)).unwrap();
    }
    boot.disks[0].path = disk;
    RestoreRequest {
        boot,
        snapshot: snapshot.to_owned(),
        memory: MemoryBackend::File,
        at_once: true,
    }
}

/// Restores a machine and waits for its first answer; returns how long that took.
async fn restored(bench: &Bench, request: &RestoreRequest) -> (Vm, Duration) {
    let begun = Instant::now();
    let vm = match within(bench.driver.restore(request)).await {
        Ok(vm) => vm,
        Err(error) => panic!("{error:?}: {}", machine::last_words(&request.boot.dirs)),
    };
    vm.resume().await.unwrap();
    let mut stream = within(vm.connect_guest()).await.unwrap();
    contract::echo(&mut stream, format!("I am {}", request.boot.id).as_bytes()).await;
    (vm, begun.elapsed())
}

async fn end(vm: &Vm, request: &RestoreRequest) {
    within(vm.kill()).await.unwrap();
    request.boot.dirs.release().unwrap();
    assert_eq!(std::fs::read_dir(&request.boot.dirs.run).unwrap().count(), 0);
    assert!(!request.boot.dirs.jail().exists());
    assert_eq!(crate::vmm::find_strays(request.boot.id), []);
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{what}: {} times, p50 {:.1?}, p99 {:.1?}",
        times.len(),
        at(50),
        at(99)
    );
}

#[tokio::test]
async fn clones_at_once_have_users_disks_and_channels_of_their_own() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let snapshot = snapshot_of(&bench).await;
    let (rounds, count) = if is_soak() { (20, 25) } else { (1, 10) };
    let mut times = Vec::new();
    for _ in 0..rounds {
        let requests: Vec<_> = (1..=count)
            .map(|number| clone_request(&bench, &snapshot, number))
            .collect();
        let all = requests.iter().map(|request| restored(&bench, request));
        let clones = futures_util::future::join_all(all).await;
        for ((vm, took), request) in clones.iter().zip(&requests) {
            times.push(*took);
            if let Some(user) = request.boot.user {
                let process = format!("/proc/{}", vm.process().pid);
                assert_eq!(std::fs::metadata(&process).unwrap().uid(), user.uid);
                let seen = std::fs::metadata(format!("{process}/root/disk0")).unwrap();
                let own = std::fs::metadata(&request.boot.disks[0].path).unwrap();
                assert_eq!((seen.dev(), seen.ino()), (own.dev(), own.ino()));
            }
        }
        for ((vm, _), request) in clones.iter().zip(&requests) {
            let mut stream = within(vm.connect_guest()).await.unwrap();
            contract::echo(&mut stream, request.boot.id.to_string().as_bytes()).await;
            end(vm, request).await;
        }
    }
    report(
        &format!("{count} clones at once, restore to first answer"),
        &mut times,
    );
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn restores_one_after_the_other_leave_nothing() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let snapshot = snapshot_of(&bench).await;
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (mut times, mut before) = (Vec::new(), None);
    for _ in 0..if is_soak() { 200 } else { 10 } {
        let request = clone_request(&bench, &snapshot, 1);
        let (vm, took) = restored(&bench, &request).await;
        times.push(took);
        end(&vm, &request).await;
        drop(vm);
        before.get_or_insert_with(open_files);
    }
    report("restore to first answer", &mut times);
    if is_soak() {
        // Alone in its process then: other tests open files, too.
        println!(
            "open files: {before:?} after the first, {} after the last",
            open_files()
        );
    }
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let here = bench.directory.path().to_string_lossy().into_owned();
    assert!(!sockets.contains(&here), "{sockets}");
}

#[tokio::test]
async fn boots_of_firecracker_one_after_the_other_leave_nothing() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let mut times = Vec::new();
    for _ in 0..if is_soak() { 200 } else { 10 } {
        let begun = Instant::now();
        let vm = bench.boot().await;
        let mut stream = within(vm.connect_guest()).await.unwrap();
        contract::echo(&mut stream, b"hello").await;
        times.push(begun.elapsed());
        within(vm.kill()).await.unwrap();
        bench.request.dirs.release().unwrap();
        bench.assert_nothing_is_left();
    }
    report("boot to first answer", &mut times);
}

/// Counts the pages in which two memory files differ.
fn pages_apart(one: &Path, other: &Path) -> usize {
    let (one, other) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
    assert_eq!(one.len(), other.len());
    let pages = one.chunks(4096).zip(other.chunks(4096));
    pages.filter(|(one, other)| one != other).count()
}

#[tokio::test]
async fn three_diffs_merge_into_what_a_whole_snapshot_holds() {
    let Some(mut bench) = Bench::new("guest.echo") else {
        return;
    };
    bench.request.tracked = true;
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    let place = |name| contract::place_for_snapshot(&bench.request.dirs, name);
    let base = place("base");
    within(vm.snapshot(&base, SnapshotKind::Full)).await.unwrap();
    let memory = base.join("memory");
    for name in ["first", "second", "third"] {
        vm.resume().await.unwrap();
        contract::stream(&vm).await;
        let diff = place(name);
        within(vm.snapshot(&diff, SnapshotKind::Diff)).await.unwrap();
        let held = std::fs::metadata(diff.join("memory")).unwrap().blocks() * 512;
        assert!((4096..16 << 20).contains(&held), "the diff holds {held} bytes");
        let merged = files::merge(&diff.join("memory"), &memory).unwrap();
        assert!(merged > 0);
        std::fs::copy(diff.join("state"), base.join("state")).unwrap();
    }
    let whole = place("whole");
    within(vm.snapshot(&whole, SnapshotKind::Full)).await.unwrap();
    // It has told the guest that its connections are gone, once more: that is in a page or two.
    let apart = pages_apart(&memory, &whole.join("memory"));
    assert!(apart <= 4, "{apart} pages differ");
    within(vm.kill()).await.unwrap();
    let request = clone_request(&bench, &base, 1);
    let (clone, _) = restored(&bench, &request).await;
    contract::stream(&clone).await;
    end(&clone, &request).await;
}

#[tokio::test]
async fn a_machine_that_is_not_tracked_takes_no_diff_and_goes_on() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let booted = bench.boot().await;
    contract::stream(&booted).await;
    let place = |name| contract::place_for_snapshot(&bench.request.dirs, name);
    let base = place("base");
    within(booted.snapshot(&base, SnapshotKind::Full)).await.unwrap();
    within(booted.kill()).await.unwrap();
    let request = clone_request(&bench, &base, 1);
    let (clone, _) = restored(&bench, &request).await;
    contract::stream(&clone).await;
    let refused = within(clone.snapshot(&place("diff"), SnapshotKind::Diff)).await;
    assert!(refused.is_err(), "writing to its pages is noted");
    contract::stream(&clone).await;
    end(&clone, &request).await;
}

/// A file system of the test's own, which is gone with the value.
struct SmallDisk(PathBuf);

impl SmallDisk {
    async fn mounted(path: &Path, mib: u32) -> Option<Self> {
        let size = format!("size={mib}m,mode=711");
        let command = HostCommand::new("mount", "mount").args(["-t", "tmpfs", "-o", &size, "hearth-test"]);
        command.arg(path).run().await.ok().map(|_| Self(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[tokio::test]
async fn a_snapshot_that_has_no_room_is_an_error_and_the_machine_goes_on() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let data = bench.request.dirs.data.clone();
    let Some(_disk) = SmallDisk::mounted(&data, 24).await else {
        return crate::host::skip::skipped("no file system can be mounted here");
    };
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    let place = contract::place_for_snapshot(&bench.request.dirs, "snapshot");
    let mut events = vm.events();
    let refused = within(vm.snapshot(&place, SnapshotKind::Full)).await.unwrap_err();
    let causes = std::iter::successors(std::error::Error::source(&refused), |cause| cause.source());
    let told = causes.fold(refused.to_string(), |text, cause| format!("{text}: {cause}"));
    assert!(told.contains("No space left"), "{told}");
    assert_eq!(
        std::fs::read_dir(&place).unwrap().count(),
        0,
        "something was begun"
    );
    assert_eq!(contract::next(&mut events).await, VmmEvent::Paused);
    assert_eq!(contract::next(&mut events).await, VmmEvent::Resumed);
    contract::stream(&vm).await;
    within(vm.kill()).await.unwrap();
    bench.request.dirs.release().unwrap();
}
