//! File operations: tar streams out of and into the workload's root. Each runs in a forked child that has moved there,
//! so that neither a link in the image nor a name in an archive leads anywhere else.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hearth_guest_protocol::message::{Failure, FailureCode, FileKind, FileRequest, FileStat};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use rustix::process::{chdir, chroot};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tar::{Archive, Builder, EntryType, Header};

use crate::container;
use crate::report::{self, Report};
use crate::spawn::Pipes;
use crate::{sys, trust};

/// Files with several names that are remembered, so that the second name becomes a link; a bound for hostile images.
const LINKS_MAX: usize = 100_000;

/// Smaller files are copied together with their headers; larger ones go from the page cache into the pipe directly.
const SPLICE_MIN: u64 = 64 * 1024;

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
enum FilesError {
    #[error("the workload has ended")]
    WorkloadGone,
    #[error("{path}: {source}")]
    Path { path: String, source: io::Error },
    #[error("{path}: a path must be absolute")]
    Relative { path: String },
    #[error("cannot unpack the archive into {path}: {source}")]
    Unpack { path: String, source: io::Error },
    #[error("cannot enter the workload's root: {0}")]
    Root(Errno),
    #[error("cannot add certificates to those that the image trusts: {0}")]
    Trust(io::Error),
    #[error("cannot write the answer: {0}")]
    Answer(io::Error),
}

