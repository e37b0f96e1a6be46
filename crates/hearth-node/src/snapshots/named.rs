//! Snapshots: machines as they were at one moment, each with a name, until somebody removes them.
//!
//! ```text
//! DATA/snapshots/ID/           manifest.json, disk, rootfs.img (a link), and vm/ with what the driver wrote
//! DATA/snapshots/ID/whole/     the same with the memory whole, for monitors that take no changes; made when it is asked for
//! DATA/snapshots/ID.new/       one that is being taken; its manifest goes in last, then the directory gets its name
//! ```
//! What is in the description beyond a name is up to who takes them: `F`. Whoever reads files of a snapshot holds its lock shared;
//! who changes or removes them holds it alone.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::archive::{self, ArchiveError};
use super::form::{self, Form};
use super::manifest::{Description, Extent, Flaw, MANIFEST, Manifest};
use crate::host::memory_image::{BASE_FILE, CHANGES_FILE, MEMORY_FILE, MemoryFiles};
use crate::host::{failpoint, files};

/// The extension of a snapshot that is being taken.
const UNFINISHED: &str = "new";
/// The file of the machine's disk.
const DISK: &str = "disk";
/// The link to the root file system of its image.
pub(super) const ROOTFS: &str = "rootfs.img";
/// The directory of what the driver wrote.
const VM: &str = "vm";
/// The directory of the same with the memory whole; what begins so is one that is being made.
const WHOLE: &str = "whole";
/// In the place of [`VM`] in some snapshots of older nodes.
const SHARED: &str = "shared";
/// The files of a memory that is kept as changes, as manifests name them.
pub(super) const BASE: &str = "vm/base";
pub(super) const CHANGES: &str = "vm/changes";
/// The longest name, in characters.
const NAME_MAX: usize = 128;

/// The id of a snapshot: twelve lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(String);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl SnapshotId {
    fn random() -> io::Result<Self> {
        let mut bytes = [0; 6];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 12 && digits).then(|| Self(text.to_owned()))
    }
}

/// A snapshot as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<F> {
    /// Its id.
    pub id: SnapshotId,
    /// What it says of itself.
    pub description: Description<F>,
    /// RFC 3339.
    pub created_at: String,
    /// What it takes on the disk, in bytes; what it shares with its image or with other snapshots is not counted.
    pub bytes: u64,
    /// Its memory is kept as what differs from one that it shares.
    pub is_diff: bool,
}

