//! Reaches the node, and starts one when none answers.
//!
//! ```text
//! request -> refused or no socket -> `hearth node --ready-fd N` in the background -> a line on N -> request again
//! ```
//! Two that start a node at once are no matter: the second node finds the first's lock and says `ready` for it.

use std::ffi::OsStr;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use hearth_api::location::{Location, SOCKET_VARIABLE};
use hearth_api::v1::ErrorBody;
use hearth_api::{Client, ClientError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use crate::error::CliError;

/// How long a node may take to answer; one that follows another first finds its machines.
const START_DEADLINE: Duration = Duration::from_secs(40);

/// The longest word of a node that starts, in bytes.
const WORD_LIMIT: u64 = 64 * 1024;

/// Above this a node's log is started anew, and the one before is kept as `node.log.1`.
const LOG_CAP: u64 = 10 << 20;

/// How much of the node's log is shown when it dies, in bytes.
const LOG_TAIL: u64 = 2048;

/// What a node is told of its starter's environment. The rest (tokens, keys) is none of its business, and a daemon would
/// keep it for weeks.
const INHERITED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TMPDIR",
    "TZ",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "all_proxy",
];

/// The node that a verb speaks to.
#[derive(Debug)]
pub(crate) struct Node {
    client: Client,
    starter: Option<Starter>,
    /// Guards that one of several requests at once starts a node; true when that is done.
    started: tokio::sync::Mutex<bool>,
}

/// How to start a node.
#[derive(Debug, Clone)]
pub(crate) struct Starter {
    /// The program.
    pub(crate) program: PathBuf,
    /// Where sockets and the log lie.
    pub(crate) run: PathBuf,
}

/// Says why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// This program's own path is unknown.
    #[error("the path of this program cannot be told")]
    Program(#[source] io::Error),
    /// The directory of the socket cannot be made.
    #[error("{} cannot be made", path.display())]
    RunDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else owns the directory: what is sent to the socket there would be theirs.
    #[error("{} belongs to user {owner}, or others may write to it", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The log cannot be opened.
    #[error("{} cannot be written", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process cannot be started.
    #[error("{} cannot be started", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node says why it cannot serve.
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>),
    /// It ended.
    #[error("it ended ({status}); its last words:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It says nothing.
    #[error("it said nothing within {} seconds; its log {}", START_DEADLINE.as_secs(), log.display())]
    Silent {
        /// The log.
        log: PathBuf,
    },
    /// What it says cannot be read.
    #[error("its first word cannot be read")]
    Word(#[source] io::Error),
}

impl StartError {
    /// Says what to do.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Refused(body) if body.remediation.is_some() => body.remediation.clone().unwrap_or_default(),
            Self::ForeignDirectory { path, .. } => format!(
                "remove {} if nothing of yours is in it, or choose a directory with HEARTH_HOME",
                path.display()
            ),
            Self::RunDirectory { .. } | Self::Log { .. } => {
                "choose a directory that you may write to with HEARTH_HOME".to_owned()
            }
            _ => "run 'hearth node' to see it start in the foreground".to_owned(),
        }
    }
}

impl Node {
    /// Finds the node of this user and environment, or behind `socket`; nothing is connected yet.
    ///
    /// # Errors
    /// Returns [`CliError`] when no place can be told, or it is not this user's.
    pub(crate) fn locate(socket: Option<&Path>) -> Result<Self, CliError> {
        let uid = rustix::process::geteuid().as_raw();
        let socket = socket.map(std::path::absolute).transpose();
        let socket = socket.map_err(crate::resolve::ResolveError::Directory)?;
        let lookup = |name: &str| match &socket {
            Some(socket) if name == SOCKET_VARIABLE => Some(socket.clone().into_os_string()),
            _ => std::env::var_os(name),
        };
        let location = Location::resolve(lookup, uid)?;
        let given = lookup(SOCKET_VARIABLE).is_some_and(|value| !value.is_empty());
        let starter = if given {
            None
        } else {
            check_owner(&location.run, uid)?;
            Some(Starter {
                program: std::env::current_exe().map_err(StartError::Program)?,
                run: location.run,
            })
        };
        Ok(Self {
            client: Client::new(location.socket),
            starter,
            started: tokio::sync::Mutex::new(false),
        })
    }

