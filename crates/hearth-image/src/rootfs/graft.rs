//! Finishes a merged tree: entries that lie below symbolic links move to where the links point, and hard links whose
//! target was named through a symbolic link find it.

use std::collections::HashMap;

use super::path::TreePath;
use super::tree::{Content, Id, Layer, MergeError, ROOT, Slot, Tree};

/// Linux' own limit of symbolic links within one path.
const HOPS: usize = 40;

/// What is left to look at.
enum Work {
    /// A directory whose children were not looked at.
    Scan(Id),
    /// A slot with both a link and an implied directory.
    Graft(Id, Box<[u8]>),
}

/// Finishes one tree.
pub(super) struct Grafter<'t> {
    tree: &'t mut Tree,
    parents: HashMap<Id, Id>,
    work: Vec<Work>,
    entry_limit: u64,
}

impl<'t> Grafter<'t> {
    pub(super) fn new(tree: &'t mut Tree, entry_limit: u64) -> Self {
        Self {
            tree,
            parents: HashMap::new(),
            work: vec![Work::Scan(ROOT)],
            entry_limit,
        }
    }

    /// Does all of it.
    pub(super) fn finish(mut self) -> Result<(), MergeError> {
        while let Some(work) = self.work.pop() {
            match work {
                Work::Scan(directory) => self.scan(directory),
                Work::Graft(parent, name) => self.graft(parent, &name)?,
            }
        }
        for (path, waiting) in self.tree.take_wanted() {
            let missing = || MergeError::LinkTarget(path.display());
            let found = self.find_file(&path)?.ok_or_else(missing)?;
            self.tree.alias(waiting, found).ok_or_else(missing)?;
        }
        Ok(())
    }

    fn scan(&mut self, directory: Id) {
        let children = self
            .tree
            .directory_ref(directory)
            .map(|directory| &directory.children);
        for (name, slot) in children.into_iter().flatten() {
            if slot.link.is_some() {
                self.work.push(Work::Graft(directory, name.clone()));
            } else if let Some(child) = slot.node.filter(|child| self.tree.is_directory(*child)) {
                self.parents.insert(child, directory);
                self.work.push(Work::Scan(child));
            }
        }
    }

    /// Leaves the link in the slot, and moves the directory's children to where it points.
    fn graft(&mut self, parent: Id, name: &[u8]) -> Result<(), MergeError> {
        let slot = self.tree.slot(parent, name);
        let (Some(link), Some(implied)) = (slot.link, slot.node) else {
            return Ok(());
        };
        self.tree.set_slot(
            parent,
            name,
            Slot {
                node: Some(link),
                link: None,
                ..slot
            },
        );
        let mut stack = self.stack_of(parent);
        self.resolve(&mut stack, vec![name.into()], true)?;
        let target = stack.last().copied().unwrap_or(ROOT);
        self.merge(implied, target);
        Ok(())
    }

    /// Returns the directories from the root to this one.
    fn stack_of(&self, directory: Id) -> Vec<Id> {
        let mut stack = vec![directory];
        let mut at = directory;
        while let Some(parent) = self.parents.get(&at) {
            stack.push(*parent);
            at = *parent;
        }
        stack.reverse();
        stack
    }

