//! QEMU's command line, from a pure function. Nothing on it comes from a guest, and no secret is on it: `ps` shows it to all.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use hearth_machine::{MacAddress, MachineId, Shape};

use super::super::{BootRequest, Border, DiskAccess, DiskAttachment, MachineDirs};

/// The most disks of one machine. QEMU's bus has room for more; two is what a machine needs.
pub(super) const MAX_DISKS: usize = 8;

/// The descriptors that QEMU inherits, by number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    /// The listening socket of the control connection.
    pub control: i32,
    /// The listening socket of the guest's stream.
    pub guest: i32,
    /// The host's end of the network interface, when there is one.
    pub tap: Option<i32>,
}

/// What the guest's memory is at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// A file of the machine's own, and the guest boots.
    Boot,
    /// A file of the machine's own, which is filled from the machine's state.
    Filled,
    /// What this inherited descriptor holds, of which pages that the guest writes become its own.
    Private(i32),
}

/// The kernel's command line under every border.
///
/// - `console=ttyS0`: the one serial port; `quiet` because each byte costs an exit, warnings still come.
/// - `panic=-1 reboot=t`: a panic resets at once (by triple fault, the way that needs no firmware), and a reset ends QEMU.
/// - `tsc=reliable no_timer_check`: no calibration against emulated timers, which fails at random when the host is busy.
/// - `random.trust_cpu=on`: the first random numbers come from RDRAND, so nothing waits for entropy.
/// - `lsm=landlock,yama`: those that programs ask for, or that keep processes of one user apart; the others have no policy here, and each
///   costs a way through its hooks in every system call.
/// - the rest leaves out looking for hardware that the machine does not have.
const KERNEL_COMMON: &str = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable no_timer_check \
     random.trust_cpu=on lsm=landlock,yama i8042.noaux i8042.nokbd 8250.nr_uarts=1 cryptomgr.notests pci=lastbus=0";

/// Under emulation the processor's speculation is the host's, and the guest's mitigations only cost time.
const KERNEL_EMULATED: &str = "mitigations=off";

/// Emulation: a thread for each processor, and 256 MiB at most for translated code. QEMU's own measure is an eighth of the host's
/// memory, up to 1 GiB, which no limit of the machine's memory would have room for.
const TCG: &str = "tcg,thread=multi,tb-size=256";

/// The processor under emulation: x86-64-v2, which current distributions ask for, on an AMD vendor id, so that Linux leaves out
/// page-table isolation, whose switches are the slowest thing there. RDRAND for entropy. Not AVX, PCLMUL, AES, ERMS: programs
/// that find them prefer them, and QEMU runs them slower than the plain code.
const CPU_EMULATED: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+fsgsbase,-svm";

/// Writes the arguments for a boot, without the program's name. Without a `firmware` it is QEMU's own choice.
pub(super) fn arguments(
    request: &BootRequest,
    border: Border,
    firmware: Option<&Path>,
    descriptors: Descriptors,
    memory: Memory,
) -> Vec<OsString> {
    let mut line = Line(Vec::new());
    line.flag("-nodefaults")
        .flag("-no-user-config")
        .flag("-no-reboot");
    line.option("-display", "none");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    line.option("-name", format!("hearth-{}", request.id));
    if let Some(firmware) = firmware {
        line.option("-bios", firmware);
    }
    if memory != Memory::Boot {
        // The state comes when the control connection is there; the processors stand still until they are told to go on.
        line.flag("-S").option("-incoming", "defer");
        // Nobody has moved: each machine is alone on its link, and to announce itself takes a guest milliseconds.
        line.option("-global", "migration.announce-rounds=0");
    }
    machine(&mut line, request, border, memory);
    kernel(&mut line, request, border);
    channels(&mut line, request, descriptors);
    for (index, disk) in request.disks.iter().enumerate() {
        add_disk(&mut line, index, disk);
    }
    if let (Some(network), Some(tap)) = (&request.devices.network, descriptors.tap) {
        interface(&mut line, network.mac, tap);
    }
    line.option("-object", "rng-builtin,id=entropy");
    line.option("-device", "virtio-rng-pci,rng=entropy,disable-legacy=on");
    line.0
}

