//! What a machine may reach: the flags of the verbs that make machines, and `policy` with what is below it.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use hearth_machine::{NetworkName, Uplink};

/// What a machine reaches.
#[derive(Debug, Default, Args)]
pub(crate) struct NetworkFlags {
    /// What it reaches: none, isolated, filtered or open; names of networks of machines that it is on; where it leads out, bridge=br0 with
    /// an address that a server there gives (DHCP), or bridge=br0,ip=192.168.1.50/24,gateway=192.168.1.1 (repeatable)
    /// [default: filtered, or none where this host cannot give it; 'inspect' tells]
    #[arg(long, value_name = "MODE|NETWORK", help_heading = "Network")]
    pub(crate) network: Vec<Network>,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
    /// Certificates (PEM) of authorities that the machine's programs are to trust, too
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub(crate) ca_cert: Vec<PathBuf>,
    /// Hand the proxy of this host's HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or another one, to the workload, and let the machine reach it:
    /// whatever the proxy reaches is reached then, --policy or not
    #[arg(
        long,
        value_name = "host|URL|none",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "host",
        help_heading = "Network"
    )]
    pub(crate) http_proxy: Option<String>,
}

/// What a machine may reach over its network.
#[derive(Debug, Default, Args)]
pub(crate) struct PolicyFlags {
    /// What it may reach there: locked (nothing), balanced (the internet), open, or a file, see 'hearth policy --help'
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Network")]
    pub(crate) policy: Option<String>,
    /// Let it reach this, too: HOST[:PORT], *.DOMAIN[:PORT], NETWORK/PREFIX[:PORT] or *:PORT
    #[arg(long, value_name = "DESTINATION", help_heading = "Network")]
    pub(crate) allow: Vec<String>,
    /// Do not let it reach this, whatever allows it; names without a port
    #[arg(long, value_name = "DESTINATION", help_heading = "Network")]
    pub(crate) deny: Vec<String>,
}

/// What network a machine sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// Its loopback.
    None,
    /// An interface whose other end, in a network namespace of the machine's own, leads nowhere.
    Isolated,
    /// The internet: names, web, ssh and git; no private networks, not this host, no other machine.
    Filtered,
    /// Wherever this host gets, but not to the host itself or another machine.
    Open,
    /// A bridge of the host's, and a place on it.
    Bridge(Uplink),
    /// A network of machines.
    Named(NetworkName),
}

impl FromStr for Network {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "none" => Self::None,
            "isolated" => Self::Isolated,
            "filtered" => Self::Filtered,
            "open" => Self::Open,
            place if place.starts_with("bridge=") => Self::Bridge(place.parse()?),
            name => Self::Named(name.parse()?),
        })
    }
}

const POLICY_HELP: &str = "\
A policy is a preset with what is allowed beside it and what is denied. What is denied is denied, whatever allows it.
  locked     nothing is reached, and no name is known
  balanced   the internet: names, web, ssh and git; no private networks (the default, and --network filtered)
  open       wherever this host gets (and --network open)
No policy lets a machine reach metadata services of clouds, this host, or another machine; those on its networks it
reaches whatever the preset, unless --deny says otherwise ('hearth network --help').

A file of one, in TOML, is taken by 'run --policy FILE':
  preset = \"locked\"
  allow = [\"*.debian.org:80\", \"github.com\", \"10.1.0.0/16:5432\"]
  deny = [\"gist.github.com\"]

A name that is allowed is reached at the addresses that the machine's name server has told it, for as long as they count,
and not at private ones. *.DOMAIN stands for every name below, and not for itself.

Examples:
  hearth run -d --name agent --policy locked --allow '*.debian.org' --allow github.com:443 debian:12 ...
  hearth policy log -f agent
  hearth policy allow agent pypi.org
  hearth policy check agent example.com:8443 10.0.0.1
  hearth policy learn agent > agent.toml";

/// See, test, change and learn what machines may reach over their networks.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true, after_help = POLICY_HELP)]
pub(crate) struct Policy {
    #[command(subcommand)]
    pub(crate) command: PolicyCommand,
}

/// The verbs about policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    Show(PolicyShow),
    Check(PolicyCheck),
    Allow(PolicyAdd),
    Deny(PolicyAdd),
    Set(PolicySet),
    Log(PolicyLog),
    Learn(PolicyLearn),
}

/// Show a machine's policy, as a file of one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth policy show agent
  hearth policy show --json agent")]
pub(crate) struct PolicyShow {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say whether destinations may be reached, and which rule decides. Nothing is asked over the network.
///
/// The exit code is 1 where one of them may not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth policy check agent example.com            by TCP, port 443
  hearth policy check agent 10.0.0.1:5432 example.com:53/udp
  hearth policy check ./agent.toml pypi.org")]
pub(crate) struct PolicyCheck {
    /// A machine, a preset, or a file, with a slash or .toml in its name
    #[arg(value_name = "MACHINE|PRESET|FILE")]
    pub(crate) policy: String,
    /// A name or an address, with a port [443] and /udp where it is not TCP
    #[arg(required = true, value_name = "HOST[:PORT]")]
    pub(crate) destinations: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Add rules to a machine's policy, at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth policy allow agent pypi.org files.pythonhosted.org
  hearth policy deny agent 203.0.113.0/24

A rule that says the contrary is taken out. Connections that may not be any more end; others go on.")]
pub(crate) struct PolicyAdd {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// HOST[:PORT], *.DOMAIN[:PORT], NETWORK/PREFIX[:PORT] or *:PORT
    #[arg(required = true, value_name = "DESTINATION")]
    pub(crate) destinations: Vec<String>,
}

/// Give a machine another policy, at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth policy set agent --policy ./agent.toml
  hearth policy set agent --policy locked --allow github.com

Connections that may not be any more end; others go on. A machine without a network cannot be given one.")]
pub(crate) struct PolicySet {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) policy: PolicyFlags,
}

/// Show what a machine was refused, why, and what would allow it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth policy log agent
  hearth policy log -f --json agent

The last 1024 denials are kept while the node runs; a flood of them is told of in part.")]
pub(crate) struct PolicyLog {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Go on with what is refused next
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print JSON, one denial a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print the least policy that lets a machine reach what it has reached, as a file of one.
///
/// Run what is to be learnt with '--network open' or '--network filtered'; what was refused is told in comments.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth run --name build --network filtered debian:12 apt-get update
  hearth policy learn build > build.toml
  hearth run --policy ./build.toml debian:12 apt-get update")]
pub(crate) struct PolicyLearn {
    /// Machine, by name, id or start of an id
    #[arg(value_name = "MACHINE")]
    pub(crate) machine: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
