//! `hearth pager` with a real Firecracker and the bare-metal guest, whose harness is the one of `hearth-firecracker`.
//!
//! What is missing on this host is named: `SKIPPED test: reason`.

#[path = "../../../hearth-firecracker/tests/real/guest.rs"]
#[expect(dead_code, reason = "the harness serves more tests than these")]
mod guest;
#[path = "../../../hearth-firecracker/tests/real/host.rs"]
#[expect(dead_code, reason = "the harness serves more tests than these")]
mod host;

mod death;
mod memory;
mod peers;
mod process;
mod replay;
