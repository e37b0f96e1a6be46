//! The checks that only read and try: processor, kernel, file systems, what is set up.

use std::path::Path;

use hearth_api::location::Configuration;
use hearth_machine::ByteSize;

use super::programs;
use super::{Check, chain};
use crate::configuration;
use crate::host::cgroup::Groups;
use crate::host::facts::{self, CgroupVersion, Cgroups, Memory, Nested, Place, Processor, Userfaultfd};
use crate::host::kvm::{self, KvmAbsent, KvmAnswer, KvmProbe};
use crate::host::own;
use crate::layout::Layout;
use crate::setup::{AgentState, ArtefactKind, Artefacts};

/// Below this much free space an image or a disk soon fails.
const LITTLE_DISK: ByteSize = ByteSize::from_mib(2048);
/// Below this much a machine of the default size does not fit.
const LITTLE_MEMORY: ByteSize = ByteSize::from_mib(512);

/// Processor features that guests profit from, beside the one that runs them.
const FEATURES: [&str; 7] = ["sse4_2", "cx16", "avx2", "bmi2", "aes", "rdrand", "avx512f"];

/// The cgroup controllers that limit a machine.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Runs every check but QEMU's, `kvm` first.
pub(super) fn all(layout: &Layout) -> Vec<Check> {
    let artefacts = Artefacts::open(layout);
    vec![
        kvm(&kvm::probe()),
        guest_kernel(&artefacts),
        guest_agent(&artefacts),
        programs::mkfs_ext4(),
        guest_memory(layout.memory()),
        disk_space(layout.data()),
        settings(layout),
        memory(),
        processor(),
        processors(),
        programs::firecracker(&artefacts),
        nested(facts::nested_virtualization()),
        reflink(layout.data()),
        userfaultfd(facts::userfaultfd()),
        namespaces(),
        cgroups(&Cgroups::read(), &Groups::find().absent()),
        seccomp(),
        landlock(facts::landlock_abi()),
        device("vhost-vsock", "/dev/vhost-vsock", "modprobe vhost_vsock"),
        device("tun", "/dev/net/tun", "modprobe tun"),
        programs::networks(),
    ]
}

fn kvm(probe: &KvmProbe) -> Check {
    let milliseconds = probe.took.as_secs_f64() * 1000.0;
    let emulation = "machines run by emulation: about ten times slower, and a weaker border than hardware's";
    match &probe.answer {
        KvmAnswer::Native => Check::ok("kvm", format!("native (a guest ran in {milliseconds:.1} ms)")),
        KvmAnswer::Emulated { end } => Check::warning(
            "kvm",
            format!("emulated (a guest was tried in {milliseconds:.1} ms); {emulation}"),
        )
        .because(format!(
            "/dev/kvm makes virtual machines and cannot run Linux in them: {end}"
        ))
        .remedy("use a host with hardware or nested virtualization"),
        KvmAnswer::Absent { cause } => Check::warning("kvm", format!("absent; {emulation}"))
            .because(chain(cause))
            .remedy(match cause {
                KvmAbsent::NoPermission => {
                    "add this user to the group kvm: `usermod -aG kvm USER`, then log in anew"
                }
                KvmAbsent::NoDevice => {
                    "switch on virtualization in the firmware (or nested virtualization in the cloud), then \
                     `modprobe kvm_intel` or `modprobe kvm_amd`"
                }
                _ => "use a host with hardware or nested virtualization",
            }),
    }
}

fn guest_kernel(artefacts: &Artefacts) -> Check {
    let listed = artefacts
        .boot_set()
        .and_then(|set| Ok((set.kernel_release, artefacts.list()?)));
    match listed {
        Ok((release, all)) => {
            let detail = format!("{release} and its initramfs");
            match all.iter().find(|artefact| artefact.outdated) {
                None => Check::ok("guest-kernel", detail),
                Some(artefact) => Check::warning("guest-kernel", detail)
                    .because(format!(
                        "an earlier hearth made its {}: what came since does not work in guests",
                        artefact.kind.as_str()
                    ))
                    .remedy(match artefact.kind {
                        ArtefactKind::Kernel => "hearth setup kernel --build",
                        _ => "hearth setup",
                    }),
            }
        }
        Err(error) => Check::missing("guest-kernel", "not set up")
            .because(chain(&error))
            .remedy("hearth setup"),
    }
}

