//! What a boot tells Firecracker: the same for every machine of the same shape, since it hears names only.

use hearth_firecracker::model::{
    Access, Action, Balloon, BootSource, DeviceId, Drive, DriveBackend, DriveUpdate, Entropy,
    MachineConfiguration, MmdsConfiguration, MmdsVersion, NetworkInterface, NetworkInterfaceUpdate,
    RateLimiter, TokenBucket, Vsock,
};
use hearth_firecracker::{Client, ClientError};
use hearth_machine::Rate;

use super::machine::VSOCK;
use super::place::Place;
use crate::host::network_namespace::TAP;
use crate::vmm::{BootError, BootRequest, Devices, DiskAccess};

/// The most disks of one machine. Firecracker has interrupts for more; two is what a machine needs.
pub(super) const MAX_DISKS: usize = 8;

const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";

/// The guest's number on vsock. All have the same: each has a socket of its own on the host.
const GUEST_CID: u32 = 3;

/// The kernel's command line.
///
/// - `console=ttyS0`: the one serial port; `quiet` because each byte costs an exit, warnings still come.
/// - `panic=-1 reboot=k`: a panic resets at once, by the keyboard's controller, and a reset ends Firecracker.
/// - `random.trust_cpu=on`: the first random numbers come from RDRAND, so nothing waits for entropy.
/// - the rest leaves out looking for hardware that the machine does not have.
const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 reboot=k tsc=reliable random.trust_cpu=on i8042.noaux i8042.nomux \
     i8042.nopnp i8042.dumbkbd 8250.nr_uarts=1 cryptomgr.notests pci=off";

/// Puts the files of a boot where Firecracker sees them.
pub(super) fn put_files(request: &BootRequest, place: &mut Place<'_>) -> Result<(), BootError> {
    place.put(KERNEL, &request.kernel)?;
    if let Some(initramfs) = &request.initramfs {
        place.put(INITRAMFS, initramfs)?;
    }
    put_disks(request, place)
}

/// Puts the disks where Firecracker sees them.
pub(super) fn put_disks(request: &BootRequest, place: &mut Place<'_>) -> Result<(), BootError> {
    for (index, disk) in request.disks.iter().enumerate() {
        place.put(&disk_name(index), &disk.path)?;
    }
    Ok(())
}

/// Tells a fresh Firecracker what the machine is, and starts it.
pub(super) async fn boot(request: &BootRequest, client: &Client) -> Result<(), ClientError> {
    // At most 32, which was checked.
    let vcpus = u8::try_from(request.shape.vcpus).unwrap_or(u8::MAX);
    let mut machine = MachineConfiguration::new(vcpus, request.shape.memory_mib);
    // What a diff snapshot is made of.
    machine.track_dirty_pages = request.tracked;
    client.set_machine_configuration(&machine).await?;
    client
        .set_boot_source(&BootSource {
            kernel: KERNEL.into(),
            initramfs: request.initramfs.as_ref().map(|_| INITRAMFS.into()),
            arguments: Some(command_line(&request.append)),
        })
        .await?;
    for (index, disk) in request.disks.iter().enumerate() {
        let access = match disk.access {
            DiskAccess::ReadOnly => Access::ReadOnly,
            DiskAccess::ReadWrite => Access::ReadWrite,
        };
        let mut drive = Drive::of_file(disk_id(index), disk_name(index), access);
        if let (DriveBackend::File { rate_limiter, .. }, DiskAccess::ReadWrite) =
            (&mut drive.backend, disk.access)
        {
            *rate_limiter = request.devices.disk_rate.map(limiter);
        }
        client.set_drive(&drive).await?;
    }
    client
        .set_vsock(&Vsock {
            guest_cid: GUEST_CID,
            socket: VSOCK.into(),
        })
        .await?;
    set_interface(&request.devices, client).await?;
    client.set_entropy(&Entropy::default()).await?;
    // Empty until somebody wants the memory; statistics would wake the guest every second.
    client
        .set_balloon(&Balloon {
            amount_mib: 0,
            deflate_on_oom: true,
            statistics_interval_s: 0,
        })
        .await?;
    client.act(Action::InstanceStart).await
}

