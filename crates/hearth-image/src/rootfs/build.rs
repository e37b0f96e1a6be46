//! Drives one build: layers into the tree and the image, the base first, then directories, then the super block.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::path::{PathError, TreePath};
use super::stream;
use super::tar::{ArchiveError, Budget, Entry, Kind, TarReader};
use super::tree::{Content, Id, Layer, MergeError, Node, ROOT, Tree};
use crate::digest::Hasher;
use crate::erofs::{self, Attributes, CopyError, DirectoryPlace, Dirent, Nid, Writer, mode};
use crate::{Digest, Limits};

/// A layer's blob, verified before.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    pub(crate) digest: Digest,
    pub(crate) path: PathBuf,
    /// The digest of its archive, decompressed, where the configuration says it.
    pub(crate) diff_id: Option<Digest>,
}

/// Says why no root file system could be made from an image's layers.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The image could not be written.
    #[error("cannot write the root file system image {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A blob of the store could not be opened.
    #[error("cannot open layer {layer} of the store")]
    Open {
        /// The layer.
        layer: Digest,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A layer is no archive, damaged, truncated, or too large.
    #[error("layer {layer} is not usable")]
    Archive {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: ArchiveError,
    },
    /// A layer holds an entry that must not be.
    #[error("layer {layer} is refused because of its entry {entry:?}")]
    Entry {
        /// The layer.
        layer: Digest,
        /// The path as written, made printable.
        entry: String,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// A layer unpacks to another archive than the configuration says.
    #[error(
        "layer {layer} is not usable: unpacked it has the digest {actual}, and the configuration says {expected}"
    )]
    DiffId {
        /// The layer.
        layer: Digest,
        /// What the configuration says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
}

impl RootfsError {
    /// Tells whether the image is at fault, and not this host.
    pub(crate) fn is_the_images(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Open { .. } => false,
            Self::Archive { .. } | Self::Entry { .. } | Self::DiffId { .. } => true,
        }
    }
}

/// Says why one entry of a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Its path, or the path of its hard link's target.
    #[error("the path is not valid")]
    Path(#[from] PathError),
    /// Its place.
    #[error("it does not fit into the tree")]
    Merge(#[from] MergeError),
    /// Its extended attributes.
    #[error("an extended attribute is longer than Linux allows")]
    Xattr,
    /// The target of a symbolic link.
    #[error("the target of the symbolic link is empty, contains NUL, or is longer than {0} bytes")]
    Symlink(usize),
}

/// What [`build`] reads, writes and reports to.
pub(crate) struct Job<'j> {
    /// The base layer first.
    pub(crate) layers: &'j [LayerBlob],
    /// An empty file that was opened for reading and writing.
    pub(crate) output: File,
    /// Its path, for messages.
    pub(crate) output_path: &'j Path,
    pub(crate) uuid: [u8; 16],
    pub(crate) limits: Limits,
    /// Is told of each layer how many bytes of its blob are done.
    pub(crate) progress: &'j (dyn Fn(&Digest, u64) + Sync),
}

/// Builds the image. Returns its file, not yet synced, and its length in bytes. Blocks; uses one thread besides.
pub(crate) fn build(job: Job<'_>) -> Result<(File, u64), RootfsError> {
    let mut builder = Builder {
        tree: Tree::new(&job.limits),
        writer: Writer::new(job.output),
        budget: Budget::new(job.limits, blob_bytes(job.layers)?),
        path: job.output_path,
    };
    for (index, layer) in job.layers.iter().enumerate() {
        builder.tree.begin_layer(layer_number(index));
        builder.stream(layer, job.progress)?;
    }
    builder.finish(job.uuid)
}

fn blob_bytes(layers: &[LayerBlob]) -> Result<u64, RootfsError> {
    let length = |layer: &LayerBlob| {
        let meta = std::fs::metadata(&layer.path);
        meta.map(|meta| meta.len()).map_err(|source| RootfsError::Open {
            layer: layer.digest,
            source,
        })
    };
    layers
        .iter()
        .try_fold(0, |sum: u64, layer| Ok(sum.saturating_add(length(layer)?)))
}

fn layer_number(index: usize) -> Layer {
    // Layers are limited to 127 by default; more than 65,534 would take a manifest of over 4 MiB.
    Layer::try_from(index + 1).unwrap_or(Layer::MAX)
}

struct Builder<'p> {
    tree: Tree,
    writer: Writer,
    budget: Budget,
    path: &'p Path,
}

