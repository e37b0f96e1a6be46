//! The way out of the machines of an ordinary user's node: pasta(1), one for each, which carries what leaves a machine's namespace on by
//! sockets of that user's.
//!
//! ```text
//!  tap0 [rules, name server] uplink ---- pasta ---- the user's sockets in the node's namespace
//! ```
//! `hearth uplink` stays beside it, in [`super::keeper`]: it ends pasta when the machine has ended, also when the node is dead by
//! then. The interface is made before pasta takes it up, and stays when pasta ends, with its addresses.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::links::{Outlet, UPLINK};
use crate::host::launch::{self, Launch, LaunchError};
use crate::host::network_namespace::{self, NetworkNamespace};
use crate::host::process::{self, Process};
use crate::host::{facts, fork, own};

/// The program, and Debian's package of it.
pub const PASTA: &str = "pasta";
/// See [`PASTA`].
pub const PACKAGE: &str = "passt";

/// Where TAPs come from.
const TUN: &str = "/dev/net/tun";

/// The first argument of [`super::keeper`].
const KEEPER: &str = "uplink";

/// How long pasta may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it stays ended before it is started anew.
const PAUSE: Duration = Duration::from_secs(1);
/// The most of its words that are kept.
const WORDS_MAX: usize = 4096;

/// The ends of the link between a namespace and its pasta. They are the same everywhere, since nobody else sees them: the network below
/// that of the guests.
const MACHINE_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 250);
const PASTA_V4: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 249);
const PREFIX_V4: u8 = 30;
const MACHINE_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x6801, 0, 0, 0, 2);
const PASTA_V6: Ipv6Addr = Ipv6Addr::new(0xfd68, 0x6561, 0x7274, 0x6801, 0, 0, 0, 1);
const PREFIX_V6: u8 = 64;

