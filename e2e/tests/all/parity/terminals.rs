//! Terminals: what they are at the start, and what is typed there.

use anyhow::Result;
use e2e::{DEADLINE, Invocation, is_raw};

use super::case::{Case, by};
use super::subject::Subject;

const ROWS: u16 = 30;
const COLUMNS: u16 = 90;

pub(super) const CASES: &[Case] = &[
    by(
        "tty: size at the start",
        |subject| shown(subject, &[], "stty size", &[]),
        "0 30 90\r\n",
    ),
    by("tty: a new size", resized, "0 41 132"),
    by(
        "tty: all three streams are it",
        |subject| {
            shown(
                subject,
                &[],
                "test -t 0 && test -t 1 && test -t 2 && echo yes",
                &[],
            )
        },
        "0 yes\r\n",
    ),
    by(
        "tty: both outputs are one",
        |subject| shown(subject, &[], "echo out; echo err >&2", &[]),
        "0 out\r\nerr\r\n",
    ),
    by(
        "tty: TERM",
        |subject| shown(subject, &[], "echo $TERM", &[]),
        "0 xterm\r\n",
    ),
    by(
        "tty: -e TERM",
        |subject| shown(subject, &["-e", "TERM=vt100"], "echo $TERM", &[]),
        "0 vt100\r\n",
    ),
    by(
        "tty: it belongs to the user",
        |subject| {
            shown(
                subject,
                &["-u", "ada"],
                "stat -c %u /dev/pts/$(tty | cut -d / -f 4)",
                &[],
            )
        },
        "0 1815\r\n",
    ),
    by(
        "tty: it is the controlling one",
        |subject| shown(subject, &[], "echo here > /dev/tty", &[]),
        "0 here\r\n",
    ),
    by(
        "tty: what is typed is shown",
        |subject| {
            shown(
                subject,
                &[],
                "echo ready; read line; echo got $line",
                &[("ready\r\n", "hello\r")],
            )
        },
        "0 ready\r\nhello\r\ngot hello\r\n",
    ),
    by(
        "tty: ^C",
        |subject| ended_by(subject, "\x03"),
        "130 ready\r\nx\r\nx\r\n^C",
    ),
    by(
        "tty: ^\\",
        |subject| ended_by(subject, "\x1c"),
        "131 ready\r\nx\r\nx\r\n^\\",
    ),
    by(
        "tty: ^D",
        |subject| {
            shown(
                subject,
                &[],
                "echo ready; exec cat",
                &[("ready\r\n", "abc\r"), ("abc\r\nabc\r\n", "\x04")],
            )
        },
        "0 ready\r\nabc\r\nabc\r\n",
    ),
    by("tty: ^Z", suspended, "7"),
    by(
        "tty: ^S and ^Q",
        |subject| {
            shown(
                subject,
                &[],
                "echo ready; read line; echo got $line",
                &[("ready\r\n", "\x13a\x11\r")],
            )
        },
        "0 ready\r\na\r\ngot a\r\n",
    ),
    by(
        "tty: keys are handed over raw, and not any more afterwards",
        raw_mode,
        "raw, then not",
    ),
    by(
        "tty: --detach-keys leaves the process running",
        detached,
        "0, goes on",
    )
    .but(
        "255, goes on",
        "podman calls leaving an exec a failure; docker does not",
    ),
    by(
        "-t without -i and without a terminal here",
        |subject| told(subject.exec(&["-t"], &["sh", "-c", "test -t 1 && echo yes"])),
        "0 yes\r\n",
    ),
    by(
        "-it without a terminal here",
        |subject| told(subject.exec(&["-it"], &["echo", "on"])),
        "125 ",
    )
    .but("0 on\r\n", "docker refuses it, too; podman only warns"),
];

fn told(call: Invocation) -> Result<String> {
    Ok(super::subject::seen(&call.run()?))
}

