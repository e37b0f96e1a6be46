//! The driver with a real Firecracker and the bare guest, behind the jailer where the tests run as root.

mod many;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hearth_machine::{MachineId, Shape};
use tempfile::TempDir;

use super::*;
use crate::host::own;
use crate::vmm::contract::{self, within};
use crate::vmm::{
    DiskAccess, DiskAttachment, Driver, EndCause, Exit, HostUser, Machine, MachineDirs, MemoryBackend,
    SnapshotKind, Vm, VmmEvent,
};

/// A user and group that nobody has.
const NOBODY: u32 = 2_000_002;

/// A machine's directories, artefacts and driver; Firecracker must not be left when it goes.
struct Bench {
    directory: TempDir,
    driver: Driver,
    request: BootRequest,
}

fn target(path: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    let path = target.join(path).canonicalize().ok()?;
    path.is_file().then_some(path)
}

impl Bench {
    /// Makes one whose guest heeds `append`, or says why the test cannot run here.
    fn new(append: &str) -> Option<Self> {
        let skip = |why: &str| {
            crate::host::skip::skipped(why);
            None
        };
        let Some((program, jailer)) = target("firecracker/firecracker").zip(target("firecracker/jailer"))
        else {
            return skip("there is no target/firecracker: scripts/prerequisites.sh test");
        };
        let Some(guest) = target("bare-guest/x86_64-unknown-none/release/bare-guest") else {
            return skip("there is no bare guest: cargo xtask bare-guest");
        };
        if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            return skip(&format!("/dev/kvm does not open: {error}"));
        }
        let driver = Driver::Firecracker(Firecracker::open(program, Some(jailer), Version::PINNED));
        let directory = tempfile::Builder::new().prefix("hfd-").tempdir().unwrap();
        let root = directory.path();
        // A monitor that runs as a user of its own must get here.
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o711)).unwrap();
        for name in ["data", "run"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        let user = own::is_root().then_some(HostUser {
            uid: NOBODY,
            gid: NOBODY,
        });
        let disk = root.join("disk.img");
        std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(&disk, Some(user.uid), Some(user.gid)).unwrap();
        }
        let mut id = [0; 6];
        getrandom::fill(&mut id).unwrap();
        let request = BootRequest {
            id: MachineId::from_random(id),
            shape: Shape {
                vcpus: 1,
                memory_mib: 64,
            },
            kernel: guest,
            initramfs: None,
            append: append.to_owned(),
            tracked: false,
            disks: vec![DiskAttachment {
                path: disk,
                access: DiskAccess::ReadWrite,
            }],
            devices: crate::vmm::Devices::default(),
            dirs: MachineDirs {
                data: root.join("data"),
                run: root.join("run"),
                memory: root.join("memory"),
            },
            user,
        };
        Some(Self {
            directory,
            driver,
            request,
        })
    }

    async fn boot(&self) -> Vm {
        match within(self.driver.boot(&self.request)).await {
            Ok(vm) => vm,
            Err(error) => panic!(
                "{error}: {:?}: {}",
                error,
                machine::last_words(&self.request.dirs)
            ),
        }
    }

    async fn refused(&self) -> String {
        let error = within(self.driver.boot(&self.request)).await.unwrap_err();
        self.assert_nothing_is_left();
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.request.dirs.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Checks that no process of the machine's name is there, and that no file of a run is.
    fn assert_nothing_is_left(&self) {
        assert_eq!(
            crate::vmm::find_strays(self.request.id),
            [],
            "Firecracker is still there"
        );
        assert_eq!(std::fs::read_dir(&self.request.dirs.run).unwrap().count(), 0);
        assert!(!self.request.dirs.jail().exists());
        assert!(!self.request.dirs.memory.exists());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(
            !mounts.contains(&*self.directory.path().to_string_lossy()),
            "{mounts}"
        );
    }
}

