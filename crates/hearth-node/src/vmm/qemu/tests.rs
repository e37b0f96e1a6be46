//! The driver with a real QEMU. Most tests boot a guest of thirty bytes that the test writes itself; the ones about the
//! guest's stream need a Linux kernel, named by `HEARTH_TEST_KERNEL`, and busybox.

use std::path::Path;

use hearth_machine::{MachineId, Shape};
use tempfile::TempDir;

use super::*;
use crate::vmm::contract::{self, within};
use crate::vmm::{
    AdoptRequest, DiskAccess, DiskAttachment, Driver, EndCause, Exit, HostUser, Machine, MachineDirs, Vm,
    VmmEvent,
};

/// What the tiny guest does once it has spoken.
#[derive(Clone, Copy)]
enum Then {
    Halt,
    Reset,
    /// Speaks again, for ever.
    Repeat,
}

/// Writes an ELF kernel with a PVH entry (Xen's note 18, PHYS32_ENTRY) that says `words` on the serial port.
fn tiny_kernel(words: &str, then: Then) -> Vec<u8> {
    const LOADED_AT: u32 = 0x10_0000;
    const NOTE: usize = 64 + 2 * 56;
    const CODE: usize = NOTE + 20;
    let entry = LOADED_AT + CODE as u32;
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xbe]; // mov dx, 0x3f8; mov esi, words
    code.extend((entry + 32).to_le_bytes());
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]); // lodsb; test al, al; jz on; out dx, al; jmp lodsb
    code.extend(match then {
        Then::Halt => &[0xf4, 0xeb, 0xfd][..],                // hlt; jmp hlt
        Then::Reset => &[0x31, 0xc0, 0x0f, 0x01, 0x18, 0xcc], // xor eax, eax; lidt [eax]; int3: a triple fault
        Then::Repeat => &[0xeb, 0xed],                        // jmp to the beginning
    });
    code.resize(32, 0x90);
    code.extend(words.bytes().chain([0]));

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let halves = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let words32 = |elf: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let words64 = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    halves(&mut elf, &[2, 62]); // executable, x86-64
    words32(&mut elf, &[1]);
    words64(&mut elf, &[u64::from(entry), 64, 0]); // entry, program headers, no sections
    words32(&mut elf, &[0]);
    halves(&mut elf, &[64, 56, 2, 0, 0, 0]);
    let size = (CODE + code.len()) as u64;
    words32(&mut elf, &[1, 7]); // PT_LOAD, rwx
    words64(
        &mut elf,
        &[0, u64::from(LOADED_AT), u64::from(LOADED_AT), size, size, 4096],
    );
    words32(&mut elf, &[4, 4]); // PT_NOTE
    let note_at = u64::from(LOADED_AT) + NOTE as u64;
    words64(&mut elf, &[NOTE as u64, note_at, note_at, 20, 20, 4]);
    words32(&mut elf, &[4, 4, 18]);
    elf.extend(b"Xen\0");
    words32(&mut elf, &[entry]);
    elf.extend(code);
    elf
}

/// A machine's directories, artefacts and driver; QEMU must not be left when it goes.
struct Bench {
    directory: TempDir,
    driver: Driver,
    request: BootRequest,
}