    /// Walks `todo` (the next component last) from the directory on top of the stack, through symbolic links, never
    /// out of the root. Returns false when something is not there and is not to be made.
    fn resolve(
        &mut self,
        stack: &mut Vec<Id>,
        mut todo: Vec<Box<[u8]>>,
        make: bool,
    ) -> Result<bool, MergeError> {
        let mut hops = 0;
        while let Some(name) = todo.pop() {
            let at = stack.last().copied().unwrap_or(ROOT);
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    stack.truncate(stack.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let slot = self.tree.slot(at, &name);
            let text = || String::from_utf8_lossy(&name).into_owned();
            let Some(id) = slot.link.or(slot.node).map(|id| self.tree.resolve(id)) else {
                if !make {
                    return Ok(false);
                }
                stack.push(self.make(at, &name)?);
                continue;
            };
            match &self.tree.nodes[id.index()].content {
                Content::Directory(_) => {
                    self.parents.insert(id, at);
                    stack.push(id);
                }
                Content::Symlink(target) => {
                    hops += 1;
                    if hops > HOPS {
                        return Err(MergeError::SymlinkLoop(text()));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(target.split(|byte| *byte == b'/').rev().map(Box::from));
                }
                _ if make => return Err(MergeError::NotADirectory(text())),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn make(&mut self, parent: Id, name: &[u8]) -> Result<Id, MergeError> {
        if self.tree.len() >= self.entry_limit {
            return Err(MergeError::Entries(self.entry_limit));
        }
        let id = self.tree.new_directory(true);
        let slot = self.tree.slot(parent, name);
        self.tree.set_slot(
            parent,
            name,
            Slot {
                node: Some(id),
                link: None,
                ..slot
            },
        );
        self.parents.insert(id, parent);
        Ok(id)
    }

    /// Moves all children of a detached directory into another one; what comes from the higher layer wins.
    fn merge(&mut self, source: Id, target: Id) {
        let mut pairs = vec![(source, target)];
        while let Some((source, target)) = pairs.pop() {
            let Some(directory) = self.tree.directory_mut(source) else {
                continue;
            };
            let children = std::mem::take(&mut directory.children);
            let (floor, explicit) = (directory.floor, directory.explicit);
            self.drop_below(target, floor);
            self.adopt_attributes(source, target, explicit);
            for (name, slot) in children {
                let there = self.tree.slot(target, &name);
                let both = slot.node.zip(there.node).filter(|(ours, theirs)| {
                    slot.link.is_none()
                        && there.link.is_none()
                        && self.tree.is_directory(*ours)
                        && self.tree.is_directory(*theirs)
                });
                match both {
                    Some((ours, theirs)) => {
                        self.drop_below(theirs, slot.floor);
                        pairs.push((ours, theirs));
                    }
                    None => self.move_slot(target, name, slot, there),
                }
            }
        }
    }

    fn move_slot(&mut self, target: Id, name: Box<[u8]>, slot: Slot, there: Slot) {
        let theirs = there.node.map_or(0, |id| self.tree.nodes[id.index()].layer);
        let ours = slot
            .node
            .map_or(slot.floor, |id| self.tree.nodes[id.index()].layer);
        if ours < theirs || (slot.node.is_none() && ours == theirs) {
            return;
        }
        self.tree.set_slot(target, &name, slot);
        match slot {
            Slot { link: Some(_), .. } => self.work.push(Work::Graft(target, name)),
            Slot { node: Some(id), .. } if self.tree.is_directory(id) => {
                self.parents.insert(id, target);
                self.work.push(Work::Scan(id));
            }
            _ => {}
        }
    }

    /// Drops children from layers below `floor`.
    fn drop_below(&mut self, directory: Id, floor: Layer) {
        let Some(children) = self
            .tree
            .directory_mut(directory)
            .map(|d| std::mem::take(&mut d.children))
        else {
            return;
        };
        let nodes = &self.tree.nodes;
        let keep = |slot: &Slot| slot.node.is_none_or(|id| nodes[id.index()].layer >= floor);
        let kept = children.into_iter().filter(|(_, slot)| keep(slot)).collect();
        if let Some(directory) = self.tree.directory_mut(directory) {
            directory.children = kept;
        }
    }

    fn adopt_attributes(&mut self, source: Id, target: Id, explicit: Option<Layer>) {
        let known = self
            .tree
            .directory_ref(target)
            .and_then(|directory| directory.explicit);
        if explicit.is_none() || explicit < known {
            return;
        }
        let attributes = self.tree.nodes[source.index()].attributes.clone();
        self.tree.nodes[target.index()].attributes = attributes;
        if let Some(directory) = self.tree.directory_mut(target) {
            directory.explicit = explicit;
        }
    }

    /// Finds a file that is no directory; the last component is not followed, as `link(2)` does not.
    fn find_file(&mut self, path: &TreePath) -> Result<Option<Id>, MergeError> {
        let Some((parent, name)) = path.split() else {
            return Ok(None);
        };
        let mut todo: Vec<Box<[u8]>> = parent.components().map(Box::from).collect();
        todo.reverse();
        let mut stack = vec![ROOT];
        if !self.resolve(&mut stack, todo, false)? {
            return Ok(None);
        }
        let at = stack.last().copied().unwrap_or(ROOT);
        let found = self.tree.slot(at, name).node.map(|id| self.tree.resolve(id));
        let is_file = |id: &Id| {
            !matches!(
                self.tree.nodes[id.index()].content,
                Content::Directory(_) | Content::Pending | Content::Alias(_)
            )
        };
        Ok(found.filter(is_file))
    }
}
