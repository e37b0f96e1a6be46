//! Code that runs once: what goes in, what comes out, that nothing of it stays, and that it has the proxy and the authorities of its network.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::{DEADLINE, Driver, TestNode, check, missing_program, skip};
use hearth_api::v1::ExecuteResult;
use rustix::process::Signal;

use crate::network::{MUTE, hear};
use crate::node::kill;
use crate::stage::{PRIVATE, on_stage};
use crate::support::{post, seconds};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until no machine is left: the last act of an execution may still be under way when a client has gone.
fn nothing_stays(node: &TestNode) -> Result<()> {
    let end = std::time::Instant::now() + seconds(60);
    while !node.machines()?.is_empty() {
        ensure!(std::time::Instant::now() < end, "{:?}", node.machines()?);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Ok(())
}

pub(crate) fn code_runs_once_with_its_workspace(node: &TestNode) -> Result<()> {
    let workspace = tempfile::tempdir()?;
    let path = workspace.path();
    fs::create_dir_all(path.join("input/deep"))?;
    fs::write(path.join("input/deep/words"), "one two\nthree\n")?;
    fs::write(
        path.join("count.sh"),
        "pwd; echo \"$GREETING\" >&2; wc -w < input/deep/words > output/count; mkdir output/d; ln -s /etc/passwd output/link; \
         echo x > output/d/x; exit 3",
    )?;
    let (workspace, file) = (
        path.display().to_string(),
        path.join("count.sh").display().to_string(),
    );
    let base = ["execute", "--image", "busybox", "-m", "80m", "-e", "GREETING=hi"];
    let execute = |more: &[&str]| node.hearth(base.iter().chain(more));
    let outcome = execute(&["--workspace", &workspace, &file])
        .run()?
        .expect_code(3)?;
    assert_eq!(text(&outcome.stdout), "/workspace\n");
    assert!(outcome.errors().contains("hi"), "{}", outcome.errors());
    assert_eq!(fs::read_to_string(path.join("output/count"))?.trim(), "3");
    assert_eq!(fs::read_to_string(path.join("output/d/x"))?, "x\n");
    // A link is kept as one, and nobody else may write into what came back.
    assert!(fs::symlink_metadata(path.join("output/link"))?.is_symlink());
    assert_eq!(
        fs::metadata(path.join("output"))?.permissions().mode() & 0o777,
        0o755
    );

    let outcome = execute(&["--workspace", &workspace, "--json", &file])
        .run()?
        .expect_code(3)?;
    let result: ExecuteResult = serde_json::from_slice(&outcome.stdout)?;
    assert_eq!(
        (result.success, result.exit_code, result.timed_out),
        (false, 3, false)
    );
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("/workspace\n", "hi\n")
    );
    let mut files: Vec<_> = result
        .output_files
        .iter()
        .map(|file| (file.path.as_str(), file.size))
        .collect();
    files.sort_unstable();
    assert_eq!(files, [("count", 2), ("d/x", 2)]);
    nothing_stays(node)
}

pub(crate) fn code_comes_by_standard_input_and_by_one_request(node: &TestNode) -> Result<()> {
    let small = ["execute", "--image", "busybox", "-m", "80m"];
    let execute = |more: &[&str]| node.hearth(small.iter().chain(more));
    let outcome = execute(&["-"])
        .stdin("#!/bin/sh\necho $0; exit 7\n")
        .run()?
        .expect_code(7)?;
    assert_eq!(text(&outcome.stdout), "/workspace/main\n");
    let outcome = execute(&["--interpreter", "sh -e", "-"])
        .stdin("false\necho no\n")
        .run()?;
    assert_eq!(text(&outcome.expect_code(1)?.stdout), "");
    // What an SDK does: one request, one answer.
    let request = serde_json::json!({
        "image": "busybox", "memory_bytes": 80 << 20, "code": "head -c 3000000 /dev/zero; echo e >&2; echo x > output/y",
        "code_name": "a.sh", "output": true, "output_max_bytes": 1000,
    });
    let answer = post(node, "/v1/execute", &request)?;
    let result: ExecuteResult = serde_json::from_value(answer["result"].clone())?;
    assert!(
        result.success && result.stdout_cut && !result.stderr_cut,
        "{result:?}"
    );
    assert_eq!((result.stdout.len(), result.stderr.as_str()), (1000, "e\n"));
    assert!(result.output_archive.is_some_and(|archive| archive.len() > 512));
    nothing_stays(node)
}

