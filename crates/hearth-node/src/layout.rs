//! Where everything lies: data, run time, and the memory of guests. Every path that Hearth owns is made here.

use std::path::{Path, PathBuf};

use hearth_api::location::Configuration;
use hearth_machine::MachineId;

/// The three roots of one node, and the paths under them.
///
/// - `data` survives a reboot: images, artefacts, records, disks.
/// - `run` does not: sockets, the node's pid.
/// - `memory` holds guests' memory and must be a tmpfs: what a guest keeps in memory (secrets too) must not reach a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    data: PathBuf,
    run: PathBuf,
    memory: PathBuf,
    configuration: Configuration,
}

impl Layout {
    /// Names the three roots; nothing is created. Settings are beside the data unless it is said otherwise.
    pub fn new(data: impl Into<PathBuf>, run: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            configuration: Configuration::Usual(data.join("hearth.toml")),
            data,
            run: run.into(),
            memory: memory.into(),
        }
    }

    /// Says where the settings lie.
    #[must_use]
    pub fn with_configuration(self, configuration: Configuration) -> Self {
        Self {
            configuration,
            ..self
        }
    }

    /// Returns where the settings lie.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Returns the root of what survives a reboot.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Returns the root of sockets and pid files.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Returns the root of guests' memory.
    pub fn memory(&self) -> &Path {
        &self.memory
    }

    /// Returns the directory of kernels, agents and initramfs images.
    pub fn artefacts(&self) -> PathBuf {
        self.data.join("artefacts")
    }

    /// Returns the image store: an OCI layout and the root file systems made of it.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Returns the empty disks that machines' disks are copies of.
    pub fn empty_disks(&self) -> PathBuf {
        self.data.join("disks")
    }

    /// Returns the directory of templates.
    pub fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    /// Returns the directory of snapshots.
    pub fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }

    /// Returns the directory of pagers' sockets.
    pub fn pagers(&self) -> PathBuf {
        self.run.join("pagers")
    }

    /// Returns the socket of the switch of a network of machines, where the node is not root's.
    pub fn switch(&self, number: u16) -> PathBuf {
        self.run.join(format!("switch-{number:04x}"))
    }

    /// Returns the log of what happened to machines.
    pub fn events(&self) -> PathBuf {
        self.data.join("events.jsonl")
    }

    /// Returns the directory of pools' records.
    pub fn pools(&self) -> PathBuf {
        self.data.join("pools")
    }

    /// Returns the directory of records of networks of machines.
    pub fn networks(&self) -> PathBuf {
        self.data.join("networks")
    }

    /// Returns the directory of all machines' directories.
    pub fn machines_data(&self) -> PathBuf {
        self.data.join("machines")
    }

    /// Returns the directory of a machine's record, disk and logs.
    pub fn machine_data(&self, id: MachineId) -> PathBuf {
        self.machines_data().join(id.to_string())
    }

    /// Returns the machine's link to the root file system of its image.
    pub fn machine_rootfs(&self, id: MachineId) -> PathBuf {
        self.machine_data(id).join("rootfs.img")
    }

    /// Returns the machine's writable disk.
    pub fn machine_disk(&self, id: MachineId) -> PathBuf {
        self.machine_data(id).join("disk.img")
    }

    /// Returns the file of what a machine was refused on its network.
    pub fn machine_denials(&self, id: MachineId) -> PathBuf {
        self.machine_data(id).join("denials.jsonl")
    }

    /// Returns the file of whom a machine has talked to on its network.
    pub fn machine_contacts(&self, id: MachineId) -> PathBuf {
        self.machine_data(id).join("contacts.jsonl")
    }

    /// Returns the directory of all machines' sockets.
    pub fn machines_run(&self) -> PathBuf {
        self.run.join("m")
    }

    /// Returns the directory of a machine's sockets.
    pub fn machine_run(&self, id: MachineId) -> PathBuf {
        self.machines_run().join(id.to_string())
    }

    /// Returns the file that backs a machine's memory.
    pub fn machine_memory(&self, id: MachineId) -> PathBuf {
        self.memory.join(id.to_string())
    }
}
