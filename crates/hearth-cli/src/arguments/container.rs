//! How a workload sees its machine: flags of the verbs that create one.

use clap::Args;

/// Settings of the workload's world.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ContainerFlags {
    /// Run an init as PID 1 that reaps orphans and passes signals on
    #[arg(long, help_heading = "Process")]
    pub(crate) init: bool,
    /// Mount the root file system read-only
    #[arg(long, help_heading = "Process")]
    pub(crate) read_only: bool,
    /// File system in the machine's memory, as in /run:size=64m,mode=755
    #[arg(long, value_name = "PATH[:OPTIONS]", help_heading = "Process")]
    pub(crate) tmpfs: Vec<String>,
    /// Line of /etc/hosts
    #[arg(long, value_name = "NAME:IP", help_heading = "Process")]
    pub(crate) add_host: Vec<String>,
    /// Limit of each process, as in nofile=1024:4096; -1 is none
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Process")]
    pub(crate) ulimit: Vec<String>,
    /// Group of the user beside its own, by name or number
    #[arg(long, value_name = "GROUP", help_heading = "Process")]
    pub(crate) group_add: Vec<String>,
}
