//! Terminals: size, line discipline, signals from the keyboard, and leaving without ending.

use anyhow::Result;
use e2e::{DEADLINE, TestNode};
use hearth_api::v1::MachineStatus;

use crate::support::{logged, stay};

pub(crate) fn run_it_is_a_terminal(node: &TestNode) -> Result<()> {
    let mut terminal = node.run(["-it", "--rm", "busybox", "sh"]).on_terminal(24, 81)?;
    // What is typed is shown, too: the texts to wait for are not in it.
    terminal.type_in("echo size: $(stty size)\n")?;
    terminal.screen.wait_for("size: 24 81", DEADLINE)?;
    terminal.resize(41, 132)?;
    terminal.type_in("trap 'echo changed: $(stty size)' WINCH; echo size: $(stty size)\n")?;
    terminal.screen.wait_for("size: 41 132", DEADLINE)?;
    // Until its command runs, the shell has the terminal in raw mode, and ^C would be a character of it.
    terminal.type_in("sh -c 'echo run''ning; exec sleep 3600'\n")?;
    terminal.screen.wait_for("running", DEADLINE)?;
    terminal.type_in("\x03")?;
    terminal.type_in("echo ended: $?\n")?;
    terminal.screen.wait_for("ended: 130", DEADLINE)?;
    terminal.type_in("exit 5\n")?;
    terminal.finish(DEADLINE)?.expect_code(5)?;
    Ok(())
}

pub(crate) fn exec_it_is_a_terminal_and_exec_is_none(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    let question = "test -t 0 && test -t 1 && test -t 2 && echo a terminal of $(stty size)";
    let terminal = node
        .exec(["-it", "m", "sh", "-c", question])
        .on_terminal(30, 90)?;
    terminal.screen.wait_for("a terminal of 30 90", DEADLINE)?;
    terminal.finish(DEADLINE)?.success()?;
    for stream in ["0", "1", "2"] {
        node.exec(["m", "test", "-t", stream]).run()?.expect_code(1)?;
    }
    // A terminal in the machine needs one here.
    let refused = node.exec(["-it", "m", "true"]).run()?;
    assert_ne!(refused.code, 0);
    refused.complains("tty")?;
    Ok(())
}

pub(crate) fn detaching_leaves_the_machine_running_and_what_is_missed_is_shown(
    node: &TestNode,
) -> Result<()> {
    let script = "echo here I am; until test -e /go; do sleep 0.1; done; echo not seen; exec sh";
    let mut terminal = node
        .run(["-it", "--name", "m", "busybox", "sh", "-c", script])
        .on_terminal(24, 80)?;
    terminal.screen.wait_for("here I am", DEADLINE)?;
    terminal.type_in("\x10\x11")?;
    terminal.finish(DEADLINE)?.success()?;
    assert_eq!(node.inspect("m")?.state.status, MachineStatus::Running);
    node.exec(["m", "touch", "/go"]).ok()?;
    logged(node, "m", "not seen", 1)?;
    let mut terminal = node
        .hearth(["attach", "--detach-keys", "ctrl-a,d", "m"])
        .on_terminal(24, 80)?;
    terminal.screen.wait_for("not seen", DEADLINE)?;
    assert!(!terminal.screen.has("here I am"), "what was seen is shown again");
    terminal.type_in("\x01d")?;
    terminal.finish(DEADLINE)?.success()?;
    // Nobody's signals: they end the command line alone.
    let looker = node
        .hearth(["attach", "--no-stdin", "--sig-proxy=false", "m"])
        .spawn()?;
    node.exec(["m", "sh", "-c", "echo for all > /dev/console"]).ok()?;
    looker.stdout.wait_for("for all", DEADLINE)?;
    looker.signal(rustix::process::Signal::TERM)?;
    looker.finish(DEADLINE)?.expect_code(143)?;
    let mut terminal = node.hearth(["attach", "m"]).on_terminal(24, 80)?;
    terminal.type_in("exit 5\r")?;
    terminal.finish(DEADLINE)?.expect_code(5)?;
    Ok(())
}
