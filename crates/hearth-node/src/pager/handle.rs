//! A pager as the node sees it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::image::{self, ImageError};
use crate::host::launch::{self, FIRST_PASSED_FD, Launch, LaunchError};
use crate::host::process::{Exit, Process, ProcessId};
use crate::host::{files, unix_socket};

/// How long a pager has to let go of its machines.
const END: Duration = Duration::from_secs(10);

/// What a pager is started with.
#[derive(Debug, Clone)]
pub struct PagerStart {
    /// The memory image, which nobody writes any more.
    pub image: PathBuf,
    /// Bytes that it must have.
    pub length: u64,
    /// Where machines connect: the node's own user alone, until the driver opens it to others.
    pub socket: PathBuf,
    /// Where the pages that are touched first are kept: in a directory that holds nothing else of worth. None: neither
    /// recorded nor put in place ahead.
    pub working_set: Option<PathBuf>,
    /// Users whose machines are served, first and last, beside the node's own.
    pub users: Option<(u32, u32)>,
    /// Where its words go.
    pub log: PathBuf,
}

/// Says why there is no pager.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The image is not what the snapshot says.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] unix_socket::SocketError),
    /// The log, or the node's own program.
    #[error("cannot prepare the pager of {}", image.display())]
    Prepare {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// A pager that runs, or did.
#[derive(Debug)]
pub struct Pager {
    process: Process,
    socket: PathBuf,
}

impl Pager {
    /// Starts a pager. Machines can connect at once.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(start: &PagerStart) -> Result<Self, StartError> {
        // The pager looks itself; here the reason reaches who asked.
        image::open_checked(&start.image, Some(start.length))?;
        let prepare = |source| StartError::Prepare {
            image: start.image.clone(),
            source,
        };
        let mut log = OpenOptions::new();
        log.create(true).append(true).mode(files::PRIVATE);
        let log = log.open(&start.log).map_err(prepare)?;
        let listener = unix_socket::listen(&start.socket)?;
        let program = std::env::current_exe().map_err(prepare)?;
        let process = launch::launch(Launch {
            passed: vec![listener],
            ..Launch::of(program, arguments(start), log)
        });
        if process.is_err() {
            // The error that counts is the first one.
            let _ = files::remove_file(&start.socket);
        }
        Ok(Self {
            process: process?,
            socket: start.socket.clone(),
        })
    }

    /// Finds the pager of an earlier node again; `None` when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses to watch it.
    pub fn find(id: ProcessId, socket: PathBuf) -> io::Result<Option<Self>> {
        let found = Process::find(id)?;
        Ok(found.map(|process| Self { process, socket }))
    }

    /// Returns its process, which goes into a record.
    pub const fn id(&self) -> ProcessId {
        self.process.id()
    }

    /// Returns where machines connect.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until it has ended. Machines that it served have been killed then, or will be within a moment.
    ///
    /// # Errors
    /// When the kernel can no longer watch it.
    pub async fn ended(&self) -> io::Result<Exit> {
        self.process.wait().await
    }

    /// Ends it, and the machines that it still serves, and removes its socket.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn stop(self) -> io::Result<Exit> {
        self.process.terminate()?;
        let exit = match tokio::time::timeout(END, self.process.wait()).await {
            Ok(exit) => exit?,
            Err(_) => {
                self.process.kill()?;
                self.process.wait().await?
            }
        };
        files::remove_file(&self.socket)?;
        Ok(exit)
    }
}

fn arguments(start: &PagerStart) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["pager".into(), "--image".into(), start.image.clone().into()];
    arguments.extend(["--length".into(), start.length.to_string().into()]);
    arguments.extend(["--socket-fd".into(), FIRST_PASSED_FD.to_string().into()]);
    if let Some(path) = &start.working_set {
        arguments.extend(["--working-set".into(), path.clone().into()]);
    }
    if let Some((first, last)) = start.users {
        arguments.extend(["--peers".into(), crate::host::own::uid().to_string().into()]);
        arguments.extend(["--peers".into(), format!("{first}-{last}").into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(users: Option<(u32, u32)>) -> PagerStart {
        PagerStart {
            image: "/s/memory".into(),
            length: 4096,
            socket: "/r/pager".into(),
            working_set: Some("/s/pager/working-set".into()),
            users,
            log: "/s/pager.log".into(),
        }
    }

    #[test]
    fn the_pager_understands_what_the_node_says() {
        for users in [None, Some((7, 9))] {
            let words = arguments(&start(users));
            let parsed = super::super::arguments::Arguments::parse(&words[1..], 5).unwrap();
            assert_eq!(parsed.length, Some(4096));
            assert!(parsed.peers.iter().any(|range| range.contains(&8)) == users.is_some());
        }
    }

    #[test]
    fn an_image_that_was_cut_off_is_refused_before_anything_runs() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("memory");
        std::fs::write(&image, [1; 4095]).unwrap();
        let socket = directory.path().join("s");
        let refused = Pager::start(&PagerStart {
            image,
            socket: socket.clone(),
            ..start(None)
        });
        let error = refused.unwrap_err();
        assert!(
            matches!(error, StartError::Image(ImageError::Length { length: 4095, .. })),
            "{error}"
        );
        assert!(!socket.exists());
    }
}
