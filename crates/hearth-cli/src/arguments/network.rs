//! `network`: networks of machines.

use clap::{Args, Subcommand};

const NETWORK_HELP: &str = "\
Machines on one network reach each other by name, on every port; others, and this host, do not get
in. What else a machine reaches is its policy's: with --policy locked nothing but the machines of
its networks. A machine finds another one as NAME, or as NAME.NETWORK; names with a dot in them are
not answered.

Examples:
  hearth network create backend
  hearth run -d --name db --network backend --policy locked -e POSTGRES_PASSWORD=x postgres:17
  hearth run -d --name web --network backend -p 8080:80 web    reaches db:5432
  hearth network connect backend agent
  hearth network inspect backend";

/// Make networks on which machines reach each other by name.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = NETWORK_HELP)]
pub(crate) struct Networks {
    #[command(subcommand)]
    pub(crate) command: NetworkCommand,
}

/// The verbs about networks.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    Create(NetworkCreate),
    Ls(NetworkList),
    Inspect(NetworkInspect),
    Rm(NetworkRemove),
    /// Put a machine on a network, at once when it runs.
    Connect(NetworkPlug),
    /// Take a machine off a network, at once when it runs: its connections there end.
    Disconnect(NetworkPlug),
}

/// Make a network.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth network create backend
  hearth network create --subnet 192.168.7.0/24 --mtu 9000 storage")]
pub(crate) struct NetworkCreate {
    /// Name: lower-case letters, digits and hyphens
    pub(crate) name: String,
    /// Private range of its addresses, one of IPv4 and one of IPv6 at most [default: one that is free]
    #[arg(long, value_name = "NETWORK/PREFIX")]
    pub(crate) subnet: Vec<String>,
    /// The longest packet, in bytes [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub(crate) mtu: Option<u32>,
    /// Label
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
}

/// List networks.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth network ls --json")]
pub(crate) struct NetworkList {
    #[command(flatten)]
    pub(crate) flags: super::ListFlags,
}

/// Print everything about a network as JSON: its ranges, and the machines on it with their addresses.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth network inspect backend | jq .machines")]
pub(crate) struct NetworkInspect {
    /// Network
    pub(crate) network: String,
}

/// Remove networks that no machine is on.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  hearth network rm backend")]
pub(crate) struct NetworkRemove {
    /// Networks
    #[arg(required = true)]
    pub(crate) networks: Vec<String>,
}

/// Which machine, and which network.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth network connect backend agent
  hearth network disconnect backend agent")]
pub(crate) struct NetworkPlug {
    /// Network
    pub(crate) network: String,
    /// Machine, by name, id or start of an id
    pub(crate) machine: String,
}
