//! Merges layers into one tree, from the top layer down, so that what an upper layer hides is known before the lower
//! layer's content streams by, and is never written.
//!
//! Pure: no IO. `super::build` tells it of entries and writes the content of those that it admits.
//!
//! Rules (OCI image specification, "Layer Filesystem Changeset"; what it leaves open follows umoci and containerd):
//! - An entry hides everything of lower layers at its path, except that directories merge: the upper one's owner,
//!   mode and attributes win.
//! - `.wh.NAME` hides NAME of lower layers, `.wh..wh..opq` all lower children of its directory; never what their own
//!   layer brings, whatever the order in the archive.
//! - A later entry of the same layer replaces an earlier one at the same path.
//! - A directory that an entry only implies takes over the owner and mode of the next lower layer that has it, else
//!   it is 0755 root.
//! - Where an entry implies a directory and its own or a lower layer has a symbolic link there, the entry lies where
//!   the link points to, within the image (as with containerd, for `lib/x` over `lib -> usr/lib`): see `super::graft`.
//!   An entry of a lower layer below a link of an upper layer is hidden.
//! - A hard link refers to what its own layer had at the target path before, else to what lower layers have there,
//!   even if upper layers hide that. A link to nothing, or to a directory, is an error.

use std::collections::{BTreeMap, HashMap};

use super::path::TreePath;
use crate::erofs::{Attributes, Nid, mode};

/// Counts layers from 1, the base; 0 is below all.
pub(crate) type Layer = u16;

/// Names an inode of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id(u32);

/// The root directory.
pub(crate) const ROOT: Id = Id(0);

/// A file of the merged tree.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) content: Content,
    pub(crate) attributes: Attributes,
    /// The layer that it comes from.
    pub(crate) layer: Layer,
}

/// What a file is.
#[derive(Debug)]
pub(crate) enum Content {
    /// Admitted; its content has not come yet, or is to come from a lower layer as the target of a hard link.
    Pending,
    /// The same file as another one.
    Alias(Id),
    /// A regular file whose content is in the image already.
    File(Nid),
    Symlink(Box<[u8]>),
    /// A device or fifo, with its number.
    Special(u32),
    Directory(Directory),
}

/// The children of a directory, and what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    pub(crate) children: BTreeMap<Box<[u8]>, Slot>,
    /// Children from layers below this one are hidden.
    pub(crate) floor: Layer,
    /// The layer whose entry gave owner and mode; `None` while the directory is only implied.
    pub(crate) explicit: Option<Layer>,
    /// False while only whiteouts were seen in it: it need not exist.
    pub(crate) real: bool,
}

/// What is known of one name in a directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Entries of layers below this one are hidden.
    pub(crate) floor: Layer,
    pub(crate) node: Option<Id>,
    /// A symbolic link that shares the name with the implied directory `node`.
    pub(crate) link: Option<Id>,
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
    /// The target of a hard link is nowhere, or is a directory.
    #[error("it is a hard link to {0}, which is no file of its layer or of a lower one")]
    LinkTarget(String),
    /// A chain of symbolic links does not end.
    #[error("the symbolic links on the way to {0} go in a circle")]
    SymlinkLoop(String),
    /// More files and directories than [`crate::Limits::entries`].
    #[error("the image goes over the limit of {0} entries")]
    Entries(u64),
}

/// What a layer has at a path, hidden or not, as a later hard link of the same layer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// It is in the tree.
    Here(Id),
    /// It was hidden, so its content was skipped: the entry with this ordinal.
    Skipped(u64),
    /// It is a hidden hard link to this path of lower layers.
    Lower(TreePath),
}

/// The tree while layers are merged.
pub(crate) struct Tree {
    pub(super) nodes: Vec<Node>,
    layer: Layer,
    seen: HashMap<TreePath, Seen>,
    /// Targets of hard links that lower layers must have, and the nodes that wait for them.
    wanted: BTreeMap<TreePath, Id>,
    /// The same, found in the current layer: only layers below it can serve them.
    wanted_lower: BTreeMap<TreePath, Id>,
    /// Entries of the current layer that were skipped, and are needed after all.
    rescan: BTreeMap<u64, Id>,
}

