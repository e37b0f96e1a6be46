//! Bare QEMU: what a boot costs without Hearth, with the same program, processor, memory, kernel and initramfs.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::BenchError;

/// What the guest's first process says first; the firmware's last words may stand before it on the line.
const FIRST_LINE: &[u8] = b"hearth-guest ";

/// Flags and options of a machine's monitor that make the guest what it is; the others are Hearth's devices and channels.
const FLAGS: [&str; 3] = ["-nodefaults", "-no-user-config", "-no-reboot"];
const OPTIONS: [&str; 8] = [
    "-machine", "-accel", "-cpu", "-smp", "-m", "-kernel", "-initrd", "-append",
];

/// A bare machine that can be booted any number of times.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bare {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Bare {
    /// Takes after the monitor of a machine that runs.
    pub(super) fn like(pid: u32) -> Result<Self, BenchError> {
        let unreadable = |source| BenchError::Monitor { pid, source };
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).map_err(unreadable)?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(unreadable)?;
        Ok(Self {
            program,
            arguments: bare_arguments(&line),
        })
    }

    /// Boots until the guest's first line, then kills it.
    pub(super) async fn first_line(&self) -> Result<Duration, BenchError> {
        let failed = |source| BenchError::Program {
            line: self.program.display().to_string(),
            source,
        };
        let begun = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut lines = BufReader::new(child.stdout.take().ok_or(BenchError::NoFirstLine)?);
        let mut line = Vec::new();
        while !line.windows(FIRST_LINE.len()).any(|part| part == FIRST_LINE) {
            line.clear();
            if lines.read_until(b'\n', &mut line).await.map_err(failed)? == 0 {
                return Err(BenchError::NoFirstLine);
            }
        }
        let took = begun.elapsed();
        child.kill().await.map_err(failed)?;
        Ok(took)
    }
}

/// Leaves of a monitor's command line, as /proc has it, what makes the guest.
fn bare_arguments(line: &[u8]) -> Vec<OsString> {
    let mut words = line
        .split(|&byte| byte == 0)
        .skip(1)
        .map(|word| OsStr::from_bytes(word).to_owned());
    let mut kept: Vec<OsString> = Vec::new();
    while let Some(word) = words.next() {
        if FLAGS.iter().any(|flag| word == *flag) {
            kept.push(word);
        } else if OPTIONS.iter().any(|option| word == *option) {
            let value = words.next().unwrap_or_default();
            kept.extend([word, own_memory(&value)]);
        }
    }
    kept.extend(["-display", "none", "-serial", "stdio"].map(OsString::from));
    kept
}

/// Lets the machine have QEMU's own memory instead of the file of another one.
fn own_memory(value: &OsStr) -> OsString {
    let parts = value.as_bytes().split(|&byte| byte == b',');
    let kept: Vec<_> = parts
        .filter(|part| !part.starts_with(b"memory-backend="))
        .collect();
    OsStr::from_bytes(&kept.join(&b',')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_the_guest_is_left_of_a_monitors_command_line() {
        let line =
            b"qemu\0-nodefaults\0-sandbox\0on\0-machine\0q35,memory-backend=memory,hpet=off\0-m\x00256M\0\
            -object\0memory-backend-file,id=memory\0-append\0console=ttyS0 quiet\0-device\0virtio-rng-pci\0";
        let expected = [
            "-nodefaults",
            "-machine",
            "q35,hpet=off",
            "-m",
            "256M",
            "-append",
            "console=ttyS0 quiet",
            "-display",
            "none",
            "-serial",
            "stdio",
        ];
        assert_eq!(bare_arguments(line), expected.map(OsString::from));
    }
}