impl Builder<'_> {
    /// Applies a layer, and checks that its archive is the one that the configuration names.
    fn stream(
        &mut self,
        layer: &LayerBlob,
        progress: &(dyn Fn(&Digest, u64) + Sync),
    ) -> Result<(), RootfsError> {
        let open = stream::open_decompressed(&layer.path);
        let (mut input, count) = open.map_err(|source| RootfsError::Open {
            layer: layer.digest,
            source,
        })?;
        let (sender, receiver) = stream::pipe();
        let hasher = layer.diff_id.map(|_| Hasher::new());
        let actual = std::thread::scope(|scope| {
            let pump =
                scope.spawn(move || sender.pump(&mut input, hasher, || progress(&layer.digest, count.get())));
            self.read(&layer.digest, receiver)?;
            Ok(pump
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        match (layer.diff_id, actual) {
            (Some(expected), Some(actual)) if expected != actual => Err(RootfsError::DiffId {
                layer: layer.digest,
                expected,
                actual,
            }),
            _ => Ok(()),
        }
    }

    fn read(&mut self, layer: &Digest, mut input: impl Read) -> Result<(), RootfsError> {
        let archive = |source| RootfsError::Archive {
            layer: *layer,
            source,
        };
        let Self {
            tree,
            writer,
            budget,
            path,
        } = self;
        let mut reader = TarReader::new(&mut input, budget);
        while let Some(entry) = reader.next().map_err(archive)? {
            let before = tree.len();
            apply(tree, writer, &entry, &mut reader).map_err(|error| match error {
                ApplyError::Archive(source) => archive(source),
                ApplyError::Entry(source) => RootfsError::Entry {
                    layer: *layer,
                    entry: String::from_utf8_lossy(&entry.path).into_owned(),
                    source,
                },
                ApplyError::Image(source) => RootfsError::Write {
                    path: path.to_path_buf(),
                    source,
                },
            })?;
            // The entry itself was counted when it was read.
            let implied = (tree.len() - before).saturating_sub(1);
            reader.budget().take_entries(implied).map_err(archive)?;
            let memory = reader.budget().take_memory(implied + 1, entry.memory());
            memory.map_err(archive)?;
        }
        drain(&mut input, budget).map_err(archive)
    }

    fn finish(self, uuid: [u8; 16]) -> Result<(File, u64), RootfsError> {
        let Self {
            tree,
            mut writer,
            path,
            ..
        } = self;
        let failed = |source| RootfsError::Write {
            path: path.to_path_buf(),
            source,
        };
        write_tree(&tree, &mut writer).map_err(failed)?;
        writer.finish(uuid).map_err(failed)
    }
}

/// Reads what is behind an archive's end: it belongs to the layer's digest, and a damaged stream shows.
fn drain(input: &mut impl Read, budget: &mut Budget) -> Result<(), ArchiveError> {
    let mut scratch = vec![0; 64 << 10];
    loop {
        match input.read(&mut scratch) {
            Ok(0) => return Ok(()),
            Ok(count) => budget.take_bytes(count as u64)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ArchiveError::Read(source)),
        }
    }
}

/// Applies an entry: the content of a regular file is written at once, since it streams by but now. The rest waits in
/// the tree.
fn apply<R: Read>(
    tree: &mut Tree,
    writer: &mut Writer,
    entry: &Entry,
    reader: &mut TarReader<'_, R>,
) -> Result<(), ApplyError> {
    let limits = *reader.budget().limits();
    let path = TreePath::clean(&entry.path, &limits).map_err(EntryError::from)?;
    if let Some(hidden) = whiteout(&path) {
        apply_whiteout(tree, &path, &hidden, &limits)?;
    } else {
        match entry.kind {
            Kind::Directory => tree
                .directory(&path, attributes(entry)?)
                .map_err(EntryError::from)?,
            Kind::HardLink => {
                let target = TreePath::clean(&entry.link, &limits).map_err(EntryError::from)?;
                tree.hard_link(&path, &target).map_err(EntryError::from)?;
            }
            _ => {
                let attributes = attributes(entry)?;
                let content = content(writer, entry, &attributes, reader)?;
                tree.leaf(&path, content, attributes).map_err(EntryError::from)?;
            }
        }
    }
    for file in tree.take_dropped() {
        writer.discard(&file)?;
    }
    Ok(())
}

fn is_symlink_target(target: &[u8], limit: usize) -> bool {
    !target.is_empty() && !target.contains(&0) && target.len() <= limit
}

/// Returns what follows `.wh.` in the last component.
fn whiteout(path: &TreePath) -> Option<Box<[u8]>> {
    let (_, name) = path.split()?;
    name.strip_prefix(b".wh.").map(Box::from)
}

fn apply_whiteout(
    tree: &mut Tree,
    path: &TreePath,
    hidden: &[u8],
    limits: &Limits,
) -> Result<(), EntryError> {
    let Some((parent, _)) = path.split() else {
        return Ok(());
    };
    match hidden {
        b".wh..opq" => tree.opaque(&parent)?,
        b"" | b"." | b".." => return Err(MergeError::Whiteout.into()),
        // AUFS' own book-keeping, which docker skips too.
        other if other.starts_with(b".wh.") => {}
        name => {
            let target = [parent.display().as_bytes(), name].join(&b'/');
            tree.whiteout(&TreePath::clean(&target, limits)?)?;
        }
    }
    Ok(())
}

fn attributes(entry: &Entry) -> Result<Attributes, EntryError> {
    let kind = match entry.kind {
        Kind::Regular | Kind::HardLink => mode::REGULAR,
        Kind::Symlink => mode::SYMLINK,
        Kind::Character => mode::CHARACTER,
        Kind::Block => mode::BLOCK,
        Kind::Directory => mode::DIRECTORY,
        Kind::Fifo => mode::FIFO,
    };
    let xattrs = entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
    Ok(Attributes {
        mode: kind | entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.0,
        mtime_nsec: entry.mtime.1,
        xattrs: erofs::encode_xattrs(xattrs).ok_or(EntryError::Xattr)?.into(),
    })
}

/// Which side failed while an entry was applied.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Archive(ArchiveError),
    #[error(transparent)]
    Image(#[from] std::io::Error),
}

/// Makes the content of what is neither directory nor hard link.
fn content<R: Read>(
    writer: &mut Writer,
    entry: &Entry,
    attributes: &Attributes,
    reader: &mut TarReader<'_, R>,
) -> Result<Content, ApplyError> {
    Ok(match entry.kind {
        Kind::Symlink => {
            let limit = reader.budget().limits().path_bytes;
            if !is_symlink_target(&entry.link, limit) {
                return Err(EntryError::Symlink(limit).into());
            }
            Content::Symlink(entry.link.clone().into())
        }
        Kind::Character | Kind::Block => {
            Content::Special(erofs::device_number(entry.device.0, entry.device.1))
        }
        Kind::Fifo => Content::Special(0),
        Kind::Regular | Kind::HardLink | Kind::Directory => {
            let written = writer.regular(attributes, entry.size, &mut reader.content());
            Content::File(written.map_err(|error| match error {
                CopyError::Content(source) => ApplyError::Archive(reader.content_error(source)),
                CopyError::Image(source) => ApplyError::Image(source),
            })?)
        }
    })
}

/// A directory in the order of writing.
struct Listed {
    id: Id,
    parent: usize,
    place: DirectoryPlace,
}

/// Writes all that is not yet in the image: links, devices, directories; and the link counts.
fn write_tree(tree: &Tree, writer: &mut Writer) -> std::io::Result<()> {
    let mut nids: Vec<Option<Nid>> = vec![None; usize::try_from(tree.len()).map_err(std::io::Error::other)?];
    let mut listed: Vec<Listed> = Vec::new();
    let mut todo = vec![(ROOT, 0)];
    while let Some((id, parent)) = todo.pop() {
        let children: Vec<_> = tree.children(id).collect();
        let place = reserve(tree, writer, id, &children)?;
        nids[id.index()] = Some(place.nid);
        let index = listed.len();
        listed.push(Listed { id, parent, place });
        let directories = children
            .iter()
            .rev()
            .filter(|(_, child)| tree.is_directory(*child));
        todo.extend(directories.map(|(_, child)| (*child, index)));
        for (_, child) in &children {
            if nids[child.index()].is_none() {
                nids[child.index()] = write_leaf(tree.node(*child), writer)?;
            }
        }
    }
    for directory in &listed {
        let parent = listed[directory.parent].place.nid;
        let children: Vec<_> = tree.children(directory.id).collect();
        let entries = entries(tree, &children, &nids, directory.place.nid, parent);
        writer.fill_directory(&directory.place, &entries)?;
    }
    Ok(())
}

fn reserve(
    tree: &Tree,
    writer: &mut Writer,
    id: Id,
    children: &[(&[u8], Id)],
) -> std::io::Result<DirectoryPlace> {
    let names = sorted_with_dots(children.iter().map(|(name, _)| *name));
    let size = erofs::directory_size(names.iter().map(|name| name.len()));
    let directories = children
        .iter()
        .filter(|(_, child)| tree.is_directory(*child))
        .count();
    let links = u32::try_from(directories + 2).unwrap_or(u32::MAX);
    writer.reserve_directory(&tree.node(id).attributes, size, links)
}

fn sorted_with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = names.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    names
}

