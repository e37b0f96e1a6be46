//! `run`: the life of a machine, its settings, and what outlives a client.

use anyhow::{Result, ensure};
use e2e::DEADLINE;
use rustix::process::Signal;

use super::case::{Case, by, run, world};
use super::subject::{Subject, seen};

/// Waits for signals; `sleep` in the background, since a shell hears nothing while it waits for another.
const LISTENER: &str = "trap 'exit 9' TERM; trap 'exit 7' INT; trap 'exit 6' USR1; echo ready; \
    while :; do sleep 3600 & wait $!; done";

pub(super) const CASES: &[Case] = &[
    run(
        "run: exit code",
        &[],
        &["sh", "-c", "echo out; exit 3"],
        "3 out\n",
    ),
    run("run: no such command", &[], &["no-such-program"], "127 "),
    run("run: a directory as command", &[], &["/etc"], "126 "),
    run("run: a flag that is none", &["--no-such-flag"], &["true"], "125 "),
    run(
        "run: a user that is none",
        &["-u", "nobody-here"],
        &["true"],
        "125 ",
    )
    .unlike("podman's code is 125 or 126 by version"),
    run(
        "run: settings of the process",
        &[
            "--entrypoint",
            "sh",
            "-e",
            "A=1",
            "-w",
            "/tmp",
            "-u",
            "ada",
            "--hostname",
            "lighthouse",
        ],
        &["-c", "echo $A $(id -un) $(hostname); pwd"],
        "0 1 ada lighthouse\n/tmp\n",
    ),
    run("run: -w that is missing is made", &["-w", "/made/here"], &["pwd"], "0 /made/here\n")
        .but("126 ", "docker makes it; podman does not"),
    run(
        "run: PID 1 is deaf to its own signals",
        &[],
        &["sh", "-c", "kill -9 $$; kill -15 $$; echo on"],
        "0 on\n",
    ),
    by(
        "run: input",
        |subject| Ok(seen(&subject.run(&["-i"], &["cat"]).stdin("text").run()?)),
        "0 text",
    ),
    by(
        "run: TERM to the client",
        |subject| signalled(subject, Signal::TERM),
        "9",
    )
    .unlike("podman's client may end with 0 before it hears of the container's end"),
    by(
        "run: INT to the client",
        |subject| signalled(subject, Signal::INT),
        "7",
    )
    .unlike("podman's client may end with 0 before it hears of the container's end"),
    by("run: --stop-signal", stop_signal, "6"),
    by("run: detach keys, and attach again", attached_again, "0, then 5")
        .unlike("podman's attach may end with 0 whatever the shell did"),
    by("exec: -d goes on", detached, "0, goes on"),
    by("exec: TERM to the client", exec_signalled, "9").unlike(
        "podman's exec passes no signal on, nor does docker's; a supervisor of Hearth's can",
    ),
    by("exec: a client that is killed", client_killed, "gone").but(
        "goes on",
        "nobody is left to read what it prints; `exec -d` is for what shall go on",
    ),
    by("exec: its whole group", group_killed, "gone").but("goes on", "as above"),
    world(
        "--init: the command is its child",
        &[],
        &["sh", "-c", "test $(pidof sleep) -gt 1 && echo child"],
        "0 child\n",
    ),
    world(
        "--init: orphans are reaped",
        &[],
        &[
            "sh",
            "-c",
            "sh -c 'sleep 0.2 & exit'; sleep 1; ps -o stat | grep -c Z",
        ],
        "1 0\n",
    ),
    world(
        "--read-only: the root",
        &["-u", "0"],
        &["sh", "-c", "touch /etc/x 2>/dev/null || echo refused"],
        "0 refused\n",
    ),
    world(
        "--read-only: /dev/shm stays writable",
        &[],
        &["sh", "-c", "touch /dev/shm/x && echo written"],
        "0 written\n",
    ),
    world(
        "--read-only: /tmp",
        &["-u", "0"],
        &["sh", "-c", "touch /tmp/x 2>/dev/null || echo refused"],
        "0 refused\n",
    )
    .but(
        "0 ",
        "podman mounts a tmpfs at /tmp, /run and /var/tmp then; docker, and Hearth, where it is asked for",
    ),
    world(
        "--tmpfs: size and mode",
        &["-u", "0"],
        &[
            "sh",
            "-c",
            "stat -c %a /scratch; head -c 2000000 /dev/zero 2>/dev/null > /scratch/x || stat -c %s /scratch/x",
        ],
        "0 750\n1048576\n",
    ),
    world(
        "--tmpfs: nothing on it is executed",
        &["-u", "0"],
        &[
            "sh",
            "-c",
            "rm /scratch/x; printf '#!/bin/sh\\n' > /scratch/p; chmod 755 /scratch/p; /scratch/p 2>/dev/null || echo $?",
        ],
        "0 126\n",
    ).but("0 ", "docker's are noexec unless said otherwise; podman's are not"),
    world(
        "--tmpfs: exec",
        &["-u", "0"],
        &[
            "sh",
            "-c",
            "printf '#!/bin/sh\\necho ran' > /home/ada/p; chmod 755 /home/ada/p; /home/ada/p",
        ],
        "0 ran\n",
    ),
    world(
        "--add-host",
        &[],
        &["sh", "-c", "grep -w db /etc/hosts | tr -s '[:space:]' ' '"],
        "0 10.1.2.3 db ",
    ),
    world(
        "--ulimit",
        &[],
        &["sh", "-c", "ulimit -n; ulimit -Hn"],
        "0 100\n200\n",
    )
    .unlike("the language of runc may raise the soft limit to the hard one"),
    world(
        "--group-add",
        &[],
        &["sh", "-c", "for g in $(id -G); do echo $g; done | sort -n"],
        "0 77\n1843\n1852\n",
    ),
    world(
        "-e, -w, -u and --hostname hold for exec",
        &[],
        &["sh", "-c", "echo $FROM_RUN $(id -un) $(hostname) $(pwd)"],
        "0 1 ada lighthouse /tmp\n",
    ),
];

