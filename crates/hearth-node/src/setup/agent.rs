//! The guest agent's binary: where it is, and that a guest can run it.

use std::io;
use std::path::{Path, PathBuf};

use object::Endianness;
use object::elf::{EM_X86_64, ET_DYN, ET_EXEC, PT_INTERP};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

use super::decompress::read_file_bounded;

/// The name of the agent's binary beside the `hearth` that runs.
pub(super) const AGENT_NAME: &str = "hearth-guest";

/// The most that an agent may hold, in bytes. Ours is below 3 MB stripped, and several times that with debug data.
const AGENT_LIMIT: u64 = 256 << 20;

/// Says why a file is not a guest agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It is not there.
    #[error("there is no guest agent at {}", path.display())]
    NotFound {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the guest agent {}", path.display())]
    Read {
        /// Where it is.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// It is not an ELF file.
    #[error("the guest agent {} is not an ELF file", path.display())]
    NotElf {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: object::read::Error,
    },
    /// It is a program for another machine, or no program.
    #[error("the guest agent {} is not a program for x86-64", path.display())]
    OtherMachine {
        /// Where it is.
        path: PathBuf,
    },
    /// It needs a dynamic linker, and a guest has none.
    #[error(
        "the guest agent {} is not static: build it for x86_64-unknown-linux-musl",
        path.display()
    )]
    NotStatic {
        /// Where it is.
        path: PathBuf,
    },
}

/// Reads the agent's binary and checks that a guest can run it.
pub(super) fn read_agent(path: &Path) -> Result<Vec<u8>, AgentError> {
    let bytes = read_file_bounded(path, AGENT_LIMIT).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => AgentError::NotFound {
            path: path.to_owned(),
        },
        _ => AgentError::Read {
            path: path.to_owned(),
            source,
        },
    })?;
    check_static(path, &bytes)?;
    Ok(bytes)
}

fn check_static(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let file = ElfFile64::<Endianness>::parse(bytes).map_err(|source| AgentError::NotElf {
        path: path.to_owned(),
        source,
    })?;
    let (header, endian) = (file.elf_header(), file.endian());
    let kind = header.e_type(endian);
    if header.e_machine(endian) != EM_X86_64 || (kind != ET_EXEC && kind != ET_DYN) {
        return Err(AgentError::OtherMachine {
            path: path.to_owned(),
        });
    }
    let mut segments = file.elf_program_headers().iter();
    if segments.any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err(AgentError::NotStatic {
            path: path.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_refused() {
        let own = std::env::current_exe().unwrap();
        assert!(matches!(read_agent(&own), Err(AgentError::NotStatic { .. })));
    }

    #[test]
    fn a_static_program_is_an_agent() {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            crate::host::skip::skipped("the package busybox-static is not installed");
            return;
        }
        assert!(read_agent(busybox).is_ok());
    }

    #[test]
    fn a_text_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
        assert!(matches!(read_agent(file.path()), Err(AgentError::NotElf { .. })));
        let missing = file.path().join("none");
        assert!(read_agent(&missing).is_err());
    }
}
