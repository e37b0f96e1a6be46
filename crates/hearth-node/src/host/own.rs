//! The node's own process, and the host it runs on, in numbers.

use std::io;

use super::launch::HostUser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Allows as many open files as the host lets this process have: each connection to a published port takes one, and the usual soft
/// limit of 1024 is for programs that use select(2).
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Returns the resident memory of this process in bytes, as proc_pid_statm(5) has it.
///
/// # Errors
/// When /proc is not there or says nonsense.
pub fn rss_bytes() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|text| text.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm makes no sense"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Returns the mode of directories on the way to what monitors must reach. Those of root run as users of their own, which may
/// pass through and not look around; anybody else's run as their user, and nobody else has any business there.
pub fn passage_mode() -> u32 {
    if uid() == 0 { 0o711 } else { 0o700 }
}

/// Returns the name of the host's present boot, random(4): another one says that every process of before is gone. Empty where
/// the kernel does not tell, which then never differs.
pub fn host_boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Returns the host's memory in bytes.
pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit) * info.totalram
}

/// Returns how many processors this process may use.
pub fn processors() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Leaves the session of whoever started this process, so that the end of that terminal is not its end.
pub fn leave_session() {
    // Refused only to the leader of a process group, who leads no session of somebody else.
    let _ = rustix::process::setsid();
}

/// Returns the user that this process runs as.
pub fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// Returns the user and the group that this process acts as.
pub fn user() -> HostUser {
    HostUser {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

/// Tells whether this process acts as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_plausible() {
        let rss = rss_bytes().unwrap();
        assert!(rss > 1 << 20 && rss < memory_bytes());
        assert!(processors() >= 1);
    }
}