fn guest_agent(artefacts: &Artefacts) -> Check {
    match artefacts.boot_set().map(|set| (set.agent_digest, set.agent)) {
        Ok((digest, AgentState::Current)) => Check::ok("guest-agent", digest.short()),
        Ok((digest, AgentState::Changed { path })) => Check::ok(
            "guest-agent",
            format!("{}; {} is newer", digest.short(), path.display()),
        )
        .because("it is taken in at the next boot"),
        Err(error) => Check::missing("guest-agent", "not set up")
            .because(chain(&error))
            .remedy("hearth setup"),
    }
}

/// Judges the place of guests' memory: what a guest keeps in memory must not reach a disk.
fn guest_memory(directory: &Path) -> Check {
    let shown = directory.display();
    match Place::of(facts::existing_ancestor(directory)) {
        Ok(Place { in_memory: false, .. }) => {
            Check::missing("guest-memory", format!("{shown} is not in memory"))
                .because("what guests keep in memory, secrets too, would be written to a disk")
                .remedy("mount a tmpfs there: `mount -t tmpfs tmpfs /dev/shm`")
        }
        Ok(Place { free, .. }) if free < LITTLE_MEMORY => {
            Check::warning("guest-memory", format!("{free} free in {shown}"))
                .because("a machine of 512 MiB does not fit")
                .remedy("make it larger: `mount -o remount,size=75% /dev/shm`")
        }
        Ok(Place { free, .. }) => Check::ok("guest-memory", format!("{free} free in {shown}")),
        Err(error) => {
            Check::missing("guest-memory", format!("cannot look at {shown}")).because(error.to_string())
        }
    }
}

fn disk_space(directory: &Path) -> Check {
    let shown = directory.display();
    match Place::of(facts::existing_ancestor(directory)) {
        Ok(Place { free, .. }) if free < LITTLE_DISK => {
            Check::warning("disk-space", format!("{free} free for {shown}"))
                .because("an image and a machine's disk may not fit")
                .remedy("remove images that are not used: `hearth image ls`, `hearth image rm IMAGE`")
        }
        Ok(Place { free, .. }) => Check::ok("disk-space", format!("{free} free for {shown}")),
        Err(error) => {
            Check::warning("disk-space", format!("cannot look at {shown}")).because(error.to_string())
        }
    }
}

/// A pull would tell, too; but somebody who has just written them asks here.
fn settings(layout: &Layout) -> Check {
    let (Configuration::Named(path) | Configuration::Usual(path)) = layout.configuration();
    let path = path.display();
    match configuration::read(layout.configuration()) {
        Ok(read) => Check::ok(
            "settings",
            format!("{path}: {} registries", read.registries.len()),
        ),
        Err(error) => Check::warning("settings", "no image can be pulled from a registry")
            .because(chain(&error).split_whitespace().collect::<Vec<_>>().join(" "))
            .remedy(format!("mend {path}")),
    }
}

fn memory() -> Check {
    match Memory::read() {
        Ok(memory) => {
            let detail = format!("{} available of {}", memory.available, memory.total);
            if memory.available < LITTLE_MEMORY {
                Check::warning("memory", detail)
                    .because("a machine of 512 MiB does not fit")
                    .remedy("end programs, or add memory")
            } else {
                Check::ok("memory", detail)
            }
        }
        Err(error) => Check::warning("memory", "cannot be told").because(error.to_string()),
    }
}

fn processor() -> Check {
    let processor = match Processor::read() {
        Ok(processor) => processor,
        Err(error) => return Check::warning("processor", "cannot be told").because(error.to_string()),
    };
    let hardware = ["vmx", "svm"].into_iter().find(|flag| processor.has(flag));
    let features: Vec<&str> = FEATURES.into_iter().filter(|flag| processor.has(flag)).collect();
    let detail = format!("{} ({})", processor.model, features.join(" "));
    match hardware {
        Some(flag) => Check::ok("processor", format!("{detail}, {flag}")),
        None => Check::warning("processor", detail)
            .because("it shows neither vmx nor svm, so it runs no guests in hardware")
            .remedy("switch on virtualization in the firmware, or nested virtualization in the cloud"),
    }
}

