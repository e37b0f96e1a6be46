//! Snapshots, restores, rollbacks and forks; and what many forks of a machine hold.

use hearth_api::v1::ForkMachine;

use super::bare_clone::BareClone;
use super::figures::{Report, Unit, milliseconds};
use super::idle::pss;
use super::subjects::Bencher;
use crate::error::CliError;

/// Forks at once, and bare clones beside them.
const FAMILY: u32 = 20;

impl Bencher<'_> {
    /// Copies of a running machine, in turn with bare clones of its template.
    pub(super) async fn forks(&self, report: &mut Report) -> Result<(), CliError> {
        let bare = self.bare_clone().await?;
        let source = self.idle("source", self.memory).await?;
        let prefix = self.machines.name("fork");
        let snapshot = self.machines.name("snapshot");
        let fork = ["fork", &source, "--name", &prefix];
        let create = ["snapshot", "create", &source, "--name", &snapshot];
        let copy = self.machines.name("copy");
        let restore = ["restore", &snapshot, "--name", &copy];
        let rollback = ["rollback", &source, &snapshot];
        let (mut bare_times, mut pauses) = (Vec::new(), Vec::new());
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..self.runs {
            bare_times.push(milliseconds(bare.first_reply().await?));
            times[0].push(milliseconds(self.machines.time(&fork).await?));
            self.remove(&format!("{prefix}-1")).await?;
            times[1].push(milliseconds(self.machines.time(&create).await?));
            times[2].push(milliseconds(self.machines.time(&restore).await?));
            self.remove(&copy).await?;
            times[3].push(milliseconds(self.machines.time(&rollback).await?));
            self.node
                .call(async |client| client.snapshot_remove(&snapshot).await)
                .await?;
            pauses.push(self.pause(&source, &prefix).await?);
        }
        let against = "bare QEMU clone without a network to the agent's first reply";
        let verbs = ["fork, one", "snapshot create", "restore", "rollback"];
        for (name, times) in verbs.into_iter().zip(&times) {
            report.add_against(name, Unit::Milliseconds, times, against, &bare_times);
        }
        report.add(
            "fork: the machine's programs stand still",
            Unit::Milliseconds,
            &pauses,
        );
        self.family(report, &source, &prefix, &bare).await?;
        self.remove(&source).await
    }

    /// Makes a fork through the API; returns how long the source's programs stood still.
    async fn pause(&self, source: &str, prefix: &str) -> Result<f64, CliError> {
        let request = ForkMachine {
            count: 1,
            name_prefix: Some(prefix.to_owned()),
            keep_secrets: false,
            memory_backend: None,
        };
        let forked = self
            .node
            .call(async |client| client.fork(source, &request).await)
            .await?;
        for machine in &forked.machines {
            self.remove(&machine.name).await?;
        }
        Ok(forked.pause_us as f64 / 1000.0)
    }

    /// Many forks at once, and what each holds of the host's memory.
    async fn family(
        &self,
        report: &mut Report,
        source: &str,
        prefix: &str,
        bare: &BareClone,
    ) -> Result<(), CliError> {
        let count = FAMILY.to_string();
        let took = self
            .machines
            .time(&["fork", source, "-n", &count, "--name", prefix])
            .await?;
        let mut own = Vec::new();
        for number in 1..=FAMILY {
            let name = format!("{prefix}-{number}");
            let machine = self.node.call(async |client| client.inspect(&name).await).await?;
            own.push(pss(machine.state.pid.unwrap_or_default())?);
        }
        for number in 1..=FAMILY {
            self.remove(&format!("{prefix}-{number}")).await?;
        }
        let crowd = bare.crowd(FAMILY).await?;
        let bare: Vec<f64> = crowd.pids().map(pss).collect::<Result<_, _>>()?;
        report.add(
            &format!("fork, {FAMILY} at once"),
            Unit::Milliseconds,
            &[milliseconds(took)],
        );
        let name = format!("fork, {FAMILY} at once: memory of each");
        let against = format!("{FAMILY} bare QEMU clones");
        report.add_against(&name, Unit::Kibibytes, &own, &against, &bare);
        Ok(())
    }

    pub(super) async fn remove(&self, name: &str) -> Result<(), CliError> {
        self.node
            .call(async |client| client.remove(name, true).await)
            .await
    }
}
