//! The network as every guest sees it: one link to a gateway, with the same addresses in each machine, so that a clone's are right
//! already. Each link is alone in a network namespace of the host, which translates the guest's address into the machine's own.
//!
//! The addresses are of ranges that no network of a user's is likely to have: shared address space (RFC 6598) and a unique local
//! prefix (RFC 4193).

use core::net::{Ipv4Addr, Ipv6Addr};

/// The guest's address.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 254);
/// Its gateway, which answers DNS, too.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 253);
/// The length of their network's prefix.
pub const PREFIX_V4: u8 = 30;

/// The guest's address.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x6800, 0, 0, 0, 2);
/// Its gateway, which answers DNS, too.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x6800, 0, 0, 0, 1);
/// The length of their network's prefix.
pub const PREFIX_V6: u8 = 64;

/// The guest's interface.
pub const INTERFACE: &str = "eth0";
