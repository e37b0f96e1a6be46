//! An ordinary user whose node is tested by root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use walkdir::WalkDir;

/// What monitors open of the host, below /dev.
const DEVICES: [&str; 2] = ["net/tun", "kvm"];

/// Covers devices with others, which lie in the directory that is the first argument, in a mount namespace that ends with the rest, a
/// program.
const COVER: &str = "for device in net/tun kvm; do \
     if [ -e \"$0/$device\" ]; then mount --bind \"$0/$device\" \"/dev/$device\" || exit; fi; done; exec \"$@\"";

/// Somebody, who needs no entry in /etc/passwd.
#[derive(Debug)]
pub(crate) struct User {
    uid: u32,
    /// Where devices of that user's own lie, which the host keeps for root.
    devices: PathBuf,
}

impl User {
    /// Gives a home to a user.
    pub(crate) fn of(uid: u32, home: &Path) -> Result<Self> {
        let devices = home.join("devices");
        fs::create_dir_all(devices.join("net"))?;
        for name in DEVICES {
            let Ok(device) = fs::metadata(Path::new("/dev").join(name)) else {
                continue;
            };
            if device.permissions().mode() & 0o006 != 0o006 {
                mknodat(
                    CWD,
                    devices.join(name),
                    FileType::CharacterDevice,
                    Mode::from(0o600),
                    device.rdev(),
                )
                .context("cannot make a device")?;
            }
        }
        let user = Self { uid, devices };
        user.own(home)?;
        Ok(user)
    }

    /// Makes a tree of files this user's.
    pub(crate) fn own(&self, tree: &Path) -> Result<()> {
        for entry in WalkDir::new(tree) {
            lchown(entry?.path(), Some(self.uid), Some(self.uid))?;
        }
        Ok(())
    }

    /// Puts `hearth` and its agent where the user finds them, and returns the path of the first. They stay root's.
    pub(crate) fn install(&self, hearth: &Path, home: &Path) -> Result<PathBuf> {
        let bin = home.join("bin");
        fs::create_dir(&bin)?;
        fs::set_permissions(&bin, fs::Permissions::from_mode(0o755))?;
        for name in ["hearth", "hearth-guest"] {
            let (from, to) = (hearth.with_file_name(name), bin.join(name));
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
            }
        }
        Ok(bin.join("hearth"))
    }

    /// Returns the words in front of a call that make it this user's.
    pub(crate) fn becoming(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["unshare", "--mount", "sh", "-c", COVER]
            .map(OsString::from)
            .into();
        words.push(self.devices.clone().into());
        let uid = self.uid.to_string();
        words.extend(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"].map(OsString::from));
        words
    }
}
