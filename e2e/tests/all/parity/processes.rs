//! What a process is given, and how its end is told.

use anyhow::Result;

use super::case::{Case, by, exec};
use super::subject::{Subject, seen};

const IDENTITY: &[&str] = &["sh", "-c", "echo $(id -u):$(id -g) $(id -G) $HOME"];
const OWN_LIMITS: &str =
    "podman gets its limits from its configuration here, and docker's are the ones shown";

pub(super) const CASES: &[Case] = &[
    exec("exit 0", &[], &["true"], "0 "),
    exec("exit 1", &[], &["false"], "1 "),
    by("exit codes", exit_codes, "0 1 2 3 41 63 64 99 100 124 125 126 127 128 129 137 143 200 254 255"),
    by("exit by signals", signals, "129 130 132 134 136 137 139 141 142 143 158"),
    exec("no such command", &[], &["no-such-program"], "127 "),
    exec("no such path", &[], &["/bin/no-such-program"], "127 "),
    exec("a directory as command", &[], &["/etc"], "126 "),
    exec("a file without x as command", &[], &["/etc/passwd"], "126 "),
    by("a text without #! as command", text_as_command, "126").but(
        "1",
        "docker's and runc's is 1 or 126 by version; a shell's is 126",
    ),
    by("a script of an interpreter that is missing", no_interpreter, "127").but(
        "1",
        "runc's is 1, docker's 127 by its words; a shell's is 127",
    ),
    exec("PATH of exec finds the command", &["-e", "PATH=/nowhere"], &["sh", "-c", "echo found"], "127 "),
    exec("a command relative to the directory", &["-w", "/bin"], &["./echo", "here"], "0 here\n"),
    exec("arguments arrive as they are", &[], &["echo", "a b", "", "*", "$HOME", "--", "-x"], "0 a b  * $HOME -- -x\n"),
    exec("-e NAME=VALUE", &["-e", "A=x=y z"], &["sh", "-c", "echo \"$A\""], "0 x=y z\n"),
    by("a megabyte of arguments", much_to_say, "0 10 100000\n"),
    by("a variable that is too long for the kernel", too_much_to_say, "126").but("125", "podman's reader of files gives up before the kernel does"),
    by("-e NAME", from_here, "0 of the caller||unset\n"),
    exec("-e NAME=", &["-e", "A="], &["sh", "-c", "echo ${A-unset}"], "0 \n"),
    exec("the last -e counts", &["-e", "A=1", "-e", "A=2"], &["sh", "-c", "echo $A"], "0 2\n"),
    by("--env-file", env_file, "0 a b|'q'|of the caller\n"),
    exec("exec inherits the environment of run", &[], &["sh", "-c", "echo $INHERITED"], "0 yes\n"),
    exec("PATH of the image", &[], &["sh", "-c", "echo $PATH"], "0 /bin\n"),
    exec("no TERM without a terminal", &[], &["sh", "-c", "echo ${TERM-unset}"], "0 unset\n").but(
        "0 xterm\n",
        "podman always sets TERM; docker, and Hearth, with a terminal only",
    ),
    exec("HOSTNAME is set for exec", &[], &["sh", "-c", "test \"$HOSTNAME\" = \"$(hostname)\" && echo set"], "0 set\n"),
    exec("nobody in particular is root", &[], IDENTITY, "0 0:0 0 /root\n"),
    exec("-u NAME", &["-u", "ada"], IDENTITY, "0 1815:1852 1852 1843 /home/ada\n"),
    exec("-u UID", &["-u", "1815"], IDENTITY, "0 1815:1852 1852 1843 /home/ada\n"),
    exec("-u NAME:GROUP", &["-u", "ada:engine"], IDENTITY, "0 1815:1843 1843 /home/ada\n"),
    exec("-u UID:GID", &["-u", "1815:7"], IDENTITY, "0 1815:7 7 /home/ada\n"),
    exec("-u of a number nobody has", &["-u", "4000"], IDENTITY, "0 4000:0 0 /\n"),
    exec("-u of numbers nobody has", &["-u", "4000:4001"], IDENTITY, "0 4000:4001 4001 /\n"),
    exec("-u of an unknown name", &["-u", "nobody-here"], &["id"], "125 ").but("255 ", "podman's own code; docker's is 126 or 1"),
    exec("-u of an unknown group", &["-u", "ada:no-group"], &["id"], "125 ").but("255 ", "podman's own code; docker's is 126 or 1"),
    exec("-w", &["-w", "/home/ada"], &["pwd"], "0 /home/ada\n"),
    exec("-w that is missing", &["-w", "/no/such"], &["pwd"], "125 ").but("127 ", "125 says that the request is wrong, 127 that the command is"),
    exec("the directory is / unless said", &[], &["pwd"], "0 /\n"),
    exec("umask", &[], &["sh", "-c", "umask"], "0 0022\n"),
    exec("oom_score_adj", &[], &["cat", "/proc/self/oom_score_adj"], "0 0\n"),
    exec("open files", &[], &["sh", "-c", "ulimit -n; ulimit -Hn"], "0 1048576\n1048576\n").unlike(OWN_LIMITS),
    exec("processes", &[], &["sh", "-c", "ulimit -u"], "0 unlimited\n").unlike(OWN_LIMITS),
    exec("core files", &[], &["sh", "-c", "ulimit -c"], "0 0\n"),
    exec("stack, data, address space", &[], &["sh", "-c", "ulimit -s; ulimit -d; ulimit -v"], "0 8192\nunlimited\nunlimited\n"),
    exec("no signal is ignored or blocked", &[], &["sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status | cut -f 2"], "0 0000000000000000\n0000000000000000\n")
        .unlike("runc leaves a signal ignored that its own language uses"),
    exec("capabilities of root", &[], &["sh", "-c", "grep -E 'Cap(Inh|Eff|Bnd|Amb)' /proc/self/status | cut -f 2"], "0 0000000000000000\n00000000a80425fb\n00000000a80425fb\n0000000000000000\n"),
    exec("capabilities of a user", &["-u", "ada"], &["sh", "-c", "grep -E 'Cap(Prm|Eff)' /proc/self/status | cut -f 2"], "0 0000000000000000\n0000000000000000\n"),
    exec("no seccomp filter", &[], &["sh", "-c", "grep -E 'Seccomp:|NoNew' /proc/self/status | cut -f 2"], "0 0\n0\n")
        .but("0 0\n2\n", "the kernel is the machine's own: a filter would only break programs"),
    exec("exec leads a session of its own", &[], &["sh", "-c", "set -- $(cat /proc/self/stat); test $4 = $$ && test $6 = $$ && echo leader"], "0 leader\n"),
    exec("PID 1 is the command", &[], &["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline"], "0 sleep 3600 "),
    exec("only own processes are in sight", &[], &["sh", "-c", "ps -o args | grep -v -e ps -e sh -e grep -e exe"], "0 COMMAND\nsleep 3600\n"),
    exec("nothing but the standard streams is open", &[], &["sh", "-c", "echo /proc/self/fd/*"], "0 /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3\n"),
    exec("devices", &[], &["sh", "-c", "cd /dev; echo *"], "0 core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n")
        .but("0 fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n", "docker has /dev/core, too"),
    exec("devices work", &[], &["sh", "-c", "head -c 3 /dev/zero | wc -c; echo x > /dev/null; echo y > /dev/full"], "1 3\n"),
    exec("/dev/shm", &[], &["sh", "-c", "df -k /dev/shm | tail -n 1 | cut -d ' ' -f 2- | tr -s ' ' | cut -d ' ' -f 2; echo x > /dev/shm/x && stat -c %a /dev/shm"], "0 65536\n1777\n")
        .but("0 64000\n1777\n", "docker's is 64 MiB; podman's is 64 MB in thousands"),
    exec("/sys is read-only", &[], &["sh", "-c", "mkdir /sys/x 2>/dev/null || echo refused"], "0 refused\n"),
    exec("/proc/sys is read-only", &[], &["sh", "-c", "echo 1 2>/dev/null > /proc/sys/kernel/panic || echo refused"], "0 refused\n"),
    exec("kernel's secrets are covered", &[], &["sh", "-c", "head -c 1 /proc/kcore | wc -c; ls /sys/firmware | wc -l"], "0 0\n0\n"),
    exec("no mount, no chroot out", &[], &["sh", "-c", "mount -t tmpfs x /tmp 2>/dev/null || echo refused"], "0 refused\n"),
    exec("/etc/hosts has the loopback", &[], &["sh", "-c", "grep -c -E '^127.0.0.1[[:space:]]+localhost' /etc/hosts"], "0 1\n"),
    exec("the host's name is the machine's", &[], &["sh", "-c", "test $(hostname) = $(cat /etc/hostname) && echo same"], "0 same\n"),
];