/// Attributes of a directory that no layer describes.
pub(super) fn implied_attributes() -> Attributes {
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
    pub(crate) fn new() -> Self {
        let root = Directory {
            real: true,
            ..Directory::default()
        };
        Self {
            nodes: vec![Node {
                content: Content::Directory(root),
                attributes: implied_attributes(),
                layer: 0,
            }],
            layer: Layer::MAX,
            seen: HashMap::new(),
            wanted: BTreeMap::new(),
            wanted_lower: BTreeMap::new(),
            rescan: BTreeMap::new(),
        }
    }

    /// Begins a layer; they come from the highest number to 1.
    pub(crate) fn begin_layer(&mut self, layer: Layer) {
        self.layer = layer;
    }

    /// Ends a layer. Returns the entries (by ordinal) that must be read once more, in a second pass over this layer,
    /// and the nodes to [`Tree::fill`] with them.
    pub(crate) fn end_layer(&mut self) -> BTreeMap<u64, Id> {
        self.seen.clear();
        for (path, id) in std::mem::take(&mut self.wanted_lower) {
            match self.wanted.get(&path) {
                Some(first) => self.nodes[id.index()].content = Content::Alias(*first),
                None => drop(self.wanted.insert(path, id)),
            }
        }
        std::mem::take(&mut self.rescan)
    }

    /// Returns how many nodes there are, implied directories included.
    pub(crate) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Adds a directory entry.
    pub(crate) fn directory(&mut self, path: &TreePath, attributes: Attributes) -> Result<(), MergeError> {
        let Some((parent, name)) = path.split() else {
            self.describe_directory(ROOT, attributes);
            return Ok(());
        };
        let Some(parent) = self.walk(&parent, Walk::Real)? else {
            return Ok(());
        };
        let slot = self.slot(parent, name);
        if self.layer < slot.floor {
            return Ok(());
        }
        match slot.node {
            Some(id) if self.is_directory(id) && slot.link.is_none() => {
                self.describe_directory(id, attributes)
            }
            _ => {
                // A file of the same layer, or nothing, was here.
                let id = self.imply(parent, name, slot);
                self.describe_directory(id, attributes);
            }
        }
        Ok(())
    }

    /// Adds an entry that is neither directory nor hard link. Returns the node to [`Tree::fill`], or `None` when the
    /// entry is hidden and its content is to be skipped.
    pub(crate) fn admit(
        &mut self,
        path: &TreePath,
        ordinal: u64,
        is_symlink: bool,
    ) -> Result<Option<Id>, MergeError> {
        let place = self.visible_place(path, is_symlink)?;
        let wanted = self.wanted.remove(path);
        if place.is_none() && wanted.is_none() {
            self.seen.insert(path.clone(), Seen::Skipped(ordinal));
            return Ok(None);
        }
        let id = wanted.unwrap_or_else(|| self.new_node(Content::Pending));
        self.nodes[id.index()].layer = self.layer;
        if let Some(place) = place {
            self.occupy(&place, id);
        }
        self.seen.insert(path.clone(), Seen::Here(id));
        Ok(Some(id))
    }

    /// Gives an admitted node its content.
    pub(crate) fn fill(&mut self, id: Id, content: Content, attributes: Attributes) {
        let node = &mut self.nodes[id.index()];
        node.content = content;
        node.attributes = attributes;
    }

    /// Adds a hard link.
    pub(crate) fn hard_link(&mut self, path: &TreePath, target: &TreePath) -> Result<(), MergeError> {
        let place = self.visible_place(path, false)?;
        let wanted = self.wanted.remove(path);
        let seen = self
            .seen
            .get(target)
            .cloned()
            .unwrap_or_else(|| Seen::Lower(target.clone()));
        if place.is_none() && wanted.is_none() {
            self.seen.insert(path.clone(), seen);
            return Ok(());
        }
        let id = self.link_target(seen);
        if let Some(place) = place {
            self.occupy(&place, id);
        }
        if let Some(waiting) = wanted {
            self.alias(waiting, id)
                .ok_or_else(|| MergeError::LinkTarget(target.display()))?;
        }
        self.seen.insert(path.clone(), Seen::Here(id));
        Ok(())
    }

    /// Hides `path` of lower layers.
    pub(crate) fn whiteout(&mut self, path: &TreePath) -> Result<(), MergeError> {
        let (parent, name) = path.split().ok_or(MergeError::Whiteout)?;
        let Some(parent) = self.walk(&parent, Walk::Whiteout)? else {
            return Ok(());
        };
        let slot = self.slot(parent, name);
        let floor = slot.floor.max(self.layer);
        self.set_slot(parent, name, Slot { floor, ..slot });
        if let Some(directory) = slot.node.and_then(|id| self.directory_mut(id)) {
            directory.floor = directory.floor.max(floor);
        }
        Ok(())
    }

    /// Hides all children of `path` of lower layers.
    pub(crate) fn opaque(&mut self, path: &TreePath) -> Result<(), MergeError> {
        let layer = self.layer;
        if let Some(directory) = self
            .walk(path, Walk::Whiteout)?
            .and_then(|id| self.directory_mut(id))
        {
            directory.floor = directory.floor.max(layer);
        }
        Ok(())
    }

    /// Returns the first node that still waits for the target of a hard link, and that target.
    pub(super) fn take_wanted(&mut self) -> BTreeMap<TreePath, Id> {
        std::mem::take(&mut self.wanted)
    }

    /// Follows aliases.
    pub(super) fn resolve(&self, mut id: Id) -> Id {
        while let Content::Alias(next) = self.nodes[id.index()].content {
            id = next;
        }
        id
    }

    /// Makes one node the same file as another; `None` when it is already what the other refers to.
    pub(super) fn alias(&mut self, id: Id, target: Id) -> Option<()> {
        let target = self.resolve(target);
        if self.resolve(id) == target {
            return None;
        }
        self.nodes[id.index()].content = Content::Alias(target);
        Some(())
    }

    pub(super) fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[id.index()].content, Content::Directory(_))
    }

    pub(super) fn directory_ref(&self, id: Id) -> Option<&Directory> {
        match &self.nodes[id.index()].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn directory_mut(&mut self, id: Id) -> Option<&mut Directory> {
        match &mut self.nodes[id.index()].content {
            Content::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn slot(&self, parent: Id, name: &[u8]) -> Slot {
        let children = self.directory_ref(parent).map(|directory| &directory.children);
        children
            .and_then(|children| children.get(name))
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn set_slot(&mut self, parent: Id, name: &[u8], slot: Slot) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.into(), slot);
        }
    }

    pub(super) fn new_directory(&mut self, real: bool) -> Id {
        self.new_node(Content::Directory(Directory {
            real,
            ..Directory::default()
        }))
    }

    fn new_node(&mut self, content: Content) -> Id {
        // Entries are limited to far below 2^32.
        let id = Id(self.nodes.len() as u32);
        self.nodes.push(Node {
            content,
            attributes: implied_attributes(),
            layer: self.layer,
        });
        id
    }

    fn describe_directory(&mut self, id: Id, attributes: Attributes) {
        let layer = self.layer;
        if let Some(directory) = self.directory_mut(id) {
            directory.real = true;
            if directory.explicit.is_none_or(|explicit| explicit == layer) {
                directory.explicit = Some(layer);
                self.nodes[id.index()].attributes = attributes;
            }
        }
    }

    /// Walks to a directory, implying those that are not there; `None` when an upper layer hides it.
    fn walk(&mut self, path: &TreePath, walk: Walk) -> Result<Option<Id>, MergeError> {
        let mut at = ROOT;
        for name in path.components() {
            if self
                .directory_ref(at)
                .is_some_and(|directory| self.layer < directory.floor)
            {
                return Ok(None);
            }
            let slot = self.slot(at, name);
            if self.layer < slot.floor {
                return Ok(None);
            }
            at = match slot.node {
                Some(id) if self.is_directory(id) => id,
                Some(id) => self.imply_over(at, name, slot, id)?,
                None => self.imply(at, name, slot),
            };
            if let (Walk::Real, Some(directory)) = (walk, self.directory_mut(at)) {
                directory.real = true;
            }
        }
        let hidden = self
            .directory_ref(at)
            .is_some_and(|directory| self.layer < directory.floor);
        Ok((!hidden).then_some(at))
    }

    /// Puts a directory into a slot that has none. What hides the slot's name hides the directory's children.
    fn imply(&mut self, parent: Id, name: &[u8], slot: Slot) -> Id {
        let id = self.new_directory(false);
        if let Some(directory) = self.directory_mut(id) {
            directory.floor = slot.floor;
        }
        self.set_slot(
            parent,
            name,
            Slot {
                node: Some(id),
                link: None,
                ..slot
            },
        );
        id
    }

    /// Implies a directory where the same layer has a symbolic link.
    fn imply_over(&mut self, parent: Id, name: &[u8], slot: Slot, file: Id) -> Result<Id, MergeError> {
        if !matches!(self.nodes[file.index()].content, Content::Symlink(_)) {
            return Err(MergeError::NotADirectory(
                String::from_utf8_lossy(name).into_owned(),
            ));
        }
        let id = self.new_directory(true);
        self.set_slot(
            parent,
            name,
            Slot {
                node: Some(id),
                link: Some(file),
                ..slot
            },
        );
        Ok(id)
    }

    /// Decides whether an entry that is no directory is visible, and where it goes then.
    fn visible_place(&mut self, path: &TreePath, is_symlink: bool) -> Result<Option<Place>, MergeError> {
        let (parent, name) = path.split().ok_or(MergeError::Root)?;
        let Some(parent) = self.walk(&parent, Walk::Real)? else {
            return Ok(None);
        };
        let slot = self.slot(parent, name);
        if self.layer < slot.floor {
            return Ok(None);
        }
        let floor = self.layer;
        let place = |beside| {
            Some(Place {
                parent,
                name: name.into(),
                beside,
            })
        };
        match slot.node.filter(|id| self.nodes[id.index()].layer > self.layer) {
            None => Ok(place(None)),
            Some(directory) => {
                // A directory of an upper layer: it stays, and hides what is below this entry.
                let known = self.directory_ref(directory);
                if !is_symlink && known.is_some_and(|directory| !directory.real) {
                    return Ok(place(None));
                }
                let implied = known.is_some_and(|directory| directory.explicit.is_none());
                self.set_slot(parent, name, Slot { floor, ..slot });
                if let Some(directory) = self.directory_mut(directory) {
                    directory.floor = directory.floor.max(floor);
                }
                Ok(if implied && is_symlink {
                    place(Some(directory))
                } else {
                    None
                })
            }
        }
    }

    fn occupy(&mut self, place: &Place, id: Id) {
        let slot = match place.beside {
            Some(directory) => Slot {
                floor: self.layer,
                node: Some(directory),
                link: Some(id),
            },
            None => Slot {
                floor: self.layer,
                node: Some(id),
                link: None,
            },
        };
        self.set_slot(place.parent, &place.name, slot);
    }

    /// Returns the node that a hard link shares.
    fn link_target(&mut self, seen: Seen) -> Id {
        let known = match &seen {
            Seen::Here(id) => Some(*id),
            Seen::Skipped(ordinal) => self.rescan.get(ordinal).copied(),
            Seen::Lower(path) => self.wanted_lower.get(path).copied(),
        };
        known.unwrap_or_else(|| {
            let id = self.new_node(Content::Pending);
            match seen {
                Seen::Skipped(ordinal) => drop(self.rescan.insert(ordinal, id)),
                Seen::Lower(path) => drop(self.wanted_lower.insert(path, id)),
                Seen::Here(_) => {}
            }
            id
        })
    }
}

impl Id {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Whether the directories on the way come into being.
#[derive(Clone, Copy)]
enum Walk {
    /// An entry lies in them.
    Real,
    /// Only a whiteout does.
    Whiteout,
}

/// Where a visible entry goes.
struct Place {
    parent: Id,
    name: Box<[u8]>,
    /// An implied directory that shares the name, when the entry is a symbolic link.
    beside: Option<Id>,
}
