//! Drives one build: layers from the top down into the tree and the image, then directories, then the super block.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::graft::Grafter;
use super::path::{PathError, TreePath};
use super::stream;
use super::tar::{ArchiveError, Budget, Entry, Kind, TarReader};
use super::tree::{Content, Id, Layer, MergeError, ROOT, Tree};
use crate::erofs::{self, Attributes, CopyError, DirectoryPlace, Dirent, Nid, Writer, mode};
use crate::{Digest, Limits};

/// A layer's blob, verified before.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    pub(crate) digest: Digest,
    pub(crate) path: PathBuf,
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
    /// The layers do not fit together.
    #[error("the layers do not make one file system")]
    Merge(#[source] MergeError),
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
        tree: Tree::new(),
        writer: Writer::new(job.output),
        budget: Budget::new(job.limits),
        path: job.output_path,
    };
    for (index, layer) in job.layers.iter().enumerate().rev() {
        builder.tree.begin_layer(layer_number(index));
        builder.stream(layer, job.progress, Pass::First)?;
        let rescan = builder.tree.end_layer();
        if !rescan.is_empty() {
            builder.stream(layer, job.progress, Pass::Rescan(rescan))?;
        }
    }
    Grafter::new(&mut builder.tree, job.limits.entries)
        .finish()
        .map_err(RootfsError::Merge)?;
    builder.finish(job.uuid)
}

fn layer_number(index: usize) -> Layer {
    // Layers are limited to 127 by default; more than 65,534 would take a manifest of over 4 MiB.
    Layer::try_from(index + 1).unwrap_or(Layer::MAX)
}

/// Whether a layer is read for its entries, or once more for content that turned out to be needed.
enum Pass {
    First,
    Rescan(std::collections::BTreeMap<u64, Id>),
}

struct Builder<'p> {
    tree: Tree,
    writer: Writer,
    budget: Budget,
    path: &'p Path,
}

