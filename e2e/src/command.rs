//! One call of a program: its input, its output apart, its exit code, its time, and a deadline that kills its group.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::captured::{Captured, tail};

/// How long a call may take if nothing else is said: a boot under emulation on a busy host, several times over.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How long the output may stay open after the program has ended.
const DRAIN: Duration = Duration::from_secs(10);

/// A program to call.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
}

/// How a call ended.
#[derive(Debug)]
pub struct Outcome {
    /// What was called.
    pub line: String,
    /// Exit code; 128 plus the signal for a program that a signal ended.
    pub code: i32,
    /// Everything it printed.
    pub stdout: Vec<u8>,
    /// Everything it complained about.
    pub stderr: Vec<u8>,
    /// From spawn to end.
    pub took: Duration,
}

/// A program that runs. Its group is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    line: String,
    pid: Pid,
    stdin: Option<ChildStdin>,
    /// What it prints.
    pub stdout: Captured,
    /// What it complains about.
    pub stderr: Captured,
    started: Instant,
    ended: Receiver<std::io::Result<ExitStatus>>,
    status: Option<ExitStatus>,
}

impl Invocation {
    /// Names a program and its arguments.
    pub fn new<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self {
            command,
            stdin: None,
            deadline: DEADLINE,
        }
    }

    /// Adds arguments.
    pub fn arguments<A: AsRef<OsStr>>(mut self, more: impl IntoIterator<Item = A>) -> Self {
        self.command.args(more);
        self
    }

    /// Gives it bytes to read; without, it reads an end of file.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Gives it another deadline than [`DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable of its environment.
    pub(crate) fn env_remove(mut self, name: &OsStr) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets its working directory.
    pub fn current_dir(mut self, directory: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs it to its end, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started, or the deadline passed; then its group is dead.
    pub fn run(mut self) -> Result<Outcome> {
        let (input, deadline) = (self.stdin.take(), self.deadline);
        let mut running = self.spawn_with(input.is_some())?;
        // A thread, for a program that prints more than a pipe holds before it has read everything.
        let writer = running.stdin.take().zip(input).map(|(mut pipe, bytes)| {
            // A program may end before it has read everything (EPIPE); its outcome tells.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let outcome = running.finish(deadline);
        if let Some(writer) = writer {
            drop(writer.join());
        }
        outcome
    }

    /// Runs it and expects success; returns what it printed, as text without the newline at its end.
    ///
    /// # Errors
    /// As [`Self::run`], or another exit code than 0.
    pub fn ok(self) -> Result<String> {
        self.run()?.success()?.text()
    }

    /// Makes it a part of a shell script, which calls it as `"$@"`.
    pub fn within(self, script: &str) -> Self {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", script, "bash"])
            .arg(self.command.get_program())
            .args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        Self {
            command: shell,
            ..self
        }
    }

    /// Starts it with a standard input that stays open.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(self) -> Result<Running> {
        self.spawn_with(true)
    }

    fn spawn_with(mut self, open_input: bool) -> Result<Running> {
        let input = if open_input { Stdio::piped() } else { Stdio::null() };
        self.command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        start(self.command)
    }

    /// Starts it as the leader of a session whose terminal is `stdio`.
    pub(crate) fn spawn_under(self, [stdin, stdout, stderr]: [Stdio; 3]) -> Result<Running> {
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        start(command)
    }
}

fn start(mut command: Command) -> Result<Running> {
    let line = line_of(&command);
    let started = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    Ok(Running {
        line,
        pid: Pid::from_child(&child),
        stdin: child.stdin.take(),
        stdout: child.stdout.take().map_or_else(Captured::nothing, Captured::of),
        stderr: child.stderr.take().map_or_else(Captured::nothing, Captured::of),
        started,
        ended: wait_in_thread(child),
        status: None,
    })
}

/// `Child::wait` knows no deadline: a thread waits, and the deadline is on its message.
fn wait_in_thread(mut child: Child) -> Receiver<std::io::Result<ExitStatus>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || drop(sender.send(child.wait())));
    receiver
}

fn line_of(command: &Command) -> String {
    let program = OsString::from(command.get_program());
    std::iter::once(program.as_os_str())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

impl Running {
    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// It has closed it.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let pipe = self.stdin.as_mut().context("standard input is closed")?;
        pipe.write_all(bytes)
            .and_then(|()| pipe.flush())
            .with_context(|| format!("`{}` does not read", self.line))
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal; to it alone, not to its group.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).with_context(|| format!("cannot signal `{}`", self.line))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The deadline passed; its group is dead then.
    pub fn finish(mut self, deadline: Duration) -> Result<Outcome> {
        let left = deadline
            .saturating_sub(self.started.elapsed())
            .max(Duration::from_secs(1));
        let status = match self.ended.recv_timeout(left) {
            Ok(status) => status.with_context(|| format!("cannot wait for `{}`", self.line))?,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => bail!(
                "`{}` has not ended after {:.1?}\nstdout: {}\nstderr: {}",
                self.line,
                self.started.elapsed(),
                tail(&self.stdout.so_far()),
                tail(&self.stderr.so_far())
            ),
        };
        let took = self.started.elapsed();
        self.status = Some(status);
        let open = || format!("`{}` has ended, and something holds its output open", self.line);
        let code = status
            .code()
            .or_else(|| status.signal().map(|signal| 128 + signal))
            .unwrap_or(-1);
        Ok(Outcome {
            code,
            stdout: self.stdout.all(DRAIN).with_context(open)?,
            stderr: self.stderr.all(DRAIN).with_context(open)?,
            line: std::mem::take(&mut self.line),
            took,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() {
            // It may have ended meanwhile, and then there is nobody to kill.
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.ended.recv_timeout(DRAIN);
        }
    }
}

impl Outcome {
    /// Expects an exit code.
    ///
    /// # Errors
    /// Another one; both outputs are in the error.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "`{}` ended with {} instead of {code}, after {:.1?}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.took,
            tail(&self.stdout),
            tail(&self.stderr)
        );
        Ok(self)
    }

    /// Expects exit code 0.
    ///
    /// # Errors
    /// Another one.
    pub fn success(self) -> Result<Self> {
        self.expect_code(0)
    }

    /// Expects that the error output tells `needle`, in whatever case.
    ///
    /// # Errors
    /// It does not.
    pub fn complains(self, needle: &str) -> Result<Self> {
        let stderr = self.errors().to_lowercase();
        ensure!(
            stderr.contains(&needle.to_lowercase()),
            "`{}` does not say {needle:?} but: {}",
            self.line,
            tail(&self.stderr)
        );
        Ok(self)
    }

    /// Returns what it printed, without the newline at its end.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn text(self) -> Result<String> {
        let text = String::from_utf8(self.stdout)
            .with_context(|| format!("`{}` prints what is not UTF-8", self.line))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Returns what it complained about.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
