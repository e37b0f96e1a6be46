use std::time::Instant;

use super::*;

fn sh(script: &str) -> HostCommand {
    HostCommand::new("sh", "dash").args(["-c", script])
}

#[tokio::test]
async fn what_it_prints_is_returned() {
    let command = HostCommand::new("printf", "coreutils").args(["%s-%s", "a b", "$HOME"]);
    assert_eq!(command.run().await.unwrap(), b"a b-$HOME");
}

#[tokio::test]
async fn a_missing_program_names_its_package() {
    let error = HostCommand::new("no-such-program", "some-package")
        .run()
        .await
        .unwrap_err();
    assert!(matches!(error, CommandError::NotFound { .. }));
    assert_eq!(
        error.to_string(),
        "the program no-such-program is not installed: `apt-get install some-package` brings it"
    );
}

#[tokio::test]
async fn a_missing_directory_is_not_a_missing_program() {
    let error = sh("true").directory("/no/such/place").run().await.unwrap_err();
    assert!(matches!(error, CommandError::Start { .. }), "{error}");
}

#[tokio::test]
async fn a_failure_tells_arguments_and_last_words() {
    let error = sh("echo first >&2; echo 'last words' >&2; exit 3")
        .run()
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("`sh -c \"echo first"), "{text}");
    assert!(
        text.contains("exit status: 3") && text.ends_with("last words"),
        "{text}"
    );
}

#[tokio::test]
async fn only_the_end_of_stderr_is_kept() {
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1";
    let Err(CommandError::Failed { stderr, .. }) = sh(script).run().await else {
        panic!("it should fail");
    };
    assert!(
        stderr.len() <= STDERR_TAIL && stderr.ends_with("line 2999"),
        "{stderr}"
    );
    assert!(!stderr.contains("line 1\n"));
}

#[tokio::test]
async fn a_time_limit_ends_the_command_and_its_children() {
    let start = Instant::now();
    // The child holds the output open, so the command counts as ended only when the child is.
    let script = "echo \"working on it\" >&2; sleep 1000 & echo $!; wait";
    let mut child = None;
    let ended = sh(script)
        .time_limit(Duration::from_secs(1))
        .run_lines(|line| {
            if let Line::Output(line) = line {
                child = line.parse().ok().and_then(Pid::from_raw);
            }
        })
        .await;
    let Err(CommandError::TimeLimit { stderr, .. }) = ended else {
        panic!("it should run out of time: {ended:?}");
    };
    assert_eq!(stderr, "working on it");
    assert!(start.elapsed() < Duration::from_secs(60), "it was waited for");
    assert!(is_gone(child.unwrap()).await, "the child is still there");
}

#[tokio::test]
async fn a_command_that_refuses_sigterm_is_killed() {
    let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
    let ended = sh(script).time_limit(Duration::from_secs(1)).run().await;
    assert!(matches!(ended, Err(CommandError::TimeLimit { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_is_killed() {
    let mut running = sh("echo $$; exec sleep 1000").start().unwrap();
    let mut bytes = [0; 64];
    let count = running.read(&mut bytes).await.unwrap();
    let text = std::str::from_utf8(&bytes[..count]).unwrap();
    let pid = Pid::from_raw(text.trim().parse().unwrap()).unwrap();
    drop(running);
    assert!(is_gone(pid).await);
}

#[tokio::test]
async fn every_line_is_handed_over_from_both_streams() {
    let mut lines = Vec::new();
    let script = "echo one; echo two >&2; printf 'half\\rway'";
    sh(script)
        .run_lines(|line| lines.push(format!("{line:?}")))
        .await
        .unwrap();
    lines.sort();
    let expected = [
        "Error(\"two\")",
        "Output(\"half\")",
        "Output(\"one\")",
        "Output(\"way\")",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn output_streams_while_stderr_is_full() {
    // More than a pipe holds, on both streams: whoever reads only one of them waits for ever.
    let script = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2";
    let mut running = sh(script).start().unwrap();
    let mut bytes = Vec::new();
    running.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len(), 300_000);
    running.finish().await.unwrap();
}

#[tokio::test]
async fn too_much_output_is_refused() {
    let error = sh("head -c 5000000 /dev/zero").run().await.unwrap_err();
    assert!(matches!(error, CommandError::TooMuchOutput { .. }), "{error}");
}

#[tokio::test]
async fn it_is_told_to_die_with_its_parent() {
    let Some(setpriv) = crate::host::facts::find_program("setpriv") else {
        crate::host::skip::skipped("setpriv (util-linux) is not installed");
        return;
    };
    let output = HostCommand::new(setpriv, "util-linux")
        .arg("--dump")
        .run()
        .await
        .unwrap();
    let output = String::from_utf8(output).unwrap();
    let signal = output
        .lines()
        .find(|line| line.starts_with("Parent death signal:"));
    assert_eq!(signal, Some("Parent death signal: TERM"), "{output}");
}

/// Waits, through its pidfd, until a process that was just ended is gone.
async fn is_gone(pid: Pid) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{PidfdFlags, pidfd_open};
    let wait = move || {
        let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty()) else {
            return true;
        };
        let limit = Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&limit)).is_ok_and(|ready| ready == 1)
    };
    tokio::task::spawn_blocking(wait).await.unwrap()
}
