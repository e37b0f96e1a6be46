//! A workload's output: to who is attached, into the log alone, and what that leaves in the node's memory.

use std::time::Instant;

use tokio::io::AsyncReadExt as _;

use super::BenchError;
use super::figures::{Report, Unit, rate};
use super::machines::{finish, line};
use super::subjects::{Bencher, TRANSFERS};
use crate::error::CliError;

impl Bencher<'_> {
    /// Bytes that a workload prints.
    pub(super) async fn logs(&self, report: &mut Report) -> Result<(), CliError> {
        let size = self.size >> 16 << 16;
        let zeros = format!("dd if=/dev/zero bs=65536 count={} 2>/dev/null", self.size >> 16);
        let machine = self.idle("compared", self.memory).await?;
        let before = self.node_kibibytes().await?;
        let (mut attached, mut alone, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..TRANSFERS {
            attached.push(self.attached(turn, &zeros, size).await?);
            alone.push(self.alone(turn, &zeros, size).await?);
            own.push(rate(size, self.out_of(&machine, &zeros, size).await?));
        }
        let grown = (self.node_kibibytes().await? - before).max(0.0);
        let (unit, against) = (Unit::MegabytesPerSecond, "exec of the same");
        report.add_against("logs: to who is attached", unit, &attached, against, &own);
        report.add_against("logs: into the log alone", unit, &alone, against, &own);
        report.add("logs: growth of the node", Unit::Kibibytes, &[grown]);
        Ok(())
    }

    /// From the first byte that comes to the last: the boot is none of it.
    async fn attached(&self, turn: u32, zeros: &str, size: u64) -> Result<f64, CliError> {
        let name = self.machines.name(format!("attached-{turn}"));
        let mut arguments = self.machines.run_arguments(&name, self.memory);
        arguments.extend(["--rm", self.image, "sh", "-c", zeros].map(str::to_owned));
        let broken = |source| BenchError::Program {
            line: line(&arguments),
            source,
        };
        let mut child = self.machines.pipes(&arguments)?;
        let Some(mut output) = child.stdout.take() else {
            return Err(BenchError::NoFirstLine.into());
        };
        let mut first = [0];
        output.read_exact(&mut first).await.map_err(broken)?;
        let begun = Instant::now();
        let moved = 1 + tokio::io::copy(&mut output, &mut tokio::io::sink())
            .await
            .map_err(broken)?;
        let took = begun.elapsed();
        finish(child, &arguments).await?;
        if moved == size {
            return Ok(rate(size, took));
        }
        Err(BenchError::Short {
            line: line(&arguments),
            moved,
            expected: size,
        }
        .into())
    }

    /// From the workload's start to its end, which is told when its disk is at rest.
    async fn alone(&self, turn: u32, zeros: &str, size: u64) -> Result<f64, CliError> {
        let name = self.machines.name(format!("alone-{turn}"));
        let mut arguments = self.machines.run_arguments(&name, self.memory);
        arguments.extend(["--detach", self.image, "sh", "-c", zeros].map(str::to_owned));
        self.machines.time(&arguments).await?;
        let begun = Instant::now();
        self.node.call(async |client| client.wait(&name).await).await?;
        let took = begun.elapsed();
        self.node
            .call(async |client| client.remove(&name, true).await)
            .await?;
        Ok(rate(size, took))
    }
}