fn signalled(subject: &Subject<'_>, signal: Signal) -> Result<String> {
    let running = subject.run(&[], &["sh", "-c", LISTENER]).spawn()?;
    running.stdout.wait_for("ready", DEADLINE)?;
    running.signal(signal)?;
    Ok(running.finish(DEADLINE)?.code.to_string())
}

fn stop_signal(subject: &Subject<'_>) -> Result<String> {
    let flags = ["-d", "--name", "s", "--stop-signal", "USR1"];
    subject.keep(&flags, &["sh", "-c", LISTENER]).ok()?;
    let follower = subject.call(&["logs", "-f", "s"], &[]).spawn()?;
    follower.stdout.wait_for("ready", DEADLINE)?;
    subject.call(&["stop", "-t", "60", "s"], &[]).ok()?;
    subject.call(&["wait", "s"], &[]).ok()
}

fn attached_again(subject: &Subject<'_>) -> Result<String> {
    let flags = ["-it", "--name", "a", "--detach-keys", "ctrl-a,d"];
    let call = subject.keep(&flags, &["sh", "-c", "echo ready; exec sh"]);
    let mut terminal = call.on_terminal(24, 80)?;
    terminal.screen.wait_for("ready", DEADLINE)?;
    subject.leave(&mut terminal)?;
    let left = terminal.finish(DEADLINE)?.code;
    let mut terminal = subject.call(&["attach", "a"], &[]).on_terminal(24, 80)?;
    terminal.type_in("echo he''re\r")?;
    terminal.screen.wait_for("here\r", DEADLINE)?;
    terminal.type_in("exit 5\r")?;
    Ok(format!("{left}, then {}", terminal.finish(DEADLINE)?.code))
}

fn detached(subject: &Subject<'_>) -> Result<String> {
    let script = "echo to nobody; exec sleep 7002";
    let outcome = subject.exec(&["-d"], &["sh", "-c", script]).run()?;
    ensure!(outcome.code != 125, "{}", outcome.errors());
    let code = outcome.code;
    let goes_on = subject.goes_on("sleep 7002")?;
    Ok(format!("{code}, {}", if goes_on { "goes on" } else { "gone" }))
}

fn exec_signalled(subject: &Subject<'_>) -> Result<String> {
    let running = subject.exec(&[], &["sh", "-c", LISTENER]).spawn()?;
    running.stdout.wait_for("ready", DEADLINE)?;
    running.signal(Signal::TERM)?;
    Ok(running.finish(DEADLINE)?.code.to_string())
}

fn client_killed(subject: &Subject<'_>) -> Result<String> {
    let running = subject
        .exec(&[], &["sh", "-c", "echo ready; exec sleep 7003"])
        .spawn()?;
    running.stdout.wait_for("ready", DEADLINE)?;
    drop(running);
    subject.fate("sleep 7003")
}

/// What it has started in the background goes, too.
fn group_killed(subject: &Subject<'_>) -> Result<String> {
    let script = "sleep 7004 & echo ready; wait";
    let running = subject.exec(&[], &["sh", "-c", script]).spawn()?;
    running.stdout.wait_for("ready", DEADLINE)?;
    drop(running);
    subject.fate("sleep 7004")
}
