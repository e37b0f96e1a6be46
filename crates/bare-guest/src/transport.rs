//! virtio over MMIO, as Firecracker wants it.

use core::fmt::Debug;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PhysAddr, Result};

/// Memory for devices: mapped one to one, so that addresses are the same for them.
pub(crate) struct Identity;

// SAFETY: pages come zeroed from the heap, aligned, and go back with the layout they came with; addresses are physical.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout has a size, since no queue is empty.
        let block = unsafe { alloc::alloc::alloc_zeroed(layout(pages)) };
        let block = NonNull::new(block).expect("the heap holds every queue");
        (block.addr().get() as PhysAddr, block)
    }

    unsafe fn dma_dealloc(_: PhysAddr, block: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the block came from `dma_alloc`, as the caller promises.
        unsafe { alloc::alloc::dealloc(block.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("no device lies at zero")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().addr().get() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn layout(pages: usize) -> core::alloc::Layout {
    core::alloc::Layout::from_size_align(pages * virtio_drivers::PAGE_SIZE, virtio_drivers::PAGE_SIZE)
        .expect("queues are small")
}

/// A transport whose device is started one bit at a time: Firecracker refuses `ACKNOWLEDGE | DRIVER` in one write, which
/// the drivers do.
#[derive(Debug)]
pub(crate) struct OneByOne(pub(crate) MmioTransport<'static>);

impl Transport for OneByOne {
    fn set_status(&mut self, status: DeviceStatus) {
        if status == DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER {
            self.0.set_status(DeviceStatus::ACKNOWLEDGE);
        }
        self.0.set_status(status);
    }

    fn device_type(&self) -> DeviceType {
        self.0.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.0.read_device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.0.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.0.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.0.get_status()
    }

    fn set_guest_page_size(&mut self, size: u32) {
        self.0.set_guest_page_size(size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.0.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.0
            .queue_set(queue, size, descriptors, driver_area, device_area);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.0.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.0.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read_config_generation()
    }

    fn read_config_space<T>(&self, offset: usize) -> Result<T>
    where
        T: zerocopy::FromBytes + zerocopy::IntoBytes,
    {
        self.0.read_config_space(offset)
    }

    fn write_config_space<T>(&mut self, offset: usize, value: T) -> Result<()>
    where
        T: zerocopy::IntoBytes + zerocopy::Immutable,
    {
        self.0.write_config_space(offset, value)
    }
}