    /// Returns the client; nothing is started for it.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a request, and again after starting a node when none answers.
    ///
    /// # Errors
    /// Returns the request's error, or why no node could be started.
    pub(crate) async fn call<T>(
        &self,
        request: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, CliError> {
        let absent = match (request(&self.client).await, &self.starter) {
            (Err(error), Some(starter)) if nobody_answers(&error) => starter,
            (result, _) => return Ok(result?),
        };
        let mut started = self.started.lock().await;
        if !*started {
            absent.start().await?;
            *started = true;
        }
        drop(started);
        Ok(request(&self.client).await?)
    }
}

/// Whether a node is absent, rather than there and failing.
pub(crate) fn nobody_answers(error: &ClientError) -> bool {
    let absent = [
        io::ErrorKind::NotFound,
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
    ];
    matches!(error, ClientError::NoNode { source, .. } if absent.contains(&source.kind()))
}

/// Refuses a directory, if there is one, that another user could have put in our way.
fn check_owner(run: &Path, uid: u32) -> Result<(), StartError> {
    let Ok(found) = run.symlink_metadata() else {
        return Ok(());
    };
    if found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(StartError::ForeignDirectory {
        path: run.to_owned(),
        owner: found.uid(),
    })
}

impl Starter {
    /// Starts a node and waits until it, or another one, answers.
    ///
    /// # Errors
    /// Returns [`StartError`] when none does within the deadline.
    pub(crate) async fn start(&self) -> Result<(), StartError> {
        let mut directory = std::fs::DirBuilder::new();
        let made = directory.recursive(true).mode(0o700).create(&self.run);
        made.map_err(|source| StartError::RunDirectory {
            path: self.run.clone(),
            source,
        })?;
        check_owner(&self.run, rustix::process::geteuid().as_raw())?;
        let path = self.run.join("node.log");
        if std::fs::metadata(&path).is_ok_and(|log| log.len() > LOG_CAP) {
            // A log that stays is a longer one, and no reason not to start.
            let _ = std::fs::rename(&path, path.with_extension("log.1"));
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path);
        let log = log.and_then(|log| Ok((log.metadata()?.len(), log)));
        let (before, log) = log.map_err(|source| StartError::Log {
            path: path.clone(),
            source,
        })?;
        let (mut child, word) = self.spawn(&log).map_err(|source| StartError::Spawn {
            program: self.program.clone(),
            source,
        })?;
        let heard = tokio::time::timeout(START_DEADLINE, async {
            match hear(word).await? {
                Some(()) => Ok(()),
                None => Err(StartError::Ended {
                    status: child.wait().await.map_err(StartError::Word)?,
                    log: tail(&path, before),
                }),
            }
        });
        heard
            .await
            .unwrap_or(Err(StartError::Silent { log: path.clone() }))
    }

