//! A program that keeps passwords: docker's protocol of `docker-credential-NAME get`.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use hearth_api::v1::Login;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::file::login;
use crate::resolve::Host;

/// How long a program may take: it may ask a person for a password in a window of its own.
const DEADLINE: Duration = Duration::from_secs(60);
/// Overrides [`DEADLINE`], in seconds.
const DEADLINE_VARIABLE: &str = "HEARTH_CREDENTIAL_HELPER_SECONDS";
/// Bytes of an answer that are read.
const ANSWER: u64 = 64 << 10;
/// What a program says when it does not know the registry; all of them do.
const NOT_FOUND: &str = "credentials not found";

/// Says why a program gave no login.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    /// Its name would be a path.
    #[error("{0:?} is not the name of a program")]
    Name(String),
    /// It is not there.
    #[error("there is no program {0} in PATH")]
    Absent(String),
    /// It cannot be run.
    #[error("{program} cannot be run")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// What it said.
        said: String,
    },
    /// It takes too long.
    #[error("{program} has not answered within {} s", after.as_secs())]
    Slow {
        /// The program.
        program: String,
        /// How long it had.
        after: Duration,
    },
    /// Its answer is none of the protocol's.
    // The answer is not shown: the password may be in it.
    #[error("the answer of {0} makes no sense")]
    Answer(String),
}

impl HelperError {
    /// Says what the user can do about it.
    pub(super) fn remedy(&self, file: &Path) -> String {
        let file = file.display();
        match self {
            Self::Absent(program) => {
                format!("install {program}, or take it out of credHelpers and credsStore in {file}")
            }
            Self::Name(_) => format!("mend credHelpers and credsStore in {file}"),
            Self::Run { program, .. } | Self::Failed { program, .. } | Self::Answer(program) => {
                format!("try it by hand: echo REGISTRY | {program} get")
            }
            Self::Slow { .. } => {
                format!("unlock the store that it asks; {DEADLINE_VARIABLE} gives it more time")
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a program for the login to a server; `None` when it knows none.
pub(super) async fn get(name: &str, server: &str, host: &impl Host) -> Result<Option<Login>, HelperError> {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(usual) {
        return Err(HelperError::Name(name.chars().take(100).collect()));
    }
    let given = host.variable(DEADLINE_VARIABLE);
    let given = given
        .as_deref()
        .and_then(OsStr::to_str)
        .and_then(|text| text.parse().ok());
    let after = given.map_or(DEADLINE, Duration::from_secs);
    let program = format!("docker-credential-{name}");
    // Dropped at the deadline, and then killed.
    let asked = tokio::time::timeout(after, ask(&program, server)).await;
    let (succeeded, said) = asked.map_err(|_| HelperError::Slow {
        program: program.clone(),
        after,
    })??;
    if succeeded {
        let answer: Answer =
            serde_json::from_slice(&said).map_err(|_| HelperError::Answer(program.clone()))?;
        return Ok(Some(login(answer.username, answer.secret)));
    }
    let said = String::from_utf8_lossy(&said)
        .trim()
        .chars()
        .take(300)
        .collect::<String>();
    match said.contains(NOT_FOUND) {
        true => Ok(None),
        false => Err(HelperError::Failed { program, said }),
    }
}

/// Returns whether the program succeeded, and what it printed. Its standard error is the caller's.
async fn ask(program: &str, server: &str) -> Result<(bool, Vec<u8>), HelperError> {
    let started = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = started.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => HelperError::Absent(program.to_owned()),
        _ => HelperError::Run {
            program: program.to_owned(),
            source,
        },
    })?;
    let spoken = speak(&mut child, server).await;
    spoken.map_err(|source| HelperError::Run {
        program: program.to_owned(),
        source,
    })
}

async fn speak(child: &mut Child, server: &str) -> io::Result<(bool, Vec<u8>)> {
    if let Some(mut input) = child.stdin.take() {
        // It may answer without having read.
        let _ = input.write_all(server.as_bytes()).await;
    }
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(ANSWER).read_to_end(&mut said).await?;
    }
    Ok((child.wait().await?.success(), said))
}