fn processors() -> Check {
    Check::ok("processors", facts::processors().to_string())
}

fn nested(nested: Nested) -> Check {
    match nested {
        Nested::On => Check::ok("nested-virtualization", "on: guests can have KVM of their own"),
        Nested::Off => Check::absent("nested-virtualization", "off")
            .because("guests get no KVM of their own; nothing here needs it")
            .remedy("load the module with it: `modprobe kvm_intel nested=1` (or kvm_amd)"),
        Nested::Unknown => Check::absent("nested-virtualization", "unknown")
            .because("neither kvm_intel nor kvm_amd is loaded; nothing here needs it")
            .remedy("load one of them with it: `modprobe kvm_intel nested=1` (or kvm_amd)"),
    }
}

fn reflink(directory: &Path) -> Check {
    let directory = facts::existing_ancestor(directory);
    let shown = directory.display();
    match facts::reflink(directory) {
        Ok(true) => Check::ok("reflink", format!("{shown} shares blocks between copies")),
        Ok(false) => Check::warning("reflink", format!("{shown} does not share blocks between copies"))
            .because("disks are copied byte by byte, without their holes")
            .remedy("keep Hearth's data on btrfs, or on xfs made with reflink"),
        Err(error) => {
            Check::warning("reflink", format!("cannot be tried in {shown}")).because(error.to_string())
        }
    }
}

fn userfaultfd(answer: Userfaultfd) -> Check {
    let remedy = "as root: `sysctl vm.unprivileged_userfaultfd=1`";
    match answer {
        Userfaultfd::Full => Check::ok("userfaultfd", "this user may serve page faults of guests"),
        Userfaultfd::UserModeOnly => Check::warning("userfaultfd", "for faults of programs only")
            .because("vm.unprivileged_userfaultfd is 0, so guests of KVM cannot be served")
            .remedy(remedy),
        Userfaultfd::None => Check::absent("userfaultfd", "not there")
            .because("the kernel lacks it, or forbids it to this user")
            .remedy(remedy),
    }
}

fn namespaces() -> Check {
    let user = facts::user_namespaces();
    // Without root the others come only inside a user namespace, so trying them says nothing.
    let others = if own::is_root() {
        facts::network_and_mount_namespaces()
    } else {
        Ok(())
    };
    match (user, others) {
        (true, Ok(())) => Check::ok("namespaces", "user, network and mount"),
        (false, Ok(())) => Check::warning("namespaces", "no user namespaces")
            .because("user.max_user_namespaces is 0, or the distribution keeps them from users")
            .remedy("as root: `sysctl user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1`"),
        (_, Err(error)) => Check::warning("namespaces", "no network and mount namespaces")
            .because(error.to_string())
            .remedy("use a kernel with CONFIG_NAMESPACES, and give this container CAP_SYS_ADMIN"),
    }
}

/// Judges what there is, and what of it this node may use.
fn cgroups(cgroups: &Cgroups, unusable: &[&str]) -> Check {
    let version = match cgroups.version {
        CgroupVersion::V2 => "v2",
        CgroupVersion::V1 => "v1",
        CgroupVersion::Hybrid => "v1 and v2 (hybrid)",
        CgroupVersion::None => {
            return Check::absent("cgroups", "not mounted")
                .because("there is no hierarchy in /sys/fs/cgroup, so machines' use cannot be limited")
                .remedy("mount -t cgroup2 none /sys/fs/cgroup");
        }
    };
    let has = |name: &&str| cgroups.controllers.iter().any(|known| known == name);
    let (there, absent): (Vec<&str>, Vec<&str>) = CONTROLLERS.into_iter().partition(has);
    let detail = format!("{version}: {}", there.join(" "));
    if absent.is_empty() && !unusable.is_empty() {
        return Check::absent("cgroups", format!("{detail}, and not for this node"))
            .because("only root's node makes groups, so what machines take of the host is limited by nothing")
            .remedy("run the node as root, where machines must not starve others");
    }
    if absent.is_empty() {
        return Check::ok("cgroups", detail);
    }
    Check::warning("cgroups", detail)
        .because(format!("the controllers {} cannot be used", absent.join(", ")))
        .remedy("switch them on: in a parent's cgroup.subtree_control, or on the kernel's command line")
}