/// Says why there is no way out.
#[derive(Debug, thiserror::Error)]
pub enum PastaError {
    /// It is not there.
    #[error("pasta is not installed: `apt-get install {PACKAGE}` brings it")]
    NotFound,
    /// The host keeps TAPs for root.
    #[error("{TUN} cannot be opened")]
    Tun(#[source] io::Error),
    /// A descriptor, or the namespace.
    #[error("cannot make the uplink of a machine")]
    Prepare(#[from] io::Error),
    /// The program beside it.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It has ended, or does not begin.
    #[error("pasta does not begin{}", said(words))]
    Begin {
        /// What it said.
        words: String,
    },
}

fn said(words: &str) -> String {
    match words.trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

/// Tells whether there is what a way out needs, as far as that is seen without making one.
pub(super) fn check() -> Result<(), PastaError> {
    if facts::find_program(PASTA).is_none() {
        return Err(PastaError::NotFound);
    }
    facts::open_device(Path::new(TUN))
        .map(drop)
        .map_err(PastaError::Tun)
}

/// Readies a namespace that is new: pasta runs as the user that has started it, and finds an interface.
pub(super) fn prepare(namespace: &NetworkNamespace) -> io::Result<()> {
    let user = own::user();
    namespace.enter(move || {
        network_namespace::map_user(user)?;
        network_namespace::make_tap_named(UPLINK)
    })
}

/// Returns the ends of the link, with a way out for the families that the host has one for.
pub(super) fn outlet(has_v4: bool, has_v6: bool) -> Outlet {
    Outlet {
        v4: (MACHINE_V4, PREFIX_V4),
        v6: (MACHINE_V6, PREFIX_V6),
        gateway_v4: has_v4.then_some(PASTA_V4),
        gateway_v6: has_v6.then_some(PASTA_V6),
    }
}

/// Says how pasta is called for a namespace: nothing is let in, nothing leads to the host's loopback, and nothing is configured.
pub(super) fn arguments(namespace: &str) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["--foreground", "--quiet", "--stderr", "--no-netns-quit"]
        .map(OsString::from)
        .into();
    let (v4, v6) = (MACHINE_V4.to_string(), MACHINE_V6.to_string());
    let (gateway_v4, gateway_v6) = (PASTA_V4.to_string(), PASTA_V6.to_string());
    let prefix = PREFIX_V4.to_string();
    for (option, value) in [
        // It says which process it is once it carries.
        ("--pid", "/proc/self/fd/1"),
        ("--ns-ifname", UPLINK),
        ("--tcp-ports", "none"),
        ("--udp-ports", "none"),
        ("--tcp-ns", "none"),
        ("--udp-ns", "none"),
        ("--dns", "none"),
        ("--address", &v4),
        ("--netmask", &prefix),
        ("--gateway", &gateway_v4),
        ("--address", &v6),
        ("--gateway", &gateway_v6),
        ("--netns", namespace),
    ] {
        words.extend([option, value].map(OsString::from));
    }
    let switches = [
        "--netns-only",
        "--no-map-gw",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
    ];
    words.extend(switches.map(OsString::from));
    words
}

/// What carries one machine's packets.
#[derive(Debug)]
pub(super) struct Carrier {
    namespace: NetworkNamespace,
    /// Can be read, or hangs up, when the machine has ended.
    tied: OwnedFd,
}

impl Carrier {
    pub(super) const fn new(namespace: NetworkNamespace, tied: OwnedFd) -> Self {
        Self { namespace, tied }
    }

    /// Starts pasta, returns once it carries, and has it started anew when it ends before the machine.
    pub(super) async fn keep(self) -> Result<(), PastaError> {
        let keeper = self.start().await?;
        tokio::spawn(self.watch(keeper));
        Ok(())
    }

    /// Does so with a pasta that an earlier node has started; gives this back where there is none.
    pub(super) fn take_over(self) -> Option<Self> {
        // A process that ends meanwhile is none.
        let keepers = process::with_arguments(&[KEEPER]).into_iter();
        let mut found = keepers.filter_map(|id| Process::find(id).ok().flatten());
        match found.find(|keeper| self.namespace.is_owner_of(keeper.id().pid)) {
            Some(keeper) => {
                tokio::spawn(self.watch(keeper));
                None
            }
            None => Some(self),
        }
    }

    async fn watch(self, mut keeper: Process) {
        loop {
            let ended = keeper.wait().await;
            if !self.is_wanted() {
                return;
            }
            tracing::warn!(?ended, "a machine's pasta has ended, and is started anew");
            keeper = loop {
                tokio::time::sleep(PAUSE).await;
                if !self.is_wanted() {
                    return;
                }
                match self.start().await {
                    Ok(keeper) => break keeper,
                    Err(error) => tracing::warn!(%error, "a machine has no way out"),
                }
            };
        }
    }

    fn is_wanted(&self) -> bool {
        let ended = fork::wait_for_any(&[self.tied.as_fd()], Some(Duration::ZERO));
        matches!(ended, Ok(ended) if !ended.contains(&true))
    }

    async fn start(&self) -> Result<Process, PastaError> {
        let program = facts::find_program(PASTA).ok_or(PastaError::NotFound)?;
        let (words, theirs) = fork::pipe()?;
        let mut words = pipe::Receiver::from_owned_fd(words)?;
        let arguments = vec![KEEPER.into(), program.into()];
        let keeper = Launch {
            passed: vec![self.tied.try_clone()?, self.namespace.pass()?],
            ..Launch::of(std::env::current_exe()?, arguments, File::from(theirs))
        };
        let keeper = launch::launch_beside(keeper, &self.namespace)?;
        let begun = tokio::time::timeout(PATIENCE, begun(&mut words)).await;
        let words = match begun {
            Ok(Ok(())) => return Ok(keeper),
            Ok(Err(words)) => words,
            Err(_) => format!("nothing was said in {PATIENCE:?}"),
        };
        // Its pasta ends with it.
        keeper.kill()?;
        keeper.wait().await?;
        Err(PastaError::Begin { words })
    }
}

/// Reads until there is the number of a process, a line of its own; otherwise returns all that was said.
async fn begun(words: &mut pipe::Receiver) -> Result<(), String> {
    let mut said = Vec::new();
    let is_number = |line: &[u8]| !line.is_empty() && line.iter().all(u8::is_ascii_digit);
    while said.len() < WORDS_MAX {
        match words.read_buf(&mut said).await {
            Ok(0) | Err(_) => break,
            Ok(_) if said.split(|&byte| byte == b'\n').any(is_number) => return Ok(()),
            Ok(_) => {}
        }
    }
    Err(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pasta_has_begun_when_it_says_its_number() {
        use std::io::Write as _;
        for (said, expected) in [
            ("4711\n", Ok(())),
            ("a warning\n4711\n", Ok(())),
            (
                "External interface not usable\n",
                Err("External interface not usable\n".to_owned()),
            ),
            ("", Err(String::new())),
        ] {
            let (ours, theirs) = fork::pipe().unwrap();
            File::from(theirs).write_all(said.as_bytes()).unwrap();
            let mut words = pipe::Receiver::from_owned_fd(ours).unwrap();
            assert_eq!(begun(&mut words).await, expected, "{said}");
        }
    }
}