/// Tells a fresh Firecracker of the network interface, and of what the metadata service says over it.
async fn set_interface(devices: &Devices, client: &Client) -> Result<(), ClientError> {
    let Some(network) = &devices.network else {
        return Ok(());
    };
    client
        .set_network_interface(&NetworkInterface {
            id: interface_id(),
            tap: TAP.to_owned(),
            guest_mac: Some(network.mac.to_string()),
            rx_rate_limiter: network.rate.map(limiter),
            tx_rate_limiter: network.rate.map(limiter),
        })
        .await?;
    if devices.metadata.is_some() {
        let service = MmdsConfiguration {
            version: MmdsVersion::V2,
            network_interfaces: vec![interface_id()],
            ipv4_address: None,
        };
        client.set_metadata_service(&service).await?;
    }
    set_metadata(devices, client).await
}

async fn set_metadata(devices: &Devices, client: &Client) -> Result<(), ClientError> {
    // An object, as was checked when the machine was created.
    let metadata = devices
        .metadata
        .as_deref()
        .map(serde_json::from_str::<serde_json::Value>);
    match metadata {
        Some(Ok(metadata)) => client.set_metadata(&metadata).await,
        Some(Err(_)) | None => Ok(()),
    }
}

/// Tells whether [`give_devices_anew`] has anything to give.
pub(super) fn has_devices_anew(request: &BootRequest) -> bool {
    let devices = &request.devices;
    let network = devices.network.as_ref();
    devices.disk_rate.is_some()
        || devices.metadata.is_some()
        || network.is_some_and(|network| network.rate.is_some())
}

/// Gives a restored machine its own limits and metadata: those of the snapshot are its source's, and metadata are in none.
pub(super) async fn give_devices_anew(request: &BootRequest, client: &Client) -> Result<(), ClientError> {
    let devices = &request.devices;
    if let Some(rate) = devices.disk_rate {
        let writable = request.disks.iter().enumerate();
        for (index, _) in writable.filter(|(_, disk)| disk.access == DiskAccess::ReadWrite) {
            let update = DriveUpdate {
                id: disk_id(index),
                path_on_host: None,
                rate_limiter: Some(limiter(rate)),
            };
            client.update_drive(&update).await?;
        }
    }
    if let Some(rate) = devices.network.as_ref().and_then(|network| network.rate) {
        let update = NetworkInterfaceUpdate {
            id: interface_id(),
            rx_rate_limiter: Some(limiter(rate)),
            tx_rate_limiter: Some(limiter(rate)),
        };
        client.update_network_interface(&update).await?;
    }
    set_metadata(devices, client).await
}

fn limiter(rate: Rate) -> RateLimiter {
    let bucket = TokenBucket {
        one_time_burst: (rate.burst_bytes > 0).then_some(rate.burst_bytes),
        ..TokenBucket::bytes_per_second(rate.bytes_per_second)
    };
    RateLimiter {
        bandwidth: Some(bucket),
        ops: None,
    }
}

fn interface_id() -> DeviceId {
    let parsed = "eth0".parse();
    parsed.unwrap_or_else(|_| unreachable!("eth0 is an id"))
}

fn command_line(append: &str) -> String {
    match append.trim() {
        "" => COMMAND_LINE.to_owned(),
        append => format!("{COMMAND_LINE} {append}"),
    }
}

fn disk_name(index: usize) -> String {
    format!("disk{index}")
}

/// A disk's name is made of letters and digits, fewer than 64.
fn disk_id(index: usize) -> DeviceId {
    let parsed = disk_name(index).parse();
    parsed.unwrap_or_else(|_| unreachable!("disk{index} is an id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_words_come_last_on_the_kernel_command_line() {
        assert!(command_line(" hearth.log=debug ").ends_with("pci=off hearth.log=debug"));
        assert!(command_line("").ends_with("pci=off"));
    }
}