/// Says why something could not be done with snapshots.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No snapshot answers to that.
    #[error("no snapshot {0:?}")]
    NotFound(String),
    /// More than one snapshot's id starts like that.
    #[error("{0:?} is the start of more than one snapshot's id")]
    Ambiguous(String),
    /// The name is another's.
    #[error("the name {name:?} belongs to another snapshot")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name is none.
    #[error(
        "{0:?} cannot be a snapshot's name: up to {NAME_MAX} letters, digits, '_', '.', '-' can, of which the first is a letter or digit"
    )]
    Name(String),
    /// Its files are not what was written.
    #[error("snapshot {name} is damaged")]
    Damaged {
        /// The snapshot.
        name: String,
        /// What is wrong.
        #[source]
        flaw: Flaw,
    },
    /// What was to be imported is none, or could not be written.
    #[error("no snapshot was imported")]
    Import(#[source] ArchiveError),
    /// It could not be written as an archive.
    #[error("the snapshot was not exported")]
    Export(#[source] ArchiveError),
    /// The file system refused.
    #[error("cannot write the snapshot {}", path.display())]
    Write {
        /// What could not be written.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }
}

/// The snapshots of a node.
#[derive(Debug)]
pub struct Snapshots<F> {
    directory: PathBuf,
    /// Guards names and locks for moments; the locks themselves are held for as long as files are used.
    table: Mutex<Table>,
    facts: std::marker::PhantomData<fn() -> F>,
}

#[derive(Debug, Default)]
struct Table {
    /// Names of snapshots that are being taken.
    reserved: HashSet<String>,
    /// Those whose every byte was read, or written, by this node.
    good: HashSet<SnapshotId>,
    locks: HashMap<SnapshotId, Arc<RwLock<()>>>,
}

/// Files of a snapshot that stay as they are for as long as this is held.
#[derive(Debug, Clone)]
pub struct Held {
    path: PathBuf,
    _lock: Option<Arc<OwnedRwLockReadGuard<()>>>,
}

impl Held {
    /// Writes the snapshot as an archive; takes as long as its reader.
    ///
    /// # Errors
    /// Returns [`StoreError::Export`].
    pub fn export<F: Serialize + DeserializeOwned>(&self, out: impl io::Write) -> Result<(), StoreError> {
        archive::write::<F>(&self.path, out).map_err(StoreError::Export)
    }

    /// Returns the directory of what the driver wrote.
    pub fn vm(&self) -> PathBuf {
        let shared = self.path.join(SHARED);
        if shared.exists() {
            shared
        } else {
            self.path.join(VM)
        }
    }

    /// Returns the copy of the machine's disk.
    pub fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    /// Returns the link to the root file system of its image.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join(ROOTFS)
    }

    /// Returns the directory of the same with the memory whole, which is made when it is not there.
    ///
    /// # Errors
    /// Returns the file system's error; nothing is left then.
    pub fn whole(&self) -> io::Result<PathBuf> {
        let (vm, whole) = (self.vm(), self.path.join(WHOLE));
        let files = MemoryFiles::of(&vm);
        if files.changes.is_none() {
            return Ok(vm);
        }
        if whole.exists() {
            return Ok(whole);
        }
        // Another start may make it at the same time: the first one counts.
        let mine = SnapshotId::random()?;
        let unfinished = self.path.join(format!("{WHOLE}-{mine}"));
        let made = files::make_directory(&unfinished, 0o700)
            .and_then(|()| link_all_but_memory(&vm, &unfinished))
            .and_then(|()| files.flatten(&unfinished.join(MEMORY_FILE)))
            .and_then(|()| fs::rename(&unfinished, &whole));
        if made.is_err() {
            files::remove_tree(&unfinished)?;
        }
        match made {
            Err(_) if whole.exists() => Ok(whole),
            other => other.map(|()| whole),
        }
    }
}

/// A snapshot that is being taken. When it is dropped before its end, nothing is left of it.
#[derive(Debug)]
pub struct Draft<F> {
    id: SnapshotId,
    name: Option<String>,
    path: PathBuf,
    is_finished: bool,
    store: Arc<Snapshots<F>>,
}

impl<F: Serialize + DeserializeOwned + Clone + Send + 'static> Snapshots<F> {
    /// Opens the snapshots of a directory; what an earlier node did not finish there is removed.
    pub fn open(directory: PathBuf) -> Self {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let whole = id_of(&path).is_some() && path.join(MANIFEST).exists();
            let swept = if whole {
                sweep(&path)
            } else {
                files::remove_tree(&path)
            };
            if let Err(error) = swept {
                tracing::warn!(path = %path.display(), %error, "left behind");
            }
        }
        Self {
            directory,
            table: Mutex::default(),
            facts: std::marker::PhantomData,
        }
    }

    /// Begins a snapshot of this name, which nobody else can take from here on.
    ///
    /// # Errors
    /// Returns [`StoreError`].
    pub fn begin(self: &Arc<Self>, name: &str) -> Result<Draft<F>, StoreError> {
        self.reserve(name)?;
        self.draft(Some(name.to_owned()))
    }

    fn reserve(&self, name: &str) -> Result<(), StoreError> {
        check_name(name)?;
        let mut table = self.lock();
        let taken = self.list().iter().any(|other| other.description.name == name)
            || !table.reserved.insert(name.to_owned());
        match taken {
            true => Err(StoreError::NameTaken {
                name: name.to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// Begins one that is never listed: its files are there until it is dropped.
    ///
    /// # Errors
    /// Returns [`StoreError::Write`].
    pub fn begin_unlisted(self: &Arc<Self>) -> Result<Draft<F>, StoreError> {
        self.draft(None)
    }

    fn draft(self: &Arc<Self>, name: Option<String>) -> Result<Draft<F>, StoreError> {
        let id = SnapshotId::random().map_err(StoreError::at(&self.directory))?;
        let path = self.directory.join(format!("{id}.{UNFINISHED}"));
        let draft = Draft {
            id,
            name,
            path,
            is_finished: false,
            store: Arc::clone(self),
        };
        let made = files::make_directory(&draft.path, 0o700)
            .and_then(|()| files::make_directory(&draft.path.join(VM), 0o700))
            .and_then(|()| failpoint::reach("snapshot-begun"));
        made.map_err(StoreError::at(&draft.path))?;
        Ok(draft)
    }

    /// Returns the first name of the form `base-N` that is free.
    pub fn free_name(&self, base: &str) -> String {
        let taken: HashSet<String> = self
            .list()
            .into_iter()
            .map(|snapshot| snapshot.description.name)
            .collect();
        let table = self.lock();
        (1_u32..)
            .map(|number| format!("{base}-{number}"))
            .find(|name| !taken.contains(name) && !table.reserved.contains(name))
            .unwrap_or_default()
    }

    /// Lists them, oldest first.
    pub fn list(&self) -> Vec<Snapshot<F>> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.filter_map(|entry| listed(&entry.path())).collect();
        all.sort_by(|a: &Snapshot<F>, b| a.created_at.cmp(&b.created_at));
        all
    }

    /// Finds one by name, id, or the start of an id.
    ///
    /// # Errors
    /// Returns [`StoreError::NotFound`] or [`StoreError::Ambiguous`].
    pub fn find(&self, text: &str) -> Result<Snapshot<F>, StoreError> {
        let all = self.list();
        let exact = |it: &&Snapshot<F>| it.description.name == text || it.id.0 == text;
        if let Some(found) = all.iter().find(exact) {
            return Ok(found.clone());
        }
        let mut matches = all
            .into_iter()
            .filter(|it| !text.is_empty() && it.id.0.starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(found), None) => Ok(found),
            (None, _) => Err(StoreError::NotFound(text.to_owned())),
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(text.to_owned())),
        }
    }

    /// Keeps the files of one as they are, once it is known that they are what was written: the first time in a node's life every
    /// byte is read.
    ///
    /// # Errors
    /// Returns [`StoreError::Damaged`].
    pub async fn hold(&self, snapshot: &Snapshot<F>) -> Result<Held, StoreError> {
        let lock = self.lock_of(&snapshot.id).read_owned().await;
        let path = self.directory.join(&snapshot.id.0);
        if !self.lock().good.contains(&snapshot.id) {
            let directory = path.clone();
            let verify = move || Manifest::<Description<F>>::read(&directory)?.verify(&directory);
            match tokio::task::spawn_blocking(verify).await {
                Ok(Ok(())) => drop(self.lock().good.insert(snapshot.id.clone())),
                Ok(Err(flaw)) => {
                    let name = snapshot.description.name.clone();
                    return Err(StoreError::Damaged { name, flaw });
                }
                Err(error) => return Err(StoreError::at(&path)(io::Error::other(error))),
            }
        }
        Ok(Held {
            path,
            _lock: Some(Arc::new(lock)),
        })
    }

    /// Reads an archive into a draft of this name, or of the name that it has itself, which is not finished yet: the caller looks whether
    /// it is of use here.
    ///
    /// # Errors
    /// Returns [`StoreError`]; nothing is left then.
    pub async fn import(
        self: &Arc<Self>,
        archive: impl io::Read + Send + 'static,
        name: Option<&str>,
    ) -> Result<Imported<F>, StoreError> {
        let mut draft = self.draft(None)?;
        let path = draft.path.clone();
        let reading = tokio::task::spawn_blocking(move || archive::read::<F>(archive, &path)).await;
        let mut manifest = match reading {
            Ok(read) => read.map_err(StoreError::Import)?,
            Err(error) => return Err(StoreError::at(&draft.path)(io::Error::other(error))),
        };
        let name = name.unwrap_or(&manifest.key.name).to_owned();
        self.reserve(&name)?;
        draft.name = Some(name.clone());
        manifest.key.name = name;
        Ok(Imported { draft, manifest })
    }

    /// Removes one, once nobody reads it. Machines that were made of it go on.
    ///
    /// # Errors
    /// Returns [`StoreError`].
    pub async fn remove(&self, id: &SnapshotId) -> Result<(), StoreError> {
        let _lock = self.lock_of(id).write_owned().await;
        let path = self.directory.join(&id.0);
        if !path.exists() {
            return Err(StoreError::NotFound(id.to_string()));
        }
        // The name first, so that no half of it is found.
        let unnamed = path.with_extension("gone");
        files::remove_tree(&unnamed)
            .and_then(|()| fs::rename(&path, &unnamed))
            .and_then(|()| failpoint::reach("snapshot-unnamed"))
            .and_then(|()| files::remove_tree(&unnamed))
            .map_err(StoreError::at(&path))?;
        let mut table = self.lock();
        table.good.remove(id);
        table.locks.remove(id);
        Ok(())
    }

    fn lock_of(&self, id: &SnapshotId) -> Arc<RwLock<()>> {
        Arc::clone(self.lock().locks.entry(id.clone()).or_default())
    }
}

