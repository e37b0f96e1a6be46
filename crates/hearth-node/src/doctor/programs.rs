//! Programs of the host that machines need.

use std::path::Path;
use std::time::Duration;

use super::{Check, chain};
use crate::host::command::HostCommand;
use crate::host::facts::{self, find_program};
use crate::host::own;
use crate::network;
use crate::setup::Artefacts;

/// The oldest QEMU that Hearth drives: the one of Debian 12.
const OLDEST_QEMU: Version = Version(7, 2);

/// How long QEMU may take to say its version. It is 20 ms of loading libraries on an idle host.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

const QEMU: &str = "qemu-system-x86_64";
const QEMU_PACKAGE: &str = "qemu-system-x86";

/// A version's first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// Judges QEMU, by asking it for its version.
pub(super) async fn qemu() -> Check {
    let install = format!("apt-get install {QEMU_PACKAGE}");
    let Some(path) = find_program(QEMU) else {
        return Check::missing("qemu", "not installed")
            .because(format!("{QEMU} is in none of the directories of PATH"))
            .remedy(install);
    };
    let asked = HostCommand::new(path.clone(), QEMU_PACKAGE).arg("--version");
    let output = match asked.time_limit(VERSION_LIMIT).run().await {
        Ok(output) => output,
        Err(error) => {
            return Check::missing("qemu", format!("{} does not work", path.display()))
                .because(chain(&error))
                .remedy(format!("apt-get install --reinstall {QEMU_PACKAGE}"));
        }
    };
    judge_qemu(
        &String::from_utf8_lossy(&output),
        &path.display().to_string(),
        install,
    )
}

fn judge_qemu(output: &str, path: &str, install: String) -> Check {
    match parse_qemu_version(output) {
        Some((version, text)) if version >= OLDEST_QEMU => Check::ok("qemu", format!("{text} ({path})")),
        Some((_, text)) => Check::missing("qemu", format!("{text} ({path})"))
            .because(format!(
                "version {}.{} is the oldest that works",
                OLDEST_QEMU.0, OLDEST_QEMU.1
            ))
            .remedy(install),
        None => Check::missing("qemu", format!("{path} does not tell its version"))
            .because(format!("it says {:?}", output.lines().next().unwrap_or_default()))
            .remedy(install),
    }
}

/// Reads `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`.
fn parse_qemu_version(output: &str) -> Option<(Version, &str)> {
    let text = output
        .strip_prefix("QEMU emulator version ")?
        .split_whitespace()
        .next()?;
    let mut numbers = text.split('.').map(str::parse);
    let version = Version(numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((version, text))
}

/// Looks for the Firecracker that set-up has installed; machines run under QEMU without.
pub(super) fn firecracker(artefacts: &Artefacts) -> Check {
    match artefacts.firecracker() {
        Ok(installed) => {
            let jailer = if installed.jailer.is_some() {
                "with"
            } else {
                "without"
            };
            Check::ok(
                "firecracker",
                format!(
                    "{}, {jailer} jailer ({})",
                    installed.version,
                    installed.program.display()
                ),
            )
        }
        Err(error) => Check::absent("firecracker", "not installed")
            .because(chain(&error))
            .remedy("hearth setup firecracker"),
    }
}

/// Looks for the program that makes machines' disks.
pub(super) fn mkfs_ext4() -> Check {
    match find_program("mkfs.ext4") {
        Some(path) => Check::ok("mkfs.ext4", path.display().to_string()),
        None => Check::missing("mkfs.ext4", "not installed")
            .because("machines' disks are made with it")
            .remedy("apt-get install e2fsprogs"),
    }
}

/// Judges what machines with a network need: a program that sets rules, and a way out.
pub(super) fn networks() -> Check {
    match find_program("nft") {
        None => Check::absent("networks", "nft is not installed")
            .because("it sets the rules of machines with --network filtered or open")
            .remedy("apt-get install nftables"),
        Some(nft) if own::is_root() => {
            Check::ok("networks", format!("by a bridge; rules by {}", nft.display()))
        }
        Some(nft) => uplink(&nft),
    }
}

/// Judges the way out that an ordinary user's machines have.
fn uplink(nft: &Path) -> Check {
    let isolated = || Check::absent("networks", "isolated only");
    let Some(pasta) = find_program(network::PASTA) else {
        return isolated()
            .because("pasta is not installed, which carries what machines of ordinary users send")
            .remedy(format!(
                "apt-get install {}; or start the node as root",
                network::PASTA_PACKAGE
            ));
    };
    if !facts::user_namespaces() {
        return isolated()
            .because("this user may not make user namespaces")
            .remedy("as for namespaces; or start the node as root");
    }
    if let Err(error) = facts::open_device(Path::new("/dev/net/tun")) {
        return isolated()
            .because(format!("/dev/net/tun cannot be opened: {error}"))
            .remedy("as root: `chmod 666 /dev/net/tun`; or start the node as root");
    }
    let detail = format!("by {}; rules by {}", pasta.display(), nft.display());
    Check::ok("networks", detail)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn judged(output: &str) -> Check {
        judge_qemu(output, "/usr/bin/qemu-system-x86_64", "install it".to_owned())
    }

    #[test]
    fn an_old_qemu_is_as_good_as_none() {
        assert_eq!(
            judged("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n").state,
            State::Ok
        );
        assert_eq!(judged("QEMU emulator version 10.0.2\n").state, State::Ok);
        let old = judged("QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)\n");
        assert_eq!(old.state, State::Missing);
        assert!(old.cause.is_some() && old.remedy.is_some());
    }

    #[test]
    fn what_is_not_a_version_is_reported_as_it_is() {
        let check = judged("hello\n");
        assert_eq!(check.state, State::Missing);
        assert_eq!(check.cause.as_deref(), Some("it says \"hello\""));
    }
}