/// Returns nothing for a directory, which gets its place when its turn comes.
fn write_leaf(node: &Node, writer: &mut Writer) -> std::io::Result<Option<Nid>> {
    let nid = match &node.content {
        Content::File(stored) => stored.nid,
        Content::Special(number) => writer.special(&node.attributes, *number)?,
        Content::Symlink(target) => match writer.symlink(&node.attributes, target) {
            Ok(nid) => nid,
            Err(CopyError::Content(source) | CopyError::Image(source)) => return Err(source),
        },
        Content::Directory(_) => return Ok(None),
    };
    if node.links > 1 {
        writer.set_links(nid, node.links)?;
    }
    Ok(Some(nid))
}

fn entries<'t>(
    tree: &Tree,
    children: &[(&'t [u8], Id)],
    nids: &[Option<Nid>],
    own: Nid,
    parent: Nid,
) -> Vec<Dirent<'t>> {
    let dots = [(&b"."[..], own), (b"..", parent)];
    let dots = dots.map(|(name, nid)| Dirent {
        name,
        nid: nid.number(),
        mode: mode::DIRECTORY,
    });
    let named = children.iter().filter_map(|(name, child)| {
        let mode = tree.node(*child).attributes.mode;
        Some(Dirent {
            name,
            nid: nids[child.index()]?.number(),
            mode,
        })
    });
    let mut entries: Vec<_> = dots.into_iter().chain(named).collect();
    entries.sort_unstable_by_key(|entry| entry.name);
    entries
}
