//! Machines of pools, and code that runs once.

use std::time::{Duration, Instant};

use hearth_api::v1::{
    AcquireMachine, CreatePool, ExecuteRequest, Pool, PoolSpec, ReleaseMachine, ResizePool,
};

use super::BenchError;
use super::figures::{Report, Unit, milliseconds};
use super::subjects::Bencher;
use crate::error::CliError;

/// How long a pool may take to have a machine ready again.
const READY: Duration = Duration::from_secs(120);
/// Machines that a pool has ready, of which one is taken by itself, one right behind it, and one while others are made for these, or none are.
const READY_TOGETHER: u32 = 3;
/// Machines that are taken one after the other, of a pool that has as many; once more than half of them are gone it makes others at once.
const STREAM: u32 = 16;
/// How long lies between two of a stream, in milliseconds: four a second, some of them sooner than one is made under emulation.
const GAPS: [u64; 8] = [150, 400, 50, 300, 450, 100, 350, 200];
/// Acquires that stream once.
const RUNS_OF_A_STREAM: u32 = 3;
/// How often a pool is asked whether it has.
const LOOK: Duration = Duration::from_millis(20);
/// How often it is asked whether it makes any, which takes no longer than a clone.
const GLANCE: Duration = Duration::from_millis(2);

impl Bencher<'_> {
    /// From the request to a machine that answers, and giving it back; beside cold starts of machines that hold.
    pub(super) async fn pool(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("pool");
        self.create_pool(&name, READY_TOGETHER).await?;
        let measured = match self.acquire(report, &name).await {
            Ok(()) => self.streams(report, &name).await,
            Err(error) => Err(error),
        };
        let removed = self
            .node
            .call(async |client| client.pool_remove(&name, true).await)
            .await;
        measured.and(removed)
    }

    /// Acquires that go on for as long as a pool must be filled up meanwhile, beside the same of one that need not be.
    async fn streams(&self, report: &mut Report, pool: &str) -> Result<(), CliError> {
        let (mut filling, mut full) = (Vec::new(), Vec::new());
        for _ in 0..self.runs.div_ceil(RUNS_OF_A_STREAM) {
            for (most, times) in [(2 * STREAM, &mut filling), (STREAM, &mut full)] {
                self.resize(pool, STREAM, 2 * STREAM).await?;
                self.wait_ready(pool, STREAM).await?;
                self.resize(pool, STREAM, most).await?;
                times.extend(self.stream(pool).await?);
            }
        }
        report.add_against(
            "pool: acquire, in a stream behind which the pool fills up",
            Unit::Milliseconds,
            &filling,
            "the same stream, and nothing made",
            &full,
        );
        Ok(())
    }

    /// Takes machines one after the other; returns how long those took that came once more than half of them were gone. Gives them back.
    async fn stream(&self, pool: &str) -> Result<Vec<f64>, CliError> {
        let (mut leases, mut times) = (Vec::new(), Vec::new());
        for (turn, &gap) in (0..STREAM).zip(GAPS.iter().cycle()) {
            let (lease, took) = self.take(pool).await?;
            leases.push(lease);
            times.extend((turn > STREAM / 2).then_some(took));
            tokio::time::sleep(Duration::from_millis(gap)).await;
        }
        for lease in &leases {
            self.give_back(lease).await?;
        }
        Ok(times)
    }

    async fn acquire(&self, report: &mut Report, pool: &str) -> Result<(), CliError> {
        let (mut acquires, mut behind) = (Vec::new(), Vec::new());
        let (mut beside, mut unfilled) = (Vec::new(), Vec::new());
        let (mut releases, mut again, mut cold) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..self.runs {
            self.wait_ready(pool, READY_TOGETHER).await?;
            self.resize(pool, READY_TOGETHER, READY_TOGETHER).await?;
            let taken = [self.take(pool).await?.0, self.take(pool).await?.0];
            // As often as below: a pool that has lost so many begins at once.
            self.is_filling(pool).await?;
            let (third, took) = self.take(pool).await?;
            unfilled.push(took);
            self.resize(pool, READY_TOGETHER, 2 * READY_TOGETHER).await?;
            for other in [&taken[0], &taken[1], &third] {
                self.wait_ready(pool, READY_TOGETHER).await?;
                self.give_back(other).await?;
            }
            self.wait_ready(pool, READY_TOGETHER).await?;
            let (first, took) = self.take(pool).await?;
            acquires.push(took);
            let (second, took) = self.take(pool).await?;
            behind.push(took);
            self.wait_filling(pool).await?;
            let (third, took) = self.take(pool).await?;
            // It says nothing where that was over before.
            if self.is_filling(pool).await? {
                beside.push(took);
            }
            for other in [&second, &third] {
                self.wait_ready(pool, READY_TOGETHER).await?;
                self.give_back(other).await?;
            }
            self.wait_ready(pool, READY_TOGETHER).await?;
            let begun = Instant::now();
            self.give_back(&first).await?;
            releases.push(milliseconds(begun.elapsed()));
            // Not beside the start of a machine that the pool makes for the one given back.
            self.wait_ready(pool, READY_TOGETHER).await?;
            again.push(milliseconds(begun.elapsed()));
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
        for (name, times, against, base) in [
            (
                "pool: acquire, right behind another",
                &behind,
                "pool: acquire",
                &acquires,
            ),
            (
                "pool: acquire, while the pool fills up",
                &beside,
                "the third acquire as well, and nothing made for the others",
                &unfilled,
            ),
        ] {
            report.add_against(name, Unit::Milliseconds, times, against, base);
        }
        report.add("pool: release", Unit::Milliseconds, &releases);
        report.add(
            "pool: release, until all is ready again",
            Unit::Milliseconds,
            &again,
        );
        Ok(())
    }

    /// Takes a machine; returns its lease and how long that took.
    async fn take(&self, pool: &str) -> Result<(String, f64), CliError> {
        let wish = AcquireMachine {
            lease_seconds: Some(600),
            wait_ms: None,
        };
        let begun = Instant::now();
        let lease = self
            .node
            .call(async |client| client.pool_acquire(pool, &wish).await);
        Ok((lease.await?.id, milliseconds(begun.elapsed())))
    }

    async fn give_back(&self, lease: &str) -> Result<(), CliError> {
        let release = ReleaseMachine::default();
        let given = self
            .node
            .call(async |client| client.lease_release(lease, &release).await);
        given.await.map(drop)
    }

    /// A command of no length, with a machine of its own and with a pool's, beside the same by `run`.
    pub(super) async fn execute(&self, report: &mut Report) -> Result<(), CliError> {
        let name = self.machines.name("execute");
        self.create_pool(&name, 1).await?;
        let measured = self.executions(report, &name).await;
        let removed = self
            .node
            .call(async |client| client.pool_remove(&name, true).await)
            .await;
        measured.and(removed)
    }

    async fn executions(&self, report: &mut Report, pool: &str) -> Result<(), CliError> {
        let (mut own, mut pooled, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        let request = self.request()?;
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
            self.wait_ready(pool, 1).await?;
            pooled.push(self.time_execution(&in_pool).await?);
            self.wait_ready(pool, 1).await?;
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

    /// What is executed.
    fn request(&self) -> Result<ExecuteRequest, BenchError> {
        let Some(path) = self.code else {
            return Ok(ExecuteRequest {
                command: vec!["true".to_owned()],
                ..ExecuteRequest::default()
            });
        };
        let code = std::fs::read_to_string(path).map_err(|source| BenchError::Code {
            path: path.display().to_string(),
            source,
        })?;
        Ok(ExecuteRequest {
            code: Some(code),
            code_name: path.file_name().map(|name| name.to_string_lossy().into_owned()),
            ..ExecuteRequest::default()
        })
    }

    async fn time_execution(&self, request: &ExecuteRequest) -> Result<f64, CliError> {
        let begun = Instant::now();
        self.node
            .call(async |client| client.execute(request, &mut |_| {}).await)
            .await?;
        Ok(milliseconds(begun.elapsed()))
    }

    async fn create_pool(&self, name: &str, ready: u32) -> Result<(), CliError> {
        let request = CreatePool {
            name: name.to_owned(),
            spec: PoolSpec {
                image: self.image.to_owned(),
                min: Some(ready),
                max: Some(ready * 2),
                memory_bytes: Some(self.memory),
                ..PoolSpec::default()
            },
        };
        let create = self.node.call(async |client| client.pool_create(&request).await);
        create.await.map(drop)
    }

    /// Waits until so many machines are ready, and nothing of the pool is under way but what is leased.
    async fn wait_ready(&self, name: &str, ready: u32) -> Result<(), CliError> {
        let is_ready =
            |pool: &Pool| pool.ready >= ready && pool.members.len() == (pool.ready + pool.leased) as usize;
        self.wait_until(name, LOOK, is_ready).await
    }

    /// Waits until a pool makes a machine.
    async fn wait_filling(&self, name: &str) -> Result<(), CliError> {
        self.wait_until(name, GLANCE, |pool| pool.starting > 0).await
    }

    async fn resize(&self, name: &str, min: u32, max: u32) -> Result<(), CliError> {
        let request = ResizePool {
            min: Some(min),
            max: Some(max),
        };
        let resized = self
            .node
            .call(async |client| client.pool_resize(name, &request).await);
        resized.await.map(drop)
    }

    async fn is_filling(&self, name: &str) -> Result<bool, CliError> {
        let pool = self.node.call(async |client| client.pool(name).await).await?;
        Ok(pool.starting > 0)
    }

    async fn wait_until(
        &self,
        name: &str,
        look: Duration,
        is_so: impl Fn(&Pool) -> bool,
    ) -> Result<(), CliError> {
        let end = Instant::now() + READY;
        loop {
            let pool = self.node.call(async |client| client.pool(name).await).await?;
            if is_so(&pool) {
                return Ok(());
            }
            if Instant::now() > end {
                let why = pool.last_error.unwrap_or_else(|| "nothing is told".to_owned());
                return Err(BenchError::NotReady(why).into());
            }
            tokio::time::sleep(look).await;
        }
    }
}