pub(crate) fn an_execution_that_cannot_be_leaves_nothing(node: &TestNode) -> Result<()> {
    let code = tempfile::tempdir()?;
    let file = code.path().join("a.rb");
    fs::write(&file, "puts 1")?;
    let file = file.display().to_string();
    let busybox = ["--image", "busybox", "-m", "80m"];
    let execute = |more: &[&str]| node.hearth(["execute"].iter().chain(&busybox).chain(more)).run();
    execute(&[&file])?
        .expect_code(125)?
        .complains("no interpreter is known for \"a.rb\"")?;
    execute(&["--cmd", "no-such-program"])?
        .expect_code(127)?
        .complains("not found")?;
    execute(&["--cmd", "/etc/passwd"])?.expect_code(126)?;
    execute(&["/no/such/file"])?
        .expect_code(125)?
        .complains("cannot be read")?;
    execute(&["--workspace", "/no/such/directory", "--cmd", "true"])?.expect_code(125)?;
    node.hearth(["execute", "--cmd", "true"])
        .run()?
        .expect_code(125)?
        .complains("--image")?;
    let outcome = execute(&["--timeout", "0", "--cmd", "true"])?;
    outcome.expect_code(125)?.complains("not a duration")?;
    nothing_stays(node)
}

pub(crate) fn an_execution_ends_with_its_time_its_client_and_its_node(node: &TestNode) -> Result<()> {
    let small = ["execute", "--image", "busybox", "-m", "80m"];
    let script = "echo begun; echo part > output/part; trap '' TERM INT; while :; do sleep 1; done";
    let workspace = tempfile::tempdir()?;
    let path = workspace.path().display().to_string();
    let limited = [
        "--workspace",
        &path,
        "--timeout",
        "2s",
        "--json",
        "--cmd",
        "sh",
        "-c",
        script,
    ];
    let outcome = node
        .hearth(small.iter().chain(&limited))
        .run()?
        .expect_code(124)?;
    let result: ExecuteResult = serde_json::from_slice(&outcome.stdout)?;
    assert!(
        result.timed_out && !result.success && result.duration_ms >= 2000,
        "{result:?}"
    );
    assert_eq!(result.stdout, "begun\n");
    // What was there by then is not lost.
    assert_eq!(
        fs::read_to_string(workspace.path().join("output/part"))?,
        "part\n"
    );
    nothing_stays(node)?;

    let waiting = || {
        node.hearth(small.iter().chain(&["--cmd", "sh", "-c", script]))
            .spawn()
    };
    let client = waiting()?;
    client.stdout.wait_for("begun", e2e::DEADLINE)?;
    client.signal(Signal::KILL)?;
    nothing_stays(node)?;

    let client = waiting()?;
    client.stdout.wait_for("begun", e2e::DEADLINE)?;
    kill(node)?;
    assert_ne!(client.finish(e2e::DEADLINE)?.code, 0);
    nothing_stays(node)
}

#[test]
fn code_that_runs_once_and_pools_have_the_proxy() -> Result<()> {
    on_stage(|node, _| {
        let proxy = format!("http://agent:secret@{PRIVATE}:8080");
        let flag = format!("--http-proxy={proxy}");
        let place = format!("{PRIVATE} 8080");
        let script = format!("echo $https_proxy; {MUTE}{}", hear(&place, DEADLINE));
        pool(node, &flag)?;
        let machine = node
            .hearth(["pool", "acquire", "p", "--wait", "120s"])
            .deadline(2 * DEADLINE)
            .ok()?;
        let of_pool = node.exec([machine.as_str(), "sh", "-c", &script]).ok()?;
        let once = [
            "execute", "--image", "busybox", &flag, "--cmd", "sh", "-c", &script,
        ];
        for said in [node.hearth(once).ok()?, of_pool] {
            assert_eq!(said.trim(), format!("{proxy}\nat {place}"));
        }
        node.hearth(["execute", "--pool", "p", &flag, "--cmd", "true"])
            .run()?
            .expect_code(125)?
            .complains("network and certificates are the pool's")?;
        node.hearth(["pool", "rm", "-f", "p"]).ok().map(drop)
    })
}

fn pool(node: &TestNode, flag: &str) -> Result<()> {
    let create = ["pool", "create", "p", "--image", "busybox", "-m", "80m", flag];
    node.hearth(create).ok().map(drop)
}

#[test]
fn code_that_runs_once_and_pools_trust_the_authority() -> Result<()> {
    if let Some(program) = missing_program(&["openssl"]) {
        return skip!("{program} is not installed");
    }
    let directory = tempfile::tempdir()?;
    let line = "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=Hearth-test -keyout ca.key -out ca.pem";
    let made = Command::new("openssl")
        .args(line.split(' '))
        .current_dir(directory.path())
        .output()?;
    ensure!(made.status.success(), "no authority can be made");
    let ca = format!("--ca-cert={}", directory.path().join("ca.pem").display());
    check(TestNode::ready(Driver::Qemu), |node| {
        let script = "cat $SSL_CERT_FILE | sha256sum";
        let plain = ["run", "--rm", &ca, "busybox", "sh", "-c", script];
        let expected = node.hearth(plain).ok()?;
        let once = ["execute", "--image", "busybox", &ca, "--cmd", "sh", "-c", script];
        assert_eq!(node.hearth(once).ok()?, expected);
        pool(node, &ca)?;
        let pooled = [
            "execute", "--pool", "p", "--wait", "120s", "--cmd", "sh", "-c", script,
        ];
        assert_eq!(node.hearth(pooled).deadline(2 * DEADLINE).ok()?, expected);
        node.hearth(["pool", "rm", "-f", "p"]).ok().map(drop)
    })
}
