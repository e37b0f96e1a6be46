//! The processes of the workload and those beside it, read when asked.

use std::collections::BTreeMap;
use std::fs;

use hearth_guest_protocol::message::{ProcessInfo, Processes};
use serde_bytes::ByteBuf;

use crate::stats;

/// What is shown of a command, in bytes.
const COMMAND_MAX: usize = 200;
/// How many processes one answer holds: together with their commands they fit one frame.
const PROCESSES_MAX: usize = 256;
/// Milliseconds of a clock tick: USER_HZ is 100 on x86-64.
const TICK_MS: u64 = 10;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Lists them in the order of their numbers.
pub(crate) fn read() -> Processes {
    let pids = stats::processes();
    // One that has ended meanwhile is passed over.
    let found: Vec<_> = pids.iter().filter_map(|&pid| Some((pid, look(pid)?))).collect();
    // Parents are told as the kernel counts them outside; what has none inside has number 0.
    let inside: BTreeMap<u32, u32> = found.iter().map(|(pid, info)| (*pid, info.pid)).collect();
    let mut processes: Vec<_> = found
        .into_iter()
        .map(|(_, info)| ProcessInfo {
            parent: inside.get(&info.parent).copied().unwrap_or(0),
            ..info
        })
        .collect();
    processes.sort_by_key(|info| info.pid);
    processes.truncate(PROCESSES_MAX);
    Processes {
        total: u32::try_from(pids.len()).unwrap_or(u32::MAX),
        processes,
    }
}

fn look(pid: u32) -> Option<ProcessInfo> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    describe(&String::from_utf8_lossy(&stat), &status, &command)
}

/// Puts together what proc_pid_stat(5) and its neighbours say.
fn describe(stat: &str, status: &str, command: &[u8]) -> Option<ProcessInfo> {
    // The name may hold anything, parentheses too.
    let (head, tail) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let name = head.split_once('(').map_or("", |(_, name)| name);
    Some(ProcessInfo {
        pid: line("NSpid:")?.split_ascii_whitespace().last()?.parse().ok()?,
        parent: u32::try_from(number(1)?).ok()?,
        uid: line("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()?,
        state: fields.first()?.bytes().next()?,
        cpu_ms: (number(11)? + number(12)?) * TICK_MS,
        memory: number(21)? * PAGE,
        command: ByteBuf::from(shown(command, name)),
    })
}

/// Arguments with spaces between them; the name in brackets where there are none, as with a zombie.
fn shown(command: &[u8], name: &str) -> Vec<u8> {
    let end = command
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    let mut text: Vec<u8> = if end == 0 {
        format!("[{name}]").into_bytes()
    } else {
        command[..end]
            .iter()
            .map(|&byte| if byte == 0 { b' ' } else { byte })
            .collect()
    };
    text.truncate(COMMAND_MAX);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t0\t1000\t0\t0\nNSpid:\t77\t5\n";

    #[test]
    fn a_process_is_told_as_its_own_namespace_counts() {
        let stat = "77 (a ) b) S 70 77 77 0 -1 4194304 90 0 0 0 12 3 0 0 20 0 1 0 55 1200000 25 18446744073709551615";
        let info = describe(stat, STATUS, b"sh\0-c\0true\0").unwrap();
        assert_eq!((info.pid, info.parent, info.uid, info.state), (5, 70, 1000, b'S'));
        assert_eq!((info.cpu_ms, info.memory), (150, 25 * 4096));
        assert_eq!(&info.command[..], b"sh -c true");
        let nameless = describe(stat, STATUS, b"").unwrap();
        assert_eq!(&nameless.command[..], b"[a ) b]");
        assert_eq!(describe("77 (sh", STATUS, b""), None);
        assert_eq!(shown(&[b'x'; 1000], "x").len(), COMMAND_MAX);
    }
}
