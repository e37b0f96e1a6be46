//! The host's side of a test: a directory, a Firecracker in it, and that nothing of either is left.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_firecracker::jailer::{Firecracker, InstanceId};
use hearth_firecracker::model::{
    Access, Action, Balloon, BootSource, Drive, Entropy, HugePages, LoadSnapshot, MachineConfiguration,
    MetricsTarget, Snapshot, SnapshotKind, VmState, Vsock,
};
use hearth_firecracker::{Client, ClientError, Metrics};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::guest::Guest;

/// Nothing takes that long, even on a host that is overloaded.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Sizes of the ordinary machine.
pub(crate) const MEMORY_MIB: u64 = 64;
pub(crate) const DISK: u64 = 8 * 1024 * 1024;

/// Names in a machine's directory. Firecracker works there, so that they are all it ever hears.
pub(crate) const VSOCK: &str = "v.sock";
pub(crate) const DRIVE: &str = "disk.img";
pub(crate) const STATE: &str = "state";
pub(crate) const MEMORY: &str = "memory";
const METRICS: &str = "metrics";

/// Says why a test does not run here, and ends it.
macro_rules! skip_without_firecracker {
    () => {
        match $crate::host::Host::find() {
            Ok(host) => host,
            Err(reason) => {
                println!(
                    "SKIPPED {}: {reason}",
                    std::thread::current().name().unwrap_or("?")
                );
                return Ok(());
            }
        }
    };
}
pub(crate) use skip_without_firecracker;

/// What a test needs of the host.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) firecracker: PathBuf,
    pub(crate) guest: PathBuf,
}

impl Host {
    /// Finds Firecracker, the guest, and a KVM that opens.
    pub(crate) fn find() -> Result<Self, String> {
        // Beside cargo's directory for tests, wherever that is.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("");
        let find = |variable: &str, path: &str, remedy: &str| {
            let path = std::env::var_os(variable).map_or_else(|| target.join(path), PathBuf::from);
            match path.is_file() {
                true => Ok(path),
                false => Err(format!("there is no {}: {remedy}", path.display())),
            }
        };
        let host = Self {
            firecracker: find(
                "HEARTH_TEST_FIRECRACKER",
                "firecracker/firecracker",
                "scripts/prerequisites.sh test",
            )?,
            guest: find(
                "HEARTH_TEST_BARE_GUEST",
                "bare-guest/x86_64-unknown-none/release/bare-guest",
                "cargo xtask bare-guest",
            )?,
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        kvm.map(|_| host)
            .map_err(|error| format!("/dev/kvm does not open: {error}"))
    }

    /// Makes an empty directory and starts Firecracker in it.
    pub(crate) async fn start(&self) -> Result<Vmm> {
        self.start_in(tempfile::Builder::new().prefix("hfc-").tempdir()?)
            .await
    }

    /// Starts Firecracker in a directory.
    pub(crate) async fn start_in(&self, directory: TempDir) -> Result<Vmm> {
        let id: InstanceId = "test".parse()?;
        let log = File::create(directory.path().join("vmm.log"))?;
        let child = Command::new(&self.firecracker)
            .args(Firecracker::new("api.sock").arguments(&id))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let client = Client::new(directory.path().join("api.sock")).within(LONG);
        let vmm = Vmm {
            child,
            client,
            directory,
        };
        answers(&vmm.client).await.with_context(|| vmm.log())?;
        Ok(vmm)
    }

    /// Boots the ordinary machine: a drive, a balloon, entropy, vsock; pages that change are noted.
    pub(crate) async fn boot(&self) -> Result<Vmm> {
        let vmm = self.start().await?;
        vmm.configure(&self.guest).await?;
        vmm.client.act(Action::InstanceStart).await?;
        Ok(vmm)
    }

    /// Makes a machine of a snapshot in a directory of its own: links to state and memory, a copy of the drive.
    pub(crate) async fn restore(&self, snapshot: &Path) -> Result<Vmm> {
        let directory = clone_of(snapshot)?;
        let vmm = self.start_in(directory).await?;
        vmm.client
            .load_snapshot(&LoadSnapshot::of_files(STATE, MEMORY))
            .await?;
        Ok(vmm)
    }
}

/// Makes a directory for a clone.
pub(crate) fn clone_of(snapshot: &Path) -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("hfc-").tempdir()?;
    for name in [STATE, MEMORY] {
        std::os::unix::fs::symlink(snapshot.join(name), directory.path().join(name))?;
    }
    std::fs::copy(snapshot.join(DRIVE), directory.path().join(DRIVE))?;
    Ok(directory)
}

