//! What a process uses, as the kernel counts it.

use std::io;
use std::time::Duration;

use super::process::ProcessId;

/// What a process, with all its threads, has taken and holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Processor time since its start, its threads that have ended included; in clock ticks, 10 ms most often.
    pub cpu: Duration,
    /// Its threads.
    pub threads: u32,
    /// Proportional set size in bytes: what it has to itself, and its part of what it shares.
    pub pss: u64,
}

impl ProcessUsage {
    /// Looks at a process; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel shows it to nobody like this process, or in an unknown form.
    pub fn of(id: ProcessId) -> io::Result<Option<Self>> {
        let gone = |error: &io::Error| {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
        };
        let read = || -> io::Result<(String, String)> {
            let text = |name: &str| std::fs::read(format!("/proc/{}/{name}", id.pid));
            let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok((lossy(text("smaps_rollup")?), lossy(text("stat")?)))
        };
        let (rollup, stat) = match read() {
            Ok(texts) => texts,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let pss = parse_pss(&rollup);
        let parsed = parse_stat(&stat, rustix::param::clock_ticks_per_second());
        let (parsed, pss) = parsed.zip(pss).ok_or(io::ErrorKind::InvalidData)?;
        let (start_time, cpu, threads) = parsed;
        // Looked at last: the other figures are of the same process then.
        Ok((start_time == id.start_time).then_some(Self { cpu, threads, pss }))
    }
}

/// Reads `Pss:` of proc_pid_smaps(5), in bytes.
fn parse_pss(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Reads start time, processor time and threads of proc_pid_stat(5): fields 22, 14 and 15, and 20, counted behind the name, which
/// may hold anything.
fn parse_stat(stat: &str, ticks_per_second: u64) -> Option<(u64, Duration, u32)> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let fields: Vec<_> = behind_name.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)?.checked_add(number(15)?)?;
    let cpu = Duration::from_nanos(ticks.checked_mul(1_000_000_000 / ticks_per_second.max(1))?);
    Some((number(22)?, cpu, u32::try_from(number(20)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 13 14 15 16 3 18 777 20";
        assert_eq!(parse_stat(stat, 100), Some((777, Duration::from_secs(2), 3)));
        assert_eq!(parse_stat("7 (a", 100), None);
        let rollup = "55-7f ---p 00000000 00:00 0 [rollup]\nRss:  9 kB\nPss:   1036 kB\nPss_Anon:  1 kB\n";
        assert_eq!(parse_pss(rollup), Some(1036 * 1024));
    }

    #[test]
    fn memory_and_time_of_a_process_are_those_it_took() {
        let own = ProcessId::of(std::process::id().cast_signed()).unwrap().unwrap();
        let before = ProcessUsage::of(own).unwrap().unwrap();
        let held = vec![1_u8; 32 << 20];
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(&held);
        }
        let after = ProcessUsage::of(own).unwrap().unwrap();
        assert!(after.pss >= before.pss + (31 << 20), "{before:?} {after:?}");
        assert!(after.cpu > before.cpu && after.threads > 0);
        let other = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert_eq!(ProcessUsage::of(other).unwrap(), None);
    }
}