fn seccomp() -> Check {
    if facts::seccomp() {
        Check::ok("seccomp", "the kernel filters system calls")
    } else {
        Check::missing("seccomp", "not there")
            .because("QEMU is started with `-sandbox on`, which needs it")
            .remedy("use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

fn landlock(abi: Option<u32>) -> Check {
    match abi {
        Some(abi) => Check::ok("landlock", format!("version {abi} of its interface")),
        None => Check::absent("landlock", "not there")
            .because(
                "the kernel lacks it, or it is not among the security modules of its command line (lsm=)",
            )
            .remedy("use a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK, and landlock in lsm="),
    }
}

/// Looks at a device that some features need, and no machine of this version.
fn device(name: &'static str, path: &'static str, remedy: &str) -> Check {
    match facts::open_device(Path::new(path)) {
        Ok(_) => Check::ok(name, path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Check::absent(name, "not there")
            .because(format!("there is no {path}"))
            .remedy(remedy),
        Err(error) => Check::absent(name, format!("{path} cannot be opened"))
            .because(error.to_string())
            .remedy("run as root"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::State;
    use super::*;
    use crate::host::kvm::GuestEnd;

    fn judged(answer: KvmAnswer) -> Check {
        kvm(&KvmProbe {
            answer,
            took: Duration::from_millis(3),
        })
    }

    #[test]
    fn kvm_is_ok_only_when_a_guest_ran() {
        assert_eq!(judged(KvmAnswer::Native).state, State::Ok);
        let emulated = judged(KvmAnswer::Emulated {
            end: GuestEnd::EmulationFailure,
        });
        assert_eq!(emulated.state, State::Warning);
        assert!(
            emulated
                .detail
                .starts_with("emulated (a guest was tried in 3.0 ms)")
        );
        let absent = judged(KvmAnswer::Absent {
            cause: KvmAbsent::NoPermission,
        });
        assert_eq!(absent.state, State::Warning);
        assert!(absent.remedy.is_some_and(|remedy| remedy.contains("usermod")));
    }

    #[test]
    fn settings_that_make_no_sense_are_a_warning() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout::new(home.path(), home.path(), home.path());
        assert_eq!(settings(&layout).state, State::Ok);
        std::fs::write(home.path().join("hearth.toml"), "[registry]\nx = 1").unwrap();
        let check = settings(&layout);
        assert_eq!(check.state, State::Warning);
        assert!(check.cause.unwrap().contains("line 2"));
    }

    #[test]
    fn memory_on_a_disk_stops_machines() {
        let check = guest_memory(Path::new("/proc/none"));
        assert_eq!(check.state, State::Missing);
        assert_eq!(guest_memory(Path::new("/dev/shm/none")).name, "guest-memory");
    }

    #[test]
    fn a_controller_that_is_not_there_or_not_for_this_node_is_named() {
        let two = Cgroups {
            version: CgroupVersion::V2,
            controllers: vec!["cpu".to_owned(), "pids".to_owned()],
        };
        let check = cgroups(&two, &["memory"]);
        assert_eq!(check.state, State::Warning);
        assert_eq!(
            check.cause.as_deref(),
            Some("the controllers memory cannot be used")
        );
        let all = Cgroups {
            controllers: CONTROLLERS.map(str::to_owned).to_vec(),
            ..two
        };
        assert_eq!(cgroups(&all, &[]).state, State::Ok);
        assert_eq!(cgroups(&all, &CONTROLLERS).state, State::Absent);
    }

    #[test]
    fn a_device_that_is_not_there_stops_no_machine() {
        let check = device("tun", "/dev/no-such-device", "make it");
        assert_eq!(check.state, State::Absent);
    }
}