impl<F> Snapshots<F> {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot that came as an archive, and is not listed yet.
#[derive(Debug)]
pub struct Imported<F> {
    draft: Draft<F>,
    manifest: Manifest<Description<F>>,
}

impl<F: Serialize + DeserializeOwned + Clone + Send + 'static> Imported<F> {
    /// Returns it as it would be listed.
    pub fn snapshot(&self) -> Snapshot<F> {
        Snapshot {
            id: self.draft.id.clone(),
            description: self.manifest.key.clone(),
            created_at: self.manifest.created_at.clone(),
            bytes: 0,
            is_diff: self.manifest.files.iter().any(|file| file.name == CHANGES),
        }
    }

    /// Lists it from here on.
    ///
    /// # Errors
    /// Returns [`StoreError::Write`]; nothing is left of it then.
    pub fn finish(mut self) -> Result<Snapshot<F>, StoreError> {
        let draft = &mut self.draft;
        let named = draft.path.with_extension("");
        files::write_atomic(
            &draft.path.join(MANIFEST),
            &self.manifest.to_bytes(),
            files::PRIVATE,
        )
        .and_then(|()| fs::rename(&draft.path, &named))
        .map_err(StoreError::at(&draft.path))?;
        draft.is_finished = true;
        draft.store.lock().good.insert(draft.id.clone());
        listed(&named).ok_or_else(|| StoreError::NotFound(draft.id.to_string()))
    }
}

