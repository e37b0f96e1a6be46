//! `hearth pager`: one process per memory image that serves the pages of all machines made of it, by userfaultfd.
//!
//! ```text
//! handle       what the node knows of a pager: start, socket, end
//! arguments    its command line
//! guard        the process that kills the machines if the server dies, and keeps the working set
//! server       one loop: connections, faults, ends           machine    one machine's faults
//! handshake    what Firecracker says of its memory           image      the file, and its holes
//! recording    which pages are touched first                 working_set    the same as a file
//! ```
//! It outlives the node. It ends with SIGTERM, or when no machine has wanted it for a while. A machine that dies frees what it
//! had here at once; when the pager dies its machines are killed, since Firecracker would wait for good. Everything but `handle` runs
//! in the process of its own, confined before the first machine connects.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::host::fork::{self, Fork};
use crate::host::process::Exit;
use crate::host::{confine, own, passing, unix_socket};

mod arguments;
mod guard;
pub mod handle;
pub mod handshake;
mod image;
mod machine;
mod ranges;
mod recording;
mod server;
pub mod working_set;

pub use arguments::ArgumentError;
pub use handle::{Pager, PagerStart};
pub use image::ImageError;

use arguments::{Arguments, Door};
use guard::Guard;
use image::Image;
use recording::Learned;
use server::{Manners, Server};
use working_set::{WorkingSet, WorkingSetError};

/// Says why a pager ended.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The command line.
    #[error("`hearth pager` is started by the node: its command line makes no sense")]
    Arguments(#[from] ArgumentError),
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// There is no socket to listen on.
    #[error("there is no socket to listen on")]
    Door(#[source] io::Error),
    /// There is no socket at the path.
    #[error(transparent)]
    Socket(#[from] unix_socket::SocketError),
    /// The two processes.
    #[error("cannot make the pager's second process")]
    Fork(#[source] io::Error),
    /// It would run with more rights than it needs.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// The loop.
    #[error("pages cannot be served any more")]
    Serve(#[source] io::Error),
    /// The guard's loop.
    #[error("the page server cannot be guarded any more")]
    Guard(#[source] io::Error),
    /// The server died.
    #[error(
        "the page server ended ({exit}); its machines, which would stand still for good, were killed: {killed:?}"
    )]
    Died {
        /// How.
        exit: Exit,
        /// Processes of machines that lived until then.
        killed: Vec<i32>,
    },
}

/// Is the program `hearth pager`.
///
/// # Errors
/// [`PagerError`].
pub fn run(words: &[OsString]) -> Result<(), PagerError> {
    let arguments = Arguments::parse(words, own::uid())?;
    own::raise_open_files();
    let image = Image::open(&arguments.image, arguments.length)?;
    let length_max = WorkingSet::file_length_max(image.length());
    let learned = match &arguments.working_set {
        Some(path) => match read_working_set(path, image.length()) {
            Some(set) => Learned::Known(set.into()),
            None => Learned::Nothing(arguments.record),
        },
        None => Learned::Off,
    };
    let listener = listen(&arguments.door)?;
    let (ours, theirs) = passing::pair().map_err(PagerError::Fork)?;
    match fork::fork().map_err(PagerError::Fork)? {
        Fork::Parent(server) => {
            drop((listener, theirs, image));
            guard::guard(&server, ours, arguments.working_set, length_max)
        }
        Fork::Child => {
            drop(ours);
            let manners = Manners {
                users: arguments.peers,
                idle: arguments.idle,
                learned,
            };
            let server = Server::new(image, listener, Guard::new(theirs), manners);
            let mut server = server.map_err(PagerError::Serve)?;
            confine::confine(confine::Role::Pages)?;
            server.run().map_err(PagerError::Serve)
        }
    }
}

fn listen(door: &Door) -> Result<OwnedFd, PagerError> {
    let listener = match door {
        Door::Inherited(number) => fork::inherited(*number).map_err(PagerError::Door)?,
        Door::Path(path) => unix_socket::listen(path)?,
    };
    unix_socket::never_wait(&listener).map_err(PagerError::Door)?;
    Ok(listener)
}

/// Reads the working set; what is wrong with it costs time and nothing else.
fn read_working_set(path: &Path, image_length: u64) -> Option<WorkingSet> {
    let limit = WorkingSet::file_length_max(image_length);
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > limit => Err(WorkingSetError::Length.to_string()),
        Ok(_) => std::fs::read(path).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    let read =
        bytes.and_then(|bytes| WorkingSet::decode(&bytes, image_length).map_err(|error| error.to_string()));
    match read {
        Ok(set) => Some(set),
        Err(reason) => {
            let path = path.display();
            tracing::warn!(%path, reason, "the working set is not used, and is recorded anew");
            None
        }
    }
}
