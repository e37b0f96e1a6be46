//! The initramfs: the guest agent as `/init`, the kernel's modules beside it, and nothing else.
//!
//! It is two `newc` cpio archives one behind the other, which Linux unpacks in turn: the modules, made once for a
//! kernel, and the agent, which changes with every build of Hearth. The same input gives the same bytes.
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.

use std::io::{self, Write};

use cpio::newc::{self, ModeFileType};

use super::digest::Digest;
use super::modules::{Module, When};

/// Where the agent finds the modules that it loads at every boot, as `/modules/NNN-name.ko` in load order.
const MODULES: &str = "modules";
/// Where it finds those that it loads when something needs them, as `/modules/optional/NNN-name.ko`.
const OPTIONAL_MODULES: &str = "modules/optional";

/// Makes the archive of the modules, which are in load order.
pub(super) fn modules_archive(modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory(MODULES)?;
    archive.directory(OPTIONAL_MODULES)?;
    for (index, module) in modules.iter().enumerate() {
        let directory = match module.when {
            When::Boot => MODULES,
            When::Demand => OPTIONAL_MODULES,
        };
        let name = format!("{directory}/{index:03}-{}.ko", module.name);
        archive.file(&name, 0o644, &module.bytes)?;
    }
    archive.finish()
}

/// Returns a digest that is another one where modules are packed in another way; none if they cannot be.
pub(super) fn packing() -> Option<Digest> {
    let sample = [When::Boot, When::Demand].map(|when| Module {
        name: "sample".to_owned(),
        when,
        bytes: Vec::new(),
    });
    modules_archive(&sample).ok().map(|archive| Digest::of(&archive))
}

/// Makes the archive of the agent, and of what must be there before it runs.
pub(super) fn agent_archive(agent: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for name in ["dev", "proc", "sys"] {
        archive.directory(name)?;
    }
    archive.console()?;
    archive.file("init", 0o755, agent)?;
    archive.finish()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, kind: ModeFileType, permissions: u32) -> newc::Builder {
        self.entries += 1;
        newc::Builder::new(name)
            .ino(self.entries)
            .mode(permissions)
            .set_mode_file_type(kind)
    }

    fn directory(&mut self, name: &str) -> io::Result<()> {
        let entry = self.entry(name, ModeFileType::Directory, 0o755).nlink(2);
        entry.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }

    /// The kernel opens this one for PID 1's standard streams before it runs it.
    fn console(&mut self) -> io::Result<()> {
        let entry = self.entry("dev/console", ModeFileType::Char, 0o600);
        let entry = entry.rdev_major(5).rdev_minor(1);
        entry.write(&mut self.bytes, 0).finish()?;
        Ok(())
    }

    fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let entry = self.entry(name, ModeFileType::Regular, permissions);
        let mut file = entry.write(&mut self.bytes, size);
        file.write_all(content)?;
        file.finish()?;
        Ok(())
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        newc::trailer(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_header_is_as_the_kernel_expects_it() {
        let archive = agent_archive(b"agent").unwrap();
        // Magic, then 13 fields of eight hexadecimal digits: ino, mode, uid, gid, nlink, mtime, filesize, devmajor,
        // devminor, rdevmajor, rdevminor, namesize, check.
        let header = concat!(
            "070701", "00000001", "000041ED", "00000000", "00000000", "00000002", "00000000", "00000000",
            "00000000", "00000000", "00000000", "00000000", "00000004", "00000000", "dev\0"
        );
        let start = String::from_utf8_lossy(&archive[..header.len()]).into_owned();
        assert_eq!(start.to_ascii_uppercase(), header.to_ascii_uppercase());
        assert_eq!(archive.len() % 4, 0, "what follows must be aligned");
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(agent_archive(b"agent").unwrap(), agent_archive(b"agent").unwrap());
    }

    #[test]
    fn modules_are_numbered_in_load_order() {
        let module = |name: &str, when| Module {
            name: name.to_owned(),
            when,
            bytes: vec![1, 2, 3],
        };
        let modules = [
            module("libcrc32c", When::Boot),
            module("erofs", When::Boot),
            module("virtio_net", When::Demand),
        ];
        let mut archive = &modules_archive(&modules).unwrap()[..];
        let mut names = Vec::new();
        loop {
            let entry = newc::Reader::new(archive).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            names.push(entry.entry().name().to_owned());
            archive = entry.finish().unwrap();
        }
        let expected = [
            "modules",
            "modules/optional",
            "modules/000-libcrc32c.ko",
            "modules/001-erofs.ko",
            "modules/optional/002-virtio_net.ko",
        ];
        assert_eq!(names, expected);
    }
}