impl<F> Draft<F> {
    /// Returns its files as those of a snapshot, while it is there.
    pub fn files(&self) -> Held {
        Held {
            path: self.path.clone(),
            _lock: None,
        }
    }

    /// Keeps the memory in a directory, if there is one: what is written of this one's may be told as changes of it.
    ///
    /// # Errors
    /// Returns [`StoreError::Write`].
    pub fn keep_base(&self, origin: &Path) -> Result<(), StoreError> {
        let base = self.path.join(BASE_FILE);
        match fs::hard_link(MemoryFiles::of(origin).whole, &base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::at(&base)(error)),
            _ => Ok(()),
        }
    }
}

impl<F: Serialize + DeserializeOwned + Clone + Send + 'static> Draft<F> {
    /// Makes it a snapshot: from here on it is listed.
    ///
    /// # Errors
    /// Returns [`StoreError::Write`]; nothing is left of it then.
    pub async fn finish(
        mut self,
        form: Form,
        describe: impl FnOnce(String) -> Description<F>,
    ) -> Result<Snapshot<F>, StoreError> {
        let description = describe(self.name.clone().unwrap_or_default());
        let path = self.path.clone();
        let finished = tokio::task::spawn_blocking(move || finish(&path, form, description)).await;
        let named = finished
            .map_err(io::Error::other)
            .flatten()
            .map_err(StoreError::at(&self.path))?;
        self.is_finished = true;
        self.store.lock().good.insert(self.id.clone());
        listed(&named).ok_or_else(|| StoreError::NotFound(self.id.to_string()))
    }
}