/// Waits until Firecracker serves its API.
pub(crate) async fn answers(client: &Client) -> Result<()> {
    let begin = Instant::now();
    loop {
        match client.instance().await {
            Err(ClientError::Connect { .. }) if begin.elapsed() < LONG => {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            other => return Ok(other.map(drop)?),
        }
    }
}

/// A Firecracker, and the directory it works in. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) child: Child,
    pub(crate) client: Client,
    pub(crate) directory: TempDir,
}

impl Vmm {
    /// Returns a path in the machine's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Configures the ordinary machine.
    pub(crate) async fn configure(&self, guest: &Path) -> Result<()> {
        self.configure_with(guest, HugePages::None).await
    }

    /// Configures the ordinary machine, with such pages behind its memory.
    pub(crate) async fn configure_with(&self, guest: &Path, huge_pages: HugePages) -> Result<()> {
        File::create(self.path(DRIVE))?.set_len(DISK)?;
        File::create(self.path(METRICS))?;
        let client = &self.client;
        client
            .set_metrics(&MetricsTarget { path: METRICS.into() })
            .await?;
        let mut machine = MachineConfiguration::new(1, MEMORY_MIB);
        machine.track_dirty_pages = huge_pages == HugePages::None;
        machine.huge_pages = huge_pages;
        client.set_machine_configuration(&machine).await?;
        client
            .set_boot_source(&BootSource {
                kernel: guest.into(),
                initramfs: None,
                arguments: Some("quiet".into()),
            })
            .await?;
        client
            .set_drive(&Drive::of_file("disk".parse()?, DRIVE, Access::ReadWrite))
            .await?;
        // Firecracker has no balloon over huge pages.
        if huge_pages == HugePages::None {
            client
                .set_balloon(&Balloon {
                    amount_mib: 0,
                    deflate_on_oom: false,
                    statistics_interval_s: 1,
                })
                .await?;
        }
        client.set_entropy(&Entropy::default()).await?;
        client
            .set_vsock(&Vsock {
                guest_cid: 3,
                socket: VSOCK.into(),
            })
            .await?;
        Ok(())
    }

    /// Has metrics written, and sums them.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        self.client.act(Action::FlushMetrics).await?;
        let total = Metrics::total(&std::fs::read_to_string(self.path(METRICS))?)?;
        total.context("there are no metrics")
    }

    /// Greets the guest.
    pub(crate) async fn greet(&self) -> Result<Guest> {
        Guest::greet(&self.path(VSOCK)).await.with_context(|| self.log())
    }

    /// Greets the guest, says who it is, and starts a workload that waits.
    pub(crate) async fn settle(&self) -> Result<Guest> {
        let mut guest = self.greet().await?;
        guest.configure("first").await?;
        guest.workload(&["wait"]).await?;
        Ok(guest)
    }

    /// Pauses the machine, writes a snapshot into its directory, and leaves it paused.
    pub(crate) async fn snapshot(&self, kind: SnapshotKind, state: &str, memory: &str) -> Result<()> {
        self.client.set_vm_state(VmState::Paused).await?;
        self.client
            .create_snapshot(&Snapshot {
                kind,
                state: state.into(),
                memory: memory.into(),
            })
            .await?;
        Ok(())
    }

    /// Waits for Firecracker to end by itself.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus> {
        match tokio::time::timeout(LONG, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("Firecracker does not end: {}", self.log()),
        }
    }

    /// Kills Firecracker, and makes sure that nothing of it is left.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.child.kill().await?;
        let directory = self.directory.path().to_owned();
        self.directory.close()?;
        let sockets = std::fs::read_to_string("/proc/net/unix")?;
        let left = sockets
            .lines()
            .filter(|line| line.contains(&*directory.to_string_lossy()));
        ensure!(left.count() == 0, "a socket of {} is left", directory.display());
        for process in std::fs::read_dir("/proc")? {
            let working = std::fs::read_link(process?.path().join("cwd"));
            ensure!(
                !working.is_ok_and(|path| path.starts_with(&directory)),
                "a process of {} is left",
                directory.display()
            );
        }
        Ok(())
    }

    /// Returns what Firecracker and the guest's console said.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.path("vmm.log"));
        format!("Firecracker said:\n{}", log.unwrap_or_default())
    }
}
