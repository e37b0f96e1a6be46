//! Writes EROFS images in one pass over the content: data blocks are appended as they stream in, inodes and the last
//! partial block of each file are packed into metadata blocks between them, directories follow at the end, and the
//! super block comes last, so that an unfinished image is no file system.
//!
//! It knows nothing of layers or archives: `crate::rootfs` calls it. The result depends on nothing but the calls, so
//! the same image gives the same bytes.
//!
//! ```text
//! | super | root inode | data ... | 16 metadata blocks | data ... | 16 metadata blocks | ... directories |
//!   block 0  block 1
//! ```

mod disk;
#[cfg(any(test, fuzzing))]
mod reader;
mod writer;

pub(crate) use disk::{Dirent, directory_size, encode_xattrs, mode};
pub(crate) use disk::{NAME_MAX, device_number};
#[cfg(any(test, fuzzing))]
pub(crate) use reader::{Found, Kind, read};
pub(crate) use writer::{Attributes, CopyError, DirectoryPlace, Nid, Stored, Writer};
