//! Brings a kernel and its modules into the store, from wherever they come.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::build::BuildError;
use super::deb::{self, DebError};
use super::decompress::read_file_bounded;
use super::distribution::{self, Package, PackageError};
use super::index::{Index, Kernel, Modules, Origin, Stored, UNFINISHED, store};
use super::initramfs;
use super::modules::{self, Module, ModulesError, Signatures, When};
use super::progress::{Listener, Progress, Step, Unit};
use super::run::blocking;
use super::vmlinux::{KERNEL_LIMIT, VmlinuxError, vmlinux};

/// Says why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The distribution's package could not be had.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The package could not be unpacked.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// The package holds no kernel.
    #[error("the package {} holds no boot/vmlinuz-*", path.display())]
    NoKernelInPackage {
        /// The package.
        path: PathBuf,
    },
    /// The kernel cannot be read.
    #[error("cannot read the kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The kernel is not one that Hearth can start.
    #[error("the kernel {} cannot be used", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: VmlinuxError,
    },
    /// The modules could not be collected.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// They were chosen as this version does not, and it is not known where they came from.
    #[error(
        "the modules of the kernel {} were chosen by an earlier hearth: name both again, \
         `hearth setup --kernel FILE --modules DIR`",
        kernel.display()
    )]
    Outdated {
        /// The kernel's file.
        kernel: PathBuf,
    },
    /// It could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The store cannot be written.
    #[error("cannot write into {}", directory.display())]
    Store {
        /// The directory of artefacts.
        directory: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// A kernel in the store, and its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KernelSet {
    pub(super) kernel: Kernel,
    pub(super) modules: Option<Modules>,
}

impl KernelSet {
    /// Names what an index does.
    pub(super) fn of(index: &Index) -> Self {
        Self {
            kernel: index.kernel.clone(),
            modules: index.modules.clone(),
        }
    }

    /// Tells whether this version would choose the same modules.
    pub(super) fn is_current(&self) -> bool {
        self.modules
            .as_ref()
            .is_none_or(|modules| modules.is_current(&self.kernel.origin))
    }
}

impl Modules {
    /// Tells whether this version would choose the same ones for a kernel that comes from there.
    pub(super) fn is_current(&self, origin: &Origin) -> bool {
        self.selection == modules::selection(signatures(origin))
    }
}

/// What becomes of the signatures of a kernel's modules. Kernels of the user's may demand them.
fn signatures(origin: &Origin) -> Signatures {
    match origin {
        Origin::Package { .. } | Origin::Built { .. } => Signatures::Cut,
        Origin::File { .. } => Signatures::Keep,
    }
}

/// Makes the set anew that an earlier version made, from where it came: of the distribution's kernels the newest.
pub(super) async fn anew(
    directory: &Path,
    old: KernelSet,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    match (old.kernel.origin, old.modules.and_then(|modules| modules.tree)) {
        (Origin::File { path }, Some(tree)) => from_file(directory, path, Some(tree), listener).await,
        (Origin::File { path }, None) => Err(KernelError::Outdated { kernel: path }),
        (Origin::Package { .. } | Origin::Built { .. }, _) => {
            from_distribution(directory, None, listener).await
        }
    }
}

/// Takes a kernel of the user's.
pub(super) async fn from_file(
    directory: &Path,
    kernel: PathBuf,
    tree: Option<PathBuf>,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    let (directory, listener) = (directory.to_owned(), listener.clone());
    let origin = Origin::File { path: kernel.clone() };
    blocking(move || take_in(&directory, &kernel, tree.as_deref(), origin, &listener)).await
}

/// Takes a kernel from the distribution, unless `current` is already that one.
pub(super) async fn from_distribution(
    directory: &Path,
    current: Option<KernelSet>,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    let names = &distribution::KERNEL_PACKAGES;
    let package = distribution::find(names, "linux-image-", listener).await?;
    listener.finish(Step::FindPackage, &package.name);
    let origin = Origin::Package {
        file: package.file.clone(),
    };
    match current {
        Some(current) if current.kernel.origin == origin && current.is_current() => Ok(current),
        _ => fetch(directory, package, origin, listener).await,
    }
}