#[tokio::test]
async fn a_machine_of_firecracker_keeps_the_contract() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    contract::pause_and_resume(&vm).await;
    contract::a_reused_number_is_not_adopted(&bench.driver, &vm, &bench.request.dirs, bench.request.id).await;
    assert!(bench.console().contains("bare-guest"), "{}", bench.console());
    let exit = contract::adopt_and_kill(&bench.driver, vm, &bench.request.dirs, bench.request.id).await;
    assert!(matches!(exit.exit, Exit::Signal(9)), "{exit:?}");
    assert_eq!(exit.cause, None);
    bench.request.dirs.release().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn an_adopted_machine_answers() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    let request = AdoptRequest {
        id: bench.request.id,
        process: vm.process(),
        dirs: bench.request.dirs.clone(),
    };
    drop(vm);
    let vm = within(bench.driver.adopt(&request)).await.unwrap();
    contract::stream(&vm).await;
    within(vm.kill()).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_panics_in_boot_ends_the_machine_and_its_console_says_why() {
    let Some(bench) = Bench::new("guest.panic") else {
        return;
    };
    let vm = bench.boot().await;
    let mut events = vm.events();
    let exit = within(vm.wait()).await.unwrap();
    assert_eq!(
        (exit.exit, exit.cause),
        (Exit::Code(0), Some(EndCause::GuestReset)),
        "{exit:?}"
    );
    if let Ok(event) = events.try_recv() {
        assert_eq!(event, VmmEvent::Ending(EndCause::GuestReset));
    }
    assert!(bench.console().contains("it was told to"), "{}", bench.console());
    assert!(vm.connect_guest().await.is_err());
    bench.request.dirs.release().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_machine_of_firecracker_quits_and_a_stuck_one_is_killed() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    let pid = rustix::process::Pid::from_raw(vm.process().pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let exit = within(vm.quit(Duration::from_millis(50))).await.unwrap();
    assert_eq!((exit.exit, exit.cause), (Exit::Signal(9), Some(EndCause::Quit)));
    let vm = bench.boot().await;
    within(vm.kill()).await.unwrap();
}

#[tokio::test]
async fn what_firecracker_refuses_is_told_in_its_words_and_leaves_nothing() {
    let Some(mut bench) = Bench::new("") else {
        return;
    };
    let good = bench.request.clone();
    bench.request.kernel = bench.directory.path().join("kernel");
    std::fs::write(&bench.request.kernel, "not a kernel").unwrap();
    let told = bench.refused().await;
    assert!(told.contains("invalid kernel image"), "{told}");

    std::fs::remove_file(&bench.request.kernel).unwrap();
    let told = bench.refused().await;
    assert!(told.contains("cannot reach") && told.contains("kernel"), "{told}");

    bench.request = good.clone();
    bench.request.disks[0].path = "/nonexistent/disk".into();
    let told = bench.refused().await;
    assert!(told.contains("/nonexistent/disk"), "{told}");

    bench.request = good.clone();
    bench.request.dirs.run = bench.directory.path().join("x".repeat(100));
    std::fs::create_dir(&bench.request.dirs.run).unwrap();
    let told = bench.refused().await;
    assert!(told.contains("107 is the limit"), "{told}");

    bench.request = good.clone();
    bench.request.shape.vcpus = 33;
    let told = bench.refused().await;
    assert!(told.contains("33 processors, and firecracker has 32"), "{told}");

    bench.request = good;
    let Driver::Firecracker(driver) = &mut bench.driver else {
        unreachable!()
    };
    let program = if bench.request.user.is_some() {
        driver.jailer.insert("/nonexistent/jailer".into()).clone()
    } else {
        driver.program = "/nonexistent/firecracker".into();
        driver.program.clone()
    };
    let told = bench.refused().await;
    assert!(told.contains(&*program.to_string_lossy()), "{told}");
}

#[tokio::test]
async fn as_root_there_is_no_machine_without_a_jailer() {
    let Some(mut bench) = Bench::new("") else {
        return;
    };
    if bench.request.user.is_none() {
        return crate::host::skip::skipped("only root's machines are jailed");
    }
    let Driver::Firecracker(driver) = &mut bench.driver else {
        unreachable!()
    };
    driver.jailer = None;
    let told = bench.refused().await;
    assert!(
        told.contains("jailer") && told.contains("hearth setup firecracker"),
        "{told}"
    );
}

#[tokio::test]
async fn a_boot_of_firecracker_that_is_given_up_leaves_nothing() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    for wait in [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(8)] {
        // However far it came: a boot that was faster than that is ended here.
        if let Ok(Ok(vm)) = tokio::time::timeout(wait, bench.driver.boot(&bench.request)).await {
            within(vm.kill()).await.unwrap();
            bench.request.dirs.release().unwrap();
        }
        bench.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn a_jailed_monitor_has_nothing_but_its_machine() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let Some(user) = bench.request.user else {
        return crate::host::skip::skipped("only root can give a monitor a user of its own");
    };
    let vm = bench.boot().await;
    let process = vm.process();
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", process.pid)).unwrap();
    let status = proc("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let four = |id: u32| vec![id.to_string(); 4].join(" ");
    assert_eq!(field("Uid:"), four(user.uid));
    assert_eq!(field("Gid:"), four(place::READERS));
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2", "the filter of system calls is on");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(proc("oom_score_adj").trim(), "300");
    let namespace = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["net", "mnt"] {
        assert_ne!(namespace(&process.pid.to_string(), kind), namespace("self", kind));
    }
    let root = std::fs::read_dir(format!("/proc/{}/root/", process.pid)).unwrap();
    let mut names: Vec<_> = root
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "api",
        "dev",
        "disk0",
        "firecracker",
        "kernel",
        "log",
        "run",
        "vsock",
    ];
    names.retain(|name| name != "firecracker.pid");
    assert_eq!(names, expected);
    within(vm.kill()).await.unwrap();
}

#[tokio::test]
async fn a_monitor_that_puts_links_in_the_place_of_its_sockets_leads_nobody_to_others() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    let secret = bench.directory.path().join("secret");
    let listener = tokio::net::UnixListener::bind(&secret).unwrap();
    for name in [machine::API, machine::VSOCK] {
        let path = machine::socket(&bench.request.dirs, name);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
    }
    assert!(within(vm.connect_guest()).await.is_err());
    assert!(within(vm.pause()).await.is_err());
    let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept());
    assert!(nobody.await.is_err(), "somebody connected");
    within(vm.kill()).await.unwrap();
    bench.request.dirs.release().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn snapshots_of_firecracker_keep_the_contract() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    contract::what_it_cannot_do_is_refused(&bench.driver, &vm, &bench.request).await;
    contract::a_snapshot_that_fails_changes_nothing(&vm, &bench.directory.path().join("nowhere")).await;
    let clones = contract::snapshots(&bench.driver, &vm, &bench.request).await;
    for (request, clone) in &clones {
        contract::stream(clone).await;
        within(clone.kill()).await.unwrap();
        request.dirs.release().unwrap();
        assert!(!request.dirs.jail().exists());
    }
    // The source has lost its connection, too, and takes another one.
    contract::stream(&vm).await;
    within(vm.kill()).await.unwrap();
}

