//! Machines of pools, and code that runs once.

use std::time::{Duration, Instant};

use hearth_api::v1::{AcquireMachine, CreatePool, ExecuteRequest, PoolSpec, ReleaseMachine};

use super::BenchError;
use super::figures::{Report, Unit, milliseconds};
use super::subjects::Bencher;
use crate::error::CliError;

/// How long a pool may take to have a machine ready again.
const READY: Duration = Duration::from_secs(120);
/// How often a pool is asked whether it has.
const LOOK: Duration = Duration::from_millis(20);

impl Bencher<'_> {
    /// From the request to a machine that answers, and giving it back; beside cold starts of machines that hold.
    pub(super) async fn pool(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("pool");
        self.create_pool(&name).await?;
        let measured = self.acquire(report, &name).await;
        let removed = self
            .node
            .call(async |client| client.pool_remove(&name, true).await)
            .await;
        measured.and(removed)
    }

    async fn acquire(&self, report: &mut Report, pool: &str) -> Result<(), CliError> {
        let (mut acquires, mut releases, mut cold) = (Vec::new(), Vec::new(), Vec::new());
        let wish = AcquireMachine {
            lease_seconds: Some(600),
            wait_ms: None,
        };
        for turn in 0..self.runs {
            self.wait_ready(pool).await?;
            let begun = Instant::now();
            let lease = self
                .node
                .call(async |client| client.pool_acquire(pool, &wish).await)
                .await?;
            acquires.push(milliseconds(begun.elapsed()));
            let begun = Instant::now();
            let release = ReleaseMachine::default();
            self.node
                .call(async |client| client.lease_release(&lease.id, &release).await)
                .await?;
            releases.push(milliseconds(begun.elapsed()));
            // Not beside the start of a machine that the pool makes for the one given back.
            self.wait_ready(pool).await?;
            let name = self.machines.name(format!("cold-{turn}"));
            let mut run = self.machines.run_arguments(&name, self.memory);
            run.extend(["--detach", "--hold", self.image].map(str::to_owned));
            cold.push(milliseconds(self.machines.time(&run).await?));
            self.node
                .call(async |client| client.remove(&name, true).await)
                .await?;
        }
        let against = "run --detach --hold, from the prompt to the prompt";
        report.add_against("pool: acquire", Unit::Milliseconds, &acquires, against, &cold);
        report.add("pool: release", Unit::Milliseconds, &releases);
        Ok(())
    }

    /// A command of no length, with a machine of its own and with a pool's, beside the same by `run`.
    pub(super) async fn execute(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("execute");
        self.create_pool(&name).await?;
        let measured = self.executions(report, &name).await;
        let removed = self
            .node
            .call(async |client| client.pool_remove(&name, true).await)
            .await;
        measured.and(removed)
    }

    async fn executions(&self, report: &mut Report, pool: &str) -> Result<(), CliError> {
        let (mut own, mut pooled, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        let request = ExecuteRequest {
            command: vec!["true".to_owned()],
            ..ExecuteRequest::default()
        };
        let alone = ExecuteRequest {
            image: Some(self.image.to_owned()),
            memory_bytes: Some(self.memory),
            ..request.clone()
        };
        let in_pool = ExecuteRequest {
            pool: Some(pool.to_owned()),
            ..request
        };
        for turn in 0..self.runs {
            self.wait_ready(pool).await?;
            pooled.push(self.time_execution(&in_pool).await?);
            self.wait_ready(pool).await?;
            own.push(self.time_execution(&alone).await?);
            let name = self.machines.name(format!("run-{turn}"));
            let mut run = self.machines.run_arguments(&name, self.memory);
            run.extend(["--rm", self.image, "true"].map(str::to_owned));
            runs.push(milliseconds(self.machines.time(&run).await?));
        }
        let against = "run --rm true, from the prompt to the prompt";
        report.add_against("execute: own machine", Unit::Milliseconds, &own, against, &runs);
        report.add_against("execute: pool", Unit::Milliseconds, &pooled, against, &runs);
        Ok(())
    }

    async fn time_execution(&self, request: &ExecuteRequest) -> Result<f64, CliError> {
        let begun = Instant::now();
        self.node
            .call(async |client| client.execute(request, &mut |_| {}).await)
            .await?;
        Ok(milliseconds(begun.elapsed()))
    }

    async fn create_pool(&self, name: &str) -> Result<(), CliError> {
        let request = CreatePool {
            name: name.to_owned(),
            spec: PoolSpec {
                image: self.image.to_owned(),
                min: Some(1),
                max: Some(2),
                memory_bytes: Some(self.memory),
                ..PoolSpec::default()
            },
        };
        let create = self.node.call(async |client| client.pool_create(&request).await);
        create.await.map(drop)
    }

    /// Waits until a machine is ready, and nothing of the pool is under way.
    async fn wait_ready(&self, name: &str) -> Result<(), CliError> {
        let end = Instant::now() + READY;
        loop {
            let pool = self.node.call(async |client| client.pool(name).await).await?;
            if pool.ready > 0 && pool.members.len() == pool.ready as usize {
                return Ok(());
            }
            if Instant::now() > end {
                let why = pool.last_error.unwrap_or_else(|| "nothing is told".to_owned());
                return Err(BenchError::NotReady(why).into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