async fn fetch(
    directory: &Path,
    package: Package,
    origin: Origin,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    let scratch = scratch(directory)?;
    let deb = distribution::download(&package, scratch.path(), listener).await?;
    let (directory, listener) = (directory.to_owned(), listener.clone());
    blocking(move || {
        let (image, tree) = unpack(&deb, scratch.path(), package.size, &listener)?;
        take_in(&directory, &image, Some(&tree), origin, &listener)
    })
    .await
}

/// Makes a directory for unfinished work, which is removed with the value.
pub(super) fn scratch(directory: &Path) -> Result<TempDir, KernelError> {
    let scratch = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(directory);
    scratch.map_err(|source| KernelError::Store {
        directory: directory.to_owned(),
        source,
    })
}

/// Unpacks a kernel package, and returns the bzImage and the module tree.
pub(super) fn unpack(
    deb: &Path,
    into: &Path,
    size: u64,
    listener: &Listener,
) -> Result<(PathBuf, PathBuf), KernelError> {
    let on_read = |done| {
        listener.say(Progress::Running {
            step: Step::Unpack,
            done,
            total: Some(size),
            unit: Unit::Bytes,
        });
    };
    let wanted = |name: &Path| {
        name.starts_with("boot")
            || ["lib/modules", "usr/lib/modules"]
                .iter()
                .any(|d| name.starts_with(d))
    };
    deb::unpack(deb, into, wanted, &on_read)?;
    let missing = || KernelError::NoKernelInPackage { path: deb.to_owned() };
    let image = only_entry(&into.join("boot"), "vmlinuz-").ok_or_else(missing)?;
    let tree = ["lib/modules", "usr/lib/modules"]
        .iter()
        .find_map(|directory| only_entry(&into.join(directory), ""));
    listener.finish(Step::Unpack, deb.file_name().unwrap_or_default().display());
    Ok((image, tree.ok_or_else(missing)?))
}

/// Finds the first entry of a directory whose name starts with `prefix`.
fn only_entry(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let named = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(prefix);
    entries.filter(named).map(|entry| entry.path()).min()
}

/// Takes a kernel, and what guests need of its modules, into the store.
pub(super) fn take_in(
    directory: &Path,
    image: &Path,
    tree: Option<&Path>,
    origin: Origin,
    listener: &Listener,
) -> Result<KernelSet, KernelError> {
    let stored = |source| KernelError::Store {
        directory: directory.to_owned(),
        source,
    };
    listener.begin(Step::Kernel);
    let bytes = read_file_bounded(image, KERNEL_LIMIT).map_err(|source| KernelError::Read {
        path: image.to_owned(),
        source,
    })?;
    let kernel = vmlinux(bytes).map_err(|source| KernelError::Unusable {
        path: image.to_owned(),
        source,
    })?;
    let file = store(directory, &kernel.release, &kernel.elf).map_err(stored)?;
    listener.finish(Step::Kernel, &kernel.release);
    listener.begin(Step::Modules);
    let modules = match tree {
        None => None,
        Some(tree) => {
            let signatures = signatures(&origin);
            let modules = modules::collect(tree, &kernel.release, signatures)?;
            Some(Modules {
                stored: store_modules(directory, &modules, &kernel.release, listener)?,
                tree: matches!(origin, Origin::File { .. }).then(|| tree.to_owned()),
                selection: modules::selection(signatures),
            })
        }
    };
    Ok(KernelSet {
        kernel: Kernel { stored: file, origin },
        modules,
    })
}

fn store_modules(
    directory: &Path,
    modules: &[Module],
    release: &str,
    listener: &Listener,
) -> Result<Stored, KernelError> {
    let stored = initramfs::modules_archive(modules)
        .and_then(|archive| store(directory, release, &archive))
        .map_err(|source| KernelError::Store {
            directory: directory.to_owned(),
            source,
        })?;
    let at_boot = modules.iter().filter(|module| module.when == When::Boot).count();
    let on_demand = modules.len() - at_boot;
    listener.finish(
        Step::Modules,
        format_args!("{at_boot} at boot, {on_demand} on demand"),
    );
    Ok(stored)
}
