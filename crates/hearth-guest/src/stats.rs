//! What the guest uses, read when asked.

use std::fs;
use std::path::PathBuf;

use hearth_guest_protocol::message::Stats;

use crate::machine::DISK;

/// The cgroup of the workload and the processes beside it.
pub(crate) const CGROUP: &str = "/sys/fs/cgroup/workload";

/// Reads all figures; what the kernel does not tell is zero.
pub(crate) fn read() -> Stats {
    let cpu = fs::read_to_string("/sys/fs/cgroup/cpu.stat").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let disk = rustix::fs::statvfs(DISK).ok();
    Stats {
        cpu_ns: field(&cpu, "usage_usec").saturating_mul(1000),
        memory_total: field(&memory, "MemTotal:").saturating_mul(1024),
        memory_available: field(&memory, "MemAvailable:").saturating_mul(1024),
        disk_total: disk.as_ref().map_or(0, |disk| disk.f_blocks * disk.f_frsize),
        disk_free: disk.as_ref().map_or(0, |disk| disk.f_bavail * disk.f_frsize),
        processes: u32::try_from(processes().len()).unwrap_or(u32::MAX),
    }
}

/// Returns the numbers of the processes of the workload and those beside it; some have cgroups of their own below the workload's.
pub(crate) fn processes() -> Vec<u32> {
    let below = fs::read_dir(CGROUP).into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let groups = [PathBuf::from(CGROUP)]
        .into_iter()
        .chain(below.map(|entry| entry.path()));
    let listed = groups.map(|group| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default());
    let pids = listed.flat_map(|text| {
        text.lines()
            .filter_map(|pid| pid.parse().ok())
            .collect::<Vec<u32>>()
    });
    pids.collect()
}

/// Returns the number behind a name at the start of a line.
fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let value = lines.find_map(|mut words| words.next().filter(|&word| word == name).and(words.next()));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        let text = "MemTotal:        2048 kB\nMemAvailable:    1024 kB\nSwap\n";
        assert_eq!(field(text, "MemAvailable:"), 1024);
        assert_eq!(field(text, "Mem"), 0);
        assert_eq!(field(text, "Swap"), 0);
    }
}
