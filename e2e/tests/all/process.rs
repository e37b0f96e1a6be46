//! Processes: exit codes, what they are given, and what they see.

use anyhow::{Context, Result, ensure};
use e2e::{TestNode, skip};

use crate::support::stay;

pub(crate) fn run_exits_as_docker_does(node: &TestNode) -> Result<()> {
    let hello = node.run(["--rm", "busybox", "echo", "hello"]).run()?.success()?;
    assert_eq!(hello.stdout, b"hello\n");
    node.run(["--rm", "busybox", "sh", "-c", "exit 3"])
        .run()?
        .expect_code(3)?;
    node.run(["--rm", "busybox", "no-such-program"])
        .run()?
        .expect_code(127)?
        .complains("no-such-program")?;
    node.run(["--rm", "busybox", "/bin"]).run()?.expect_code(126)?;
    node.run(["--rm", "--no-such-flag", "busybox"])
        .run()?
        .expect_code(125)?;
    assert_eq!(node.machines()?, []);
    Ok(())
}

pub(crate) fn exec_exits_as_docker_does(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    node.exec(["m", "true"]).run()?.success()?;
    node.exec(["m", "sh", "-c", "exit 42"]).run()?.expect_code(42)?;
    node.exec(["m", "no-such-program"]).run()?.expect_code(127)?;
    node.exec(["m", "sh", "-c", "echo text > /tmp/text"]).ok()?;
    node.exec(["m", "/tmp/text"]).run()?.expect_code(126)?;
    // The workload is PID 1 and deaf to its own signals, as under docker; an exec is an ordinary process.
    node.exec(["m", "sh", "-c", "kill -TERM $$"])
        .run()?
        .expect_code(143)?;
    node.exec(["m", "sh", "-c", "kill -KILL $$"])
        .run()?
        .expect_code(137)?;
    node.exec(["m", "sh", "-c", "kill -SEGV $$"])
        .run()?
        .expect_code(139)?;
    node.exec(["no-such-machine", "true"])
        .run()?
        .expect_code(125)?
        .complains("no-such-machine")?;
    node.exec(["-u", "no-such-user", "m", "true"])
        .run()?
        .expect_code(125)?
        .complains("no-such-user")?;
    Ok(())
}

pub(crate) fn run_gives_what_was_asked_for(node: &TestNode) -> Result<()> {
    let file = node.home().join("environment");
    std::fs::write(&file, "# a comment\nFROM_FILE=a b\nFROM_HOST\n")?;
    let script = "echo \"$GIVEN|$FROM_FILE|$FROM_HOST|$EMPTY|$(pwd)|$(id -u):$(id -g)|$(hostname)\"";
    let told = node
        .run(["--rm", "-e", "GIVEN=x=y", "-e", "EMPTY=", "--env-file"])
        .env("FROM_HOST", "host's")
        .arguments([file.as_os_str()])
        .arguments(["-w", "/tmp", "-u", "1815:1852", "--hostname", "lighthouse"])
        .arguments(["--entrypoint", "sh", "busybox", "-c", script])
        .ok()?;
    assert_eq!(told, "x=y|a b|host's||/tmp|1815:1852|lighthouse");
    Ok(())
}

pub(crate) fn command_is_pid_1_and_sees_only_itself(node: &TestNode) -> Result<()> {
    let script = "echo pid $$; for p in /proc/[0-9]*; do echo ${p#/proc/}; done";
    let told = node.run(["--rm", "busybox", "sh", "-c", script]).ok()?;
    assert_eq!(
        told, "pid 1\n1",
        "the agent, or the kernel's threads, are in sight"
    );
    Ok(())
}

pub(crate) fn exec_joins_the_namespaces_of_the_workload(node: &TestNode) -> Result<()> {
    let spaces = "for n in pid mnt uts ipc; do readlink /proc/$P/ns/$n; done";
    stay(node, "m")?;
    let workload = node.exec(["-e", "P=1", "m", "sh", "-c", spaces]).ok()?;
    let own = node.exec(["-e", "P=self", "m", "sh", "-c", spaces]).ok()?;
    assert_eq!(workload, own);
    assert_eq!(workload.lines().count(), 4);
    let first = node.exec(["m", "cat", "/proc/1/cmdline"]).ok()?;
    assert_eq!(first, "sleep\x003600\0");
    // What the environment, directory and user are is inherited from the workload unless said otherwise.
    node.start([
        "--name", "n", "-e", "A=1", "-w", "/tmp", "-u", "1000", "busybox", "sleep", "3600",
    ])?;
    let told = node
        .exec(["-e", "B=2", "n", "sh", "-c", "echo $A$B $(pwd) $(id -u)"])
        .ok()?;
    assert_eq!(told, "12 /tmp 1000");
    let told = node
        .exec(["-w", "/bin", "-u", "0", "n", "sh", "-c", "echo $(pwd) $(id -u)"])
        .ok()?;
    assert_eq!(told, "/bin 0");
    Ok(())
}

pub(crate) fn zombies_are_reaped(node: &TestNode) -> Result<()> {
    stay(node, "m")?;
    for code in 0..8 {
        let script = format!("exit {code}");
        node.exec(["m", "sh", "-c", &script]).run()?.expect_code(code)?;
    }
    let states = node.exec(["m", "ps", "-o", "stat,comm"]).ok()?;
    ensure!(
        !states.lines().any(|line| line.starts_with('Z')),
        "zombies: {states}"
    );
    Ok(())
}

pub(crate) fn processors_and_memory_are_those_asked_for(node: &TestNode) -> Result<()> {
    let script =
        "nproc; awk '/^MemTotal/ { print $2 }' /proc/meminfo; df -k / | tail -n1 | awk '{ print $2 }'";
    let told = node
        .run([
            "--name", "m", "--cpus", "2", "-m", "512m", "--disk", "4g", "busybox",
        ])
        .arguments(["sh", "-c", script])
        .ok()?;
    let numbers: Vec<u64> = told.lines().map(str::parse).collect::<Result<_, _>>()?;
    let [processors, memory_kib, disk_kib] = numbers[..] else {
        anyhow::bail!("not three numbers: {told}");
    };
    assert_eq!(processors, 2);
    assert!((400 << 10..=512 << 10).contains(&memory_kib), "{memory_kib} KiB");
    assert!((7 << 19..=4 << 20).contains(&disk_kib), "{disk_kib} KiB");
    let machine = node.inspect("m")?;
    assert_eq!(
        (machine.vcpus, machine.memory_mib, machine.cpu_quota_us),
        (2, 512, None)
    );
    node.start(["--name", "half", "--cpus", "500m", "busybox", "sleep", "3600"])?;
    let half = node.inspect("half")?;
    assert_eq!((half.vcpus, half.cpu_quota_us), (1, Some(50_000)));
    if !rustix::process::geteuid().is_root() {
        return skip!("only root may make the cgroup of a quota; the rest passed");
    }
    let pid = half.state.pid.context("a machine that runs has a process")?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    assert!(groups.contains(&format!("/hearth/{}", half.id)), "{groups}");
    Ok(())
}
