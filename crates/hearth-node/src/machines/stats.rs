//! What a machine uses: as the host counts it, and as its guest says.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use hearth_guest_protocol::message::Stats;
use hearth_machine::State;

use super::handle::Machine;
use super::life::process_id;
use crate::guest::Traffic;
use crate::host::usage::ProcessUsage;
use crate::network::Counters;

/// How long a guest may take to say what it uses. One that is busier than that is left out.
const GUEST_DEADLINE: Duration = Duration::from_secs(3);
/// What a block of `stat` is, in bytes, whatever the file system.
const BLOCK: u64 = 512;

/// What a machine uses at one moment.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Bytes that its disk takes on the host.
    pub disk: u64,
    /// Its monitor's; `None` while there is none.
    pub monitor: Option<ProcessUsage>,
    /// What has gone through its network; `None` where it has none.
    pub network: Option<Counters>,
    /// What went through the guest channel.
    pub traffic: Traffic,
    /// What the guest says; `None` while it says nothing.
    pub guest: Option<Stats>,
}

impl Machine {
    /// Tells what it uses. What cannot be found out is left out.
    pub async fn usage(&self) -> Usage {
        let view = self.view();
        let (disk, vmm) = (self.disk_path(), view.record.vmm);
        let host = tokio::task::spawn_blocking(move || {
            let monitor = vmm.and_then(|vmm| ProcessUsage::of(process_id(vmm)).ok().flatten());
            // There is none before the first start.
            let disk = std::fs::metadata(disk).map_or(0, |disk| disk.blocks() * BLOCK);
            (monitor, disk)
        });
        // A guest that stands still would not answer.
        let guest = view.guest().ok().filter(|_| view.state == State::Running);
        let said = async {
            match guest {
                Some(guest) => guest.stats(GUEST_DEADLINE).await.ok(),
                None => None,
            }
        };
        let network = async {
            let monitor = process_id(vmm?).pid;
            self.parts.networks.counters(self.id, monitor).await
        };
        let (host, guest_stats, network) = tokio::join!(host, said, network);
        // It does not panic, and nobody aborts it.
        let (monitor, disk) = host.unwrap_or_default();
        Usage {
            disk,
            monitor,
            network: network.filter(|_| monitor.is_some()),
            traffic: guest.map(|guest| guest.traffic()).unwrap_or_default(),
            guest: guest_stats,
        }
    }
}
