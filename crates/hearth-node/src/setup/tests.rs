//! Set-up from end to end, on the distribution's own package and on small kernels made here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::*;

/// The smallest thing that passes for a kernel: an ELF file with a PVH note and a banner.
pub(crate) fn small_kernel(release: &str) -> Vec<u8> {
    let banner = format!("Linux version {release} (someone)");
    let mut note = Vec::new();
    for field in [4_u32, 8, 18] {
        note.extend_from_slice(&field.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0\0\0\x10\0\0\0\0\0");
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Type EXEC, machine x86-64, version.
    elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for field in [0_u64, 64, 0] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for field in [64_u16, 56, 1, 64, 0, 0] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    // One program header: PT_NOTE behind the headers.
    elf.extend_from_slice(&4_u32.to_le_bytes());
    elf.extend_from_slice(&4_u32.to_le_bytes());
    for field in [120, 0, 0, note.len() as u64, note.len() as u64, 4] {
        elf.extend_from_slice(&u64::to_le_bytes(field));
    }
    elf.extend_from_slice(&note);
    elf.extend_from_slice(banner.as_bytes());
    elf
}

/// A static program: an ELF file without an interpreter.
pub(crate) fn small_agent(tag: u8) -> Vec<u8> {
    let mut elf = small_kernel("1.0-agent");
    elf.push(tag);
    elf
}

struct Bench {
    root: TempDir,
    artefacts: Artefacts,
}

impl Bench {
    /// A directory of artefacts, and an agent beside the "executable".
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let agent = root.path().join("bin/hearth-guest");
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::write(&agent, small_agent(1)).unwrap();
        let artefacts = Artefacts::at(root.path().join("artefacts"), Some(agent));
        Self { root, artefacts }
    }

    fn kernel(&self, release: &str) -> SetupRequest {
        let kernel = self.root.path().join("vmlinux");
        fs::write(&kernel, small_kernel(release)).unwrap();
        SetupRequest {
            kernel: KernelSource::File {
                kernel,
                modules: None,
            },
            agent: None,
        }
    }

    async fn run(&self, request: SetupRequest) -> Result<Report, SetupError> {
        self.artefacts.run(request, |_| {}).await
    }

    fn files(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.root.path().join("artefacts")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[tokio::test]
async fn nothing_boots_before_set_up() {
    let bench = Bench::new();
    assert!(matches!(bench.artefacts.boot_set(), Err(NotSetUp::Never)));
    assert_eq!(bench.artefacts.list().unwrap(), []);
    assert!(matches!(
        bench.artefacts.refresh_agent().await,
        Err(SetupError::NotSetUp(NotSetUp::Never))
    ));
}

#[tokio::test]
async fn a_kernel_of_ones_own_is_set_up_once() {
    let bench = Bench::new();
    let first = bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    assert!(first.changed);
    let kinds: Vec<&str> = first
        .artefacts
        .iter()
        .map(|artefact| artefact.kind.as_str())
        .collect();
    assert_eq!(kinds, ["kernel", "agent", "initramfs"]);
    let set = bench.artefacts.boot_set().unwrap();
    assert_eq!(set.kernel_release, "6.12.0-own");
    assert_eq!(set.agent, AgentState::Current);
    assert_eq!(fs::read(&set.kernel).unwrap(), small_kernel("6.12.0-own"));
    let again = bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    assert!(!again.changed);
    assert_eq!(again.artefacts, first.artefacts);
    assert_eq!(bench.artefacts.verify().unwrap(), first.artefacts);
}

#[tokio::test]
async fn a_new_agent_is_noticed_and_taken_in() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let before = bench.artefacts.boot_set().unwrap();
    let agent = bench.root.path().join("bin/hearth-guest");
    fs::write(&agent, [small_agent(2), vec![0; 10]].concat()).unwrap();
    let changed = bench.artefacts.boot_set().unwrap();
    assert_eq!(changed.agent, AgentState::Changed { path: agent.clone() });
    assert!(bench.artefacts.refresh_agent().await.unwrap().changed);
    let after = bench.artefacts.boot_set().unwrap();
    assert_eq!(after.agent, AgentState::Current);
    assert_ne!(after.agent_digest, before.agent_digest);
    assert_eq!(after.kernel_digest, before.kernel_digest);
    assert!(
        before.initramfs.exists(),
        "a machine may be about to boot with the one before"
    );
    assert!(!bench.artefacts.refresh_agent().await.unwrap().changed);
    fs::remove_file(agent).unwrap();
    assert_eq!(bench.artefacts.boot_set().unwrap().agent, AgentState::Current);
}

#[tokio::test]
async fn callers_at_once_take_turns() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    fs::write(bench.root.path().join("bin/hearth-guest"), small_agent(9)).unwrap();
    let (one, two) = tokio::join!(bench.artefacts.refresh_agent(), bench.artefacts.refresh_agent());
    let changed = [one.unwrap().changed, two.unwrap().changed];
    assert_eq!(changed.iter().filter(|&&changed| changed).count(), 1);
}

#[tokio::test]
async fn another_process_at_work_is_not_disturbed() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let other = Artefacts::at(bench.root.path().join("artefacts"), None);
    let lock = fs::File::open(bench.root.path().join("artefacts/.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let refused = other.run(bench.kernel("6.12.1-own"), |_| {}).await;
    assert!(matches!(refused, Err(SetupError::Busy { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_failed_set_up_leaves_everything_as_it_was() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let (index, files) = (bench.artefacts.boot_set().unwrap(), bench.files());
    let mut request = bench.kernel("6.12.0-own");
    request.agent = Some(PathBuf::from("/no/such/agent"));
    let error = bench.run(request).await.unwrap_err();
    assert!(
        matches!(error, SetupError::Agent(AgentError::NotFound { .. })),
        "{error}"
    );
    let request = SetupRequest {
        kernel: KernelSource::File {
            kernel: "/etc/passwd".into(),
            modules: None,
        },
        agent: None,
    };
    let error = bench.run(request).await.unwrap_err();
    let SetupError::Kernel(KernelError::Unusable { source, .. }) = error else {
        panic!("{error}");
    };
    assert!(matches!(source, VmlinuxError::UnknownFormat));
    assert_eq!(bench.artefacts.boot_set().unwrap(), index);
    assert_eq!(bench.files(), files);
}

#[tokio::test]
async fn old_artefacts_go_when_neither_this_set_nor_the_one_before_names_them() {
    let bench = Bench::new();
    let mut kernels = Vec::new();
    for release in ["6.12.0-a", "6.12.0-b", "6.12.0-c", "6.12.0-d"] {
        bench.run(bench.kernel(release)).await.unwrap();
        let kernel = bench.artefacts.boot_set().unwrap().kernel;
        if release != "6.12.0-b" {
            let long_ago = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
            fs::File::open(&kernel).unwrap().set_modified(long_ago).unwrap();
        }
        kernels.push(kernel);
    }
    let there: Vec<bool> = kernels.iter().map(|kernel| kernel.exists()).collect();
    // `b` is young, `c` is the one before, `d` is in use.
    assert_eq!(there, [false, true, true, true]);
}

/// Has the index say that an earlier version chose the modules: without one of today's names.
fn chosen_by_an_earlier_hearth(bench: &Bench, edit: impl Fn(&mut index::Modules)) {
    let directory = bench.root.path().join("artefacts");
    let mut index = index::Index::read(&directory).unwrap().unwrap();
    edit(index.modules.as_mut().unwrap());
    index.write(&directory).unwrap();
}

fn outdated(bench: &Bench) -> Vec<&'static str> {
    let all = bench.artefacts.list().unwrap().into_iter();
    all.filter(|artefact| artefact.outdated)
        .map(|artefact| artefact.kind.as_str())
        .collect()
}

#[tokio::test]
async fn modules_that_an_earlier_version_chose_are_chosen_anew() {
    let bench = Bench::new();
    let tree = modules::tests::tree(&[
        ("virtio_blk.ko", ""),
        ("tcp_diag.ko", "inet_diag"),
        ("inet_diag.ko", ""),
    ]);
    let mut request = bench.kernel(modules::tests::RELEASE);
    if let KernelSource::File { modules, .. } = &mut request.kernel {
        *modules = Some(tree.path().to_owned());
    }
    let keep = || SetupRequest {
        kernel: KernelSource::Keep,
        agent: None,
    };
    let first = bench.run(request).await.unwrap();
    assert!(outdated(&bench).is_empty());
    assert!(!bench.run(keep()).await.unwrap().changed);

    // Another list, and another archive that it made.
    chosen_by_an_earlier_hearth(&bench, |modules| {
        modules.selection.useful.retain(|name| name != "tcp_diag");
        modules.stored = index::store(&bench.root.path().join("artefacts"), "", b"old").unwrap();
    });
    assert_eq!(outdated(&bench), ["modules"]);
    let again = bench.run(keep()).await.unwrap();
    assert!(again.changed);
    assert_eq!(again.artefacts, first.artefacts);
    // An index from before there was a selection in it.
    chosen_by_an_earlier_hearth(&bench, |modules| modules.selection = Default::default());
    assert_eq!(outdated(&bench), ["modules"]);
    assert!(bench.run(keep()).await.unwrap().changed);
    assert!(outdated(&bench).is_empty());
    // Machines boot with what there is; a new agent does not fetch a kernel.
    chosen_by_an_earlier_hearth(&bench, |modules| {
        modules.selection = Default::default();
        modules.tree = None;
    });
    fs::write(bench.root.path().join("bin/hearth-guest"), small_agent(3)).unwrap();
    assert!(bench.artefacts.refresh_agent().await.unwrap().changed);
    assert_eq!(outdated(&bench), ["modules"]);
    // Nor does anybody know where those modules came from.
    let error = bench.run(keep()).await.unwrap_err();
    assert!(
        matches!(error, SetupError::Kernel(KernelError::Outdated { .. })),
        "{error}"
    );
}

#[test]
fn an_index_of_an_earlier_version_is_read() {
    let text = r#"{"version":"6.12.0","digest":"DIGEST","size":3}"#;
    let text = text.replace("DIGEST", &Digest::of(b"old").to_string());
    let modules: index::Modules = serde_json::from_str(&text).unwrap();
    assert_eq!(modules.selection, index::Selection::default());
    let origin = Origin::Package { file: String::new() };
    assert!(!modules.is_current(&origin));
}

#[tokio::test]
async fn what_a_killed_set_up_left_is_swept() {
    let bench = Bench::new();
    let directory = bench.root.path().join("artefacts");
    fs::create_dir_all(directory.join(".unfinished-x/deep")).unwrap();
    fs::write(directory.join(".unfinished-y"), "half").unwrap();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let files = bench.files();
    assert!(
        !files.iter().any(|name| name.starts_with(".unfinished")),
        "{files:?}"
    );
}

#[tokio::test]
async fn a_damaged_artefact_is_found_and_mended() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let kernel = bench.artefacts.boot_set().unwrap().kernel;
    let mut bytes = fs::read(&kernel).unwrap();
    bytes[150] ^= 1;
    fs::write(&kernel, bytes).unwrap();
    assert!(matches!(
        bench.artefacts.verify(),
        Err(VerifyError::Damaged { .. })
    ));
    fs::write(&kernel, "short").unwrap();
    assert!(matches!(
        bench.artefacts.boot_set(),
        Err(NotSetUp::Damaged { .. })
    ));
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    bench.artefacts.verify().unwrap();
    fs::write(bench.root.path().join("artefacts/index.json"), "{").unwrap();
    assert!(matches!(
        bench.artefacts.boot_set(),
        Err(NotSetUp::Unreadable { .. })
    ));
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    bench.artefacts.boot_set().unwrap();
}

#[tokio::test]
async fn readers_see_one_whole_set_while_another_is_put_in_use() {
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-0")).await.unwrap();
    let (artefacts, stop) = (
        bench.artefacts.clone(),
        Arc::new(std::sync::atomic::AtomicBool::new(false)),
    );
    let stopped = stop.clone();
    let reader = std::thread::spawn(move || {
        let mut seen = BTreeSet::new();
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let set = artefacts.boot_set().unwrap();
            let kernel = match fs::read(&set.kernel) {
                Ok(kernel) => kernel,
                // On a busy host two more sets may have come meanwhile.
                Err(_) if artefacts.boot_set().unwrap().kernel_digest != set.kernel_digest => continue,
                Err(error) => panic!("{}: {error}", set.kernel.display()),
            };
            assert_eq!(Digest::of(&kernel), set.kernel_digest);
            assert!(kernel.ends_with(format!("{} (someone)", set.kernel_release).as_bytes()));
            seen.insert(set.kernel_release);
        }
        seen
    });
    for turn in 1..20 {
        bench.run(bench.kernel(&format!("6.12.0-{turn}"))).await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(!reader.join().unwrap().is_empty());
}

#[tokio::test]
async fn others_may_read_what_machines_boot_with() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    bench.run(bench.kernel("6.12.0-own")).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let set = bench.artefacts.boot_set().unwrap();
    assert_eq!([mode(&set.kernel), mode(&set.initramfs)], [0o644, 0o644]);
    assert_eq!(mode(&bench.root.path().join("artefacts")), 0o755);
}

/// Finds the distribution's kernel package in the cache of the tests, and downloads it when it is not there.
async fn kernel_package() -> Result<PathBuf, PackageError> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-cache");
    fs::create_dir_all(&cache).unwrap();
    let quiet = progress::Listener::to(|_| {});
    let package = distribution::find(&distribution::KERNEL_PACKAGES, "linux-image-", &quiet).await?;
    let cached = cache.join(&package.file);
    if !cached.exists() {
        let scratch = tempfile::tempdir_in(&cache).unwrap();
        let fetched = distribution::download(&package, scratch.path(), &quiet).await?;
        fs::rename(fetched, &cached).unwrap();
    }
    Ok(cached)
}

#[tokio::test]
async fn the_distributions_kernel_is_taken_out_of_its_package() {
    let package = match kernel_package().await {
        Ok(package) => package,
        Err(error) => {
            crate::host::skip::skipped(&format!("the distribution's kernel cannot be had here: {error}"));
            return;
        }
    };
    let root = tempfile::tempdir().unwrap();
    let steps = Arc::new(Mutex::new(BTreeSet::new()));
    let heard = steps.clone();
    let listener = progress::Listener::to(move |event| {
        if let Progress::Finished { step, .. } = event {
            heard.lock().unwrap().insert(step.to_string());
        }
    });
    let (image, tree) = kernel::unpack(&package, root.path(), 1, &listener).unwrap();
    let origin = Origin::Package { file: String::new() };
    let set = kernel::take_in(root.path(), &image, Some(&tree), origin, &listener).unwrap();
    let release = &set.kernel.stored.version;
    assert!(
        image.to_string_lossy().ends_with(release),
        "{release} is not {}",
        image.display()
    );
    let elf = fs::read(root.path().join(set.kernel.stored.digest.file_name())).unwrap();
    assert!(elf.starts_with(b"\x7fELF") && elf.len() > 20 << 20);
    let archive = fs::read(root.path().join(set.modules.unwrap().stored.digest.file_name())).unwrap();
    for name in ["virtio_blk.ko", "erofs.ko", "overlay.ko", "virtio_net.ko"] {
        assert!(
            memchr::memmem::find(&archive, name.as_bytes()).is_some(),
            "{name}"
        );
    }
    assert!(memchr::memmem::find(&archive, b"~Module signature appended~").is_none());
    assert_eq!(
        *steps.lock().unwrap(),
        BTreeSet::from(["kernel", "modules", "unpack"].map(str::to_owned))
    );
    // A package that is cut short is refused, and not taken for a small one.
    let whole = fs::read(&package).unwrap();
    let short = root.path().join("short.deb");
    fs::write(&short, &whole[..whole.len() / 2]).unwrap();
    let into = root.path().join("short");
    assert!(kernel::unpack(&short, &into, 1, &listener).is_err());
}
