//! What most programs begin with is read once, ahead: clones of this machine find it in their memory, and do not wait for a disk.
//!
//! Under emulation that is more than the disk's time: code of the kernel that a clone does not come to need not be translated for it.

use std::fs::{File, OpenOptions, read_dir};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::program::DEFAULT_PATH;

/// Files that the workload's first steps read: who users are, the shell, and what links programs. Those that are not there are no loss.
const FILES: [&str; 7] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.cache",
    "/bin/sh",
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/ld-musl-x86_64.so.1",
];

/// How much of one is read, in bytes.
const MOST: u64 = 4 << 20;

/// How many entries of a directory are looked at.
const ENTRIES: usize = 4096;

/// Reads them, as far as they are there, in the root that this process has.
pub(crate) fn warm_up() {
    FILES.iter().for_each(|path| read(path));
    let directories = DEFAULT_PATH.split(|&byte| byte == b':');
    for directory in directories.filter_map(|path| std::str::from_utf8(path).ok()) {
        let entries = read_dir(directory).into_iter().flatten();
        // Only the reading counts.
        let _ = entries.take(ENTRIES).count();
    }
}

/// Reads a file, whatever the image has in its place.
fn read(path: &str) {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let is_file = |file: &File| file.metadata().is_ok_and(|it| it.is_file());
    if let Some(file) = opened.ok().filter(is_file) {
        let _ = std::io::copy(&mut file.take(MOST), &mut std::io::sink());
    }
}
