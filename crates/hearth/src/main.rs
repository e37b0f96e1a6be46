//! `hearth node` is the daemon, `hearth pager` serves memory for it, `hearth uplink` a machine's way out, `hearth switch` a network of machines; everything else is the command line. Knows nothing but which is
//! which.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

/// The variable that sets what the node logs, in tracing's directive syntax.
const LOG_VARIABLE: &str = "HEARTH_LOG";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == "pager"
    {
        return daemon(|| hearth_node::pager::run(rest));
    }
    if let Some((first, rest)) = arguments.split_first()
        && first == "uplink"
    {
        return daemon(|| hearth_node::network::keeper::run(rest));
    }
    if let Some((first, rest)) = arguments.split_first()
        && first == "switch"
    {
        return daemon(|| hearth_node::network::switch::run(rest));
    }
    match node_arguments(&arguments) {
        Some(ready) => daemon(|| hearth_node::run(ready)),
        None => hearth_cli::main(),
    }
}

/// Recognises `hearth node [--ready-fd N]`, the daemon; `hearth node status` and the like are the command line's.
fn node_arguments(arguments: &[OsString]) -> Option<Option<i32>> {
    let texts: Vec<_> = arguments.iter().map(|argument| argument.to_str()).collect();
    match texts[..] {
        [Some("node")] => Some(None),
        [Some("node"), Some("--ready-fd"), Some(number)] => number.parse().ok().filter(|n| *n > 2).map(Some),
        _ => None,
    }
}

/// Runs what has no terminal: its words go to standard error, as a log.
fn daemon<E: Error + Send + Sync + 'static>(run: impl FnOnce() -> Result<(), E>) -> ExitCode {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{:#}", anyhow::Error::from(error));
            ExitCode::from(125)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_node(arguments: &[&str]) -> Option<Option<i32>> {
        node_arguments(&arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn only_the_bare_word_is_the_daemon() {
        assert_eq!(is_node(&["node"]), Some(None));
        assert_eq!(is_node(&["node", "--ready-fd", "5"]), Some(Some(5)));
        for other in [
            &["node", "status"][..],
            &["node", "--help"],
            &["--socket", "/s", "node"],
            &["run"],
            &[],
            &["node", "--ready-fd", "x"],
        ] {
            assert_eq!(is_node(other), None, "{other:?}");
        }
    }
}
