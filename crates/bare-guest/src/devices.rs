//! The devices that the command line names.

use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::{DeviceType, Transport};

use crate::balloon::Balloon;
use crate::network::Network;
use crate::platform::println;
use crate::transport::{Identity, OneByOne};
use crate::vsock::Vsock;

/// Every device is given as much room.
const ROOM: usize = 4096;

/// Devices are found below this address only: what lies above is not mapped.
const MAPPED: usize = 4 << 30;

/// What was found and started.
#[derive(Default)]
pub(crate) struct Devices {
    /// The channel to the host.
    pub(crate) vsock: Option<Vsock>,
    /// Drives, in the order of the command line.
    pub(crate) blocks: Vec<VirtIOBlk<Identity, OneByOne>>,
    /// The network interface.
    pub(crate) network: Option<Network>,
    /// Where random bytes come from.
    pub(crate) entropy: Option<VirtIORng<Identity, OneByOne>>,
    /// What gives memory to the host.
    pub(crate) balloon: Option<Balloon>,
}

impl Devices {
    /// Starts every device of a command line; one that does not start is told on the console and left out.
    pub(crate) fn find(command_line: &str) -> Self {
        let mut devices = Self::default();
        for address in addresses(command_line) {
            if let Err(error) = devices.add(address) {
                println!("bare-guest: the device at {address:#x} does not start: {error}");
            }
        }
        devices
    }

    fn add(&mut self, address: usize) -> Result<(), virtio_drivers::Error> {
        let header = NonNull::new(address as *mut VirtIOHeader).ok_or(virtio_drivers::Error::InvalidParam)?;
        // SAFETY: the monitor says that a device lies there; it is mapped, and stays for as long as the guest lives.
        let transport = unsafe { MmioTransport::new(header, ROOM) };
        let transport = OneByOne(transport.map_err(|_| virtio_drivers::Error::Unsupported)?);
        match transport.device_type() {
            DeviceType::Socket => self.vsock = Some(Vsock::start(transport)?),
            DeviceType::Block => self.blocks.push(VirtIOBlk::new(transport)?),
            DeviceType::Network => self.network = Some(Network::start(transport)?),
            DeviceType::EntropySource => self.entropy = Some(VirtIORng::new(transport)?),
            DeviceType::MemoryBalloon => self.balloon = Some(Balloon::start(transport)?),
            _ => return Err(virtio_drivers::Error::Unsupported),
        }
        Ok(())
    }
}

/// Returns the addresses of `virtio_mmio.device=SIZE@ADDRESS:IRQ` parameters, as in Linux's `virtio_mmio.c`.
fn addresses(command_line: &str) -> impl Iterator<Item = usize> {
    command_line.split_ascii_whitespace().filter_map(|parameter| {
        let place = parameter.strip_prefix("virtio_mmio.device=")?.split_once('@')?.1;
        let digits = place.split(':').next()?.strip_prefix("0x")?;
        let address = usize::from_str_radix(digits, 16).ok()?;
        (address != 0 && address.is_multiple_of(ROOM) && address < MAPPED).then_some(address)
    })
}
