//! The kernel image: takes the ELF `vmlinux` out of a bzImage, and checks that a virtual machine monitor can enter it.
//!
//! Both QEMU and Firecracker start an ELF kernel by itself faster than a bzImage: nothing has to be decompressed in
//! the guest, which under emulation saves most of a second. They enter it by PVH, whose address is in a note.
//!
//! Sources: Documentation/arch/x86/boot.rst of Linux (the setup header), and the PVH boot ABI of Xen
//! (docs/misc/pvh.pandoc).

use std::io;

use object::elf::{EM_X86_64, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, read::elf::ElfFile64};

use super::decompress::{GZIP_MAGIC, XZ_MAGIC, ZSTD_MAGIC, decompressed, read_bounded};

/// The most that a kernel may hold, in bytes, packed or not. A distribution's is near 60 MB.
pub(super) const KERNEL_LIMIT: u64 = 512 << 20;

/// The note in which a kernel says where PVH enters it, in 32-bit protected mode (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_ENTRY_NOTE: u32 = 18;

/// What stands before a kernel's version in its own banner.
const BANNER: &[u8] = b"Linux version ";

/// Says why bytes are not a kernel that Hearth can start.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// Neither an ELF file nor a bzImage.
    #[error("it is neither an ELF file nor a bzImage")]
    UnknownFormat,
    /// A bzImage of a boot protocol that does not say where its payload is.
    #[error(
        "its boot protocol {major}.{minor:02} is older than 2.08, the first that says where the payload is"
    )]
    OldProtocol {
        /// The major version.
        major: u8,
        /// The minor version.
        minor: u8,
    },
    /// The header names bytes that are not in the file.
    #[error("it is cut short: its header names bytes {start}..{end} of {size}")]
    Truncated {
        /// Where the payload should start.
        start: usize,
        /// Where it should end.
        end: usize,
        /// How long the file is.
        size: usize,
    },
    /// The payload is packed in a way that is not read here.
    #[error("its payload is packed neither with zstd nor xz nor gzip (it starts with {start:02x?})")]
    UnknownCompression {
        /// The first bytes of the payload.
        start: Vec<u8>,
    },
    /// The payload is broken.
    #[error("its payload cannot be unpacked")]
    Unpack(#[source] io::Error),
    /// The ELF file is broken.
    #[error("its ELF headers are broken")]
    BrokenElf(#[source] object::read::Error),
    /// For another processor.
    #[error("it is for another machine (ELF machine {machine}), not x86-64")]
    OtherMachine {
        /// The number of the machine in the ELF header.
        machine: u16,
    },
    /// It cannot be entered by PVH.
    #[error("it has no PVH entry point: build it with CONFIG_PVH=y")]
    NoPvhEntry,
    /// It does not say which version it is.
    #[error("it does not say which version it is")]
    NoVersion,
}

/// A kernel that was checked.
#[derive(Debug)]
pub(super) struct Vmlinux {
    /// The ELF file.
    pub(super) elf: Vec<u8>,
    /// The release, as `uname -r` prints it.
    pub(super) release: String,
}

/// Makes a checked kernel of a bzImage or an ELF file.
pub(super) fn vmlinux(image: Vec<u8>) -> Result<Vmlinux, VmlinuxError> {
    let elf = if image.starts_with(&object::elf::ELFMAG) {
        image
    } else {
        read_bounded(
            decompressed(payload(&image)?).map_err(VmlinuxError::Unpack)?,
            KERNEL_LIMIT,
        )
        .map_err(VmlinuxError::Unpack)?
    };
    check_pvh(&elf)?;
    let release = release(&elf).ok_or(VmlinuxError::NoVersion)?;
    Ok(Vmlinux { elf, release })
}

/// Finds the packed kernel in a bzImage.
fn payload(image: &[u8]) -> Result<&[u8], VmlinuxError> {
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(VmlinuxError::UnknownFormat);
    }
    let (&minor, &major) = image
        .get(0x206)
        .zip(image.get(0x207))
        .ok_or(VmlinuxError::UnknownFormat)?;
    if (major, minor) < (2, 8) {
        return Err(VmlinuxError::OldProtocol { major, minor });
    }
    let (offset, length) = number(0x248)
        .zip(number(0x24c))
        .ok_or(VmlinuxError::UnknownFormat)?;
    let setup_sectors = match image[0x1f1] {
        // The boot protocol's own rule for very old kernels.
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + offset as usize;
    let end = start + length as usize;
    let packed = image.get(start..end).ok_or(VmlinuxError::Truncated {
        start,
        end,
        size: image.len(),
    })?;
    let known =
        packed.starts_with(&ZSTD_MAGIC) || packed.starts_with(&XZ_MAGIC) || packed.starts_with(&GZIP_MAGIC);
    if known {
        Ok(packed)
    } else {
        Err(VmlinuxError::UnknownCompression {
            start: packed[..packed.len().min(6)].to_vec(),
        })
    }
}

/// Checks that an ELF file is an x86-64 kernel with a PVH entry.
fn check_pvh(elf: &[u8]) -> Result<(), VmlinuxError> {
    let file = ElfFile64::<Endianness>::parse(elf).map_err(VmlinuxError::BrokenElf)?;
    let (header, endian): (&FileHeader64<Endianness>, _) = (file.elf_header(), file.endian());
    let machine = header.e_machine(endian);
    if machine != EM_X86_64 {
        return Err(VmlinuxError::OtherMachine { machine: machine.0 });
    }
    for segment in file.elf_program_headers() {
        let notes = segment.notes(endian, elf).map_err(VmlinuxError::BrokenElf)?;
        let Some(mut notes) = notes else { continue };
        while let Some(note) = notes.next().map_err(VmlinuxError::BrokenElf)? {
            if note.name() == b"Xen" && note.n_type(endian).0 == PVH_ENTRY_NOTE {
                return Ok(());
            }
        }
    }
    Err(VmlinuxError::NoPvhEntry)
}

/// Reads the release out of the kernel's own banner, `Linux version RELEASE (...`.
fn release(elf: &[u8]) -> Option<String> {
    let mut rest = elf;
    loop {
        let at = memchr::memmem::find(rest, BANNER)?;
        rest = &rest[at + BANNER.len()..];
        let length = rest.iter().take(128).position(|&byte| byte == b' ')?;
        let word = &rest[..length];
        // The same words stand in other texts of the kernel, with a format's % behind them.
        if word.first().is_some_and(u8::is_ascii_digit) && word.iter().all(u8::is_ascii_graphic) {
            return String::from_utf8(word.to_vec()).ok();
        }
    }
}
