//! `network create|ls|inspect|rm|connect|disconnect`.

use std::process::ExitCode;

use hearth_api::v1::{ConnectMachine, CreateNetwork, Network};
use jiff::Timestamp;

use super::kept;
use super::machine::each;
use crate::arguments::{NetworkCommand, NetworkCreate, NetworkPlug};
use crate::error::CliError;
use crate::node::Node;
use crate::print::{self, Cell, Table, ago};
use crate::resolve;

/// Runs a verb about networks of machines.
pub(super) async fn network(node: &Node, command: NetworkCommand) -> Result<ExitCode, CliError> {
    match command {
        NetworkCommand::Create(arguments) => create(node, arguments).await?,
        NetworkCommand::Ls(arguments) => {
            let networks = node.call(async |client| client.networks().await).await?;
            return kept::list(&arguments.flags, &networks, |network| &network.name, table);
        }
        NetworkCommand::Inspect(arguments) => {
            let network = node.call(async |client| client.network(&arguments.network).await);
            print::json(&network.await?)?;
        }
        NetworkCommand::Rm(arguments) => {
            return each(&arguments.networks, async |network| {
                node.call(async |client| client.network_remove(network).await)
                    .await?;
                Ok(network.to_owned())
            })
            .await;
        }
        NetworkCommand::Connect(NetworkPlug { network, machine }) => {
            let request = ConnectMachine { machine };
            node.call(async |client| client.network_connect(&network, &request).await)
                .await?;
            print::line(&request.machine)?;
        }
        NetworkCommand::Disconnect(NetworkPlug { network, machine }) => {
            let request = ConnectMachine { machine };
            node.call(async |client| client.network_disconnect(&network, &request).await)
                .await?;
            print::line(&request.machine)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(node: &Node, arguments: NetworkCreate) -> Result<(), CliError> {
    let request = CreateNetwork {
        name: arguments.name,
        subnets: arguments.subnet,
        mtu: arguments.mtu,
        labels: resolve::labels(&arguments.label)?,
    };
    let created = node
        .call(async |client| client.network_create(&request).await)
        .await?;
    print::line(&created.name)
}

fn table(networks: &[Network], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        ("NAME", Some(12)),
        ("SUBNETS", Some(20)),
        ("MTU", None),
        ("MACHINES", None),
        ("RUNNING", None),
        ("CREATED", None),
    ]);
    for network in networks {
        let running = network.machines.iter().filter(|machine| machine.running);
        table.push([
            Cell::from(network.name.clone()),
            Cell::from(network.subnets.join(" ")),
            Cell::from(network.mtu.to_string()),
            Cell::from(network.machines.len().to_string()),
            Cell::from(running.count().to_string()),
            Cell::from(ago(&network.created_at, now)),
        ]);
    }
    table
}
