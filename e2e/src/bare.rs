//! What machines of the bare guest need: Firecracker, the guest, a KVM that opens. They run where Linux does not.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::node::{Driver, TestNode};
use crate::setup;

/// The variable that has a node boot another kernel.
const KERNEL_VARIABLE: &str = "HEARTH_BARE_GUEST";

/// Where Firecracker and the bare guest lie.
#[derive(Debug, Clone)]
pub struct BareGuest {
    /// The directory of Firecracker and its jailer.
    pub firecracker: PathBuf,
    guest: PathBuf,
}

impl BareGuest {
    /// Finds them, or says what is missing.
    ///
    /// # Errors
    /// A sentence that says what is not there, and what would bring it.
    pub fn find() -> Result<Self, String> {
        let target = setup::cache().map_err(|error| error.to_string())?;
        let target = target.parent().unwrap_or(Path::new("/")).to_owned();
        let find = |path: &str, remedy: &str| match target.join(path) {
            path if path.exists() => Ok(path),
            path => Err(format!("there is no {}: {remedy}", path.display())),
        };
        let found = Self {
            firecracker: find("firecracker", "scripts/prerequisites.sh test")?,
            guest: find(
                "bare-guest/x86_64-unknown-none/release/bare-guest",
                "cargo xtask bare-guest",
            )?,
        };
        let kvm = File::options().read(true).write(true).open("/dev/kvm");
        kvm.map(|_| found)
            .map_err(|error| format!("/dev/kvm does not open: {error}"))
    }

    /// Makes a home whose machines run under Firecracker and boot the bare guest.
    ///
    /// # Errors
    /// Hearth is not built, or Firecracker is not installed.
    pub fn node(&self) -> Result<TestNode> {
        self.given_to(TestNode::ready(Driver::Firecracker)?)
    }

    /// Makes such a home on a file system of its own, as [`TestNode::ready_on_small_disk`] does.
    ///
    /// # Errors
    /// As for that, and for [`BareGuest::node`].
    pub fn node_on_small_disk(&self, spare_mib: u64) -> Result<TestNode> {
        self.given_to(TestNode::ready_on_small_disk(Driver::Firecracker, spare_mib)?)
    }

    /// Makes such a home for an ordinary user, as [`TestNode::ready_for`] does.
    ///
    /// # Errors
    /// As for that, and for [`BareGuest::node`].
    pub fn node_for(&self, uid: u32) -> Result<TestNode> {
        let node = TestNode::ready_for(Driver::Firecracker, uid)?;
        let own = Self {
            firecracker: node.lend(&self.firecracker)?,
            guest: node.lend(&self.guest)?,
        };
        own.given_to(node)
    }

    fn given_to(&self, node: TestNode) -> Result<TestNode> {
        let node = node.with_env(KERNEL_VARIABLE, &self.guest);
        self.install(&node)?;
        // It starts anew with the next verb, and so where that is called.
        node.hearth(["node", "stop"]).ok()?;
        Ok(node)
    }

    /// Installs Firecracker in a node's home.
    ///
    /// # Errors
    /// Hearth refuses.
    pub fn install(&self, node: &TestNode) -> Result<()> {
        let words = ["setup", "firecracker", "--from"].map(OsString::from);
        let from = self.firecracker.as_os_str().to_owned();
        node.hearth(words.into_iter().chain([from])).ok()?;
        Ok(())
    }
}
