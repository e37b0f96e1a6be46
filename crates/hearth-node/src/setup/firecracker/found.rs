//! Looks for the two programs in what the user named. Members of archives are known by their last name only, and none is
//! unpacked anywhere: their bytes are returned.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use object::read::elf::ElfFile64;
use object::{Architecture, Endianness, Object};

use super::super::decompress::{decompressed, read_bounded, read_file_bounded};
use super::FirecrackerError;

/// The most that one of the programs may hold, in bytes. They have 3 MiB.
const PROGRAM_LIMIT: u64 = 64 << 20;

/// The most members of an archive, and the most bytes of a tarball, that are looked through.
const MEMBERS_LIMIT: usize = 100_000;
const TARBALL_LIMIT: u64 = 1 << 30;

/// The first bytes of a zip archive, which a wheel is, and of an ELF file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// A program's bytes, and where they were.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
}

/// What was found.
pub(super) struct Found {
    pub(super) firecracker: Program,
    pub(super) jailer: Option<Program>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Firecracker,
    Jailer,
}

/// Looks through a file, directory, tarball or wheel.
pub(super) fn find(path: &Path) -> Result<Found, FirecrackerError> {
    let read = |source| FirecrackerError::Read {
        path: path.to_owned(),
        source,
    };
    let mut found = Collected::default();
    if path.is_dir() {
        found.look_into_directory(path).map_err(read)?;
    } else {
        let mut file = File::open(path).map_err(read)?;
        let mut start = Vec::new();
        (&mut file).take(4).read_to_end(&mut start).map_err(read)?;
        file.rewind().map_err(read)?;
        match start.as_slice() {
            ELF_MAGIC => found.take_program(path).map_err(read)?,
            ZIP_MAGIC => found.look_into_zip(path, file).map_err(read)?,
            _ => found.look_into_tarball(path, file).map_err(|source| {
                // What is no tarball says so by its first header.
                FirecrackerError::NotFirecracker {
                    path: path.to_owned(),
                    reason: format!("neither a program nor an archive ({source})"),
                }
            })?,
        }
    }
    let firecracker = found.firecracker.ok_or_else(|| FirecrackerError::NotInside {
        path: path.to_owned(),
    })?;
    for program in std::iter::once(&firecracker).chain(&found.jailer) {
        check_program(program)?;
    }
    Ok(Found {
        firecracker,
        jailer: found.jailer,
    })
}

#[derive(Default)]
struct Collected {
    firecracker: Option<Program>,
    jailer: Option<Program>,
}

impl Collected {
    fn keep(&mut self, role: Role, path: PathBuf, bytes: Vec<u8>) {
        let place = match role {
            Role::Firecracker => &mut self.firecracker,
            Role::Jailer => &mut self.jailer,
        };
        // The first one counts.
        place.get_or_insert(Program { path, bytes });
    }

    fn lacks(&self, role: Role) -> bool {
        match role {
            Role::Firecracker => self.firecracker.is_none(),
            Role::Jailer => self.jailer.is_none(),
        }
    }

    /// Takes the program itself, and the jailer beside it if there is one.
    fn take_program(&mut self, path: &Path) -> io::Result<()> {
        self.keep(
            Role::Firecracker,
            path.to_owned(),
            read_file_bounded(path, PROGRAM_LIMIT)?,
        );
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let beside = path.with_file_name(name.replacen("firecracker", "jailer", 1));
        if beside != path && beside.is_file() {
            let bytes = read_file_bounded(&beside, PROGRAM_LIMIT)?;
            self.keep(Role::Jailer, beside, bytes);
        }
        Ok(())
    }

    fn look_into_directory(&mut self, path: &Path) -> io::Result<()> {
        let mut entries: Vec<_> = std::fs::read_dir(path)?.take(MEMBERS_LIMIT).flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if let Some(role) = role(&path).filter(|_| path.is_file()) {
                let bytes = read_file_bounded(&path, PROGRAM_LIMIT)?;
                self.keep(role, path, bytes);
            }
        }
        Ok(())
    }

    fn look_into_zip(&mut self, archive: &Path, file: File) -> io::Result<()> {
        let mut zip = zip::ZipArchive::new(io::BufReader::new(file))?;
        for index in 0..zip.len().min(MEMBERS_LIMIT) {
            let member = zip.by_index(index)?;
            let name = PathBuf::from(&*member.name().map_err(io::Error::from)?);
            if let Some(role) = role(&name).filter(|role| member.is_file() && self.lacks(*role)) {
                let bytes = read_bounded(member, PROGRAM_LIMIT)?;
                self.keep(role, archive.join(name), bytes);
            }
        }
        Ok(())
    }

    fn look_into_tarball(&mut self, archive: &Path, file: File) -> io::Result<()> {
        let bytes = decompressed(file)?.take(TARBALL_LIMIT);
        let mut tarball = tar::Archive::new(bytes);
        for member in tarball.entries()?.take(MEMBERS_LIMIT) {
            let member = member?;
            let name = member.path()?.into_owned();
            let is_file = member.header().entry_type().is_file();
            if let Some(role) = role(&name).filter(|role| is_file && self.lacks(*role)) {
                let bytes = read_bounded(member, PROGRAM_LIMIT)?;
                self.keep(role, archive.join(name), bytes);
            }
        }
        Ok(())
    }
}

/// Tells which program a file is by its name: `firecracker`, `firecracker-v1.12.1-x86_64`, `jailer`, ... and none by
/// `firecracker-v1.12.1-x86_64.debug` or one for another architecture.
fn role(path: &Path) -> Option<Role> {
    let name = path.file_name()?.to_str()?;
    let (base, rest) = match name.split_once("-v") {
        Some((base, version)) => (base, version.strip_suffix("-x86_64")?),
        None => (name, ""),
    };
    if rest
        .chars()
        .any(|c| !c.is_ascii_alphanumeric() && c != '.' && c != '-')
    {
        return None;
    }
    match base {
        "firecracker" => Some(Role::Firecracker),
        "jailer" => Some(Role::Jailer),
        _ => None,
    }
}

/// Makes sure that it is a program for this kind of machine, before it is run.
fn check_program(program: &Program) -> Result<(), FirecrackerError> {
    let other = |reason: String| FirecrackerError::NotFirecracker {
        path: program.path.clone(),
        reason,
    };
    let elf = ElfFile64::<Endianness>::parse(&*program.bytes)
        .map_err(|error| other(format!("it is no program ({error})")))?;
    match elf.architecture() {
        Architecture::X86_64 => Ok(()),
        architecture => Err(other(format!("it is a program for {architecture:?}"))),
    }
}