impl FilesError {
    fn code(&self) -> FailureCode {
        match self {
            Self::WorkloadGone => FailureCode::WorkloadGone,
            Self::Relative { .. } => FailureCode::BadRequest,
            Self::Path { source, .. } if is_missing(source) => FailureCode::NoSuchFile,
            _ => FailureCode::System,
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.display().to_string();
    move |source| FilesError::Path { path, source }
}

/// Does what was asked in the root of `workload`, or in the root it left behind when there is none; then ends.
pub(crate) fn run(
    request: &FileRequest,
    workload: Option<BorrowedFd<'_>>,
    pipes: &Pipes,
    report: BorrowedFd<'_>,
) -> Infallible {
    sys::reset_signals();
    let ends = [&pipes.input, &pipes.output]
        .into_iter()
        .flatten()
        .map(AsFd::as_fd);
    let keep: Vec<BorrowedFd<'_>> = ends.chain([report]).chain(workload).collect();
    sys::close_others(&keep);
    match enter(workload).and_then(|()| operate(request, pipes, report)) {
        Ok(()) => sys::exit(0),
        Err(error) => {
            let failure = Failure {
                code: error.code(),
                message: error.to_string(),
            };
            report::send(report, &Report::Failed(failure), None);
            sys::exit(1)
        }
    }
}

fn enter(workload: Option<BorrowedFd<'_>>) -> Result<(), FilesError> {
    match workload {
        Some(workload) => match move_into_thread_name_spaces(workload, ThreadNameSpaceType::MOUNT) {
            Err(Errno::SRCH) => Err(FilesError::WorkloadGone),
            other => other.map_err(FilesError::Root),
        },
        None => chroot(container::ROOT)
            .and_then(|()| chdir("/"))
            .map_err(FilesError::Root),
    }
}

fn operate(request: &FileRequest, pipes: &Pipes, report: BorrowedFd<'_>) -> Result<(), FilesError> {
    let opened = || report::send(report, &Report::Opened, None);
    match request {
        FileRequest::Get { path } => {
            let (path, metadata) = look(path)?;
            opened();
            get(&path, &metadata, stream(&pipes.output)?)
        }
        FileRequest::Put { path, keep_owners } => {
            let (path, metadata) = look(path)?;
            if !metadata.is_dir() {
                return Err(at(&path)(io::ErrorKind::NotADirectory.into()));
            }
            opened();
            put(&path, *keep_owners, stream(&pipes.input)?)
        }
        FileRequest::Trust => {
            opened();
            let mut certificates = String::new();
            let input = stream(&pipes.input)?;
            input
                .take(trust::CERTIFICATES_MAX)
                .read_to_string(&mut certificates)
                .map_err(FilesError::Answer)?;
            let bundle = trust::install(Path::new("/"), &certificates).map_err(FilesError::Trust)?;
            let said = format!("{bundle}\n{}\n", trust::ANCHORS);
            let mut output = stream(&pipes.output)?;
            output.write_all(said.as_bytes()).map_err(FilesError::Answer)
        }
        FileRequest::Stat { path } => {
            let (_, metadata) = look(path)?;
            opened();
            let stat = postcard::to_allocvec(&describe(&metadata)).unwrap_or_default();
            stream(&pipes.output)?
                .write_all(&stat)
                .map_err(FilesError::Answer)
        }
    }
}

fn stream(pipe: &Option<OwnedFd>) -> Result<File, FilesError> {
    let pipe = pipe
        .as_ref()
        .ok_or_else(|| FilesError::Answer(io::ErrorKind::NotConnected.into()))?;
    pipe.try_clone().map(File::from).map_err(FilesError::Answer)
}

fn look(path: &[u8]) -> Result<(PathBuf, Metadata), FilesError> {
    let path = PathBuf::from(OsStr::from_bytes(path));
    if !path.is_absolute() {
        return Err(FilesError::Relative {
            path: path.display().to_string(),
        });
    }
    let metadata = fs::metadata(&path).map_err(at(&path))?;
    Ok((path, metadata))
}

fn describe(metadata: &Metadata) -> FileStat {
    let kind = match metadata.file_type() {
        file if file.is_file() => FileKind::File,
        file if file.is_dir() => FileKind::Directory,
        _ => FileKind::Other,
    };
    FileStat {
        kind,
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
    }
}

/// Writes `path`, which `metadata` describes after all links, and what is in it, as a tar stream.
fn get(path: &Path, metadata: &Metadata, output: File) -> Result<(), FilesError> {
    let mut writer = TarWriter {
        builder: Builder::new(BufWriter::with_capacity(SPLICE_MIN as usize, output)),
        links: HashMap::new(),
    };
    let name = PathBuf::from(path.file_name().unwrap_or(OsStr::new(".")));
    writer.add(path, &name, metadata)?;
    if metadata.is_dir() {
        let root = fs::canonicalize(path).map_err(at(path))?;
        let mut directories = vec![(root, name, metadata.dev())];
        while let Some((directory, name, device)) = directories.pop() {
            writer.add_content(&directory, &name, device, &mut directories)?;
        }
    }
    writer.finish()
}

/// A directory that is still to be read: its path, its name in the archive, the device it lies on.
type Directories = Vec<(PathBuf, PathBuf, u64)>;

struct TarWriter {
    builder: Builder<BufWriter<File>>,
    /// The names of files that have several, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl TarWriter {
    /// Adds what is in a directory. What has vanished meanwhile is left out.
    fn add_content(
        &mut self,
        directory: &Path,
        name: &Path,
        device: u64,
        directories: &mut Directories,
    ) -> Result<(), FilesError> {
        let mut entries: Vec<_> = match fs::read_dir(directory) {
            Err(error) if is_missing(&error) => return Ok(()),
            entries => entries
                .map_err(at(directory))?
                .flatten()
                .map(|entry| entry.file_name())
                .collect(),
        };
        entries.sort_unstable();
        let first = directories.len();
        for entry in entries {
            let (path, name) = (directory.join(&entry), name.join(&entry));
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if is_missing(&error) => continue,
                metadata => metadata.map_err(at(&path))?,
            };
            let is_own = metadata.dev() == device || !is_kernels(&path);
            if !metadata.is_dir() || is_own {
                self.add(&path, &name, &metadata)?;
            }
            if metadata.is_dir() && is_own {
                directories.push((path, name, metadata.dev()));
            }
        }
        directories[first..].reverse();
        Ok(())
    }

    /// Adds one entry; devices, sockets and pipes are left out.
    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> Result<(), FilesError> {
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        header.set_size(0);
        let kind = metadata.file_type();
        let added = if kind.is_file() {
            return self.add_file(path, name, metadata, header);
        } else if kind.is_symlink() {
            self.add_symlink(path, name, &mut header)
        } else if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty())
        } else {
            debug_assert!(
                kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket()
            );
            Ok(())
        };
        added.map_err(at(path))
    }

    fn add_symlink(&mut self, path: &Path, name: &Path, header: &mut Header) -> io::Result<()> {
        let target = fs::read_link(path)?;
        header.set_entry_type(EntryType::Symlink);
        match header.set_link_name_literal(target.as_os_str().as_bytes()) {
            Ok(()) => self.builder.append_data(header, name, io::empty()),
            Err(_) => self.builder.append_link(header, name, &target),
        }
    }

    fn add_file(
        &mut self,
        path: &Path,
        name: &Path,
        metadata: &Metadata,
        mut header: Header,
    ) -> Result<(), FilesError> {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&identity) {
            header.set_entry_type(EntryType::Link);
            return self
                .builder
                .append_link(&mut header, name, first)
                .map_err(at(path));
        }
        if metadata.nlink() > 1 && self.links.len() < LINKS_MAX {
            self.links.insert(identity, name.to_path_buf());
        }
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = match open {
            Err(error) if is_missing(&error) => return Ok(()),
            file => file.map_err(at(path))?,
        };
        // Between looking and opening the workload may have put something else there.
        let metadata = file.metadata().map_err(at(path))?;
        if !metadata.is_file() {
            return Ok(());
        }
        let size = metadata.len();
        header.set_metadata(&metadata);
        self.builder
            .append_data(&mut header, name, io::empty())
            .map_err(at(path))?;
        copy_body(&file, size, self.builder.get_mut()).map_err(at(path))
    }

    fn finish(self) -> Result<(), FilesError> {
        let writer = self.builder.into_inner().map_err(FilesError::Answer)?;
        writer
            .into_inner()
            .map(drop)
            .map_err(|error| FilesError::Answer(error.into_error()))
    }
}