    /// Starts the process with the pipe's writing end; returns the reading one.
    fn spawn(&self, log: &std::fs::File) -> io::Result<(tokio::process::Child, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Nothing else is started by this process, so that nobody else inherits it.
        rustix::io::fcntl_setfd(&write, rustix::io::FdFlags::empty())?;
        let child = tokio::process::Command::new(&self.program)
            .arg("node")
            .arg("--ready-fd")
            .arg(write.as_raw_fd().to_string())
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| inherited(name)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()?;
        Ok((child, read))
    }
}

fn inherited(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        INHERITED.contains(&name)
            || ["HEARTH_", "XDG_", "LC_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    })
}

/// Reads the node's first word; `None` when it ended without one.
async fn hear(word: OwnedFd) -> Result<Option<()>, StartError> {
    let pipe = pipe::Receiver::from_owned_fd(word).map_err(StartError::Word)?;
    let mut line = String::new();
    let mut reader = BufReader::new(pipe.take(WORD_LIMIT));
    reader.read_line(&mut line).await.map_err(StartError::Word)?;
    match line.trim_end() {
        "" => Ok(None),
        "ready" | "taken" => Ok(Some(())),
        word => {
            let body: ErrorBody = serde_json::from_str(word)
                .map_err(|_| StartError::Word(io::Error::new(io::ErrorKind::InvalidData, word.to_owned())))?;
            Err(StartError::Refused(Box::new(body)))
        }
    }
}

/// Returns the end of what was written to a log since it had `before` bytes.
fn tail(path: &Path, before: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(before.max(end.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    read()
        .ok()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "(none)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node that is a shell script.
    fn node_that(script: &str) -> (tempfile::TempDir, Starter) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("hearth");
        let text = format!("#!/bin/sh\n{script}\n");
        // By another process: one that this process forks meanwhile for another test would hold the file open for writing, and
        // so keep it from being executed.
        let mut install = std::process::Command::new("install")
            .args(["--mode=755", "/dev/stdin"])
            .arg(&program)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = install.stdin.take().unwrap();
        io::Write::write_all(&mut input, text.as_bytes()).unwrap();
        drop(input);
        assert!(install.wait().unwrap().success());
        let run = directory.path().join("run");
        (directory, Starter { program, run })
    }

    #[tokio::test]
    async fn a_node_that_says_ready_is_ready() {
        let (directory, starter) = node_that("echo \"$1 $2 in $PWD\"; echo ready > /proc/self/fd/$3");
        starter.start().await.unwrap();
        let log = std::fs::read_to_string(directory.path().join("run/node.log")).unwrap();
        assert_eq!(log, "node --ready-fd in /\n");
    }

    #[tokio::test]
    async fn what_a_node_says_against_starting_is_told() {
        let body = r#"{"code":"host_unfit","message":"no tmpfs","remediation":"mount one"}"#;
        let (_directory, starter) = node_that(&format!("echo '{body}' > /proc/self/fd/$3; exit 1"));
        let error = starter.start().await.unwrap_err();
        assert_eq!(error.to_string(), "no tmpfs");
        assert_eq!(error.remedy(), "mount one");
    }

    #[tokio::test]
    async fn a_node_that_dies_leaves_its_last_words() {
        let (directory, starter) = node_that("echo boom >&2; exit 3");
        std::fs::create_dir(directory.path().join("run")).unwrap();
        std::fs::write(directory.path().join("run/node.log"), "of yesterday\n").unwrap();
        let error = starter.start().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "it ended (exit status: 3); its last words:\nboom"
        );
    }

    #[tokio::test]
    async fn a_long_log_is_started_anew() {
        let (directory, starter) = node_that("echo new; echo ready > /proc/self/fd/$3");
        let log = directory.path().join("run/node.log");
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let old = std::fs::File::create(&log).unwrap();
        old.set_len(LOG_CAP + 1).unwrap();
        starter.start().await.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "new\n");
        let kept = std::fs::metadata(directory.path().join("run/node.log.1")).unwrap();
        assert_eq!(kept.len(), LOG_CAP + 1);
        starter.start().await.unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "new\nnew\n");
    }

    #[tokio::test]
    async fn a_directory_of_somebody_else_is_refused() {
        let (directory, starter) = node_that("exit 0");
        std::fs::create_dir(&starter.run).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path().join("run"), mode).unwrap();
        let error = starter.start().await.unwrap_err();
        assert!(matches!(error, StartError::ForeignDirectory { .. }), "{error}");
    }

    /// What a client is told that asks a node which reads at most so much, and ends.
    async fn answer_of_one_that_reads(limit: usize) -> ClientError {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let asked = tokio::spawn(async move { Client::new(socket).node_status().await });
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.readable().await.unwrap();
        let _ = connection.read(&mut vec![0; limit]).await.unwrap();
        drop(connection);
        asked.await.unwrap().unwrap_err()
    }

    #[tokio::test]
    async fn who_ends_before_the_request_was_read_is_no_node() {
        for limit in [0, 1] {
            let error = answer_of_one_that_reads(limit).await;
            assert!(nobody_answers(&error), "{error:?}");
        }
        // What was read may have been done.
        let error = answer_of_one_that_reads(4096).await;
        assert!(matches!(error, ClientError::Connection(_)), "{error:?}");
    }

    #[test]
    fn a_node_does_not_inherit_what_it_does_not_need() {
        let taken = |name: &str| inherited(OsStr::new(name));
        assert!(taken("PATH") && taken("HEARTH_HOME") && taken("XDG_RUNTIME_DIR") && taken("https_proxy"));
        assert!(!taken("AWS_SECRET_ACCESS_KEY") && !taken("SSH_AUTH_SOCK"));
        // Credentials of registries are read by who asks, and sent with the request.
        assert!(!taken("DOCKER_CONFIG") && !taken("REGISTRY_AUTH_FILE"));
    }
}
