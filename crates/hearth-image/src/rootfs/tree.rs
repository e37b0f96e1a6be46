//! The tree of an image: layers are applied to it one after the other, the base first, as if they were unpacked into a
//! directory.
//!
//! Pure: no IO. `super::build` tells it of entries, and writes the content of files before it does.
//!
//! Rules (OCI image specification, "Layer Filesystem Changeset"; what it leaves open follows umoci and containerd):
//! - An entry replaces what is at its path, except that a directory over a directory only takes its place as to owner,
//!   mode and attributes: children stay.
//! - `.wh.NAME` removes NAME of lower layers, `.wh..wh..opq` all children of its directory that are of lower layers; never
//!   what their own layer brings, whatever the order in the archive.
//! - Directories that an entry only implies are made where they are missing: 0755, root's.
//! - Symbolic links on the way to an entry are followed, within the image (`lib/x` over `lib -> usr/lib` is
//!   `usr/lib/x`); one at the entry's own path is replaced.
//! - A hard link refers to what is at the target path when its entry comes. A link to nothing, to a directory or to itself
//!   is an error.

use std::collections::BTreeMap;

use super::path::TreePath;
use crate::Limits;
use crate::erofs::{Attributes, Stored, mode};

/// Counts layers from 1, the base.
pub(crate) type Layer = u16;

/// Linux' own limit of symbolic links within one path.
const HOPS: usize = 40;
/// Components that symbolic links may add to all paths of an image together: some seconds of work. Links to links of
/// thousands of components each would otherwise take hours.
const LINK_STEPS: u64 = 20_000_000;

/// Names an inode of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(u32);

/// The root directory.
pub(crate) const ROOT: Id = Id(0);

/// An inode.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) content: Content,
    /// Without the extended attributes of a regular file, which are in the image and may take much.
    pub(crate) attributes: Attributes,
    /// Names that refer to it, where it is no directory.
    pub(crate) links: u32,
}

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Content {
    /// A regular file, which is in the image already.
    File(Stored),
    Symlink(Box<[u8]>),
    /// A device or fifo, with its number.
    Special(u32),
    Directory(Directory),
}

/// The children of a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    children: BTreeMap<Box<[u8]>, Slot>,
    /// Since a whiteout of this layer, nothing of lower ones is in it. Whiteouts look through a directory once per layer.
    cleared: Layer,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Slot {
    node: Id,
    /// The last layer that had an entry for it.
    layer: Layer,
}

/// Says why an entry does not fit into the tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// An entry lies below something that is not a directory.
    #[error("it lies below {0}, which is not a directory")]
    NotADirectory(String),
    /// The root can only be a directory.
    #[error("it would replace the root directory")]
    Root,
    /// A whiteout of nothing, of `.` or of `..`.
    #[error("it is a whiteout without a name")]
    Whiteout,
    /// The target of a hard link is nowhere, is a directory, or is the link.
    #[error("it is a hard link to {0}, which is no other file of its layer or of a lower one")]
    LinkTarget(String),
    /// A chain of symbolic links does not end.
    #[error("the symbolic links on the way to it, at {0}, go in a circle")]
    SymlinkLoop(String),
    /// The work of following symbolic links goes over its bound.
    #[error("the symbolic links on the way to it and to others lead through too many directories")]
    SymlinkWork,
    /// Deeper than [`Limits::depth`] once symbolic links are followed.
    #[error("it lies more than {0} directories deep where its symbolic links lead")]
    TooDeep(usize),
}

/// Whether missing directories on the way are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

/// The tree while layers are applied.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: Layer,
    depth: usize,
    link_steps: u64,
    /// Regular files without a name, whose content is not needed any more.
    dropped: Vec<Stored>,
}

/// Attributes of a directory that no layer describes.
fn implied_attributes() -> Attributes {
    Attributes {
        mode: mode::DIRECTORY | 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        mtime_nsec: 0,
        xattrs: Box::default(),
    }
}

