//! Places where a test makes this process die, or an operation fail: to prove that the next node copes with it.
//!
//! `HEARTH_FAILPOINTS=NAME=kill` (or `=error`, or `=stop`, several with commas) arms them when a node starts; nothing else does, so no client
//! of the API can. A point that is not armed costs one read of memory. Their names are a table, `assets/failpoints.txt`; a unit
//! test holds it to the code, and an end-to-end test dies at each.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

/// The variable that arms them.
pub const VARIABLE: &str = "HEARTH_FAILPOINTS";

const TABLE: &str = include_str!("../../assets/failpoints.txt");

static ARMED: OnceLock<Vec<(&'static str, Action)>> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// End this process as `kill -9` does.
    Kill,
    /// Fail as a full disk does.
    Error,
    /// Stand still as by SIGSTOP, until SIGCONT: a test does to others meanwhile what it has in mind.
    Stop,
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    name: &'static str,
    can_fail: bool,
}

/// Says that the variable makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE}: {0:?} is none of `NAME=kill`, `NAME=stop` and `NAME=error`, with a name of failpoints.txt that can do that"
)]
pub struct BadFailpoint(String);

/// Arms what the variable's value names, for this process's life. A second call changes nothing.
///
/// # Errors
/// Returns [`BadFailpoint`]; nothing is armed then.
pub fn arm(value: &str) -> Result<(), BadFailpoint> {
    let armed = parse(value)?;
    if !armed.is_empty() {
        tracing::warn!(value, "failpoints are armed: this node is made to fail");
        ARMED.get_or_init(|| armed);
    }
    Ok(())
}

/// Comes to a point at which an operation can fail.
///
/// # Errors
/// "No space left on device", if that is armed.
pub fn reach(name: &str) -> io::Result<()> {
    match action(name) {
        None => Ok(()),
        Some(Action::Kill) => die(name),
        Some(Action::Error) => Err(rustix::io::Errno::NOSPC.into()),
        Some(Action::Stop) => {
            stand_still(name);
            Ok(())
        }
    }
}

/// Comes to a point at which nothing can fail; the process may die there all the same.
pub fn pass(name: &str) {
    match action(name) {
        None => {}
        Some(Action::Stop) => stand_still(name),
        Some(Action::Kill | Action::Error) => die(name),
    }
}

fn action(name: &str) -> Option<Action> {
    let armed = ARMED.get()?;
    armed
        .iter()
        .find(|(point, _)| *point == name)
        .map(|(_, action)| *action)
}

fn die(name: &str) -> ! {
    tracing::error!(failpoint = name, "killed here");
    // Cannot fail for one's own process; should the signal take a moment, nothing else is done meanwhile.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn stand_still(name: &str) {
    tracing::error!(failpoint = name, "stopped here");
    // Cannot fail for one's own process.
    let _ = kill_process(getpid(), Signal::STOP);
}

fn parse(value: &str) -> Result<Vec<(&'static str, Action)>, BadFailpoint> {
    let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let (name, action) = word.split_once('=')?;
            let point = table().find(|point| point.name == name)?;
            match action {
                "kill" => Some((point.name, Action::Kill)),
                "stop" => Some((point.name, Action::Stop)),
                "error" if point.can_fail => Some((point.name, Action::Error)),
                _ => None,
            }
            .ok_or(word)
            .ok()
        })
        .collect::<Option<_>>()
        .ok_or_else(|| BadFailpoint(value.to_owned()))
}

fn table() -> impl Iterator<Item = Point> {
    let lines = TABLE
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.filter_map(|line| {
        let mut columns = line.split_whitespace();
        Some(Point {
            name: columns.next()?,
            can_fail: columns.nth(1)? == "kill,error",
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Finds `CALL("NAME")` in the sources of a crate.
    fn calls(directory: &Path, call: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                calls(&path, call, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let call = format!("{call}(\"");
                let names = text.split(&call).skip(1);
                found.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }

    #[test]
    fn the_table_of_failpoints_is_that_of_the_code() {
        let node = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hearth-image/src");
        let (mut can_fail, mut cannot) = (Vec::new(), Vec::new());
        calls(&node, "failpoint::reach", &mut can_fail);
        calls(&image, "step::reached", &mut can_fail);
        calls(&node, "failpoint::pass", &mut cannot);
        let listed = |can_fail: bool| -> BTreeSet<String> {
            table()
                .filter(|point| point.can_fail == can_fail)
                .map(|point| point.name.to_owned())
                .collect()
        };
        assert_eq!(listed(true), can_fail.iter().cloned().collect());
        assert_eq!(listed(false), cannot.iter().cloned().collect());
        let lines = table().count();
        assert_eq!(
            lines,
            listed(true).union(&listed(false)).count(),
            "a name is listed twice"
        );
    }

    #[test]
    fn what_no_point_can_do_is_refused_with_the_variable() {
        assert_eq!(parse("").unwrap(), []);
        let two = parse("create-recorded=kill, create-linked=error").unwrap();
        assert_eq!(
            two,
            [
                ("create-recorded", Action::Kill),
                ("create-linked", Action::Error)
            ]
        );
        for wrong in [
            "nowhere=kill",
            "create-recorded",
            "create-recorded=pause",
            "stop-killed=error",
        ] {
            assert!(
                parse(wrong).unwrap_err().to_string().contains(VARIABLE),
                "{wrong}"
            );
        }
    }
}
