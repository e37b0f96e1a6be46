//! What a person may type: verbs, flags, and their help. Nothing is interpreted here; `resolve` does that.

mod attachment;
mod bench;
mod container;
mod execute;
mod files;
mod health;
mod host;
mod image;
mod kept;
mod machine;
mod network;
mod policy;
mod pool;
mod run;
mod snapshot;
mod template;
mod test;

use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Effects};
use clap::{Parser, Subcommand};

use crate::error::Voice;

pub(crate) use attachment::{KeyFlags, StayFlags};
pub(crate) use bench::{Bench, Subject};
pub(crate) use container::ContainerFlags;
pub(crate) use execute::Execute;
pub(crate) use files::{Console, Copy, Logs};
pub(crate) use health::HealthFlags;
pub(crate) use host::{
    Completions, Doctor, Node, NodeCommand, NodeStatus, NodeStop, Setup, SetupCommand, Version,
};
pub(crate) use image::{
    Image, ImageBuild, ImageCommand, ImageInspect, ImageList, ImageLoad, ImagePrune, ImagePull, ImageRemove,
    ImageSave, ImageTag, Recipe,
};
pub(crate) use kept::{ListFlags, PruneFlags};
pub(crate) use machine::{
    Attach, Events, Inspect, Kill, List, Pause, Port, Prune, Remove, Rename, Restart, Start, Stats, Stop,
    Top, Unpause, Update, Wait,
};
pub(crate) use network::{NetworkCommand, NetworkCreate, NetworkPlug, Networks};
pub(crate) use policy::{
    Network, NetworkFlags, Policy, PolicyAdd, PolicyCheck, PolicyCommand, PolicyFlags, PolicyLearn,
    PolicyLog, PolicySet, PolicyShow,
};
pub(crate) use pool::{Pool, PoolAcquire, PoolCommand, PoolCreate};
pub(crate) use run::{Create, Driver, Exec, MemoryBackend, Pull, Run};
pub(crate) use snapshot::{
    Fork, Restore, RollBack, Snapshot, SnapshotCommand, SnapshotCreate, SnapshotExport, SnapshotImport,
    SnapshotInspect, SnapshotList, SnapshotPrune,
};
pub(crate) use template::{Template, TemplateCommand, TemplateCreate, TemplateList, TemplatePrune};
pub(crate) use test::{ForkCorrectness, Test, TestCommand};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default());

const EXAMPLES: &str = "\
Examples:
  hearth setup                                        once: fetches a guest kernel
  hearth image build busybox -t busybox               an image of the host's own packages
  hearth run -it --rm busybox sh                      a shell in a microVM of its own
  hearth run -d --name web -m 512m busybox sleep 1d   in the background
  hearth exec web ps                                  beside the workload
  hearth logs -f web
  hearth stop web && hearth rm web

A machine reaches the internet where this host can let it, or what 'run --policy' says. Files go in and out with
'hearth cp'. 'hearth VERB --help' explains a verb. What hearth does, anybody can do over the node's API.";

/// Runs code you do not trust, each in its own microVM.
#[derive(Debug, Parser)]
#[command(
    name = "hearth",
    version,
    about,
    styles = STYLES,
    after_help = EXAMPLES,
    max_term_width = 100,
    arg_required_else_help = true,
    propagate_version = false
)]
pub(crate) struct Cli {
    /// Socket of a node that somebody else runs; none is started then [env: HEARTH_SOCKET]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub(crate) socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs, in the order of the help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<Run>),
    Create(Box<Create>),
    Exec(Exec),
    Execute(Box<Execute>),
    Ps(List),
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Pause(Pause),
    #[command(alias = "resume")]
    Unpause(Unpause),
    Kill(Kill),
    Rm(Remove),
    Prune(Prune),
    Rename(Rename),
    Update(Update),
    Wait(Wait),
    Attach(Attach),
    Logs(Logs),
    Stats(Stats),
    Console(Console),
    Inspect(Inspect),
    Top(Top),
    Events(Events),
    Port(Port),
    Cp(Copy),
    #[command(name = "network")]
    Networks(Networks),
    Policy(Policy),
    Pool(Pool),
    Image(Image),
    Snapshot(Snapshot),
    Restore(Restore),
    #[command(name = "rollback")]
    RollBack(RollBack),
    Fork(Fork),
    Template(Template),
    Setup(Setup),
    Doctor(Doctor),
    Bench(Bench),
    Test(Test),
    Node(Node),
    Completions(Completions),
    Version(Version),
}

impl Command {
    /// Whether its exit code is its workload's, so that its own failures need another: 125, as in docker.
    pub(crate) fn voice(&self) -> Voice {
        match self {
            Self::Run(_) | Self::Create(_) | Self::Exec(_) | Self::Execute(_) | Self::Attach(_) => {
                Voice::Workload
            }
            Self::Start(start) if start.attach || start.interactive => Voice::Workload,
            _ => Voice::Own,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run(arguments: &[&str]) -> Run {
        let all = ["hearth", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all).map(|cli| cli.command) {
            Ok(Command::Run(run)) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let parsed = run(&["-it", "--rm", "busybox", "--rm", "-c", "--", "-d"]);
        assert_eq!(parsed.image_and_command, ["busybox", "--rm", "-c", "--", "-d"]);
        assert!(parsed.interactive && parsed.tty && parsed.rm && !parsed.detach);
    }

    #[test]
    fn the_command_may_follow_two_dashes() {
        assert_eq!(
            run(&["busybox", "--", "ls", "-l"]).image_and_command,
            ["busybox", "--", "ls", "-l"]
        );
        assert_eq!(
            run(&["--", "busybox", "ls", "-l"]).image_and_command,
            ["busybox", "ls", "-l"]
        );
    }

    #[test]
    fn short_flags_take_their_value_in_every_way() {
        let parsed = run(&["-m256m", "-eA=1", "-e", "B", "-l=x=y", "busybox"]);
        assert_eq!(parsed.memory.map(|m| m.bytes()), Some(256 << 20));
        assert_eq!(parsed.env, ["A=1", "B"]);
        assert_eq!(parsed.label, ["x=y"]);
    }
}