impl Bench {
    /// Makes one, or says why the test cannot run here.
    async fn new(kernel: &[u8]) -> Option<Self> {
        let Ok(program) = find() else {
            crate::host::skip::skipped("there is no QEMU here");
            return None;
        };
        let driver = Driver::Qemu(within(Qemu::open(program, Border::Emulated)).await.unwrap());
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        // A monitor that runs as a user of its own must get here.
        std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        for name in ["data", "run"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(root.join("kernel"), kernel).unwrap();
        std::fs::write(root.join("initramfs"), []).unwrap();
        let request = BootRequest {
            id: MachineId::from_random(unique()),
            shape: Shape {
                vcpus: 1,
                memory_mib: 64,
            },
            kernel: root.join("kernel"),
            initramfs: Some(root.join("initramfs")),
            append: String::new(),
            tracked: false,
            disks: Vec::new(),
            devices: crate::vmm::Devices::default(),
            dirs: MachineDirs {
                data: root.join("data"),
                run: root.join("run"),
                memory: root.join("memory"),
            },
            user: None,
        };
        Some(Self {
            directory,
            driver,
            request,
        })
    }

    async fn boot(&self) -> Vm {
        within(self.driver.boot(&self.request)).await.unwrap()
    }

    /// Waits until the machine has said `words` on its console.
    async fn hear(&self, vm: &Vm, words: &str) {
        let Vm::Qemu(vm) = vm else { unreachable!() };
        let mut recorded = vm.console().recorded();
        within(async {
            while !self.console().contains(words) {
                recorded
                    .changed()
                    .await
                    .expect("the machine says it before it ends");
            }
        })
        .await;
    }

    fn console(&self) -> String {
        let bytes = std::fs::read(self.request.dirs.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Checks that no process has the bench's files on its command line, and that no file of a run is there.
    fn assert_nothing_is_left(&self) {
        let here = self.directory.path().to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let ours: Vec<_> = processes
            .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .filter(|line| line.contains(&here))
            .collect();
        assert_eq!(ours, Vec::<String>::new(), "QEMU is still there");
        assert_eq!(std::fs::read_dir(&self.request.dirs.run).unwrap().count(), 0);
        assert!(!self.request.dirs.memory.exists());
    }
}

fn unique() -> [u8; 6] {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_machine_boots_speaks_and_is_killed() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    let vm = bench.boot().await;
    bench.hear(&vm, "it runs").await;
    contract::pause_and_resume(&vm).await;
    contract::a_reused_number_is_not_adopted(&bench.driver, &vm, &bench.request.dirs, bench.request.id).await;
    let exit = contract::adopt_and_kill(&bench.driver, vm, &bench.request.dirs, bench.request.id).await;
    assert_eq!((exit.exit, exit.cause), (Exit::Signal(9), None));
    bench.request.dirs.release().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_reset_ends_the_machine_and_says_so() {
    let Some(bench) = Bench::new(&tiny_kernel("last words\r\n", Then::Reset)).await else {
        return;
    };
    let vm = bench.boot().await;
    let exit = within(vm.wait()).await.unwrap();
    assert_eq!(
        (exit.exit, exit.cause),
        (Exit::Code(0), Some(EndCause::GuestReset))
    );
    assert!(
        bench.console().contains("last words"),
        "what was said before the end is in the log"
    );
}

#[tokio::test]
async fn a_machine_that_is_told_to_quit_does() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    let vm = bench.boot().await;
    let mut events = vm.events();
    let exit = within(vm.quit(contract::LIMIT)).await.unwrap();
    assert_eq!((exit.exit, exit.cause), (Exit::Code(0), Some(EndCause::Quit)));
    assert_eq!(
        contract::next(&mut events).await,
        VmmEvent::Ending(EndCause::Quit)
    );
}

#[tokio::test]
async fn a_paused_machine_quits_too_and_a_stuck_one_is_killed() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    let vm = bench.boot().await;
    vm.pause().await.unwrap();
    assert_eq!(
        within(vm.quit(contract::LIMIT)).await.unwrap().exit,
        Exit::Code(0)
    );

    let vm = bench.boot().await;
    let pid = rustix::process::Pid::from_raw(vm.process().pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let exit = within(vm.quit(std::time::Duration::from_millis(50)))
        .await
        .unwrap();
    assert_eq!(exit.exit, Exit::Signal(9));
}

#[tokio::test]
async fn the_words_of_a_qemu_that_dies_in_boot_are_in_the_error() {
    let Some(mut bench) = Bench::new(b"not a kernel").await else {
        return;
    };
    let error = within(bench.driver.boot(&bench.request)).await.unwrap_err();
    assert!(
        matches!(
            &error,
            BootError::Died {
                exit: Exit::Code(1),
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("kernel"), "{error}");
    bench.assert_nothing_is_left();

    let missing = bench.directory.path().join("missing.raw");
    bench.request.disks.push(DiskAttachment {
        path: missing,
        access: DiskAccess::ReadWrite,
    });
    let error = within(bench.driver.boot(&bench.request)).await.unwrap_err();
    assert!(error.to_string().contains("missing.raw"), "{error}");
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_boot_that_is_given_up_leaves_nothing() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    let given_up = tokio::time::timeout(std::time::Duration::ZERO, bench.driver.boot(&bench.request)).await;
    assert!(given_up.is_err(), "a boot waits for QEMU at least once");
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_machine_can_be_booted_again_where_one_was() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    for _ in 0..2 {
        let vm = bench.boot().await;
        within(vm.kill()).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_on_the_console_stays_under_the_cap() {
    let Some(bench) = Bench::new(&tiny_kernel(&"0123456789abcdef\n".repeat(64), Then::Repeat)).await else {
        return;
    };
    let vm = bench.boot().await;
    let Vm::Qemu(qemu) = &vm else { unreachable!() };
    let mut recorded = qemu.console().recorded();
    within(recorded.wait_for(|bytes| *bytes > 2 * console::DEFAULT_CAP))
        .await
        .unwrap();
    vm.pause().await.unwrap();
    let length = std::fs::metadata(bench.request.dirs.console_log()).unwrap().len();
    assert!(length <= console::DEFAULT_CAP, "{length}");
    drop(recorded);
    within(vm.kill()).await.unwrap();
}

#[tokio::test]
async fn a_monitor_has_a_user_a_session_and_a_network_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        crate::host::skip::skipped("only root can give a monitor a user of its own");
        return;
    }
    let Some(mut bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    let user = HostUser {
        uid: 2_000_001,
        gid: 2_000_001,
    };
    bench.request.user = Some(user);
    let disk = bench.directory.path().join("disk.raw");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    std::os::unix::fs::chown(&disk, Some(user.uid), Some(user.gid)).unwrap();
    bench.request.disks.push(DiskAttachment {
        path: disk,
        access: DiskAccess::ReadWrite,
    });
    let vm = bench.boot().await;
    bench.hear(&vm, "it runs").await;
    let process = vm.process();
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", process.pid)).unwrap();
    let status = proc("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), "2000001 2000001 2000001 2000001");
    assert_eq!(field("Gid:"), "2000001 2000001 2000001 2000001");
    assert_eq!(field("Groups:"), "");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(proc("oom_score_adj").trim(), "300");
    let session: i32 = proc("stat")
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, process.pid);
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(network(&process.pid.to_string()), network("self"));
    let limits = proc("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    for descriptor in std::fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap() {
        let target = std::fs::read_link(descriptor.unwrap().path()).unwrap();
        let target = target.to_string_lossy().into_owned();
        let own = target.starts_with(&*bench.directory.path().to_string_lossy())
            || ["/dev/null", "socket:", "anon_inode:", "pipe:", "/memfd:"]
                .iter()
                .any(|kind| target.starts_with(kind));
        assert!(own, "QEMU has {target} open");
    }
    within(vm.kill()).await.unwrap();
}

#[tokio::test]
async fn a_directory_closed_to_the_monitor_is_named() {
    if !rustix::process::geteuid().is_root() {
        crate::host::skip::skipped("only root can give a monitor a user of its own");
        return;
    }
    let Some(mut bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    bench.request.user = Some(HostUser {
        uid: 2_000_001,
        gid: 2_000_001,
    });
    std::fs::set_permissions(
        &bench.request.dirs.run,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let error = within(bench.driver.boot(&bench.request)).await.unwrap_err();
    assert!(
        matches!(&error, BootError::Unreachable { closed, .. } if *closed == bench.request.dirs.run),
        "{error}"
    );
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn more_than_the_driver_has_is_refused() {
    let Some(mut bench) = Bench::new(&tiny_kernel("it runs\r\n", Then::Halt)).await else {
        return;
    };
    bench.request.shape.vcpus = 256;
    let error = bench.driver.boot(&bench.request).await.unwrap_err();
    assert!(
        error.to_string().contains("256 processors, and qemu has 255"),
        "{error}"
    );
}

/// Waits until a machine of other directories has said `words` on its console.
async fn hear_of(vm: &Vm, dirs: &MachineDirs, words: &str) {
    let Vm::Qemu(vm) = vm else { unreachable!() };
    let mut recorded = vm.console().recorded();
    let said =
        || String::from_utf8_lossy(&std::fs::read(dirs.console_log()).unwrap_or_default()).contains(words);
    within(async {
        while !said() {
            recorded
                .changed()
                .await
                .expect("the machine says it before it ends");
        }
    })
    .await;
}

#[tokio::test]
async fn machines_are_restored_from_snapshots_of_booted_and_of_restored_ones() {
    let Some(mut bench) = Bench::new(&tiny_kernel("tick\n", Then::Repeat)).await else {
        return;
    };
    if rustix::process::geteuid().is_root() {
        // A monitor that must not be able to write to the memory that others share.
        bench.request.user = Some(HostUser {
            uid: 2_000_001,
            gid: 2_000_001,
        });
    }
    let vm = bench.boot().await;
    bench.hear(&vm, "tick").await;
    contract::a_snapshot_that_fails_changes_nothing(&vm, &bench.directory.path().join("nowhere")).await;
    contract::what_it_cannot_do_is_refused(&bench.driver, &vm, &bench.request).await;
    let clones = contract::snapshots(&bench.driver, &vm, &bench.request).await;
    for (request, clone) in &clones {
        hear_of(clone, &request.dirs, "tick").await;
    }
    let (request, first) = &clones[0];
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", first.process().pid)).unwrap();
    assert!(line.contains("share=off"), "{line}");
    assert!(
        !request.dirs.memory.exists(),
        "a clone has no memory file of its own"
    );
    // What has changed is written alone; where nothing is left of what it was restored from, all goes into the state.
    for (number, has_origin) in [(3, true), (4, false)] {
        if !has_origin {
            std::fs::remove_dir_all(request.dirs.origin()).unwrap();
        }
        let place = contract::place_for_snapshot(&bench.request.dirs, &format!("snapshot{number}"));
        within(first.snapshot(&place, crate::vmm::SnapshotKind::Full))
            .await
            .unwrap();
        first.resume().await.unwrap();
        let bytes = |name| std::fs::metadata(place.join(name)).map(|file| file.len()).ok();
        assert_eq!(bytes("changes").is_some(), has_origin);
        assert_eq!(bytes("memory"), (!has_origin).then_some(0));
        let boot = contract::another(&bench.request, number);
        let asked = crate::vmm::RestoreRequest {
            boot: boot.clone(),
            snapshot: place.clone(),
            memory: crate::vmm::MemoryBackend::File,
            at_once: false,
        };
        let clone = within(bench.driver.restore(&asked)).await.unwrap();
        clone.resume().await.unwrap();
        hear_of(&clone, &boot.dirs, "tick").await;
        within(clone.kill()).await.unwrap();
        boot.dirs.release().unwrap();
    }
    for (request, clone) in clones {
        within(clone.kill()).await.unwrap();
        request.dirs.release().unwrap();
    }
    within(vm.kill()).await.unwrap();
    bench.request.dirs.release().unwrap();
    bench.assert_nothing_is_left();
}

#[tokio::test]
async fn a_state_that_makes_no_sense_is_an_error_and_leaves_nothing() {
    let Some(bench) = Bench::new(&tiny_kernel("it runs\n", Then::Halt)).await else {
        return;
    };
    let vm = bench.boot().await;
    let place = contract::place_for_snapshot(&bench.request.dirs, "snapshot");
    within(vm.snapshot(&place, crate::vmm::SnapshotKind::Full))
        .await
        .unwrap();
    within(vm.kill()).await.unwrap();
    bench.request.dirs.release().unwrap();
    let state = place.join("state");
    let whole = std::fs::read(&state).unwrap();
    for broken in [&whole[..whole.len() / 2], b"this is no state", b""] {
        std::fs::write(&state, broken).unwrap();
        let asked = crate::vmm::RestoreRequest {
            boot: bench.request.clone(),
            snapshot: place.clone(),
            memory: crate::vmm::MemoryBackend::File,
            at_once: false,
        };
        let error = within(bench.driver.restore(&asked)).await.unwrap_err();
        assert!(matches!(error, crate::vmm::RestoreError::Boot(_)), "{error}");
        bench.assert_nothing_is_left();
    }
}

/// Makes an initramfs in which busybox answers with what it is sent, or says why there is none.
fn echo_initramfs(busybox: &Path) -> Option<Vec<u8>> {
    const INIT: &str = "#!/bin/busybox sh\n\
        /bin/busybox mount -t devtmpfs dev /dev\n\
        exec 3<>/dev/vport0p1\n\
        echo the guest is up\n\
        while :; do /bin/busybox cat <&3 >&3; /bin/busybox usleep 20000; done\n";
    let busybox = std::fs::read(busybox).ok()?;
    let mut inode = 0;
    let mut entry = |name: &str, mode: u32| {
        inode += 1;
        cpio::newc::Builder::new(name).ino(inode).mode(mode)
    };
    let mut archive = Vec::new();
    let files: [(&str, u32, &[u8]); 5] = [
        ("dev", 0o040_755, &[]),
        ("bin", 0o040_755, &[]),
        ("bin/busybox", 0o100_755, &busybox),
        ("init", 0o100_755, INIT.as_bytes()),
        ("dev/console", 0o020_600, &[]),
    ];
    for (name, mode, content) in files {
        let mut builder = entry(name, mode);
        if name == "dev/console" {
            builder = builder.rdev_major(5).rdev_minor(1);
        }
        let mut writer = builder.write(&mut archive, content.len() as u32);
        std::io::Write::write_all(&mut writer, content).unwrap();
        writer.finish().unwrap();
    }
    cpio::newc::trailer(&mut archive).unwrap();
    Some(archive)
}

#[tokio::test]
async fn the_stream_reaches_a_linux_guest_and_stalls_while_it_is_paused() {
    let Some(kernel) = std::env::var_os("HEARTH_TEST_KERNEL") else {
        crate::host::skip::skipped("HEARTH_TEST_KERNEL names no kernel (an ELF vmlinux)");
        return;
    };
    let Some(initramfs) = echo_initramfs(Path::new("/usr/bin/busybox")) else {
        crate::host::skip::skipped("there is no /usr/bin/busybox (Debian: busybox-static)");
        return;
    };
    let Some(mut bench) = Bench::new(&[]).await else {
        return;
    };
    bench.request.kernel = kernel.into();
    bench.request.shape.memory_mib = 192;
    std::fs::write(bench.request.initramfs.as_ref().unwrap(), initramfs).unwrap();
    let vm = bench.boot().await;
    bench.hear(&vm, "the guest is up").await;
    contract::stream(&vm).await;
    let request = AdoptRequest {
        id: bench.request.id,
        process: vm.process(),
        dirs: bench.request.dirs.clone(),
    };
    drop(vm);
    let vm = within(bench.driver.adopt(&request)).await.unwrap();
    contract::stream(&vm).await;
    for (_, clone) in contract::snapshots(&bench.driver, &vm, &bench.request).await {
        contract::stream(&clone).await;
        within(clone.kill()).await.unwrap();
    }
    contract::stream(&vm).await;
    within(vm.kill()).await.unwrap();
}