/// Runs a script on a terminal, types each text once another is shown, and returns exit code and screen.
fn shown(subject: &Subject<'_>, flags: &[&str], script: &str, keys: &[(&str, &str)]) -> Result<String> {
    let flags = [&["-it"], flags].concat();
    let call = subject.exec(&flags, &["sh", "-c", script]);
    let mut terminal = call.on_terminal(ROWS, COLUMNS)?;
    for (text, keys) in keys {
        terminal.screen.wait_for(text, DEADLINE)?;
        terminal.type_in(keys)?;
    }
    let screen = terminal.screen.clone();
    let code = terminal.finish(DEADLINE)?.code;
    Ok(format!(
        "{code} {}",
        String::from_utf8_lossy(&screen.all(DEADLINE)?)
    ))
}

/// Types a key that ends `cat`, once that has answered: the shell before it is deaf to some.
fn ended_by(subject: &Subject<'_>, key: &str) -> Result<String> {
    shown(
        subject,
        &[],
        "echo ready; exec cat",
        &[("ready\r\n", "x\r"), ("x\r\nx\r\n", key)],
    )
}

fn resized(subject: &Subject<'_>) -> Result<String> {
    // The reference may tell the first size late, which is a change for the program, too.
    let script = "trap 'size=$(stty size); test \"$size\" = \"41 132\" && echo $size && exit 0' WINCH; echo ready; \
        while :; do sleep 1 & wait $!; done";
    let terminal = subject
        .exec(&["-it"], &["sh", "-c", script])
        .on_terminal(ROWS, COLUMNS)?;
    terminal.screen.wait_for("ready\r\n", DEADLINE)?;
    terminal.resize(41, 132)?;
    terminal.screen.wait_for("41 132", DEADLINE)?;
    Ok(format!("{} 41 132", terminal.finish(DEADLINE)?.code))
}

fn suspended(subject: &Subject<'_>) -> Result<String> {
    let mut terminal = subject.exec(&["-it"], &["sh"]).on_terminal(ROWS, COLUMNS)?;
    // What is typed is shown, too: the text to wait for is not in it.
    terminal.type_in("sh -c 'echo run''ning; exec sleep 3600'\r")?;
    terminal.screen.wait_for("running", DEADLINE)?;
    terminal.type_in("\x1a")?;
    terminal.screen.wait_for("Stopped", DEADLINE)?;
    // The first one warns of what is stopped.
    terminal.type_in("exit 7\r")?;
    terminal.screen.wait_for("You have stopped jobs", DEADLINE)?;
    terminal.type_in("exit 7\r")?;
    Ok(terminal.finish(DEADLINE)?.code.to_string())
}

fn raw_mode(subject: &Subject<'_>) -> Result<String> {
    let call = subject.exec(&["-it"], &["sh", "-c", "echo ready; exec cat"]);
    let mut terminal = call.on_terminal(ROWS, COLUMNS)?;
    terminal.screen.wait_for("ready\r\n", DEADLINE)?;
    let line = terminal.line()?;
    let name = |raw| if raw { "raw" } else { "not" };
    let before = name(is_raw(&line)?);
    terminal.type_in("\x04")?;
    terminal.finish(DEADLINE)?.success()?;
    Ok(format!("{before}, then {}", name(is_raw(&line)?)))
}

fn detached(subject: &Subject<'_>) -> Result<String> {
    let flags = ["-it", "--detach-keys", "ctrl-a,d"];
    let call = subject.exec(&flags, &["sh", "-c", "echo ready; exec sleep 7001"]);
    let mut terminal = call.on_terminal(ROWS, COLUMNS)?;
    terminal.screen.wait_for("ready\r\n", DEADLINE)?;
    subject.leave(&mut terminal)?;
    let code = terminal.finish(DEADLINE)?.code;
    let goes_on = subject.goes_on("sleep 7001")?;
    Ok(format!("{code}, {}", if goes_on { "goes on" } else { "gone" }))
}