/// Writes the command line of a machine that stands for all: what differs here makes states that do not fit.
pub(super) fn model(border: Border, firmware: Option<&Path>) -> Vec<OsString> {
    let disk = |access| DiskAttachment {
        path: PathBuf::new(),
        access,
    };
    let request = BootRequest {
        id: MachineId::from_random([0; 6]),
        shape: Shape {
            vcpus: 1,
            memory_mib: 64,
        },
        kernel: PathBuf::new(),
        initramfs: Some(PathBuf::new()),
        append: String::new(),
        tracked: false,
        disks: vec![disk(DiskAccess::ReadOnly), disk(DiskAccess::ReadWrite)],
        devices: crate::vmm::Devices::default(),
        dirs: MachineDirs {
            data: PathBuf::new(),
            run: PathBuf::new(),
            memory: PathBuf::new(),
        },
        user: None,
    };
    let descriptors = Descriptors {
        control: 0,
        guest: 0,
        tap: None,
    };
    let mut line = Line(arguments(&request, border, firmware, descriptors, Memory::Boot));
    interface(&mut line, MacAddress::of(request.id), 0);
    line.0
}

fn machine(line: &mut Line, request: &BootRequest, border: Border, memory: Memory) {
    line.option(
        "-machine",
        "q35,memory-backend=memory,hpet=off,vmport=off,smm=off,sata=off,smbus=off,usb=off,graphics=off,\
         dump-guest-core=off,mem-merge=off",
    );
    match border {
        Border::Kvm => line.option("-accel", "kvm").option("-cpu", "host"),
        Border::Emulated => line.option("-accel", TCG).option("-cpu", CPU_EMULATED),
    };
    line.option("-smp", request.shape.vcpus.to_string());
    line.option("-m", format!("{}M", request.shape.memory_mib));
    let mebibytes = request.shape.memory_mib;
    let backend = |share, path: &Path| {
        let before = format!("memory-backend-file,id=memory,size={mebibytes}M,share={share},mem-path=");
        joined(&before, path, "")
    };
    line.option(
        "-object",
        match memory {
            Memory::Boot | Memory::Filled => backend("on", &request.dirs.memory),
            // QEMU opens it for writing, too; what it is given is sealed against that.
            Memory::Private(descriptor) => backend("off", Path::new(&format!("/proc/self/fd/{descriptor}"))),
        },
    );
}

fn kernel(line: &mut Line, request: &BootRequest, border: Border) {
    line.option("-kernel", request.kernel.as_os_str());
    if let Some(initramfs) = &request.initramfs {
        line.option("-initrd", initramfs.as_os_str());
    }
    line.option("-append", kernel_command_line(border, &request.append));
}

fn kernel_command_line(border: Border, append: &str) -> String {
    let emulated = match border {
        Border::Kvm => "",
        Border::Emulated => KERNEL_EMULATED,
    };
    [KERNEL_COMMON, emulated, append.trim()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn channels(line: &mut Line, request: &BootRequest, descriptors: Descriptors) {
    let Descriptors { control, guest, .. } = descriptors;
    line.option(
        "-chardev",
        format!("socket,id=control,fd={control},server=on,wait=off"),
    );
    line.option("-mon", "chardev=control,mode=control");
    line.option(
        "-chardev",
        joined("file,id=console,path=", &request.dirs.run.join("console"), ""),
    );
    line.option("-serial", "chardev:console");
    line.option(
        "-chardev",
        format!("socket,id=guest,fd={guest},server=on,wait=off"),
    );
    // Two ports (the first is reserved for a console) instead of 31: each costs the guest two queues at boot. Seven vectors
    // let every queue have its own, so that an interrupt does not search them all.
    line.option(
        "-device",
        "virtio-serial-pci,id=ports,max_ports=2,vectors=7,disable-legacy=on",
    );
    line.option(
        "-device",
        "virtserialport,bus=ports.0,chardev=guest,name=hearth.0",
    );
}

fn add_disk(line: &mut Line, index: usize, disk: &DiskAttachment) {
    let file = format!("driver=file,node-name=disk{index},aio=threads,filename=");
    let access = match disk.access {
        DiskAccess::ReadOnly => ",read-only=on",
        DiskAccess::ReadWrite => ",discard=unmap",
    };
    line.option("-blockdev", joined(&file, &disk.path, access));
    line.option(
        "-device",
        format!("virtio-blk-pci,drive=disk{index},num-queues=1,disable-legacy=on"),
    );
}

/// Adds the network interface. It needs no firmware of its own: nobody boots from it.
fn interface(line: &mut Line, mac: MacAddress, tap: i32) {
    line.option("-netdev", format!("tap,id=net,fd={tap},vhost=off"));
    line.option(
        "-device",
        format!("virtio-net-pci,netdev=net,mac={mac},romfile=,disable-legacy=on"),
    );
}

/// Puts a path into a comma-separated option: a comma in it is doubled, which is how QEMU reads one.
fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = before.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        text.push(*byte);
        if *byte == b',' {
            text.push(b',');
        }
    }
    text.extend_from_slice(after.as_bytes());
    OsString::from_vec(text)
}

struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> BootRequest {
        BootRequest {
            id: MachineId::from_random([1, 2, 3, 4, 5, 6]),
            shape: Shape {
                vcpus: 2,
                memory_mib: 512,
            },
            kernel: "/art/vmlinux".into(),
            initramfs: Some("/art/initramfs".into()),
            append: String::new(),
            tracked: false,
            disks: vec![
                DiskAttachment {
                    path: "/images/a,b.squashfs".into(),
                    access: DiskAccess::ReadOnly,
                },
                DiskAttachment {
                    path: "/data/m/disk.raw".into(),
                    access: DiskAccess::ReadWrite,
                },
            ],
            devices: crate::vmm::Devices::default(),
            dirs: MachineDirs {
                data: "/data/m".into(),
                run: "/run/h/m".into(),
                memory: "/dev/shm/h/m".into(),
            },
            user: None,
        }
    }

    fn text(border: Border) -> String {
        let firmware = Some(Path::new("/share/qboot.rom"));
        let descriptors = Descriptors {
            control: 3,
            guest: 4,
            tap: None,
        };
        let line = arguments(&request(), border, firmware, descriptors, Memory::Boot);
        line.iter()
            .map(|part| part.to_str().unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_emulated_command_line_is_this() {
        let kernel = format!("{KERNEL_COMMON} {KERNEL_EMULATED}");
        let expected = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-name",
            "hearth-010203040506",
            "-bios",
            "/share/qboot.rom",
            "-machine",
            "q35,memory-backend=memory,hpet=off,vmport=off,smm=off,sata=off,smbus=off,usb=off,graphics=off,dump-guest-core=off,mem-merge=off",
            "-accel",
            "tcg,thread=multi,tb-size=256",
            "-cpu",
            CPU_EMULATED,
            "-smp",
            "2",
            "-m",
            "512M",
            "-object",
            "memory-backend-file,id=memory,size=512M,share=on,mem-path=/dev/shm/h/m",
            "-kernel",
            "/art/vmlinux",
            "-initrd",
            "/art/initramfs",
            "-append",
            &kernel,
            "-chardev",
            "socket,id=control,fd=3,server=on,wait=off",
            "-mon",
            "chardev=control,mode=control",
            "-chardev",
            "file,id=console,path=/run/h/m/console",
            "-serial",
            "chardev:console",
            "-chardev",
            "socket,id=guest,fd=4,server=on,wait=off",
            "-device",
            "virtio-serial-pci,id=ports,max_ports=2,vectors=7,disable-legacy=on",
            "-device",
            "virtserialport,bus=ports.0,chardev=guest,name=hearth.0",
            "-blockdev",
            "driver=file,node-name=disk0,aio=threads,filename=/images/a,,b.squashfs,read-only=on",
            "-device",
            "virtio-blk-pci,drive=disk0,num-queues=1,disable-legacy=on",
            "-blockdev",
            "driver=file,node-name=disk1,aio=threads,filename=/data/m/disk.raw,discard=unmap",
            "-device",
            "virtio-blk-pci,drive=disk1,num-queues=1,disable-legacy=on",
            "-object",
            "rng-builtin,id=entropy",
            "-device",
            "virtio-rng-pci,rng=entropy,disable-legacy=on",
        ];
        assert_eq!(text(Border::Emulated), expected.join("\n"));
    }

    #[test]
    fn a_restored_machine_differs_in_where_its_memory_is_and_in_waiting_for_its_state() {
        let descriptors = Descriptors {
            control: 3,
            guest: 4,
            tap: None,
        };
        let of = |memory| arguments(&request(), Border::Emulated, None, descriptors, memory);
        let (booted, restored) = (of(Memory::Boot), of(Memory::Private(6)));
        let more: Vec<_> = restored.iter().filter(|part| !booted.contains(part)).collect();
        let memory = "memory-backend-file,id=memory,size=512M,share=off,mem-path=/proc/self/fd/6";
        let quiet = "migration.announce-rounds=0";
        assert_eq!(more, ["-S", "-incoming", "defer", "-global", quiet, memory]);
        assert_eq!(restored.len(), booted.len() + 5);
    }

    #[test]
    fn under_kvm_the_guest_keeps_its_mitigations() {
        let line = text(Border::Kvm);
        assert!(line.contains("-accel\nkvm\n-cpu\nhost\n"), "{line}");
        assert!(!line.contains("mitigations"), "{line}");
    }

    #[test]
    fn there_is_never_a_network_of_qemus_own() {
        for border in [Border::Kvm, Border::Emulated] {
            assert!(!text(border).contains("-net"), "no -netdev user, no -nic");
        }
    }

    #[test]
    fn the_callers_words_come_last_on_the_kernel_command_line() {
        let line = kernel_command_line(Border::Kvm, " hearth.log=debug ");
        assert!(line.ends_with("pci=lastbus=0 hearth.log=debug"), "{line}");
    }
}
