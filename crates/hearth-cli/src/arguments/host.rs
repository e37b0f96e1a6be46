//! Verbs about this host: what is set up, what is missing, the node, this program.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::Shell;

/// Prepare a guest kernel, the guest agent and an initramfs.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  hearth setup                                      the distribution's kernel, unless there is one
  hearth setup --distribution                       its newest, even if another one is set up
  hearth setup --list
  hearth setup kernel --build                       a small kernel that boots in half the time
  hearth setup firecracker --from firecracker.tgz   a monitor beside QEMU, for hosts with KVM
  hearth setup --kernel bzImage --modules /lib/modules/6.12.1

What is there already is kept."
)]
pub(crate) struct Setup {
    #[command(subcommand)]
    pub(crate) command: Option<SetupCommand>,
    /// Kernel of your own, bzImage or ELF
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// Its modules, a tree as /lib/modules/VERSION
    #[arg(long, value_name = "DIR", requires = "kernel")]
    pub(crate) modules: Option<PathBuf>,
    /// Guest agent; the one that came with hearth otherwise
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
    /// The distribution's newest kernel, even if another one is set up
    #[arg(long, conflicts_with = "kernel")]
    pub(crate) distribution: bool,
    /// Only list what is there
    #[arg(long, conflicts_with_all = ["kernel", "modules", "agent", "distribution"])]
    pub(crate) list: bool,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// The parts that can be set up alone.
#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Prepare the guest kernel
    Kernel {
        /// Build it from the distribution's source, with Hearth's configuration: minutes, not seconds
        #[arg(long, required = true)]
        build: bool,
    },
    /// Install Firecracker and its jailer, which run machines where KVM does
    ///
    /// Versions from 1.10 on are driven, but not 1.16.0. Without --from it is the official release of 1.12.1, checked by its
    /// published digests.
    #[command(after_help = "\
Examples:
  hearth setup firecracker                                          the official release
  hearth setup firecracker --from firecracker-v1.12.1-x86_64.tgz
  hearth setup firecracker --version 1.13.1 --from /opt/firecracker")]
    Firecracker {
        /// Version that it must be
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        /// Program, directory, release tarball (.tgz) or wheel to take it from
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
    },
}

/// Examine every prerequisite of this host.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth doctor
  hearth doctor --json | jq '.checks[] | select(.state != \"ok\")'

What is absent is needed by no machine of this version; what is missing stops them.
Exit code: 1 when machines cannot run here.")]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Look after the node: the daemon that runs machines.
///
/// A node is started by the first verb that needs one. 'hearth node' alone runs one in the foreground, as a service
/// manager wants it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth node                    in the foreground
  hearth node status --json
  hearth node stop --stop-machines")]
pub(crate) struct Node {
    // Without one this is the daemon, and that is not the command line's: `hearth`'s main recognises the bare word.
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
}

/// The verbs about the node.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    Status(NodeStatus),
    Stop(NodeStop),
}

/// Tell which node answers; exit code 1 when none does.
#[derive(Debug, Args)]
pub(crate) struct NodeStatus {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// End the node; its machines go on, and the next node finds them.
#[derive(Debug, Args)]
pub(crate) struct NodeStop {
    /// Stop running machines, too
    #[arg(long)]
    pub(crate) stop_machines: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a shell's completion script.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth completions bash > /etc/bash_completion.d/hearth
  hearth completions zsh > \"${fpath[1]}/_hearth\"
  hearth completions fish > ~/.config/fish/completions/hearth.fish")]
pub(crate) struct Completions {
    /// Shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// Print the version of this program, and of the node if one runs.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
