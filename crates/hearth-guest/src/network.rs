//! The guest's network interface, which is the same in every machine: addresses and routes, before any snapshot is taken.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use hearth_guest_protocol::message::HardwareAddress;
use hearth_guest_protocol::network::{
    GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6, INTERFACE, PREFIX_V4, PREFIX_V6,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::boot::load_on_demand;
use crate::console::complain;
use crate::sys;

/// Where the kernel lists virtio devices.
const DEVICES: &str = "/sys/bus/virtio/devices";

/// The device id of a network card (virtio 1.2, 5).
const NETWORK_CARD: &str = "0x0001";

/// What drives it, in the order in which they need each other.
const MODULES: [&str; 3] = ["failover", "net_failover", "virtio_net"];

/// Gives the interface its addresses and the guest its routes, if there is one. A guest whose network fails says so, and starts.
pub(crate) fn set_up() {
    if !has_card() {
        return;
    }
    load_on_demand(&MODULES);
    if let Err(error) = configure() {
        complain!("cannot set up the network: {error}");
    }
}

/// Gives the interface another hardware address. A guest that cannot take one says so, and keeps its own: each is alone on its link.
pub(crate) fn set_hardware_address(address: HardwareAddress) {
    let set = socket(AddressFamily::INET)
        .and_then(|socket| sys::set_hardware_address(socket.as_fd(), INTERFACE, address.0));
    if let Err(error) = set {
        complain!("the network keeps the hardware address of another machine: {error}");
    }
}

fn has_card() -> bool {
    let devices = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    devices
        .filter_map(|device| fs::read_to_string(device.path().join("device")).ok())
        .any(|id| id.trim() == NETWORK_CARD)
}

fn configure() -> io::Result<()> {
    let v4 = socket(AddressFamily::INET)?;
    sys::add_address_v4(v4.as_fd(), INTERFACE, GUEST_V4, PREFIX_V4)?;
    let has_v6 = Path::new("/proc/sys/net/ipv6").exists();
    if has_v6 {
        // Nobody else is on the link: neither are addresses asked for, nor routers listened to, and groups are told of at once.
        let settings = [
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("mldv2_unsolicited_report_interval", "0"),
        ];
        for (name, value) in settings {
            fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/{name}"), value)?;
        }
    }
    sys::interface_up(v4.as_fd(), INTERFACE.as_bytes())?;
    sys::add_default_route_v4(v4.as_fd(), GATEWAY_V4)?;
    if has_v6 {
        let v6 = socket(AddressFamily::INET6)?;
        let interface = sys::interface_index(v4.as_fd(), INTERFACE)?;
        sys::add_address_v6(v6.as_fd(), interface, GUEST_V6, PREFIX_V6)?;
        sys::add_default_route_v6(v6.as_fd(), interface, GATEWAY_V6)?;
    }
    // The kernel tells itself that the link is there up to a second later, in each clone anew; whoever asks makes it do that at once.
    fs::read(format!("/sys/class/net/{INTERFACE}/carrier"))?;
    Ok(())
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
