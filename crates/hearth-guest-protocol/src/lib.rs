//! Frames and messages between a Hearth host and the agent in its guest, over one byte stream. No IO.
//!
//! ```text
//! byte stream (vsock or virtio-serial)
//!   = frame*            frame: 20-byte header, CRC32, at most 64 KiB of payload     frame.rs
//!   = sessions          session 0 is control; a host opens 1, 2, 3 ... upwards       message.rs
//!   = messages          a frame's kind says which; data frames carry raw bytes       message.rs
//! flow control          credit per session and direction                            credit.rs
//! ```
//!
//! The host speaks first when it connects: [`message::Hello`] with a random nonce. The guest answers with the same
//! nonce; what the host reads before that answer belongs to an earlier connection and is skipped. Both name the
//! generations they speak; the newest common one counts, and there is no talk without one.
//!
//! Usable without std (an allocator is needed), so that a bare-metal guest speaks it too.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod crc;
pub mod credit;
pub mod datagram;
pub mod frame;
pub mod message;
pub mod network;

pub use credit::{Credit, Window};
pub use frame::{Decoder, Flags, Frame, FrameError, HEADER_LEN, Header, Kind, MAX_PAYLOAD};

/// The generations of this protocol that this code speaks, oldest and newest.
pub const GENERATIONS: core::ops::RangeInclusive<u16> = 1..=10;

/// The first generation that knows [`Kind::Part`], [`Kind::Launch`] and [`Kind::Detach`].
pub const GENERATION_LAUNCH: u16 = 2;

/// The first generation that knows [`Kind::Resume`], and in which a grant for the workload's output says that the host keeps
/// those bytes, whatever becomes of it.
pub const GENERATION_RESUME: u16 = 3;

/// The first generation that knows [`Kind::Clock`] and [`Kind::Processes`].
pub const GENERATION_PROCESSES: u16 = 4;

/// The first generation of which a guest can stand still, and be made another machine: [`Kind::Freeze`], [`Kind::Thaw`],
/// [`Kind::Renew`].
pub const GENERATION_STILL: u16 = 5;

/// The first generation that knows [`Kind::TimeLimit`].
pub const GENERATION_TIME_LIMIT: u16 = 6;

/// The first generation of which a guest that is configured and has no workload takes [`Kind::Renew`] without standing still.
pub const GENERATION_NEW: u16 = 7;

/// The first generation that knows [`Kind::HardwareAddress`].
pub const GENERATION_ADDRESS: u16 = 8;

/// The first generation that knows [`Kind::Datagrams`] and [`message::FileRequest::Trust`].
pub const GENERATION_DATAGRAMS: u16 = 9;

/// The first generation that knows [`message::Role::Rehearsal`].
pub const GENERATION_REHEARSAL: u16 = 10;

/// The session of everything that concerns the whole guest.
pub const CONTROL: u32 = 0;

/// The name of the virtio-serial port that carries the channel.
pub const PORT_NAME: &str = "hearth.0";

/// The program that the agent brings along for processes beside the workload: it tells of the machine what a test of clones asks for.
pub const PROBE: &str = "/.hearth/probe";

/// The vsock port on which the agent listens, where the channel is vsock.
pub const VSOCK_PORT: u32 = 1024;

/// Picks the generation that two peers speak: the newest that both know.
///
/// # Errors
/// Returns [`NoCommonGeneration`] when the ranges do not meet.
pub fn negotiate(
    ours: core::ops::RangeInclusive<u16>,
    theirs: core::ops::RangeInclusive<u16>,
) -> Result<u16, NoCommonGeneration> {
    let newest = *ours.end().min(theirs.end());
    let oldest = *ours.start().max(theirs.start());
    if newest >= oldest {
        Ok(newest)
    } else {
        Err(NoCommonGeneration { ours, theirs })
    }
}

/// Says that host and guest share no protocol generation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no common protocol generation: this side speaks {ours:?}, the other {theirs:?}")]
pub struct NoCommonGeneration {
    ours: core::ops::RangeInclusive<u16>,
    theirs: core::ops::RangeInclusive<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_generation_counts() {
        assert_eq!(negotiate(1..=3, 2..=5), Ok(3));
        assert_eq!(negotiate(4..=5, 1..=4), Ok(4));
        assert!(negotiate(1..=1, 2..=3).is_err());
    }
}