async fn why_not(bench: &Bench, request: &RestoreRequest) -> String {
    let error = within(bench.driver.restore(request)).await.unwrap_err();
    assert_eq!(std::fs::read_dir(&request.boot.dirs.run).unwrap().count(), 0);
    assert!(!request.boot.dirs.jail().exists());
    assert_eq!(crate::vmm::find_strays(request.boot.id), []);
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[tokio::test]
async fn files_that_are_no_snapshot_of_the_machine_are_refused_with_the_reason() {
    let Some(bench) = Bench::new("guest.echo") else {
        return;
    };
    let vm = bench.boot().await;
    contract::stream(&vm).await;
    let place = contract::place_for_snapshot(&bench.request.dirs, "snapshot");
    within(vm.snapshot(&place, SnapshotKind::Full)).await.unwrap();
    within(vm.kill()).await.unwrap();
    // A name that no other test's clone has, on this host.
    let boot = BootRequest {
        id: MachineId::from_random(bench.request.id.bytes().map(|byte| !byte)),
        ..contract::another(&bench.request, 9)
    };
    let request = RestoreRequest {
        boot,
        snapshot: place.clone(),
        memory: MemoryBackend::File,
        at_once: false,
    };
    let (state, memory) = (place.join("state"), place.join("memory"));
    let good = std::fs::read(&state).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for (bytes, reason) in [
        (&b""[..], "oad"),
        (&good[..good.len() / 2], "oad"),
        (&flipped, "CRC"),
        (&b"\x7fELF and so on".repeat(100), "oad"),
    ] {
        std::fs::write(&state, bytes).unwrap();
        let told = why_not(&bench, &request).await;
        assert!(told.contains(reason) && told.contains("refuse"), "{told}");
    }
    std::fs::write(&state, &good).unwrap();
    let file = std::fs::File::options().write(true).open(&memory).unwrap();
    file.set_len((64 << 20) - 4096).unwrap();
    let told = why_not(&bench, &request).await;
    assert!(told.contains("and the machine's memory has 67108864"), "{told}");
    file.set_len(64 << 20).unwrap();
    let nobody = RestoreRequest {
        memory: MemoryBackend::Pager {
            socket: place.join("nobody"),
        },
        ..request.clone()
    };
    assert!(why_not(&bench, &nobody).await.contains("nobody"));
    std::fs::remove_file(&memory).unwrap();
    assert!(
        why_not(&bench, &request)
            .await
            .contains("cannot read the snapshot's")
    );
}
