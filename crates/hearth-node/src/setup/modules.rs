//! Kernel modules: which ones a guest needs, what they depend on, and in which order they load.
//!
//! A kernel that the user built may have all of it built in; a distribution's has most as modules. The dependencies
//! are read from the modules themselves (`.modinfo`), because `modules.dep` is made when a package is installed and
//! is not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};

use super::decompress::{decompressed, read_bounded, read_file_bounded};
use super::index::Selection;
use super::initramfs;

/// The most that one module may hold, in bytes. The largest that a guest needs is half a megabyte.
const MODULE_LIMIT: u64 = 64 << 20;

/// The most directories below each other in a module tree.
const TREE_DEPTH: usize = 16;

/// What a guest cannot start without: its disks, its channel to the host, its file systems, its entropy.
const NEEDED: [&str; 7] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "ext4",
    "erofs",
    "overlay",
    "virtio_rng",
];

/// What a guest can use, and may be without: a kernel that lacks one of them lacks that feature.
const USEFUL: [&str; 8] = [
    "virtio_mmio",
    "virtio_net",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
    "squashfs",
    // By which a clone closes the TCP connections of the machine that it was.
    "tcp_diag",
];

/// Says why the modules for a guest could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A module is not one.
    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: object::read::Error,
    },
    /// Something that guests cannot start without is neither a module nor built in.
    #[error("{} has no module {name}, and its modules.builtin does not list it either", tree.display())]
    Missing {
        /// The module.
        name: String,
        /// The module tree.
        tree: PathBuf,
    },
    /// The modules are those of another kernel.
    #[error("{} is for the kernel {modules}, and the kernel is {kernel}", path.display())]
    OtherKernel {
        /// The module.
        path: PathBuf,
        /// The release that it was built for.
        modules: String,
        /// The release of the kernel.
        kernel: String,
    },
    /// Two modules depend on each other.
    #[error("the module {name} depends on itself")]
    Cycle {
        /// One of them.
        name: String,
    },
}

/// What stands behind a module that is signed.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";

/// How many bytes stand between a signature and its magic; the last four of them tell the signature's length
/// (`struct module_signature` of Linux).
const SIGNATURE_DESCRIPTION: usize = 12;

/// What becomes of the signatures behind modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signatures {
    /// They stay: a kernel of the user's may demand them.
    Keep,
    /// They are cut off. To check one, an emulated guest executes a hundred million instructions, ten times what all
    /// the rest of loading the module takes; and nothing is won, as the modules come from a package that was checked,
    /// beside the kernel and the agent that would check them. Only for kernels known to load modules without.
    Cut,
}

/// When a guest loads a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// In every boot.
    Boot,
    /// Only when something needs it.
    Demand,
}

/// One module, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name, with underscores.
    pub(super) name: String,
    /// When it is loaded.
    pub(super) when: When,
    /// The ELF file.
    pub(super) bytes: Vec<u8>,
}

/// Collects what a guest of the kernel `release` needs of a `/lib/modules/RELEASE` tree, in load order.
pub(super) fn collect(
    tree: &Path,
    release: &str,
    signatures: Signatures,
) -> Result<Vec<Module>, ModulesError> {
    let tree = ModuleTree::read(tree)?;
    let mut loading = Loading {
        tree: &tree,
        release,
        signatures,
        states: BTreeMap::new(),
        modules: Vec::new(),
    };
    for name in NEEDED {
        loading.add(name, When::Boot)?;
    }
    for name in USEFUL {
        if tree.has(name) {
            loading.add(name, When::Demand)?;
        }
    }
    Ok(loading.modules)
}

