//! Pseudo-terminals: made in the workload's own devpts by the child, used from outside by the agent.

use std::os::fd::{AsFd, OwnedFd};

use hearth_guest_protocol::message::TerminalSize;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, isatty, tcgetattr, tcsetwinsize};

/// Makes a terminal of this size in the file system that is mounted at `/dev/pts` here; returns master and slave.
///
/// # Errors
/// Returns the kernel's error.
pub(crate) fn open(size: TerminalSize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    resize(&master, size);
    Ok((master, slave))
}

/// Sets the size; the kernel tells the foreground processes. A terminal that is gone needs none.
pub(crate) fn resize(terminal: impl AsFd, size: TerminalSize) {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let _ = tcsetwinsize(terminal, size);
}

/// Types what ends the input of a program that reads lines; one that reads raw bytes gets nothing, as it knows no end.
pub(crate) fn type_end_of_file(master: &OwnedFd) {
    if let Ok(settings) = tcgetattr(master)
        && settings.local_modes.contains(LocalModes::ICANON)
    {
        let _ = rustix::io::write(master, &[settings.special_codes[SpecialCodeIndex::VEOF]]);
    }
}

/// Tells whether a descriptor is a terminal's.
pub(crate) fn is_master(fd: &OwnedFd) -> bool {
    isatty(fd)
}