impl<F> Drop for Draft<F> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.store.lock().reserved.remove(name);
        }
        if !self.is_finished
            && let Err(error) = files::remove_tree(&self.path)
        {
            tracing::warn!(snapshot = %self.id, %error, "a snapshot that was begun is left behind");
        }
    }
}

fn finish<F>(unfinished: &Path, form: Form, description: Description<F>) -> io::Result<PathBuf>
where
    F: Serialize + DeserializeOwned,
{
    failpoint::reach("snapshot-written")?;
    let vm = unfinished.join(VM);
    if description.extent == Extent::Full {
        let base = unfinished.join(BASE_FILE);
        form::settle(&vm, form, &base)?;
        files::remove_file(&base)?;
        failpoint::reach("snapshot-settled")?;
    }
    let names: &[&str] = match description.extent {
        Extent::Full if vm.join(CHANGES_FILE).exists() => &[DISK, "vm/state", BASE, CHANGES],
        Extent::Full => &[DISK, "vm/state", "vm/memory"],
        Extent::Disk => &[DISK],
    };
    let manifest = Manifest::of(unfinished, description, names)?;
    files::write_atomic(&unfinished.join(MANIFEST), &manifest.to_bytes(), files::PRIVATE)?;
    failpoint::reach("snapshot-described")?;
    let named = unfinished.with_extension("");
    fs::rename(unfinished, &named)?;
    failpoint::pass("snapshot-named");
    Ok(named)
}

fn link_all_but_memory(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if ![BASE_FILE, CHANGES_FILE]
            .map(std::ffi::OsStr::new)
            .contains(&&*name)
        {
            fs::hard_link(from.join(&name), to.join(&name))?;
        }
    }
    Ok(())
}

/// Removes what is in a snapshot's directory and not in its manifest.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(WHOLE.as_bytes()))
        {
            files::remove_tree(&path)?;
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let good = name.len() <= NAME_MAX
        && name.bytes().all(is_inner)
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric());
    match good {
        true => Ok(()),
        false => Err(StoreError::Name(name.to_owned())),
    }
}

fn id_of(path: &Path) -> Option<SnapshotId> {
    SnapshotId::parse(path.file_name()?.to_str()?)
}

fn listed<F: Serialize + DeserializeOwned>(path: &Path) -> Option<Snapshot<F>> {
    let id = id_of(path)?;
    let manifest = Manifest::<Description<F>>::parse(path)
        .inspect_err(|flaw| tracing::debug!(snapshot = %id, %flaw, "not listed"))
        .ok()?;
    // A base that others have, too, would stay without this snapshot.
    let own = |metadata: &fs::Metadata| metadata.nlink() == 1;
    let size = |file: &str| {
        fs::metadata(path.join(file))
            .ok()
            .filter(|metadata| file != BASE || own(metadata))
            .map_or(0, |metadata| metadata.blocks() * 512)
    };
    Some(Snapshot {
        id,
        bytes: manifest.files.iter().map(|file| size(&file.name)).sum(),
        is_diff: manifest.files.iter().any(|file| file.name == CHANGES),
        description: manifest.key,
        created_at: manifest.created_at,
    })
}
