//! Which driver runs a machine, and why.

use std::sync::Arc;

use hearth_machine::DriverChoice;
use tokio::sync::{Mutex, OnceCell};

use super::life::chain;
use crate::host::kvm::{self, GuestEnd, KvmAnswer};
use crate::setup::{Artefacts, InstalledFirecracker, NoFirecracker};
use crate::vmm::firecracker::Firecracker;
use crate::vmm::qemu::{self, Qemu, VersionError};
use crate::vmm::{Border, Driver};

/// The drivers of this host. Each is opened when a machine first needs it, so that a program that was installed meanwhile is
/// found without a restart of the node.
#[derive(Debug)]
pub struct Drivers {
    /// Knows which Firecracker is installed.
    artefacts: Artefacts,
    kvm: OnceCell<KvmAnswer>,
    qemu: OnceCell<Arc<Driver>>,
    /// Guards the driver of the Firecracker that was installed when it was last asked for: another one may be now.
    firecracker: Mutex<Option<(InstalledFirecracker, Arc<Driver>)>>,
    #[cfg(test)]
    only: Option<Arc<Driver>>,
}

/// A driver that was chosen.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The driver.
    pub driver: Arc<Driver>,
    /// Why it is this one, in words for people.
    pub reason: String,
}

/// Says why no driver can run a machine.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// QEMU cannot be used.
    #[error("QEMU cannot be used")]
    Qemu(#[from] VersionError),
    /// There is no Firecracker to use.
    #[error("Firecracker cannot be used")]
    Firecracker(#[from] NoFirecracker),
    /// Firecracker runs under KVM only, and there is none.
    #[error("Firecracker cannot be used: it needs KVM ({0}); QEMU needs none: leave --driver away")]
    NoKvm(String),
    /// There is a KVM that runs no Linux.
    #[error(
        "Firecracker cannot be used: /dev/kvm makes virtual machines and runs no Linux in them ({0}); QEMU emulates: leave \
         --driver away"
    )]
    EmulatedKvm(GuestEnd),
}

impl Drivers {
    /// Makes the set of a node; nothing is opened yet.
    pub fn new(artefacts: Artefacts) -> Self {
        Self {
            artefacts,
            kvm: OnceCell::new(),
            qemu: OnceCell::new(),
            firecracker: Mutex::new(None),
            #[cfg(test)]
            only: None,
        }
    }

    /// Returns the driver that a choice comes down to here.
    ///
    /// # Errors
    /// Returns [`SelectError`] with what is missing.
    pub async fn select(&self, choice: DriverChoice) -> Result<Selected, SelectError> {
        #[cfg(test)]
        if let Some(driver) = self.only.clone() {
            let reason = "it is the only one".to_owned();
            return Ok(Selected { driver, reason });
        }
        let asked_for = |driver| Selected {
            driver,
            reason: "it was asked for".to_owned(),
        };
        match choice {
            DriverChoice::Qemu => Ok(asked_for(self.qemu().await?)),
            DriverChoice::Firecracker => {
                self.check_kvm().await?;
                let installed = self.artefacts.firecracker()?;
                Ok(asked_for(self.firecracker(installed).await))
            }
            DriverChoice::Auto => self.best().await,
        }
    }

    /// Firecracker where KVM runs guests natively and one is installed, else QEMU.
    async fn best(&self) -> Result<Selected, SelectError> {
        let reason = match self.kvm().await {
            KvmAnswer::Native => match self.artefacts.firecracker() {
                Ok(installed) => {
                    let reason = format!(
                        "KVM is native, and Firecracker {} is installed",
                        installed.version
                    );
                    let driver = self.firecracker(installed).await;
                    return Ok(Selected { driver, reason });
                }
                Err(error) => format!("KVM is native, but {error}"),
            },
            KvmAnswer::Emulated { end } => {
                format!("KVM runs no Linux here ({end}), which Firecracker would need")
            }
            KvmAnswer::Absent { cause } => {
                format!(
                    "there is no KVM here ({}), which Firecracker would need",
                    chain(cause)
                )
            }
        };
        let driver = self.qemu().await?;
        Ok(Selected { driver, reason })
    }

    async fn check_kvm(&self) -> Result<(), SelectError> {
        match self.kvm().await {
            KvmAnswer::Native => Ok(()),
            KvmAnswer::Absent { cause } => Err(SelectError::NoKvm(chain(cause))),
            // The tests' guest is made of what such a KVM can emulate.
            KvmAnswer::Emulated { .. } if self.artefacts.bare_guest().is_some() => Ok(()),
            KvmAnswer::Emulated { end } => Err(SelectError::EmulatedKvm(end.clone())),
        }
    }

    async fn qemu(&self) -> Result<Arc<Driver>, SelectError> {
        let open = async || -> Result<Arc<Driver>, SelectError> {
            let border = match self.kvm().await {
                KvmAnswer::Native => Border::Kvm,
                KvmAnswer::Emulated { .. } | KvmAnswer::Absent { .. } => Border::Emulated,
            };
            Ok(Arc::new(Driver::Qemu(Qemu::open(qemu::find()?, border).await?)))
        };
        self.qemu.get_or_try_init(open).await.cloned()
    }

    async fn firecracker(&self, installed: InstalledFirecracker) -> Arc<Driver> {
        let mut opened = self.firecracker.lock().await;
        if let Some((same, driver)) = &*opened
            && *same == installed
        {
            return Arc::clone(driver);
        }
        let InstalledFirecracker {
            program,
            jailer,
            version,
        } = installed.clone();
        let driver = Arc::new(Driver::Firecracker(Firecracker::open(program, jailer, version)));
        *opened = Some((installed, Arc::clone(&driver)));
        driver
    }

    /// KVM counts only where it runs guests natively: that its device opens says nothing. The answer is kept for the node's life.
    async fn kvm(&self) -> &KvmAnswer {
        let probe = async || {
            let probed = tokio::task::spawn_blocking(kvm::probe).await;
            probed.map_or(
                KvmAnswer::Emulated {
                    end: GuestEnd::EmulationFailure,
                },
                |probe| probe.answer,
            )
        };
        self.kvm.get_or_init(probe).await
    }

    /// Makes a set whose only driver is this one.
    #[cfg(test)]
    pub(super) fn only(driver: Driver) -> Self {
        let artefacts = Artefacts::open(&crate::layout::Layout::new("/none", "/none", "/none"));
        Self {
            only: Some(Arc::new(driver)),
            ..Self::new(artefacts)
        }
    }
}

/// Returns the choice that a machine keeps once it was created: its disks and its record are that driver's.
pub(super) fn kept(asked: DriverChoice, driver: &str) -> DriverChoice {
    match driver {
        "qemu" => DriverChoice::Qemu,
        "firecracker" => DriverChoice::Firecracker,
        _ => asked,
    }
}