impl Tree {
    /// Begins with an empty root directory.
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut tree = Self {
            nodes: Vec::new(),
            layer: 0,
            depth: limits.depth,
            link_steps: LINK_STEPS,
            dropped: Vec::new(),
        };
        tree.new_directory(implied_attributes());
        tree
    }

    /// Begins a layer; they come from 1 on.
    pub(crate) fn begin_layer(&mut self, layer: Layer) {
        self.layer = layer;
    }

    /// Returns how many inodes were ever made, implied directories included.
    pub(crate) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Returns an inode.
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.index()]
    }

    /// Returns the regular files that have lost their last name since the last call.
    pub(crate) fn take_dropped(&mut self) -> Vec<Stored> {
        std::mem::take(&mut self.dropped)
    }

    /// Lists a directory, sorted by name; nothing for what is none.
    pub(crate) fn children(&self, id: Id) -> impl Iterator<Item = (&[u8], Id)> {
        let children = self.directory_ref(id).map(|directory| &directory.children);
        let slots = children.into_iter().flatten();
        slots.map(|(name, slot)| (&**name, slot.node))
    }

    /// Tells directories from the rest.
    pub(crate) fn is_directory(&self, id: Id) -> bool {
        self.directory_ref(id).is_some()
    }

    /// Applies a directory entry.
    pub(crate) fn directory(&mut self, path: &TreePath, attributes: Attributes) -> Result<(), MergeError> {
        let Some((parent, name)) = path.split() else {
            self.nodes[ROOT.index()].attributes = attributes;
            return Ok(());
        };
        let parent = self.make_parent(&parent)?;
        match self.slot(parent, name).map(|slot| slot.node) {
            Some(id) if self.is_directory(id) => {
                self.nodes[id.index()].attributes = attributes;
                self.set_slot(parent, name, id);
            }
            _ => {
                self.remove(parent, name);
                let id = self.new_directory(attributes);
                self.set_slot(parent, name, id);
            }
        }
        Ok(())
    }

    /// Applies an entry that is neither directory nor hard link.
    pub(crate) fn leaf(
        &mut self,
        path: &TreePath,
        content: Content,
        attributes: Attributes,
    ) -> Result<(), MergeError> {
        let (parent, name) = path.split().ok_or(MergeError::Root)?;
        let parent = self.make_parent(&parent)?;
        self.remove(parent, name);
        let xattrs = match content {
            Content::File(_) => Box::default(),
            _ => attributes.xattrs,
        };
        let id = self.new_node(content, Attributes { xattrs, ..attributes });
        self.link(parent, name, id);
        Ok(())
    }

    /// Applies a hard link.
    pub(crate) fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), MergeError> {
        let (parent, name) = path.split().ok_or(MergeError::Root)?;
        let parent = self.make_parent(&parent)?;
        // First, as whoever unpacks does it: so a link to itself, or into what it replaces, is a link to nothing.
        self.remove(parent, name);
        let found = self.find(target)?.filter(|id| !self.is_directory(*id));
        let id = found.ok_or_else(|| MergeError::LinkTarget(target.display()))?;
        self.link(parent, name, id);
        Ok(())
    }

    /// Removes `path` of lower layers.
    pub(crate) fn whiteout(&mut self, path: &TreePath) -> Result<(), MergeError> {
        let (parent, name) = path.split().ok_or(MergeError::Whiteout)?;
        if let Some(parent) = self.walk(&parent, Missing::Leave)? {
            self.remove_lower(parent, name);
        }
        Ok(())
    }

    /// Removes all children of `path` that are of lower layers.
    pub(crate) fn opaque(&mut self, path: &TreePath) -> Result<(), MergeError> {
        if let Some(directory) = self.walk(path, Missing::Leave)? {
            self.clear(directory);
        }
        Ok(())
    }

    fn directory_ref(&self, id: Id) -> Option<&Directory> {
        match &self.nodes[id.index()].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: Id) -> Option<&mut Directory> {
        match &mut self.nodes[id.index()].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn slot(&self, parent: Id, name: &[u8]) -> Option<Slot> {
        self.directory_ref(parent)?.children.get(name).copied()
    }

    fn set_slot(&mut self, parent: Id, name: &[u8], node: Id) {
        let layer = self.layer;
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), Slot { node, layer });
        }
    }

    fn link(&mut self, parent: Id, name: &[u8], id: Id) {
        self.nodes[id.index()].links += 1;
        self.set_slot(parent, name, id);
    }

    fn new_node(&mut self, content: Content, attributes: Attributes) -> Id {
        // Entries are limited to far below 2^32.
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(Node {
            content,
            attributes,
            links: 0,
        });
        id
    }

    fn new_directory(&mut self, attributes: Attributes) -> Id {
        let directory = Directory {
            children: BTreeMap::new(),
            // All that comes into it is of this layer or of a later one.
            cleared: self.layer,
        };
        self.new_node(Content::Directory(directory), attributes)
    }

    /// Removes a name with all that is below it.
    fn remove(&mut self, parent: Id, name: &[u8]) {
        let removed = self
            .directory_mut(parent)
            .and_then(|directory| directory.children.remove(name));
        let mut todo: Vec<Id> = removed.into_iter().map(|slot| slot.node).collect();
        while let Some(id) = todo.pop() {
            match self.directory_mut(id) {
                Some(directory) => {
                    let children = std::mem::take(&mut directory.children);
                    todo.extend(children.into_values().map(|slot| slot.node));
                }
                None => self.unlink(id),
            }
        }
    }

    fn unlink(&mut self, id: Id) {
        let node = &mut self.nodes[id.index()];
        node.links = node.links.saturating_sub(1);
        if node.links == 0 {
            node.attributes.xattrs = Box::default();
            if let Content::File(stored) = node.content {
                self.dropped.push(stored);
            }
        }
    }

    /// Removes a name with what is below it, as far as it is of lower layers.
    fn remove_lower(&mut self, parent: Id, name: &[u8]) {
        let Some(slot) = self.slot(parent, name) else {
            return;
        };
        let emptied = !self.is_directory(slot.node) || self.clear(slot.node);
        if slot.layer == self.layer {
            return;
        }
        if emptied {
            self.remove(parent, name);
        } else {
            // The lower layers' directory is gone, and entries of this layer imply one of that name.
            self.nodes[slot.node.index()].attributes = implied_attributes();
            self.set_slot(parent, name, slot.node);
        }
    }

    /// Removes what is of lower layers from a directory, at every depth. Returns whether it is empty then.
    fn clear(&mut self, id: Id) -> bool {
        // At most as deep as `Tree::depth`.
        let layer = self.layer;
        let Some(directory) = self.directory_mut(id) else {
            return true;
        };
        if directory.cleared < layer {
            directory.cleared = layer;
            let names: Vec<Box<[u8]>> = directory.children.keys().cloned().collect();
            for name in names {
                self.remove_lower(id, &name);
            }
        }
        self.directory_ref(id)
            .is_none_or(|directory| directory.children.is_empty())
    }

    /// Finds what is at a path; a link there is not followed, as `link(2)` does not.
    fn find(&mut self, path: &TreePath) -> Result<Option<Id>, MergeError> {
        let Some((parent, name)) = path.split() else {
            return Ok(Some(ROOT));
        };
        let parent = self.walk(&parent, Missing::Leave)?;
        Ok(parent
            .and_then(|parent| self.slot(parent, name))
            .map(|slot| slot.node))
    }

    fn make_parent(&mut self, path: &TreePath) -> Result<Id, MergeError> {
        // Nothing is missing where everything is made.
        Ok(self.walk(path, Missing::Make)?.unwrap_or(ROOT))
    }

    /// Walks to a directory through symbolic links, never out of the root; `None` where something is missing, or is no
    /// directory, that is not to be made.
    fn walk(&mut self, path: &TreePath, missing: Missing) -> Result<Option<Id>, MergeError> {
        let mut stack = vec![ROOT];
        let mut plain = path.components();
        // What a link has put before the rest of the path, the next component last.
        let mut linked: Vec<Box<[u8]>> = Vec::new();
        let mut hops = 0;
        loop {
            let next = match linked.pop() {
                Some(name) => {
                    self.link_steps = self.link_steps.checked_sub(1).ok_or(MergeError::SymlinkWork)?;
                    Some(std::borrow::Cow::Owned(name.into_vec()))
                }
                None => plain.next().map(std::borrow::Cow::Borrowed),
            };
            let Some(name) = next else {
                return Ok(stack.last().copied());
            };
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    stack.truncate(stack.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let at = stack.last().copied().unwrap_or(ROOT);
            let text = || String::from_utf8_lossy(&name).into_owned();
            let id = match (self.slot(at, &name), missing) {
                (Some(slot), _) => slot.node,
                (None, Missing::Leave) => return Ok(None),
                (None, Missing::Make) => {
                    let id = self.new_directory(implied_attributes());
                    self.set_slot(at, &name, id);
                    id
                }
            };
            match &self.nodes[id.index()].content {
                Content::Directory(_) if stack.len() > self.depth => {
                    return Err(MergeError::TooDeep(self.depth));
                }
                Content::Directory(_) => stack.push(id),
                Content::Symlink(target) => {
                    hops += 1;
                    if hops > HOPS {
                        return Err(MergeError::SymlinkLoop(text()));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    linked.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                _ if missing == Missing::Make => return Err(MergeError::NotADirectory(text())),
                _ => return Ok(None),
            }
        }
    }
}

impl Id {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}