fn exit_codes(subject: &Subject<'_>) -> Result<String> {
    let few = [
        0, 1, 2, 3, 41, 63, 64, 99, 100, 124, 125, 126, 127, 128, 129, 137, 143, 200, 254, 255,
    ];
    let all = 0..=255;
    let mut told = Vec::new();
    for code in all.filter(|code| e2e::is_soak() || few.contains(code)) {
        let script = format!("exit {code}");
        let outcome = subject.exec(&[], &["sh", "-c", &script]).run()?;
        // All of them are asked for in the long run; those that differ are told.
        if few.contains(&code) || outcome.code != code {
            told.push(outcome.code.to_string());
        }
    }
    Ok(told.join(" "))
}

fn signals(subject: &Subject<'_>) -> Result<String> {
    let mut told = Vec::new();
    for signal in [1, 2, 4, 6, 8, 9, 11, 13, 14, 15, 30] {
        let script = format!("kill -{signal} $$");
        told.push(subject.exec(&[], &["sh", "-c", &script]).run()?.code.to_string());
    }
    Ok(told.join(" "))
}

fn text_as_command(subject: &Subject<'_>) -> Result<String> {
    subject
        .exec(&[], &["sh", "-c", "echo text > /tmp/text; chmod 755 /tmp/text"])
        .ok()?;
    Ok(subject.exec(&[], &["/tmp/text"]).run()?.code.to_string())
}

