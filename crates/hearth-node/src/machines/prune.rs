//! Removal of machines that have ended, or were never started.

use std::os::unix::fs::MetadataExt as _;

use hearth_machine::{MachineId, State};

use super::handle::Machine;
use super::registry::Machines;

impl Machines {
    /// Removes every machine that has nothing running and that `which` picks. Returns their ids and what they took on the disk, in
    /// bytes. One that starts meanwhile is passed over; one that cannot be removed is reported in the log, as after `rm`.
    pub async fn prune(&self, which: impl Fn(&Machine) -> bool) -> (Vec<MachineId>, u64) {
        let (mut removed, mut reclaimed) = (Vec::new(), 0);
        for machine in self.list() {
            let state = machine.view().state;
            let rests = matches!(state, State::Created | State::Exited(_) | State::Failed { .. });
            if !rests || !which(&machine) {
                continue;
            }
            let size = size(&machine);
            if machine.remove(false).await.is_ok() {
                removed.push(machine.id());
                reclaimed += size;
            }
        }
        (removed, reclaimed)
    }
}

/// Returns what a machine's files take on the disk: its link to the image's root file system is shared, and takes nothing.
fn size(machine: &Machine) -> u64 {
    let files = std::fs::read_dir(machine.directory())
        .into_iter()
        .flatten()
        .flatten();
    let metadata = files.filter_map(|file| file.metadata().ok());
    let own = metadata.filter(|metadata| metadata.is_file() && metadata.nlink() == 1);
    // stat(2) counts in units of 512 bytes, whatever the file system's are.
    own.map(|metadata| metadata.blocks() * 512).sum()
}
