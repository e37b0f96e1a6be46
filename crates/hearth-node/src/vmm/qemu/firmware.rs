//! The firmware: qboot, which QEMU brings along beside SeaBIOS.
//!
//! SeaBIOS brings every disk up and looks for something to boot on it, in vain, since the kernel comes from QEMU: under
//! emulation that takes 100 ms of a boot. qboot does nothing but enter the kernel.

use std::path::{Path, PathBuf};

const NAME: &str = "qboot.rom";

/// Where distributions put it, when it is not beside the program.
const SHARED: &str = "/usr/share/qemu";

/// Finds qboot, as it was installed with the program; `None` leaves QEMU with SeaBIOS, which is slower and as good.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent().and_then(Path::parent);
    let beside = prefix.map(|prefix| prefix.join("share/qemu"));
    beside
        .into_iter()
        .chain([PathBuf::from(SHARED)])
        .map(|directory| directory.join(NAME))
        .find(|firmware| firmware.is_file())
}
