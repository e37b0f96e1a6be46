//! Which driver runs a machine.

use hearth_machine::DriverChoice;
use tokio::sync::OnceCell;

use crate::host::kvm;
use crate::vmm::qemu::{self, Qemu, VersionError};
use crate::vmm::{Border, Driver};

/// The drivers of this host. Each is opened when a machine first needs it, so that a program that was installed meanwhile is
/// found without a restart of the node.
#[derive(Debug, Default)]
pub struct Drivers {
    qemu: OnceCell<Driver>,
}

/// Says why no driver can run a machine.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// QEMU cannot be used.
    #[error("QEMU cannot be used")]
    Qemu(#[from] VersionError),
}

impl Drivers {
    /// Returns the driver that a choice comes down to here.
    ///
    /// # Errors
    /// Returns [`SelectError`] with what is missing.
    pub async fn select(&self, choice: DriverChoice) -> Result<&Driver, SelectError> {
        match choice {
            DriverChoice::Auto | DriverChoice::Qemu => self.qemu.get_or_try_init(open_qemu).await,
        }
    }

    /// Makes a set whose only driver is this one.
    #[cfg(test)]
    pub(super) fn only(driver: Driver) -> Self {
        Self {
            qemu: OnceCell::new_with(Some(driver)),
        }
    }
}

async fn open_qemu() -> Result<Driver, SelectError> {
    let border = border().await;
    Ok(Driver::Qemu(Qemu::open(qemu::find()?, border).await?))
}

/// KVM counts only where it runs guests natively: that its device opens says nothing.
async fn border() -> Border {
    let probed = tokio::task::spawn_blocking(kvm::probe).await;
    match probed.map(|probe| probe.answer) {
        Ok(kvm::KvmAnswer::Native) => Border::Kvm,
        _ => Border::Emulated,
    }
}
