//! The verbs, a module for each family: resolved request in, API calls, printed answer out.
//!
//! A new verb gets its arguments in `arguments`, its module here, and a line in [`dispatch`].

mod bench;
mod copy;
mod correctness;
mod events;
mod exec;
mod execute;
mod host;
mod image;
mod kept;
mod life;
mod list;
mod machine;
mod network;
mod node;
mod output;
mod policy;
mod pool;
mod program;
mod run;
mod setup;
mod snapshot;
mod stats;
mod template;
mod transfer;

pub(crate) use bench::BenchError;
pub(crate) use correctness::CorrectnessError;
pub(crate) use template::WarmError;

use std::process::ExitCode;

use crate::arguments::{Cli, Command};
use crate::error::CliError;
use crate::node::Node;
use crate::print::note;
use crate::resolve::System;
use crate::stream::Ended;

/// Runs a verb.
///
/// # Errors
/// Returns [`CliError`] for a person to read.
pub(crate) async fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    if let Command::Completions(arguments) = &cli.command {
        return program::completions(arguments);
    }
    let node = Node::locate(cli.socket.as_deref())?;
    match cli.command {
        Command::Run(arguments) => run::run(&node, crate::resolve::run(*arguments, &System)?).await,
        Command::Exec(arguments) => exec::exec(&node, arguments).await,
        Command::Execute(arguments) => {
            execute::execute(&node, crate::resolve::execute(*arguments, &System)?).await
        }
        Command::Create(arguments) => {
            run::create_only(&node, crate::resolve::create(arguments.run, &System)?).await
        }
        Command::Prune(arguments) => life::prune(&node, &arguments).await,
        Command::Rename(arguments) => life::rename(&node, arguments).await,
        Command::Update(arguments) => life::update(&node, &arguments).await,
        Command::Top(arguments) => life::top(&node, &arguments).await,
        Command::Events(arguments) => events::events(&node, arguments).await,
        Command::Ps(arguments) => list::list(&node, &arguments).await,
        Command::Start(arguments) => machine::start(&node, &arguments).await,
        Command::Stop(arguments) => machine::stop(&node, &arguments).await,
        Command::Restart(arguments) => machine::restart(&node, &arguments).await,
        Command::Pause(arguments) => life::pause(&node, &arguments).await,
        Command::Unpause(arguments) => life::unpause(&node, &arguments).await,
        Command::Port(arguments) => machine::port(&node, &arguments).await,
        Command::Kill(arguments) => machine::kill(&node, &arguments).await,
        Command::Rm(arguments) => machine::remove(&node, &arguments).await,
        Command::Wait(arguments) => machine::wait(&node, &arguments).await,
        Command::Attach(arguments) => machine::attach(&node, &arguments).await,
        Command::Logs(arguments) => output::logs(&node, &arguments).await,
        Command::Stats(arguments) => stats::stats(&node, &arguments).await,
        Command::Console(arguments) => output::console(&node, &arguments).await,
        Command::Inspect(arguments) => machine::inspect(&node, &arguments).await,
        Command::Cp(arguments) => copy::copy(&node, &arguments).await,
        Command::Networks(arguments) => network::network(&node, arguments.command).await,
        Command::Policy(arguments) => policy::policy(&node, arguments.command).await,
        Command::Pool(arguments) => pool::pool(&node, arguments.command).await,
        Command::Image(arguments) => image::image(&node, arguments.command).await,
        Command::Snapshot(arguments) => snapshot::snapshot(&node, arguments.command).await,
        Command::Restore(arguments) => snapshot::restore(&node, arguments).await,
        Command::RollBack(arguments) => snapshot::rollback(&node, arguments).await,
        Command::Fork(arguments) => snapshot::fork(&node, arguments).await,
        Command::Template(arguments) => template::template(&node, arguments.command).await,
        Command::Bench(arguments) => bench::bench(&node, &arguments).await,
        Command::Test(arguments) => correctness::test(&node, arguments.command).await,
        Command::Setup(arguments) => setup::setup(&node, arguments).await,
        Command::Doctor(arguments) => host::doctor(&node, &arguments).await,
        Command::Node(arguments) => node::node(&node, arguments.command).await,
        Command::Completions(arguments) => program::completions(&arguments),
        Command::Version(arguments) => program::version(&node, &arguments).await,
    }
}

/// Ends as the workload ended.
fn exit_code(ended: Ended) -> ExitCode {
    match ended {
        Ended::Exited(status) => {
            if let Some(reason) = &status.reason {
                note(&format!("hearth: {}", crate::print::plain(reason)));
            }
            ExitCode::from(status.exit_code)
        }
        Ended::Detached => ExitCode::SUCCESS,
        Ended::Interrupted(signal) => ExitCode::from(128 + signal),
    }
}

/// Prints an error now, because others are still to do; true when it was one.
fn report<T>(result: Result<T, CliError>) -> Result<Option<T>, CliError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_broken_pipe() => Err(error),
        Err(error) => {
            note(&error.message());
            Ok(None)
        }
    }
}
