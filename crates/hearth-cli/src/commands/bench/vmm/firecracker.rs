//! Firecracker as a short script would use it: a directory, a process, the same calls of its API that the node makes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use hearth_firecracker::jailer::{self, InstanceId};
use hearth_firecracker::model::{
    Access, Action, Balloon, BootSource, Drive, Entropy, LoadSnapshot, MachineConfiguration, MemoryBackend,
    Snapshot, SnapshotKind, VmState, Vsock,
};
use hearth_firecracker::{Client, ClientError};
use tokio::process::{Child, Command};

use super::VmmError;
use super::guest::Guest;

/// How long a process has until it answers.
const START: Duration = Duration::from_secs(60);

/// Names in a machine's directory, where Firecracker works.
const API: &str = "api.sock";
const VSOCK: &str = "v.sock";
const STATE: &str = "state";

/// The disks, and their bytes: as much as those of busybox's image and of a machine.
const DISKS: [(&str, Access, u64); 2] = [
    ("disk0", Access::ReadOnly, 2 << 20),
    ("disk1", Access::ReadWrite, 2 << 30),
];

/// What the node says to kernels, too: the test guest prints it, byte by byte.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k tsc=reliable random.trust_cpu=on i8042.noaux i8042.nomux \
     i8042.nopnp i8042.dumbkbd 8250.nr_uarts=1 cryptomgr.notests pci=off";
pub(super) const MEMORY: &str = "memory";

/// What machines are made with.
pub(super) struct Subject {
    pub(super) firecracker: PathBuf,
    pub(super) guest: PathBuf,
    pub(super) memory_mib: u64,
    /// Where machines' directories are made.
    pub(super) directory: PathBuf,
}

/// Where a machine's memory comes from.
#[derive(Clone, Copy)]
pub(super) enum Memory<'p> {
    File,
    Pager(&'p Path),
}

/// A machine. Dropped, it is killed and its directory goes.
pub(super) struct Machine {
    child: Child,
    client: Client,
    directory: PathBuf,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended, or the directory may not be there any more: both are what is wanted.
        let _ = self.child.start_kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Subject {
    /// Boots a machine up to the guest's first reply.
    pub(super) async fn boot(&self, name: &str) -> Result<(Machine, Guest), VmmError> {
        let machine = self.start(name).await?;
        let client = &machine.client;
        let configuration = MachineConfiguration::new(1, self.memory_mib);
        client.set_machine_configuration(&configuration).await?;
        let kernel = BootSource {
            kernel: self.guest.clone(),
            initramfs: None,
            arguments: Some(COMMAND_LINE.to_owned()),
        };
        client.set_boot_source(&kernel).await?;
        for (name, access, _) in DISKS {
            let id = name.parse().map_err(|_| VmmError::Guest)?;
            client.set_drive(&Drive::of_file(id, name, access)).await?;
        }
        let vsock = Vsock {
            guest_cid: 3,
            socket: VSOCK.into(),
        };
        client.set_vsock(&vsock).await?;
        client.set_entropy(&Entropy::default()).await?;
        let balloon = Balloon {
            amount_mib: 0,
            deflate_on_oom: true,
            statistics_interval_s: 0,
        };
        client.set_balloon(&balloon).await?;
        client.act(Action::InstanceStart).await?;
        let guest = Guest::greet(&machine.directory.join(VSOCK)).await?;
        Ok((machine, guest))
    }

    /// Makes a machine of a saved one, up to the guest's first reply.
    pub(super) async fn restore(
        &self,
        name: &str,
        source: &Machine,
        memory: Memory<'_>,
    ) -> Result<(Machine, Guest), VmmError> {
        let machine = self.start(name).await?;
        let mut load = LoadSnapshot::of_files(source.directory.join(STATE), source.memory());
        if let Memory::Pager(socket) = memory {
            load.memory = MemoryBackend::Uffd(socket.to_owned());
        }
        machine.client.load_snapshot(&load).await?;
        let guest = Guest::greet(&machine.directory.join(VSOCK)).await?;
        Ok((machine, guest))
    }

    async fn start(&self, name: &str) -> Result<Machine, VmmError> {
        let directory = self.directory.join(name);
        let failed = |source| VmmError::Program {
            program: self.firecracker.clone(),
            source,
        };
        std::fs::create_dir(&directory).map_err(failed)?;
        for (name, _, bytes) in DISKS {
            let disk = File::create(directory.join(name)).and_then(|disk| disk.set_len(bytes));
            disk.map_err(failed)?;
        }
        let id: InstanceId = "bench".parse().map_err(|_| VmmError::Guest)?;
        let child = Command::new(&self.firecracker)
            .args(jailer::Firecracker::new(API).arguments(&id))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("log")).map_err(failed)?)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let machine = Machine {
            child,
            client: Client::new(directory.join(API)).within(START),
            directory,
        };
        machine.answers().await?;
        Ok(machine)
    }
}

impl Machine {
    async fn answers(&self) -> Result<(), VmmError> {
        let begun = Instant::now();
        loop {
            match self.client.instance().await {
                Err(ClientError::Connect { .. }) if begun.elapsed() < START => {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
                answered => return Ok(answered.map(drop)?),
            }
        }
    }

    /// Ends the machine, so that nothing of its end goes on while the next one is measured.
    pub(super) async fn end(mut self) {
        // It may have ended.
        let _ = self.child.kill().await;
    }

    /// Saves the machine, which stands still from then on.
    pub(super) async fn save(&self) -> Result<(), VmmError> {
        self.client.set_vm_state(VmState::Paused).await?;
        let snapshot = Snapshot {
            kind: SnapshotKind::Full,
            state: STATE.into(),
            memory: MEMORY.into(),
        };
        Ok(self.client.create_snapshot(&snapshot).await?)
    }

    /// Returns the file of its memory.
    pub(super) fn memory(&self) -> PathBuf {
        self.directory.join(MEMORY)
    }

    /// Returns the memory that is its own or its part of what is shared, in KiB (proc_pid_smaps_rollup(5)).
    pub(super) fn pss_kibibytes(&self) -> Option<f64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()?)).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    }
}