/// Tells whether a directory belongs to a file system of the kernel's, which has no files worth copying.
fn is_kernels(directory: &Path) -> bool {
    const MQUEUE_MAGIC: i64 = 0x1980_0202;
    let kernels = [
        libc::PROC_SUPER_MAGIC,
        libc::SYSFS_MAGIC,
        libc::CGROUP2_SUPER_MAGIC,
        libc::DEVPTS_SUPER_MAGIC,
        MQUEUE_MAGIC,
    ];
    rustix::fs::statfs(directory).is_ok_and(|stat| kernels.contains(&stat.f_type))
}

/// Writes exactly `size` bytes and what fills the last block: a file that shrinks meanwhile ends in zeroes.
fn copy_body(file: &File, size: u64, output: &mut BufWriter<File>) -> io::Result<()> {
    let mut left = size;
    if size >= SPLICE_MIN {
        output.flush()?;
        left = splice_body(file, size, output.get_ref())?;
    }
    left -= io::copy(&mut file.take(left), output)?;
    let padding = size.next_multiple_of(512) - size;
    io::copy(&mut io::repeat(0).take(left + padding), output).map(drop)
}

/// Moves bytes without copying them; returns how many are left to be copied in the ordinary way.
fn splice_body(file: &File, size: u64, pipe: &File) -> io::Result<u64> {
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left.min(1 << 20)).unwrap_or(1 << 20);
        match splice(file, None, pipe, None, length, SpliceFlags::MOVE) {
            Ok(0) | Err(Errno::INVAL) => break,
            Ok(count) => left -= count as u64,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(left)
}

/// Unpacks a tar stream into a directory.
fn put(path: &Path, keep_owners: bool, input: File) -> Result<(), FilesError> {
    let mut archive = Archive::new(input);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(keep_owners);
    archive.set_overwrite(true);
    archive.unpack(path).map_err(|source| FilesError::Unpack {
        path: path.display().to_string(),
        source,
    })
}
