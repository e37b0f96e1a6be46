//! Host commands: the one way in which Hearth runs a program of the host to its end (`mkfs.ext4`, `apt-get`, `make`).
//!
//! Owns: what a failure says (the arguments, the last words), the time limit, and that no program outlives the
//! node. Does not own the virtual machine monitors, which are meant to outlive it. Nothing here goes through a
//! shell, and nothing on a hot path may use it: a fork costs milliseconds.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdout};

use super::ambient;
use super::network_namespace::NetworkNamespace;

/// How long a command may take unless its caller says otherwise.
const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(60);

/// How long a command has to end itself on SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// How much of stderr is kept for the error message, in bytes: the end of it, where programs say why they failed.
const STDERR_TAIL: usize = 2048;

/// The most that [`HostCommand::run`] collects, in bytes. What prints more is streamed.
const OUTPUT_LIMIT: usize = 4 << 20;

/// The longest line handed to a callback, in bytes; the rest of a longer one is dropped.
const LINE_LIMIT: usize = 8 << 10;

/// Says why a host command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not there.
    #[error("the program {program} is not installed: `apt-get install {package}` brings it")]
    NotFound {
        /// The program that was looked for.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The program is there, and could not be started.
    #[error("cannot start `{argv}`")]
    Start {
        /// The program and its arguments.
        argv: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read, or its end not be waited for.
    #[error("lost contact with `{argv}`")]
    Lost {
        /// The program and its arguments.
        argv: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It ended, and not with exit code 0.
    #[error("`{argv}` failed ({status}){}", said(stderr))]
    Failed {
        /// The program and its arguments.
        argv: String,
        /// How it ended.
        status: ExitStatus,
        /// The last 2 KiB of its standard error.
        stderr: String,
    },
    /// It did not end in time, and was ended.
    #[error("`{argv}` was ended: it took longer than {limit:?}{}", said(stderr))]
    TimeLimit {
        /// The program and its arguments.
        argv: String,
        /// The limit that it had.
        limit: Duration,
        /// The last 2 KiB of its standard error.
        stderr: String,
    },
    /// It printed more than is collected in memory.
    #[error("`{argv}` printed more than {OUTPUT_LIMIT} bytes")]
    TooMuchOutput {
        /// The program and its arguments.
        argv: String,
    },
}

fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

/// One line that a command printed, without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// On its standard output.
    Output(&'a str),
    /// On its standard error.
    Error(&'a str),
}

/// A host command, made ready step by step and then run once.
///
/// Standard input is empty, messages are in English (`LC_ALL=C.UTF-8`), and the command has a process group of its
/// own, so that a time limit ends what it started as well. When the node dies the kernel sends it SIGTERM rather than
/// SIGKILL, because programs such as `make` and `mmdebstrap` end their own children on it.
///
/// The kernel counts the *thread* that starts a command as its parent: start commands on the runtime's thread and
/// never inside `spawn_blocking`, whose threads end when idle.
#[derive(Debug)]
pub struct HostCommand {
    program: OsString,
    package: &'static str,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    within: Vec<OwnedFd>,
    limit: Duration,
}

impl HostCommand {
    /// Names the program, and the Debian package that has it, for the error when it is missing.
    pub fn new(program: impl Into<OsString>, package: &'static str) -> Self {
        Self {
            program: program.into(),
            package,
            args: Vec::new(),
            envs: Vec::new(),
            directory: None,
            within: Vec::new(),
            limit: DEFAULT_TIME_LIMIT,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Has it run inside a network namespace, with the right to set that up.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn within(mut self, namespace: &NetworkNamespace) -> io::Result<Self> {
        self.within = namespace.cloned()?;
        Ok(self)
    }

    /// Sets how long it may take; one minute unless set.
    #[must_use]
    pub const fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end and returns what it printed on standard output, at most 4 MiB.
    ///
    /// # Errors
    /// [`CommandError`]; an exit code other than 0 is one.
    pub async fn run(self) -> Result<Vec<u8>, CommandError> {
        let mut output = Vec::new();
        let mut running = self.start()?;
        running
            .drive(|chunk| match chunk {
                Chunk::Output(bytes) if output.len() + bytes.len() > OUTPUT_LIMIT => Err(TooMuch),
                Chunk::Output(bytes) => {
                    output.extend_from_slice(bytes);
                    Ok(())
                }
                Chunk::Error(_) => Ok(()),
            })
            .await?;
        Ok(output)
    }

    /// Runs it to its end and hands over every line that it prints, as it prints it.
    ///
    /// # Errors
    /// [`CommandError`]; an exit code other than 0 is one.
    pub async fn run_lines(self, mut on_line: impl FnMut(Line<'_>)) -> Result<(), CommandError> {
        let (mut output, mut error) = (LineSplitter::default(), LineSplitter::default());
        let mut running = self.start()?;
        running
            .drive(|chunk| {
                match chunk {
                    Chunk::Output(bytes) => output.push(bytes, |line| on_line(Line::Output(line))),
                    Chunk::Error(bytes) => error.push(bytes, |line| on_line(Line::Error(line))),
                }
                Ok(())
            })
            .await?;
        output.finish(|line| on_line(Line::Output(line)));
        error.finish(|line| on_line(Line::Error(line)));
        Ok(())
    }

    /// Starts it, so that its standard output can be read as a stream; [`Running::finish`] tells how it ended.
    ///
    /// # Errors
    /// [`CommandError::NotFound`] and [`CommandError::Start`].
    pub fn start(self) -> Result<Running, CommandError> {
        let argv = self.argv();
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .env("LC_ALL", "C.UTF-8")
            .envs(self.envs)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if !self.within.is_empty() {
            enter(&mut command, self.within);
        }
        die_with(&mut command, rustix::process::getpid());
        let mut child = command.spawn().map_err(|source| match source.kind() {
            // A missing working directory gives the same code; only the program itself is the package's matter.
            io::ErrorKind::NotFound if self.directory.as_ref().is_none_or(|d| d.is_dir()) => {
                CommandError::NotFound {
                    program: self.program.to_string_lossy().into_owned(),
                    package: self.package,
                }
            }
            _ => CommandError::Start {
                argv: argv.clone(),
                source,
            },
        })?;
        Ok(Running {
            group: child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            tail: Tail::default(),
            deadline: Box::pin(tokio::time::sleep(self.limit)),
            limit: self.limit,
            argv,
        })
    }

    /// Writes the command as a person would type it, for messages only: it is never parsed.
    fn argv(&self) -> String {
        std::iter::once(self.program.as_os_str())
            .chain(self.args.iter().map(OsString::as_os_str))
            .fold(String::new(), |mut line, part| {
                let separator = if line.is_empty() { "" } else { " " };
                let _ = write!(line, "{separator}{}", quoted(part));
                line
            })
    }
}

fn quoted(part: &OsStr) -> String {
    let text = part.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+~@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("{text:?}")
    }
}

/// Arranges that the kernel ends the command when its parent `parent` (this process) dies.
fn die_with(command: &mut tokio::process::Command, parent: Pid) {
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have died before the line above took effect; then nobody would end this command.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: between fork and exec the closure makes two system calls (prctl, getppid) and allocates nothing, so it
    // is async-signal-safe.
    unsafe { command.pre_exec(before_exec) };
}

/// Has the command enter namespaces. What the kernel does at the death of its parent is to be arranged later: this undoes it.
fn enter(command: &mut tokio::process::Command, namespaces: Vec<OwnedFd>) {
    let before_exec = move || {
        for namespace in &namespaces {
            ambient::enter(namespace.as_raw_fd()).map_err(io::Error::from_raw_os_error)?;
        }
        // Root's programs have all rights.
        match namespaces.len() {
            1 => Ok(()),
            _ => ambient::keep(ambient::NETWORK).map_err(io::Error::from_raw_os_error),
        }
    };
    // SAFETY: between fork and exec the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

enum Chunk<'a> {
    Output(&'a [u8]),
    Error(&'a [u8]),
}

/// What a consumer of output answers when it will not hold any more.
struct TooMuch;

/// A command that runs. Reading it gives its standard output; dropping it kills its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// `None` once the command has been waited for: from then on the number may belong to others.
    group: Option<Pid>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    tail: Tail,
    deadline: Pin<Box<tokio::time::Sleep>>,
    limit: Duration,
    argv: String,
}

impl Running {
    /// Throws away what is left of the output, waits for the end, and says how it went.
    ///
    /// # Errors
    /// [`CommandError`]; an exit code other than 0 is one.
    pub async fn finish(mut self) -> Result<(), CommandError> {
        self.drive(|_| Ok(())).await
    }

    /// Reads both streams to their ends, waits for the command, and turns a failure into an error.
    async fn drive(
        &mut self,
        on_chunk: impl FnMut(Chunk<'_>) -> Result<(), TooMuch>,
    ) -> Result<(), CommandError> {
        let streams = Streams {
            stdout: self.stdout.take(),
            stderr: self.stderr.take(),
            tail: &mut self.tail,
        };
        let child = &mut self.child;
        let work = async move {
            match streams.read_to_end(on_chunk).await? {
                Ok(()) => child.wait().await.map(Ok),
                Err(too_much) => Ok(Err(too_much)),
            }
        };
        let ended = tokio::select! {
            ended = work => Some(ended),
            () = self.deadline.as_mut() => None,
        };
        match ended {
            Some(Ok(Ok(status))) => {
                self.group = None;
                self.judge(status)
            }
            Some(Ok(Err(TooMuch))) => {
                self.end().await;
                Err(CommandError::TooMuchOutput {
                    argv: self.argv.clone(),
                })
            }
            Some(Err(source)) => {
                self.end().await;
                Err(CommandError::Lost {
                    argv: self.argv.clone(),
                    source,
                })
            }
            None => {
                self.end().await;
                Err(CommandError::TimeLimit {
                    argv: self.argv.clone(),
                    limit: self.limit,
                    stderr: self.tail.text(),
                })
            }
        }
    }

    fn judge(&self, status: ExitStatus) -> Result<(), CommandError> {
        if status.success() {
            return Ok(());
        }
        Err(CommandError::Failed {
            argv: self.argv.clone(),
            status,
            stderr: self.tail.text(),
        })
    }

    /// Ends the process group: SIGTERM first, SIGKILL for what is still there after the grace.
    async fn end(&mut self) {
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(GRACE, self.child.wait()).await.is_ok();
        self.signal(Signal::KILL);
        if !ended {
            // SIGKILL cannot be refused; only a process stuck in the kernel outlasts this, and it is not waited for.
            let _ = tokio::time::timeout(GRACE, self.child.wait()).await;
        }
        self.group = None;
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // The group may have ended by itself.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    fn poll_stderr(&mut self, context: &mut Context<'_>) {
        let mut storage = [0; 1024];
        while let Some(stderr) = &mut self.stderr {
            let mut buffer = ReadBuf::new(&mut storage);
            match Pin::new(stderr).poll_read(context, &mut buffer) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.tail.push(buffer.filled()),
                Poll::Ready(_) => self.stderr = None,
            }
        }
    }
}

impl AsyncRead for Running {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A full pipe of stderr would stop the command, and with it the output that is waited for.
        self.poll_stderr(context);
        if self.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let Some(stdout) = &mut self.stdout else {
            return Poll::Ready(Ok(()));
        };
        ready!(Pin::new(stdout).poll_read(context, buffer))?;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Both output streams of a command.
struct Streams<'a> {
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    tail: &'a mut Tail,
}

impl Streams<'_> {
    async fn read_to_end(
        mut self,
        mut on_chunk: impl FnMut(Chunk<'_>) -> Result<(), TooMuch>,
    ) -> io::Result<Result<(), TooMuch>> {
        let (mut output, mut error) = (vec![0; 32 << 10], vec![0; 4 << 10]);
        while self.stdout.is_some() || self.stderr.is_some() {
            let answer = tokio::select! {
                count = read_some(&mut self.stdout, &mut output) => match count? {
                    0 => { self.stdout = None; Ok(()) }
                    count => on_chunk(Chunk::Output(&output[..count])),
                },
                count = read_some(&mut self.stderr, &mut error) => match count? {
                    0 => { self.stderr = None; Ok(()) }
                    count => {
                        self.tail.push(&error[..count]);
                        on_chunk(Chunk::Error(&error[..count]))
                    }
                },
            };
            if answer.is_err() {
                return Ok(answer);
            }
        }
        Ok(Ok(()))
    }
}

/// Reads from a stream that may have ended; one that has never becomes ready again.
async fn read_some(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> io::Result<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(STDERR_TAIL);
        self.0.drain(..excess);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).trim().to_owned()
    }
}

/// Cuts a stream into lines of bounded length. A carriage return ends a line too: progress is often shown with it.
#[derive(Default)]
struct LineSplitter(Vec<u8>);

impl LineSplitter {
    fn push(&mut self, bytes: &[u8], mut on_line: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.finish(&mut on_line);
            } else if self.0.len() < LINE_LIMIT {
                self.0.push(byte);
            }
        }
    }

    fn finish(&mut self, mut on_line: impl FnMut(&str)) {
        if !self.0.is_empty() {
            on_line(&String::from_utf8_lossy(&self.0));
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests;