impl Builder<'_> {
    fn stream(
        &mut self,
        layer: &LayerBlob,
        progress: &(dyn Fn(&Digest, u64) + Sync),
        pass: Pass,
    ) -> Result<(), RootfsError> {
        let open = stream::open_decompressed(&layer.path);
        let (mut input, count) = open.map_err(|source| RootfsError::Open {
            layer: layer.digest,
            source,
        })?;
        let (sender, receiver) = stream::pipe();
        std::thread::scope(|scope| {
            scope.spawn(move || sender.pump(&mut input, || progress(&layer.digest, count.get())));
            self.read(&layer.digest, receiver, pass)
        })
    }

    fn read(&mut self, layer: &Digest, input: impl Read, mut pass: Pass) -> Result<(), RootfsError> {
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
        let mut reader = TarReader::new(input, budget);
        while let Some(entry) = reader.next().map_err(archive)? {
            let before = tree.len();
            let added = match &mut pass {
                Pass::First => add(tree, &entry, reader.budget().limits()),
                Pass::Rescan(wanted) => Ok(wanted.remove(&entry.ordinal)),
            };
            let refused = |source| RootfsError::Entry {
                layer: *layer,
                entry: String::from_utf8_lossy(&entry.path).into_owned(),
                source,
            };
            if let Some(id) = added.map_err(refused)? {
                let attributes = attributes(&entry).map_err(refused)?;
                let content =
                    write(writer, &entry, &attributes, &mut reader).map_err(|error| match error {
                        WriteError::Entry(source) => refused(source),
                        WriteError::Archive(source) => archive(source),
                        WriteError::Image(source) => RootfsError::Write {
                            path: path.to_path_buf(),
                            source,
                        },
                    })?;
                tree.fill(id, content, attributes);
            }
            // The entry itself was counted when it was read.
            let implied = (tree.len() - before).saturating_sub(1);
            reader.budget().take_entries(implied).map_err(archive)?;
            if matches!(&pass, Pass::Rescan(wanted) if wanted.is_empty()) {
                break;
            }
        }
        Ok(())
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

/// Adds an entry to the tree. Returns the node whose content is to be written.
fn add(tree: &mut Tree, entry: &Entry, limits: &Limits) -> Result<Option<Id>, EntryError> {
    let path = TreePath::clean(&entry.path, limits)?;
    if let Some(hidden) = whiteout(&path) {
        add_whiteout(tree, &path, &hidden, limits)?;
        return Ok(None);
    }
    match entry.kind {
        Kind::Directory => {
            tree.directory(&path, attributes(entry)?)?;
            Ok(None)
        }
        Kind::HardLink => {
            tree.hard_link(&path, &TreePath::clean(&entry.link, limits)?)?;
            Ok(None)
        }
        kind => {
            if kind == Kind::Symlink && !is_symlink_target(&entry.link, limits) {
                return Err(EntryError::Symlink(limits.path_bytes));
            }
            Ok(tree.admit(&path, entry.ordinal, kind == Kind::Symlink)?)
        }
    }
}

fn is_symlink_target(target: &[u8], limits: &Limits) -> bool {
    !target.is_empty() && !target.contains(&0) && target.len() <= limits.path_bytes
}

/// Returns what follows `.wh.` in the last component.
fn whiteout(path: &TreePath) -> Option<Box<[u8]>> {
    let (_, name) = path.split()?;
    name.strip_prefix(b".wh.").map(Box::from)
}

fn add_whiteout(tree: &mut Tree, path: &TreePath, hidden: &[u8], limits: &Limits) -> Result<(), EntryError> {
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

/// Which side failed while an entry was written.
enum WriteError {
    Entry(EntryError),
    Archive(ArchiveError),
    Image(std::io::Error),
}

/// Writes the content of a regular file, at once: it streams by but now. The rest waits in the tree.
fn write<R: Read>(
    writer: &mut Writer,
    entry: &Entry,
    attributes: &Attributes,
    reader: &mut TarReader<'_, R>,
) -> Result<Content, WriteError> {
    match entry.kind {
        Kind::Regular => match writer.regular(attributes, entry.size, &mut reader.content()) {
            Ok(nid) => Ok(Content::File(nid)),
            Err(CopyError::Content(source)) => Err(WriteError::Archive(reader.content_error(source))),
            Err(CopyError::Image(source)) => Err(WriteError::Image(source)),
        },
        Kind::Symlink => Ok(Content::Symlink(entry.link.clone().into())),
        Kind::Character | Kind::Block => Ok(Content::Special(erofs::device_number(
            entry.device.0,
            entry.device.1,
        ))),
        Kind::Fifo => Ok(Content::Special(0)),
        // Neither is admitted as a node with content.
        Kind::HardLink | Kind::Directory => Err(WriteError::Entry(
            MergeError::LinkTarget(String::from_utf8_lossy(&entry.link).into()).into(),
        )),
    }
}

/// A directory in the order of writing.
struct Listed {
    id: Id,
    parent: usize,
    place: DirectoryPlace,
}

/// Writes all that is not yet in the image: links, devices, directories; and the link counts.
fn write_tree(tree: &Tree, writer: &mut Writer) -> std::io::Result<()> {
    let mut nids: Vec<Option<Nid>> = vec![None; tree.nodes.len()];
    let mut links: Vec<u32> = vec![0; tree.nodes.len()];
    let mut listed: Vec<Listed> = Vec::new();
    let mut todo = vec![(ROOT, 0)];
    while let Some((id, parent)) = todo.pop() {
        let children = children(tree, id);
        let place = reserve(tree, writer, id, &children)?;
        nids[id.index()] = Some(place.nid);
        let index = listed.len();
        listed.push(Listed { id, parent, place });
        for (_, child) in children.iter().rev() {
            if tree.is_directory(*child) {
                todo.push((*child, index));
            } else {
                links[child.index()] += 1;
            }
        }
        for (_, child) in &children {
            if nids[child.index()].is_none() {
                nids[child.index()] = write_leaf(tree, writer, *child)?;
            }
        }
    }
    for (index, count) in links.iter().enumerate().filter(|(_, count)| **count > 1) {
        if let Some(nid) = nids[index] {
            writer.set_links(nid, *count)?;
        }
    }
    for directory in &listed {
        let parent = listed[directory.parent].place.nid;
        let children = children(tree, directory.id);
        let entries = entries(tree, &children, &nids, directory.place.nid, parent);
        writer.fill_directory(&directory.place, &entries)?;
    }
    Ok(())
}

/// Lists what is visible in a directory, sorted by name.
fn children(tree: &Tree, id: Id) -> Vec<(&[u8], Id)> {
    let slots = tree
        .directory_ref(id)
        .map(|directory| &directory.children)
        .into_iter()
        .flatten();
    let exists = |id: &Id| tree.directory_ref(*id).is_none_or(|directory| directory.real);
    slots
        .filter_map(|(name, slot)| Some((&**name, tree.resolve(slot.node?))))
        .filter(|(_, id)| exists(id))
        .collect()
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
    writer.reserve_directory(&tree.nodes[id.index()].attributes, size, links)
}

fn sorted_with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<&'a [u8]> {
    let mut names: Vec<&[u8]> = names.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    names
}

fn write_leaf(tree: &Tree, writer: &mut Writer, id: Id) -> std::io::Result<Option<Nid>> {
    let node = &tree.nodes[id.index()];
    Ok(match &node.content {
        Content::File(nid) => Some(*nid),
        Content::Special(number) => Some(writer.special(&node.attributes, *number)?),
        Content::Symlink(target) => match writer.symlink(&node.attributes, target) {
            Ok(nid) => Some(nid),
            Err(CopyError::Content(source) | CopyError::Image(source)) => return Err(source),
        },
        Content::Directory(_) | Content::Pending | Content::Alias(_) => None,
    })
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
        let mode = tree.nodes[child.index()].attributes.mode;
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