fn no_interpreter(subject: &Subject<'_>) -> Result<String> {
    let script = "printf '#!/no/such\\n' > /tmp/script; chmod 755 /tmp/script";
    subject.exec(&[], &["sh", "-c", script]).ok()?;
    Ok(subject.exec(&[], &["/tmp/script"]).run()?.code.to_string())
}

fn much_to_say(subject: &Subject<'_>) -> Result<String> {
    let long = "x".repeat(100_000);
    let mut command = vec!["sh", "-c", "echo $# ${#1}", "sh"];
    command.extend([long.as_str(); 10]);
    Ok(seen(&subject.exec(&[], &command).run()?))
}

fn too_much_to_say(subject: &Subject<'_>) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), format!("A={}\n", "x".repeat(200_000)))?;
    let path = file.path().to_string_lossy();
    let outcome = subject.exec(&["--env-file", &path], &["true"]).run()?;
    Ok(outcome.code.to_string())
}

fn from_here(subject: &Subject<'_>) -> Result<String> {
    let flags = ["-e", "PARITY_SET", "-e", "PARITY_EMPTY", "-e", "PARITY_UNSET"];
    let script = "echo \"$PARITY_SET|$PARITY_EMPTY|${PARITY_UNSET-unset}\"";
    let call = subject.exec(&flags, &["sh", "-c", script]);
    let outcome = call
        .env("PARITY_SET", "of the caller")
        .env("PARITY_EMPTY", "")
        .run()?;
    Ok(seen(&outcome))
}

fn env_file(subject: &Subject<'_>) -> Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(
        file.path(),
        "# a comment\n\nA=a b\nB='q'\nPARITY_SET\nPARITY_UNSET\n",
    )?;
    let path = file.path().to_string_lossy();
    let call = subject.exec(
        &["--env-file", &path],
        &["sh", "-c", "echo \"$A|$B|$PARITY_SET\""],
    );
    Ok(seen(&call.env("PARITY_SET", "of the caller").run()?))
}
