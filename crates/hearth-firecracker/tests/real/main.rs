//! The client against a real Firecracker, with the bare-metal guest of `crates/bare-guest` on this host's KVM.
//!
//! `scripts/prerequisites.sh test` fetches the binaries, `cargo xtask bare-guest` builds the guest. What is missing is
//! named: `SKIPPED test: reason`.

mod api;
mod devices;
mod figures;
mod guest;
mod host;
mod jailer;
mod life;
mod network;
mod snapshot;
