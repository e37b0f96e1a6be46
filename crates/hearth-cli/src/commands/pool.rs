//! `pool`: machines that are ready, and leases of them.

use std::process::ExitCode;

use hearth_api::ClientError;
use hearth_api::v1::{AfterRelease, CreatePool, ErrorCode, Lease, Pool, ReleaseMachine, ResizePool};
use jiff::Timestamp;

use super::image::fetch;
use super::machine::each;
use crate::arguments::{PoolCommand, Pull};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Screen, Table, ago};
use crate::resolve::{System, pool_acquire, pool_create, pool_extend};

/// Runs a verb of pools.
pub(super) async fn pool(node: &Node, command: PoolCommand) -> Result<ExitCode, CliError> {
    match command {
        PoolCommand::Create(arguments) => {
            let pull = arguments.pull;
            create(node, &pool_create(*arguments, &System)?, pull).await?;
        }
        PoolCommand::Ls(arguments) => {
            let pools = node.call(async |client| client.pools().await).await?;
            if arguments.json {
                print::json(&pools)?;
            } else {
                print::out(&table(&pools, Timestamp::now()).render(Screen::stdout()))?;
            }
        }
        PoolCommand::Inspect(arguments) => {
            print::json(
                &node
                    .call(async |client| client.pool(&arguments.pool).await)
                    .await?,
            )?;
        }
        PoolCommand::Resize(arguments) => {
            let change = ResizePool {
                min: arguments.min,
                max: arguments.max,
            };
            node.call(async |client| client.pool_resize(&arguments.pool, &change).await)
                .await?;
            print::line(&arguments.pool)?;
        }
        PoolCommand::Rm(arguments) => {
            return each(&arguments.pools, async |pool| {
                node.call(async |client| client.pool_remove(pool, arguments.force).await)
                    .await?;
                Ok(pool.to_owned())
            })
            .await;
        }
        PoolCommand::Acquire(arguments) => {
            let request = pool_acquire(&arguments)?;
            let lease = node
                .call(async |client| client.pool_acquire(&arguments.pool, &request).await)
                .await?;
            show(&lease, arguments.json)?;
        }
        PoolCommand::Extend(arguments) => {
            let request = pool_extend(&arguments.lease)?;
            let lease = node
                .call(async |client| client.lease_extend(&arguments.machine, &request).await)
                .await?;
            show(&lease, arguments.json)?;
        }
        PoolCommand::Release(arguments) => {
            let then = match arguments.discard && !arguments.reset {
                true => AfterRelease::Discard,
                false => AfterRelease::Reset,
            };
            return each(&arguments.machines, async |machine| {
                let request = ReleaseMachine { then };
                node.call(async |client| client.lease_release(machine, &request).await)
                    .await?;
                Ok(machine.to_owned())
            })
            .await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(node: &Node, request: &CreatePool, pull: Pull) -> Result<(), CliError> {
    let ask = async || node.call(async |client| client.pool_create(request).await).await;
    if pull == Pull::Always {
        fetch(node, request.spec.image.clone()).await?;
    }
    let created = match ask().await {
        Err(CliError::Client(ClientError::Refused(body)))
            if body.code == ErrorCode::ImageNotFound && pull == Pull::Missing =>
        {
            fetch(node, request.spec.image.clone()).await?;
            ask().await?
        }
        created => created?,
    };
    print::line(&created.name)
}

fn show(lease: &Lease, json: bool) -> Result<(), CliError> {
    match json {
        true => print::json(lease),
        false => print::line(&lease.machine),
    }
}

fn table(pools: &[Pool], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("NAME", Some(12)),
        ("IMAGE", Some(10)),
        ("READY", None),
        ("LEASED", None),
        ("STARTING", None),
        ("WAITING", None),
        ("SIZE", None),
        ("CREATED", None),
    ]);
    for pool in pools {
        table.push([
            Cell::from(pool.name.clone()),
            Cell::from(pool.spec.image.clone()),
            Cell::from(pool.ready.to_string()),
            Cell::from(pool.leased.to_string()),
            Cell::from(pool.starting.to_string()),
            Cell::from(pool.waiting.to_string()),
            Cell::from(format!("{}-{}", pool.min, pool.max)),
            Cell::from(ago(&pool.created_at, now)),
        ]);
    }
    table
}
