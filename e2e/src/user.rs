//! An ordinary user whose node is tested by root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use walkdir::WalkDir;

const TUN: &str = "/dev/net/tun";

/// Covers /dev/net/tun with another one, which is the first argument, in a mount namespace that ends with the rest, a program.
const COVER: &str = "mount --bind \"$0\" /dev/net/tun && exec \"$@\"";

/// Somebody, who needs no entry in /etc/passwd.
#[derive(Debug)]
pub(crate) struct User {
    uid: u32,
    /// A device of that user's own, where the host's is root's alone.
    tun: Option<PathBuf>,
}

impl User {
    /// Gives a home to a user.
    pub(crate) fn of(uid: u32, home: &Path) -> Result<Self> {
        let is_open = fs::metadata(TUN).is_ok_and(|device| device.permissions().mode() & 0o006 == 0o006);
        let tun = (!is_open).then(|| home.join("tun"));
        if let Some(tun) = &tun {
            // Its numbers are those of every Linux (Documentation/admin-guide/devices.txt).
            mknodat(
                CWD,
                tun,
                FileType::CharacterDevice,
                Mode::from(0o600),
                makedev(10, 200),
            )
            .context("cannot make a device")?;
        }
        let user = Self { uid, tun };
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
        let mut words: Vec<OsString> = Vec::new();
        if let Some(tun) = &self.tun {
            words.extend(["unshare", "--mount", "sh", "-c", COVER].map(OsString::from));
            words.push(tun.into());
        }
        let uid = self.uid.to_string();
        words.extend(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"].map(OsString::from));
        words
    }
}
