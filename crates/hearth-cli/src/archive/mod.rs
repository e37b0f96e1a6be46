//! Trees of files as tar archives, for `cp`: packed and unpacked by a thread, streamed by the event loop.
//!
//! What comes out of a machine is hostile: [`unpack`] keeps every name below the directory it was given, follows no
//! symbolic link on the way, makes no device, and keeps no set-user-id bit unless asked to.

mod pack;
mod pieces;
mod unpack;

pub(crate) use pack::pack;
pub(crate) use pieces::{PieceReader, PieceWriter, channel};
pub(crate) use unpack::{Owners, Unpack};