/// What lies in a `/lib/modules/RELEASE` directory.
struct ModuleTree {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    fn read(root: &Path) -> Result<Self, ModulesError> {
        let mut files = BTreeMap::new();
        find_modules(root, TREE_DEPTH, &mut files)?;
        let list = root.join("modules.builtin");
        let builtin = match std::fs::read_to_string(&list) {
            Ok(text) => text
                .lines()
                .filter_map(|line| module_name(Path::new(line)))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(source) => return Err(ModulesError::Read { path: list, source }),
        };
        Ok(Self {
            root: root.to_owned(),
            files,
            builtin,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }
}

/// Finds the module files below a directory. Symbolic links are not followed: `build` and `source` lead elsewhere.
fn find_modules(
    directory: &Path,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ModulesError> {
    let read = |source| ModulesError::Read {
        path: directory.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(directory).map_err(read)? {
        let entry = entry.map_err(read)?;
        let (kind, path) = (entry.file_type().map_err(read)?, entry.path());
        if kind.is_dir() && depth > 0 {
            find_modules(&path, depth - 1, files)?;
        } else if kind.is_file()
            && let Some(name) = module_name(&path)
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// Tells a module's name from its file's, as in `virtio_rng` of `drivers/char/hw_random/virtio-rng.ko.xz`.
fn module_name(path: &Path) -> Option<String> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"]
        .contains(&suffix)
        .then(|| name.replace('-', "_"))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Visiting,
    Done,
}

/// Returns what this version chooses modules by.
pub(super) fn selection(signatures: Signatures) -> Selection {
    let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    Selection {
        needed: names(&NEEDED),
        useful: names(&USEFUL),
        unsigned: signatures == Signatures::Cut,
        packing: initramfs::packing(),
    }
}

/// The walk over dependencies, depth first, which yields the load order.
struct Loading<'a> {
    tree: &'a ModuleTree,
    release: &'a str,
    signatures: Signatures,
    states: BTreeMap<String, State>,
    modules: Vec<Module>,
}

impl Loading<'_> {
    fn add(&mut self, name: &str, when: When) -> Result<(), ModulesError> {
        match self.states.get(name) {
            Some(State::Done) => return Ok(()),
            Some(State::Visiting) => {
                return Err(ModulesError::Cycle {
                    name: name.to_owned(),
                });
            }
            None => {}
        }
        let Some(path) = self.tree.files.get(name) else {
            if self.tree.builtin.contains(name) {
                return Ok(());
            }
            return Err(ModulesError::Missing {
                name: name.to_owned(),
                tree: self.tree.root.clone(),
            });
        };
        self.states.insert(name.to_owned(), State::Visiting);
        let (bytes, about) = read_module(path)?;
        if about.release != self.release {
            return Err(ModulesError::OtherKernel {
                path: path.clone(),
                modules: about.release,
                kernel: self.release.to_owned(),
            });
        }
        for dependency in &about.depends {
            self.add(dependency, when)?;
        }
        self.states.insert(name.to_owned(), State::Done);
        let bytes = match self.signatures {
            Signatures::Keep => bytes,
            Signatures::Cut => without_signature(bytes),
        };
        self.modules.push(Module {
            name: name.to_owned(),
            when,
            bytes,
        });
        Ok(())
    }
}

fn read_module(path: &Path) -> Result<(Vec<u8>, About), ModulesError> {
    let read = |source| ModulesError::Read {
        path: path.to_owned(),
        source,
    };
    let packed = read_file_bounded(path, MODULE_LIMIT).map_err(read)?;
    let bytes = read_bounded(decompressed(&packed[..]).map_err(read)?, MODULE_LIMIT).map_err(read)?;
    let about = About::read(&bytes).map_err(|source| ModulesError::NotAModule {
        path: path.to_owned(),
        source,
    })?;
    Ok((bytes, about))
}

/// Cuts off the signature behind a module, if there is one.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    let unsigned = module.strip_suffix(SIGNATURE_MAGIC).and_then(|rest| {
        let length = u32::from_be_bytes(*rest.last_chunk()?);
        rest.len().checked_sub(SIGNATURE_DESCRIPTION + length as usize)
    });
    module.truncate(unsigned.unwrap_or(module.len()));
    module
}

/// What a module says about itself.
#[derive(Debug, PartialEq, Eq)]
struct About {
    /// The modules that must be loaded before it.
    depends: Vec<String>,
    /// The kernel it was built for: the first word of `vermagic`.
    release: String,
}

impl About {
    fn read(elf: &[u8]) -> object::read::Result<Self> {
        let file = ElfFile64::<Endianness>::parse(elf)?;
        let section = file.section_by_name_bytes(b".modinfo");
        let information = section.map_or(Ok(&[][..]), |section| section.data())?;
        Ok(Self::parse(information))
    }

    /// Parses `.modinfo`: `key=value` texts, each with a NUL behind it.
    fn parse(information: &[u8]) -> Self {
        let value = |key: &[u8]| {
            let mut fields = information.split(|&byte| byte == 0);
            let value = fields.find_map(|field| field.strip_prefix(key)?.strip_prefix(b"="));
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        let names = value(b"depends");
        let depends = names.split(',').filter(|name| !name.is_empty());
        Self {
            depends: depends.map(|name| name.replace('-', "_")).collect(),
            release: value(b"vermagic")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
