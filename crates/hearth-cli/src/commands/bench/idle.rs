//! What machines hold that do nothing, and whether it grows.

use std::path::Path;
use std::time::Duration;

use super::BenchError;
use super::figures::{Report, Unit};
use super::subjects::{Bencher, IDLE_PROGRAM};
use crate::error::CliError;

/// Clones at once, and bare ones beside them.
const FAMILY: u32 = 20;

impl Bencher<'_> {
    /// The memory of idle clones beside that of as many bare ones, at once and when they have been idle for a while. An emulator keeps the
    /// translation of all that has run; so there are bare ones that have answered, and such that run the same program.
    pub(super) async fn idle_clones(
        &self,
        report: &mut Report,
        while_idle: Duration,
    ) -> Result<(), CliError> {
        let bare = self.bare_clone().await?;
        // It boots, where there is no template of its kind.
        let first = self.idle("model", self.memory).await?;
        let mut pids = Vec::new();
        for number in 0..FAMILY {
            let name = self.idle(&format!("idle-{number}"), self.memory).await?;
            let machine = self.node.call(async |client| client.inspect(&name).await).await?;
            pids.push(machine.state.pid.unwrap_or_default());
        }
        self.remove(&first).await?;
        let crowd = bare.crowd(FAMILY).await?;
        let bare_pids: Vec<u32> = crowd.pids().collect();
        let at_work = bare.crowd_at_work(FAMILY, &IDLE_PROGRAM).await?;
        let at_work_pids: Vec<u32> = at_work.pids().collect();
        let mut tell = |when: &str| {
            let name = format!("{FAMILY} idle clones: memory of each{when}");
            let own = all(&pids)?;
            let mut beside = |what: &str, pids: &[u32]| {
                let against = format!("{FAMILY} bare QEMU clones {what}");
                report.add_against(&name, Unit::Kibibytes, &own, &against, &all(pids)?);
                Ok::<_, BenchError>(())
            };
            beside("that have answered", &bare_pids)?;
            beside("that run the same program", &at_work_pids)
        };
        tell("")?;
        if !while_idle.is_zero() {
            tokio::time::sleep(while_idle).await;
            tell(&format!(", after {} s", while_idle.as_secs()))?;
        }
        for number in 0..FAMILY {
            self.remove(&self.machines.name(format!("idle-{number}"))).await?;
        }
        Ok(())
    }
}

fn all(pids: &[u32]) -> Result<Vec<f64>, BenchError> {
    pids.iter().copied().map(pss).collect()
}

/// Returns the proportional set size of a process, in KiB: its share of what is shared counts in part (proc_pid_smaps(5)).
pub(super) fn pss(pid: u32) -> Result<f64, BenchError> {
    let unreadable = |source| BenchError::Monitor { pid, source };
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(Path::new(&path)).map_err(unreadable)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| unreadable(std::io::ErrorKind::InvalidData.into()))
}
